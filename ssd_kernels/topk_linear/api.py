"""topk_linear: checks its arguments, chooses the backend, calls the op."""

from __future__ import annotations

import torch

from .. import _autocast
from .._backend import resolve
from .._library import derivative_of_transform
from .._types import Activation, Backend, Normalize, Precision, TopK
from . import ops as ops  # registers the torch.library operators
from . import reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = ("relu", "none")
NORMALIZE = ("none", "input", "both")
PRECISIONS = ("fp32",)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"topk_linear: {name}={value!r}: allowed are {', '.join(allowed)}")


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, k: int) -> None:
    if weight.dim() != 2 or weight.shape[0] < 1 or weight.shape[1] < 1:
        raise ValueError(f"topk_linear: weight has shape {tuple(weight.shape)}: allowed is (R, D), R and D >= 1")
    neurons, inputs = weight.shape
    if neurons >= 2**31:
        raise ValueError(f"topk_linear: weight has R = {neurons} rows: allowed are fewer than 2**31 (int32 indices)")
    if x.dim() < 1 or x.shape[-1] != inputs:
        raise ValueError(
            f"topk_linear: x has shape {tuple(x.shape)}: allowed is (..., D) with D = {inputs} as in weight"
        )
    if bias is not None and tuple(bias.shape) != (neurons,):
        raise ValueError(f"topk_linear: bias has shape {tuple(bias.shape)}: allowed is (R,) = ({neurons},)")
    if x.dtype not in DTYPES:
        raise ValueError(f"topk_linear: x has dtype {x.dtype}: allowed are {', '.join(map(str, DTYPES))}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"topk_linear: {name} has dtype {tensor.dtype}: allowed is that of x, {x.dtype}")
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"topk_linear: {name} is on {tensor.device}: allowed is the device of x, {x.device}")
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise TypeError(f"topk_linear: k={k!r}: allowed are whole numbers from 1 to R = {neurons}")
    if k < 1 or k > neurons:
        raise ValueError(f"topk_linear: k={k}: allowed are whole numbers from 1 to R = {neurons}")


def topk_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    bias: torch.Tensor | None = None,
    *,
    activation: Activation = "relu",
    normalize: Normalize = "none",
    inhibition: bool = False,
    sparse_grad: bool = False,
    precision: Precision = "fp32",
    backend: Backend = "auto",
) -> TopK:
    """The K largest activations of a linear layer per row, without ever holding all R of them.

    s = x W^T + bias; a = relu(s), or s with activation="none"; the K largest a_j of each row are the winners, and the
    (K+1)-th largest is the threshold I (0 where K = R). With inhibition a winner's value is relu(a_j - I), else a_j.

    Ties: the lowest neuron index wins, on every backend and for any number of threads. NaN sorts as the largest
    value. Where fewer than K scores are positive, the remaining slots hold 0 and the lowest indices among the tied
    zeros, as a stable sort gives; they receive no gradient. Scores are accumulated in fp32 (fp64 for fp64 inputs)
    and selected before any rounding to a 16-bit type.

    Gradients: the threshold and the indices are constants. A winner passes its gradient on where its value is
    positive (without activation and inhibition: always); `normalize` is differentiated through. Only active rows of
    the weight have a gradient. torch.func.grad, jacrev, jvp, hessian and forward-mode derivatives are right too; they
    run the specification in plain torch, with all (B, R) scores, whatever the backend.

    Args:
        x: (..., D) float32, float64, bfloat16 or float16; any leading dimensions, any strides.
        weight: (R, D), the dtype and device of x.
        k: winners per row, 1 <= k <= R.
        bias: (R,) or None.
        activation: "relu" or "none".
        normalize: "none"; "input" divides each row of x by its L2 norm (at least 1e-12); "both" does so with the
            rows of the weight too.
        inhibition: subtract the threshold, the GABA inhibition of the SDMLP at g = 1.
        sparse_grad: give the weight a coalesced sparse COO gradient, (R, D) with one sparse dimension, as
            torch.nn.Embedding does. Not under torch.compile.
        precision: "fp32" gives fp32-grade winners and values whatever the kernel does inside.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a name never falls back to another.

    Returns:
        TopK(values (..., K), indices (..., K) int32, threshold (...,)), values in descending order.

    Raises:
        ValueError, TypeError: names the argument, what was given and what is allowed.

    Source: the Top-K step of the SDMLP layer (Bricken et al. 2023, arXiv 2303.11934), with g = 1 where `inhibition`.

    Examples:
        >>> top = topk_linear(torch.eye(3), torch.tensor([[3., 1., 0.], [2., 2., 0.]]), 1)
        >>> top.values.flatten().tolist(), top.indices.flatten().tolist(), top.threshold.tolist()
        ([3.0, 2.0, 0.0], [0, 1, 0], [2.0, 1.0, 0.0])
    """
    _one_of("activation", activation, ACTIVATIONS)
    _one_of("normalize", normalize, NORMALIZE)
    _one_of("precision", precision, PRECISIONS)
    x, weight, bias = _autocast.cast(x, weight, bias)
    _check(x, weight, bias, k)
    name = resolve(backend, "topk_linear", x.device)
    if transform := derivative_of_transform(x, weight, bias):
        if sparse_grad:
            raise ValueError(f"topk_linear: sparse_grad=True under {transform}: allowed is False")
        return TopK(*reference.forward(x, weight, bias, k, activation, normalize, bool(inhibition)))
    return TopK(
        *torch.ops.ssd_kernels.topk_linear_fwd(
            x, weight, bias, k, activation, normalize, bool(inhibition), bool(sparse_grad), name
        )
    )
