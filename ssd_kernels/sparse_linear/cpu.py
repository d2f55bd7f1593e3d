"""Calls the native CPU kernels of sparse_linear: allocates the outputs and passes addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._pointers import DTYPES, address


def columns_adjacent(weight: Tensor) -> bool:
    """Whether the columns of the (C, R) weight are contiguous and its rows are not: the transpose of an (R, C) one."""
    return weight.stride(0) == 1 and weight.stride(1) != 1 and weight.shape[0] > 1


def _layout(weight: Tensor) -> tuple[Tensor, int, int]:
    """A weight with contiguous rows or columns, and the strides of its outputs and neurons."""
    if columns_adjacent(weight):
        return weight, 1, weight.stride(1)
    if weight.stride(1) != 1 and weight.shape[1] > 1:
        weight = weight.contiguous()
    # One output: any stride says the same, but 1 would mean contiguous columns.
    return weight, weight.stride(0) if weight.shape[0] > 1 else weight.shape[1] + 1, 1


def _arguments(values: Tensor, indices: Tensor, offsets: Tensor | None, weight: Tensor) -> tuple[tuple, tuple]:
    """What both kernels begin with, and the tensors behind its addresses."""
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    values, indices = values.contiguous(), indices.contiguous()
    if offsets is None:
        offsets = torch.arange(batch + 1) * values.shape[1]
    offsets = offsets.contiguous()
    weight, output_stride, neuron_stride = _layout(weight)
    arguments = (
        DTYPES[values.dtype], batch, *weight.shape, values.numel(), values.data_ptr(), indices.data_ptr(),
        offsets.data_ptr(), weight.data_ptr(), output_stride, neuron_stride,
    )  # fmt: skip
    return arguments, (values, indices, offsets, weight)


def forward(values: Tensor, indices: Tensor, offsets: Tensor | None, weight: Tensor) -> Tensor:
    """As reference.sparse_linear."""
    arguments, keep = _arguments(values, indices, offsets, weight)
    y = torch.empty(arguments[1], weight.shape[0], dtype=weight.dtype)
    _native.cpu_module()[0].sparse_linear_forward(
        *arguments, y.data_ptr(), torch.get_num_threads(), _native.simd_level()
    )
    del keep
    return y


def backward(
    grad_y: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    weight: Tensor,
    grad_values: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """As reference.sparse_linear_backward, into the tensors given."""
    arguments, keep = _arguments(values, indices, offsets, weight)
    grad_y = grad_y.contiguous()
    _native.cpu_module()[0].sparse_linear_backward(
        *arguments, grad_y.data_ptr(), address(grad_values), address(grad_weight), torch.get_num_threads(),
        _native.simd_level(),
    )  # fmt: skip
    del keep
