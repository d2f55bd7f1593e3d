"""The public function gaba_linear: validation and choice of backend."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from .. import _autocast, _checks
from .._backend import resolve
from .._library import refuse_transforms
from .._types import Backend, Rows
from . import ops  # noqa: F401  registers the operations


@overload
def gaba_linear(
    x: Tensor,
    weight: Tensor,
    k: int,
    g: Tensor,
    *,
    output: Literal["dense"] = "dense",
    sparse_grad: bool = False,
    backend: Backend = "auto",
) -> Tensor: ...
@overload
def gaba_linear(
    x: Tensor,
    weight: Tensor,
    k: int,
    g: Tensor,
    *,
    output: Literal["rows"],
    sparse_grad: bool = False,
    backend: Backend = "auto",
) -> Rows: ...
def gaba_linear(
    x: Tensor,
    weight: Tensor,
    k: int,
    g: Tensor,
    *,
    output: Literal["dense", "rows"] = "dense",
    sparse_grad: bool = False,
    backend: Backend = "auto",
) -> Tensor | Rows:
    """SDMLP layer with GABA inhibition: s = x W^T, a = relu(s), h_j = relu(a_j - g_j I).

    I is the (K+1)-th largest a of the sample and carries no gradient. g = -1 excites every neuron, g = 0 is plain
    relu, g = 1 is exact Top-K with the threshold subtracted (arXiv 2303.11934). x is used as given; see
    `normalize_inputs`. The gradient passes where h > 0 and nowhere else. NaN sorts as largest; a sample with a NaN
    among its K + 1 largest has NaN activations.

    Args:
        x: (..., D) float.
        weight: (R, D) float, the dtype of x.
        k: K, from 1 to R - 1.
        g: (R,) float, usually in [-1, 1]; any float dtype, rounded to the accumulation type; no gradient.
        output: "dense" for h itself, "rows" for its non-zero entries.
        sparse_grad: the gradient of weight is a coalesced COO tensor of the active rows, as nn.Embedding's.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        (..., R) float for "dense". For "rows" a `Rows` over the flattened batch; its values are differentiable.

    Raises:
        ValueError: a shape, dtype, device, k, output or backend that is not allowed.

    Examples:
        >>> x, weight = torch.eye(3), torch.eye(3)
        >>> gaba_linear(x, weight, 1, torch.ones(3))
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """
    _checks.exportable("gaba_linear")
    if sparse_grad:
        _checks.sparse_gradient("gaba_linear")
    for name, tensor in (("x", x), ("weight", weight), ("g", g)):
        _checks.dense(name, tensor)
    x, weight = _autocast.cast(x, weight)
    _check(x, weight, k, g, output)
    refuse_transforms("gaba_linear", x, weight)
    if sparse_grad and torch.compiler.is_compiling():
        raise ValueError("sparse_grad=True cannot be compiled: torch.compile has no sparse gradients; use False")
    name = resolve(backend, "gaba_linear", x.device)
    flat = x.reshape(-1, x.shape[-1])
    g = g.detach().to(torch.float64)
    if output == "rows":
        return Rows(*torch.ops.ssd_kernels.gaba_linear_rows_fwd(flat, weight, g, k, sparse_grad, name))
    h, _ = torch.ops.ssd_kernels.gaba_linear_dense_fwd(flat, weight, g, k, sparse_grad, name)
    return h.reshape(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, k: int, g: Tensor, output: str) -> None:
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"x must be floating point (..., D) with D >= 1, got {x.dtype} {tuple(x.shape)}")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"weight must be (R, D) with D = {x.shape[-1]} as x, got {tuple(weight.shape)}")
    if weight.dtype != x.dtype:
        raise ValueError(f"weight must have the dtype of x, {x.dtype}, got {weight.dtype}")
    if g.dim() != 1 or g.shape[0] != weight.shape[0]:
        raise ValueError(f"g must be floating point (R,) with R = {weight.shape[0]}, got {g.dtype} {tuple(g.shape)}")
    if weight.device != x.device or g.device != x.device:
        raise ValueError(f"weight and g must be on the device of x, {x.device}, got {weight.device} and {g.device}")
    if not _checks.is_integer(k) or k < 1 or k + 1 > weight.shape[0]:
        raise ValueError(f"k must be from 1 to R - 1 = {weight.shape[0] - 1}, got {k!r}")
    if output not in ("dense", "rows"):
        raise ValueError(f"output must be 'dense' or 'rows', got {output!r}")
