"""What an SDMLP layer does to its input: relu first, then the norm (arXiv 2303.11934)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks


def normalize_inputs(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Clamps each sample at 0 from below, then divides it by its L2 norm: r = relu(x), r / max(||r||, eps).

    Args:
        x: (..., D) float, one sample per row.
        eps: the smallest norm that is divided by; a sample without a positive entry becomes zeros.

    Returns:
        (..., D) float of the same dtype, each row of norm 1 (or 0). Differentiable.

    Raises:
        ValueError: x has no dimension, is not floating point, or eps is not from 0 (exclusive) to 1e38.

    Examples:
        >>> normalize_inputs(torch.tensor([[3.0, -1.0, 4.0]]))
        tensor([[0.6000, 0.0000, 0.8000]])
    """
    _checks.dense("x", x)
    if x.dim() < 1:
        raise ValueError(f"x must be floating point with at least one dimension, got {x.dtype} {tuple(x.shape)}")
    if not (_checks.finite(eps) and 0 < eps <= 1e38):
        raise ValueError(f"eps must be positive, at most 1e38, got {eps!r}")
    dtype = x.dtype
    x = torch.relu(x if dtype == torch.float64 else x.float())  # in 16 bits eps would be 0, and 0 / 0 NaN
    most, factor = 1e15 if x.dtype == torch.float32 else 1e150, torch.ones((), dtype=x.dtype, device=x.device)
    if x.shape[-1]:  # squares that would overflow: the direction stays, and other rows keep their bits
        largest = x.detach().amax(-1, keepdim=True)
        factor = torch.where(largest > most, largest, factor)
        x = x / factor
    smallest = max(eps, torch.finfo(x.dtype).tiny) / factor
    return (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(smallest)).to(dtype)
