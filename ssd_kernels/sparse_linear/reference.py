"""The specification of sparse_linear in plain torch, for any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gaba_linear.reference import accumulation_dtype


def sample_of_entry(values: Tensor, offsets: Tensor | None) -> Tensor:
    """(nnz,) int64: which sample each entry belongs to. values is (B, K) where offsets is None, else (nnz,)."""
    if offsets is None:
        return torch.arange(values.shape[0], device=values.device).repeat_interleave(values.shape[1])
    batch = offsets.shape[0] - 1
    return torch.repeat_interleave(torch.arange(batch, device=values.device), offsets.diff())


def sparse_linear(values: Tensor, indices: Tensor, offsets: Tensor | None, weight: Tensor) -> Tensor:
    """y_b = sum over the entries of sample b of value * weight[:, index]. Differentiable.

    Args:
        values: (B, K) float where offsets is None, else (nnz,) float.
        indices: int32 of the same shape.
        offsets: (B + 1,) int64 or None.
        weight: (C, R) float.

    Returns:
        (B, C) float of weight's dtype.
    """
    dtype = accumulation_dtype(weight.dtype)
    sample = sample_of_entry(values, offsets)
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    terms = values.reshape(-1, 1).to(dtype) * weight.to(dtype).t()[indices.reshape(-1).long()]
    out = torch.zeros(batch, weight.shape[0], dtype=dtype, device=weight.device)
    return out.index_add(0, sample, terms).to(weight.dtype)


def sparse_linear_backward(
    grad_y: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """dvalue = dy_b . weight[:, index]; dweight[:, j] = sum over the entries with index j of value * dy_b.

    Args:
        grad_y: (B, C) float.
        values, indices, offsets, weight: as in `sparse_linear`.

    Returns:
        The gradients of values (its shape) and weight (C, R).
    """
    dtype = accumulation_dtype(weight.dtype)
    flat = indices.reshape(-1).long()
    grad_entry = grad_y.to(dtype)[sample_of_entry(values, offsets)]
    grad_values = (grad_entry * weight.to(dtype).t()[flat]).sum(1).reshape(values.shape).to(values.dtype)
    grad_weight = torch.zeros(weight.shape[1], weight.shape[0], dtype=dtype, device=weight.device)
    grad_weight.index_add_(0, flat, grad_entry * values.reshape(-1, 1).to(dtype))
    return grad_values, grad_weight.t().to(weight.dtype)
