"""The specification of sparse_update_ in plain torch, for any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gaba_linear.reference import accumulation_dtype

SMALLEST_NORM = 1e-12


def clip_coefficient(grad_rows: Tensor, max_norm: float) -> Tensor:
    """min(1, max_norm / (||grad_rows|| + 1e-6)), as torch.nn.utils.clip_grad_norm_ scales; a float64 scalar."""
    return (max_norm / (torch.linalg.vector_norm(grad_rows.double()) + 1e-6)).clamp_max(1.0)


def sparse_update(
    weight: Tensor, rows: Tensor, grad_rows: Tensor, step: float | Tensor, clamp: bool, renormalise: bool
) -> tuple[Tensor, Tensor]:
    """w - step * grad, clamped at 0 from below, divided by max(||w||, 1e-12), on the given rows.

    Returns:
        The new rows (M, D) of weight's dtype, and how far each moved: (M,) float64, between the stored values.
    """
    old = weight[rows]
    dtype = accumulation_dtype(weight.dtype)
    new = old.to(dtype) - torch.as_tensor(step, dtype=torch.float64, device=old.device).to(dtype) * grad_rows.to(dtype)
    if clamp:
        new = torch.relu(new)
    if renormalise:
        norm = torch.linalg.vector_norm(new.double(), dim=1, keepdim=True)
        new = new / norm.clamp_min(SMALLEST_NORM).to(dtype)
    new = new.to(weight.dtype)
    return new, torch.linalg.vector_norm(new.double() - old.double(), dim=1)
