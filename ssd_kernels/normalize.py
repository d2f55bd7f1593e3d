"""What an SDMLP layer does to its input: relu first, then the norm (arXiv 2303.11934)."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize_inputs(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Clamps each sample at 0 from below, then divides it by its L2 norm: r = relu(x), r / max(||r||, eps).

    Args:
        x: (..., D) float, one sample per row.
        eps: the smallest norm that is divided by; a sample without a positive entry becomes zeros.

    Returns:
        (..., D) float of the same dtype, each row of norm 1 (or 0). Differentiable.

    Raises:
        ValueError: x has no dimension, is not floating point, or eps is not positive.

    Examples:
        >>> normalize_inputs(torch.tensor([[3.0, -1.0, 4.0]]))
        tensor([[0.6000, 0.0000, 0.8000]])
    """
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"x must be floating point with at least one dimension, got {x.dtype} {tuple(x.shape)}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    x = torch.relu(x)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(eps)
