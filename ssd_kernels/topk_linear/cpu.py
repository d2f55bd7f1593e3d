"""Calls the native CPU kernels: allocates the outputs and passes addresses."""

from __future__ import annotations

import torch

from .. import _native
from .._pointers import DTYPES, address, adjacent, row_stride
from ..sparse_linear.cpu import columns_adjacent


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    """(..., D) as (B, D) with adjacent columns; a copy only where the layout asks for one."""
    return adjacent(tensor.detach().reshape(-1, tensor.shape[-1]))


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    activation: str,
    normalize: str,
    inhibition: bool,
    scale: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As reference.forward, for one group."""
    lead, rows = x.shape[:-1], _matrix(x)
    transposed = columns_adjacent(weight)
    weight = weight.detach() if transposed else _matrix(weight)
    neurons = len(weight) if chosen is None else len(chosen)
    scale = None if scale is None else scale.detach().contiguous()
    chosen = None if chosen is None else chosen.contiguous()
    bias = None if bias is None else bias.detach().contiguous()
    values = torch.empty(*lead, k, dtype=x.dtype)
    indices = torch.empty(*lead, k, dtype=torch.int32)
    threshold = torch.empty(lead, dtype=x.dtype)
    _native.cpu_module()[0].topk_linear_forward(
        DTYPES[x.dtype], len(rows), rows.shape[1], neurons, k, rows.data_ptr(), row_stride(rows),
        weight.data_ptr(), weight.stride(1) if transposed else row_stride(weight), address(bias), activation == "relu",
        normalize != "none", normalize == "both", inhibition, values.data_ptr(), indices.data_ptr(),
        threshold.data_ptr(), transposed, address(chosen), address(scale), activation == "abs",
        torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    return values, indices, threshold


def backward(
    grad_values: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    activation: str,
    normalize: str,
    inhibition: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    *,
    as_rows: bool,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradients that are needed: of x; the active rows; of the weight, dense or those rows alone; of the bias."""
    transposed = columns_adjacent(weight) and normalize == "none" and not as_rows
    native = _native.cpu_module()[0]
    shape, x, (neurons, inputs) = x.shape, _matrix(x), weight.shape
    weight = weight.detach() if transposed else _matrix(weight)
    k = values.shape[-1]
    grad_values, values, indices = grad_values.detach().contiguous(), values.contiguous(), indices.contiguous()
    dtype, masked, pairs = DTYPES[x.dtype], activation == "relu" or inhibition, values.numel()
    order = torch.empty(pairs, dtype=torch.int64)
    rows = torch.empty(pairs, dtype=torch.int64)
    starts = torch.empty(pairs + 1, dtype=torch.int64)
    active = native.topk_linear_pairs(
        dtype, pairs, neurons, values.data_ptr(), indices.data_ptr(), masked,
        order.data_ptr(), rows.data_ptr(), starts.data_ptr(),
    )  # fmt: skip
    rows = rows[:active].clone()  # its own memory: it becomes a gradient's indices
    grad_x = torch.empty(shape, dtype=x.dtype) if need_x else None
    grad_weight = grad_rows = None
    if need_weight:
        if as_rows:
            grad_rows = torch.empty(active, inputs, dtype=x.dtype)
        else:
            grad_weight = torch.zeros((inputs, neurons) if transposed else (neurons, inputs), dtype=x.dtype)
    grad_bias = torch.zeros(neurons, dtype=x.dtype) if need_bias else None
    native.topk_linear_backward(
        dtype, len(x), inputs, neurons, k, active, grad_values.data_ptr(), x.data_ptr(), row_stride(x),
        weight.data_ptr(), weight.stride(1) if transposed else row_stride(weight), values.data_ptr(),
        indices.data_ptr(), masked, order.data_ptr(), rows.data_ptr(), starts.data_ptr(),
        normalize != "none", normalize == "both", address(grad_x), address(grad_weight), address(grad_rows),
        address(grad_bias), transposed, torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    if grad_weight is not None and transposed:
        grad_weight = grad_weight.t()
    return grad_x, rows, grad_rows if as_rows else grad_weight, grad_bias
