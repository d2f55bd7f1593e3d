"""Calls the native CPU kernels of gaba_linear: allocates the outputs and passes addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._pointers import DTYPES, address, adjacent, row_stride


def _operands(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return adjacent(x), adjacent(weight)


def dense(x: Tensor, weight: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As reference.gaba_linear."""
    x, weight, g = *_operands(x, weight), g.contiguous()
    (batch, inputs), neurons = x.shape, weight.shape[0]
    h, threshold = torch.empty(batch, neurons, dtype=x.dtype), torch.empty(batch, dtype=x.dtype)
    _native.cpu_module()[0].gaba_linear_dense(
        DTYPES[x.dtype], batch, inputs, neurons, k, x.data_ptr(), row_stride(x), weight.data_ptr(), row_stride(weight),
        g.data_ptr(), threshold.data_ptr(), h.data_ptr(), torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    return h, threshold


def rows(x: Tensor, weight: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, indices, offsets and threshold; never (B, R) scores."""
    x, weight, g = *_operands(x, weight), g.contiguous()
    (batch, inputs), neurons = x.shape, weight.shape[0]
    offsets, threshold = torch.empty(batch + 1, dtype=torch.int64), torch.empty(batch, dtype=x.dtype)
    found = _native.cpu_module()[0].gaba_linear_rows(
        DTYPES[x.dtype], batch, inputs, neurons, k, x.data_ptr(), row_stride(x), weight.data_ptr(), row_stride(weight),
        g.data_ptr(), threshold.data_ptr(), offsets.data_ptr(), torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    values, indices = torch.empty(found.count, dtype=x.dtype), torch.empty(found.count, dtype=torch.int32)
    found.copy(values.data_ptr(), indices.data_ptr())
    return values, indices, offsets, threshold


def dense_backward(
    grad_h: Tensor, h: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """As reference.gaba_linear_backward, for the gradients that are needed."""
    grad_h, h = grad_h.contiguous(), h.contiguous()
    x, weight = _operands(x, weight)
    grad_x = torch.empty(x.shape if need_x else 0, dtype=x.dtype)
    grad_weight = torch.empty(weight.shape if need_weight else 0, dtype=x.dtype)
    _native.cpu_module()[0].gaba_linear_dense_backward(
        DTYPES[x.dtype], *x.shape, weight.shape[0], grad_h.data_ptr(), h.data_ptr(), x.data_ptr(), row_stride(x),
        weight.data_ptr(), row_stride(weight), address(grad_x if need_x else None),
        address(grad_weight if need_weight else None), torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    return grad_x, grad_weight


def group_by_neuron(dtype: torch.dtype, values: Tensor | None, indices: Tensor, neurons: int, masked: bool):
    """Pairs grouped by neuron, samples ascending: order (P',), active neurons (U,), where each begins (U + 1)."""
    pairs = indices.numel()
    order, rows, starts = (torch.empty(pairs + extra, dtype=torch.int64) for extra in (0, 0, 1))
    active = _native.cpu_module()[0].topk_linear_pairs(
        DTYPES[dtype], pairs, neurons, address(values), indices.data_ptr(), masked, order.data_ptr(), rows.data_ptr(),
        starts.data_ptr(),
    )  # fmt: skip
    return order, rows[:active].clone(), starts  # rows: its own memory, it becomes a gradient's indices


def rows_backward(
    grad_values: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    x: Tensor,
    weight: Tensor,
    need_x: bool,
    need_weight: bool,
    *,
    as_rows: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_x, the active neurons, and the gradient of the weight: dense, or those rows alone."""
    grad_values, values, indices, offsets = (t.contiguous() for t in (grad_values, values, indices, offsets))
    x, weight = _operands(x, weight)
    native = _native.cpu_module()[0]
    by_pairs = as_rows or values.shape[0] <= native.gaba_linear_most_pairs(x.shape[0], weight.shape[0])
    order, neurons, starts = (
        group_by_neuron(x.dtype, values, indices, weight.shape[0], True) if by_pairs else [torch.empty(0)] * 3
    )
    grad_x = torch.empty(x.shape if need_x else 0, dtype=x.dtype)
    shape = (neurons.shape[0], weight.shape[1]) if as_rows else weight.shape
    grad_weight = torch.empty(shape if need_weight else 0, dtype=x.dtype)
    masked = values <= 0
    native.gaba_linear_pairs_backward(
        DTYPES[x.dtype], *x.shape, weight.shape[0], neurons.shape[0], grad_values.data_ptr(), indices.data_ptr(),
        offsets.data_ptr(), masked.data_ptr(), x.data_ptr(), row_stride(x), weight.data_ptr(), row_stride(weight),
        order.data_ptr(), neurons.data_ptr(), starts.data_ptr(), address(grad_x if need_x else None),
        address(grad_weight if need_weight and not as_rows else None), address(grad_weight if as_rows else None),
        not by_pairs, torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    return grad_x, neurons, grad_weight
