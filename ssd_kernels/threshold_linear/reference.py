"""The specification of threshold_linear in plain torch: forward, and the gradient written out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gaba_linear.reference import rows_to_dense
from ..topk_linear.reference import accumulation_dtype


def activations(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """(B, R): relu(scale (x W^T + bias)) in the accumulation dtype."""
    dtype = accumulation_dtype(x.dtype)
    scores = x.to(dtype) @ weight.to(dtype).T
    scores = scores if bias is None else scores + bias.to(dtype)
    return torch.relu(scores if scale is None else scores * scale.to(dtype))


def entries(a: Tensor, keep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices and offsets of the kept activations whose stored value is not 0."""
    keep = keep & ~(a.to(dtype) <= 0)
    offsets = torch.zeros(len(a) + 1, dtype=torch.int64, device=a.device)
    torch.cumsum(keep.sum(1), 0, out=offsets[1:])
    return a[keep].to(dtype), keep.nonzero()[:, 1].to(torch.int32), offsets


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, threshold: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The activations that are not <= their neuron's threshold.

    Args:
        x: (B, D) float.
        weight: (R, D) float.
        bias: (R,) float or None.
        scale: (R,) float > 0 or None.
        threshold: () or (R,) float64 >= 0, rounded to the accumulation dtype.

    Returns:
        values (nnz,), indices (nnz,) int32, offsets (B + 1,) int64, and (B,) the least threshold.
    """
    a = activations(x, weight, bias, scale)
    least = threshold.amin().to(x.dtype).expand(len(x)).clone()
    return (*entries(a, ~(a <= threshold.to(a.dtype)), x.dtype), least)


def backward(
    grad_values: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, x: Tensor, weight: Tensor,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x (B, D), weight (R, D), bias (R,) and scale (R,): every entry passes its own on.

    With z = x W^T + bias and G (B, R) the gradient of z, scale times that of the entries at their places:
    grad_x = G W, grad_W = G^T x, grad_bias = sum over the batch of G, grad_scale = that of z times the entries'.
    """
    dtype, neurons = accumulation_dtype(x.dtype), len(weight)
    grad = rows_to_dense(grad_values.to(dtype), indices, offsets, neurons)
    grad_scale = grad.new_zeros(neurons)
    if scale is not None:
        a = rows_to_dense(values.to(dtype), indices, offsets, neurons)
        grad_scale = (grad * a).sum(0) / scale.to(dtype)
        grad = grad * scale.to(dtype)
    return (
        (grad @ weight.to(dtype)).to(x.dtype),
        (grad.T @ x.to(dtype)).to(x.dtype),
        grad.sum(0).to(x.dtype),
        grad_scale.to(x.dtype),
    )
