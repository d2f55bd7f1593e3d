"""The specification of activation_counts and top_n in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def activation_counts(values: Tensor, indices: Tensor | None, neurons: int) -> Tensor:
    """(neurons,) int64: the number of entries > 0 of each neuron. values is (B, R) where indices is None."""
    if indices is None:
        return (values > 0).sum(0)
    return torch.bincount(indices[values > 0].long(), minlength=neurons)


def top_n(counts: Tensor, n: int) -> Tensor:
    """(n,) int64: the neurons with the largest counts, largest first, among equal counts the lowest index first."""
    return torch.sort(counts, descending=True, stable=True).indices[:n]
