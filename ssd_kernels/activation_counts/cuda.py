"""Calls the CUDA kernels of activation_counts and top_n. Not yet run on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cuda_calls
from .._pointers import DTYPES


def activation_counts(values: Tensor, indices: Tensor | None, neurons: int) -> Tensor:
    """As reference.activation_counts."""
    counts = torch.zeros(neurons, dtype=torch.int64, device=values.device)
    strides = (1, 1)
    if indices is None:
        strides = values.stride()
    else:
        values, indices = values.contiguous(), indices.contiguous()
    _cuda_calls.call(
        "activation_counts", values.device, dtype=DTYPES[values.dtype], neurons=neurons,
        batch=len(values) if indices is None else values.numel(), values=values, row_stride=strides[0],
        column_stride=strides[1], indices=indices, counts=counts,
    )  # fmt: skip
    return counts


def top_n(counts: Tensor, n: int) -> Tensor:
    """As reference.top_n."""
    selected = torch.empty(n, dtype=torch.int64, device=counts.device)
    _cuda_calls.call(
        "top_n", counts.device, neurons=len(counts), n=n, counts=counts, stride=counts.stride(0), selected=selected
    )
    return selected
