"""Calls the native CPU kernels of threshold_linear and batch_topk_linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._pointers import DTYPES, address, adjacent, row_stride
from ..sparse_linear.cpu import columns_adjacent


def _operands(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> tuple[tuple, tuple]:
    """What both kernels begin with, and the tensors behind its addresses."""
    x, transposed = adjacent(x.detach()), columns_adjacent(weight)
    weight = weight.detach() if transposed else adjacent(weight.detach())
    bias, scale = (None if t is None else t.detach().contiguous() for t in (bias, scale))
    arguments = (
        DTYPES[x.dtype], *x.shape, len(weight), (x.data_ptr(), row_stride(x)),
        (weight.data_ptr(), weight.stride(1) if transposed else row_stride(weight)), transposed, address(bias),
        address(scale),
    )  # fmt: skip
    return arguments, (x, weight, bias, scale)


def _entries(found: Any, offsets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    values, indices = torch.empty(found.count, dtype=dtype), torch.empty(found.count, dtype=torch.int32)
    found.copy(values.data_ptr(), indices.data_ptr())
    return values, indices, offsets


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, threshold: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As reference.forward; never (B, R) scores."""
    arguments, keep = _operands(x, weight, bias, scale)
    thresholds = threshold.detach().expand(len(weight)).contiguous()
    offsets = torch.empty(len(x) + 1, dtype=torch.int64)
    found = _native.cpu_module()[0].threshold_linear(
        *arguments, thresholds.data_ptr(), offsets.data_ptr(), torch.get_num_threads(), _native.simd_level()
    )
    del keep
    least = threshold.amin().to(x.dtype).expand(len(x)).clone()
    return (*_entries(found, offsets, x.dtype), least)


def batch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As batch_topk_linear.reference.forward; never (B, R) scores."""
    arguments, keep = _operands(x, weight, bias, scale)
    offsets = torch.zeros(len(x) + 1, dtype=torch.int64)
    if len(x) == 0:
        return x.new_empty(0), torch.empty(0, dtype=torch.int32), offsets, x.new_empty(0)
    found, following = _native.cpu_module()[0].batch_topk_linear(
        *arguments, len(x) * k, offsets.data_ptr(), torch.get_num_threads(), _native.simd_level()
    )
    del keep
    threshold = torch.full((len(x),), following, dtype=torch.float64).to(x.dtype)
    return (*_entries(found, offsets, x.dtype), threshold)


def neuron_sums(terms: Tensor, indices: Tensor, neurons: int) -> Tensor:
    """(R,): the terms of each neuron, added in their order in the accumulation dtype."""
    return torch.zeros(neurons, dtype=terms.dtype).index_add_(0, indices.long(), terms)
