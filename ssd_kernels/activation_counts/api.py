"""The public functions activation_counts and top_n: validation and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._backend import resolve
from .._types import Backend, Rows, TopK
from . import ops  # noqa: F401  registers the operations


def activation_counts(activations: Tensor | TopK | Rows, neurons: int, *, backend: Backend = "auto") -> Tensor:
    """How often each neuron is active: n_j = number of samples with h_j > 0 (arXiv 2512.15267).

    Args:
        activations: (..., R) float, or TopK, or Rows; entries that are 0, negative or NaN do not count.
        neurons: R.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        (R,) int64.

    Raises:
        ValueError: a shape, dtype or backend that is not allowed.
        IndexError: an index outside [0, R) (checked on CPUs).

    Examples:
        >>> activation_counts(torch.tensor([[0.0, 2.0], [1.0, 3.0]]), 2)
        tensor([1, 2])
    """
    if not _checks.is_integer(neurons) or not 1 <= neurons < 2**31:
        raise ValueError(f"neurons must be at least 1 and below 2**31, got {neurons!r}")
    if isinstance(activations, TopK | Rows):
        _checks.sparse("activations", activations)
        values, indices = activations.values, activations.indices
    else:
        _checks.dense("activations", activations)
        values, indices = activations, None
        if values.dim() < 1 or values.shape[-1] != neurons:
            raise ValueError(f"activations must be (..., R) with R = {neurons}, got {tuple(values.shape)}")
    name = resolve(backend, "activation_counts", values.device)
    values = values.detach()
    if indices is None:
        return torch.ops.ssd_kernels.activation_counts(values.reshape(-1, neurons), None, neurons, name)
    return torch.ops.ssd_kernels.activation_counts(values.reshape(-1), indices.reshape(-1), neurons, name)


def top_n(counts: Tensor, n: int, *, backend: Backend = "auto") -> Tensor:
    """The n most frequent neurons: largest count first, among equal counts the lowest index first.

    Args:
        counts: (R,) int64.
        n: from 0 to R.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        (n,) int64, the set J of selective subnetwork distillation.

    Raises:
        ValueError: a shape, dtype, n or backend that is not allowed.

    Examples:
        >>> top_n(torch.tensor([3, 7, 3, 0]), 3)
        tensor([1, 0, 2])
    """
    _checks.integers("counts", counts, torch.int64, "(R,)")
    if not _checks.is_integer(n) or not 0 <= n <= counts.shape[0]:
        raise ValueError(f"n must be from 0 to R = {counts.shape[0]}, got {n!r}")
    return torch.ops.ssd_kernels.top_n(counts, n, resolve(backend, "activation_counts", counts.device))
