"""topk_linear: checks its arguments, chooses the backend, calls the op."""

from __future__ import annotations

import torch

from .. import _autocast, _checks
from .._backend import resolve
from .._library import derivative_of_transform, transforms
from .._types import Activation, Backend, Normalize, Precision, TopK
from . import ops as ops  # registers the torch.library operators
from . import reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = ("relu", "none", "abs")
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


def _check_choice(
    x: torch.Tensor,
    neurons: int,
    k: int,
    scale: torch.Tensor | None,
    rows: torch.Tensor | None,
    groups: int,
) -> None:
    if scale is not None:
        if tuple(scale.shape) != (neurons,) or scale.dtype != x.dtype or scale.device != x.device:
            raise ValueError(
                f"topk_linear: scale is {scale.dtype} {tuple(scale.shape)} on {scale.device}: allowed is (R,) = "
                f"({neurons},) of the dtype and device of x"
            )
        if _readable(scale) and not bool(((scale.detach() > 0) & (scale.detach() < float("inf"))).all()):
            raise ValueError("topk_linear: scale has entries that are not > 0 and finite: allowed are positive numbers")
    if rows is not None:
        if rows.dim() != 1 or rows.dtype != torch.int64 or rows.device != x.device:
            raise ValueError(
                f"topk_linear: rows is {rows.dtype} {tuple(rows.shape)} on {rows.device}: allowed is int64 (n,) on the "
                f"device of x, {x.device}"
            )
        if k > len(rows):
            raise ValueError(f"topk_linear: k={k}: allowed are whole numbers from 1 to the {len(rows)} chosen rows")
        if _readable(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= neurons or bool((rows.diff() <= 0).any())):
            raise ValueError(f"topk_linear: rows: allowed are ascending, distinct neurons from 0 to {neurons - 1}")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or neurons % groups or k % groups:
        raise ValueError(f"topk_linear: groups={groups!r}: allowed are divisors of R = {neurons} and of k = {k}")
    if groups > 1 and rows is not None:
        raise ValueError("topk_linear: groups and rows together: allowed is one of them")


def _readable(tensor: torch.Tensor) -> bool:
    """Whether looking at its values costs no synchronisation and is possible at all."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and transforms() is None


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
    scale: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    groups: int = 1,
    backend: Backend = "auto",
) -> TopK:
    """The K largest activations of a linear layer per row, without ever holding all R of them.

    s = scale (x W^T + bias); a = relu(s), or s with activation="none"; the K largest a_j of each row are the winners,
    and the (K+1)-th largest is the threshold I (0 where K = R). With inhibition a winner's value is relu(a_j - I), else
    a_j.

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
        weight: (R, D), the dtype and device of x. The transpose of a contiguous (D, R) tensor is used as it is on a
            CPU, and its gradient has its layout.
        k: winners per row, 1 <= k <= R.
        bias: (R,) or None.
        activation: "relu"; "none"; or "abs": the K largest |s| win, their values keep their sign and all receive their
            gradient, the threshold is the (K+1)-th largest |s|.
        normalize: "none"; "input" divides each row of x by its L2 norm (at least 1e-12); "both" does so with the
            rows of the weight too.
        inhibition: subtract the threshold, the GABA inhibition of the SDMLP at g = 1.
        sparse_grad: give the weight a coalesced sparse COO gradient, (R, D) with one sparse dimension, as
            torch.nn.Embedding does. Not under torch.compile.
        precision: "fp32" gives fp32-grade winners and values whatever the kernel does inside.
        scale: (R,) > 0 or None, differentiable: multiplies the scores, as the norms of a decoder's rows do.
        rows: (n,) int64, ascending, or None: the neurons that take part; indices stay those of weight. n takes the
            place of R. Nothing is gathered on a CPU.
        groups: G divides R and K: of each of G equal parts of the neurons, one after another, the K / G largest win;
            winners come part by part, the threshold is the largest activation that does not win. G = K is GroupMax.
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
    _checks.exportable("topk_linear")
    if sparse_grad:
        _checks.sparse_gradient("topk_linear")
    _one_of("activation", activation, ACTIVATIONS)
    _one_of("normalize", normalize, NORMALIZE)
    _one_of("precision", precision, PRECISIONS)
    for argument, tensor in (("x", x), ("weight", weight), ("bias", bias), ("scale", scale), ("rows", rows)):
        if tensor is not None or argument in ("x", "weight"):
            _checks.strided(f"topk_linear: {argument}", tensor)
    x, weight, bias, scale = _autocast.cast(x, weight, bias, scale)
    _check(x, weight, bias, k)
    _check_choice(x, len(weight), k, scale, rows, groups)
    if inhibition and (activation == "abs" or groups > 1):
        raise ValueError("topk_linear: inhibition=True with activation='abs' or groups: allowed is False")
    name = resolve(backend, "topk_linear", x.device)
    if transform := derivative_of_transform(x, weight, bias, scale):
        if sparse_grad:
            raise ValueError(f"topk_linear: sparse_grad=True under {transform}: allowed is False")
        return TopK(
            *reference.forward(x, weight, bias, k, activation, normalize, bool(inhibition), scale, rows, groups)
        )
    return TopK(
        *torch.ops.ssd_kernels.topk_linear_fwd(
            x, weight, bias, k, activation, normalize, bool(inhibition), bool(sparse_grad), name, scale, rows, groups
        )
    )
