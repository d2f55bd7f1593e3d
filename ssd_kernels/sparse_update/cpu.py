"""Calls the native CPU kernel of sparse_update_: allocates the output and passes addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._pointers import DTYPES, adjacent, row_stride

BAD_ROWS = "rows must be strictly ascending, from 0 to R - 1 = {}"


def sparse_update(
    weight: Tensor, rows: Tensor, grad_rows: Tensor, step: float, clamp: bool, renormalise: bool
) -> Tensor:
    """As reference.sparse_update, in place; the movement alone is returned."""
    direct = adjacent(weight)
    rows, grad_rows = rows.contiguous(), adjacent(grad_rows)
    movement = torch.empty(rows.shape[0], dtype=torch.float64)
    done = _native.cpu_module()[0].sparse_update(
        DTYPES[weight.dtype], *weight.shape, rows.shape[0], direct.data_ptr(), row_stride(direct), rows.data_ptr(),
        grad_rows.data_ptr(), row_stride(grad_rows), step, clamp, renormalise, movement.data_ptr(),
        torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    if not done:
        raise ValueError(BAD_ROWS.format(weight.shape[0] - 1))
    if direct is not weight:  # columns apart: the update was made on a copy
        weight.index_copy_(0, rows, direct[rows])
    else:
        torch.autograd.graph.increment_version(weight)
    return movement
