"""The specification of batch_topk_linear in plain torch. Its derivative is that of threshold_linear."""

from __future__ import annotations

import torch
from torch import Tensor

from ..threshold_linear.reference import activations, entries


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The B K largest activations of a batch, by a stable sort of all of them, sample after sample.

    Args:
        x: (B, D) float.
        weight: (R, D) float.
        bias: (R,) float or None.
        scale: (R,) float > 0 or None.
        k: 1 <= k <= R.

    Returns:
        values (nnz,), indices (nnz,) int32, offsets (B + 1,) int64, and (B,) the next activation, 0 where K = R.
    """
    a = activations(x, weight, bias, scale)
    wanted = len(x) * k
    ordered, places = torch.sort(a.flatten(), descending=True, stable=True)
    following = ordered[wanted] if wanted < len(ordered) else ordered.new_zeros(())
    keep = torch.zeros(a.numel(), dtype=torch.bool, device=a.device)
    keep[places[:wanted]] = True
    return (*entries(a, keep.reshape(a.shape), x.dtype), following.detach().to(x.dtype).expand(len(x)).clone())
