"""Calls the native CPU kernel of sparse_update_: allocates the output and passes addresses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _native
from .._pointers import DTYPES, adjacent, row_stride

_DONE, _NOT_FINITE = 0, 3  # ssd::cpu::SparseUpdateResult
NOT_FINITE = "grad_rows, or lr * scale times it, is not finite: weight has not changed"
BAD_ROWS = "rows must be strictly ascending, from 0 to R - 1 = {}"


def sparse_update(
    weight: Tensor,
    rows: Tensor,
    grad_rows: Tensor,
    step: float,
    max_norm: float | None,
    clamp: bool,
    renormalise: bool,
) -> Tensor:
    """As reference.sparse_update, in place; the movement alone is returned. max_norm None: no clipping."""
    (neurons, inputs), count, written = weight.shape, rows.shape[0], weight
    weight_stride = grad_stride = inputs
    if not (weight.is_contiguous() and grad_rows.is_contiguous() and rows.is_contiguous()):
        written, grad_rows, rows = adjacent(weight), adjacent(grad_rows), rows.contiguous()
        weight_stride, grad_stride = row_stride(written), row_stride(grad_rows)
    movement = torch.empty(count, dtype=torch.float64)
    result = _native.cpu_module()[0].sparse_update(
        DTYPES[weight.dtype], neurons, inputs, count, written.data_ptr(), weight_stride, rows.data_ptr(),
        grad_rows.data_ptr(), grad_stride, step, math.inf if max_norm is None else max_norm, clamp, renormalise,
        movement.data_ptr(), torch.get_num_threads(), "",
    )  # fmt: skip
    if result == _NOT_FINITE:
        raise FloatingPointError(NOT_FINITE)
    if result != _DONE:
        raise ValueError(BAD_ROWS.format(neurons - 1))
    if written is not weight:  # columns apart: the update was made on a copy
        weight.index_copy_(0, rows, written[rows])
    else:
        torch.autograd.graph.increment_version(weight)
    return movement
