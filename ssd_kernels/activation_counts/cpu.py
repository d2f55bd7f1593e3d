"""Calls the native CPU kernels of activation_counts and top_n: allocates the outputs and passes addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._pointers import DTYPES, adjacent, row_stride


def activation_counts(values: Tensor, indices: Tensor | None, neurons: int) -> Tensor:
    """As reference.activation_counts."""
    native = _native.cpu_module()[0]
    counts = torch.empty(neurons, dtype=torch.int64)
    if indices is None:
        values = adjacent(values)
        native.activation_counts_dense(
            DTYPES[values.dtype], values.shape[0], neurons, values.data_ptr(), row_stride(values), counts.data_ptr(),
            torch.get_num_threads(), _native.simd_level(),
        )  # fmt: skip
    else:
        values, indices = values.contiguous(), indices.contiguous()
        native.activation_counts_sparse(
            DTYPES[values.dtype], values.numel(), neurons, values.data_ptr(), indices.data_ptr(), counts.data_ptr()
        )
    return counts


def top_n(counts: Tensor, n: int) -> Tensor:
    """As reference.top_n."""
    counts = counts.contiguous()
    selected = torch.empty(n, dtype=torch.int64)
    _native.cpu_module()[0].top_n(counts.data_ptr(), counts.shape[0], n, selected.data_ptr())
    return selected
