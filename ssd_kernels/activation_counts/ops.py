"""torch.library registration of activation_counts and top_n: schemas and fakes. Neither has a derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from .._library import register
from ..sparse_linear.ops import check_indices
from . import cpu, reference


def _counts(values: Tensor, indices: Tensor | None, neurons: int, backend: str) -> Tensor:
    if backend == "cpu":
        return cpu.activation_counts(values, indices, neurons)
    if indices is not None:
        check_indices(indices, neurons)
    if backend == "triton":
        from . import triton_kernel

        return triton_kernel.activation_counts(values, indices, neurons)
    if backend == "cuda":
        from . import cuda

        return cuda.activation_counts(values, indices, neurons)
    return reference.activation_counts(values, indices, neurons)


def _counts_fake(values, indices, neurons, backend):
    return values.new_empty(neurons, dtype=torch.int64)


def _top_n(counts: Tensor, n: int, backend: str) -> Tensor:
    if backend == "triton":
        from . import triton_kernel

        return triton_kernel.top_n(counts, n)
    if backend == "cuda":
        from . import cuda

        return cuda.top_n(counts, n)
    return cpu.top_n(counts, n) if backend == "cpu" else reference.top_n(counts, n).clone()


def _top_n_fake(counts, n, backend):
    return counts.new_empty(n)


register("activation_counts(Tensor values, Tensor? indices, int neurons, str backend) -> Tensor", _counts, _counts_fake)
register("top_n(Tensor counts, int n, str backend) -> Tensor", _top_n, _top_n_fake)
