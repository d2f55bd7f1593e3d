"""What the callers of native kernels share: dtypes, row strides, addresses."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # ssd::cpu::Dtype


def adjacent(matrix: Tensor) -> Tensor:
    """A matrix whose columns are adjacent: itself, or a copy where its layout is another."""
    return matrix if matrix.shape[1] <= 1 or matrix.stride(1) == 1 else matrix.contiguous()


def row_stride(matrix: Tensor) -> int:
    """The distance of its rows in elements."""
    return matrix.stride(0) if matrix.shape[0] > 1 else matrix.shape[1]


def address(tensor: Tensor | None) -> int:
    """Where its data begin; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
