"""Calls the CUDA kernel of sparse_update_. Not yet run on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cuda_calls
from .._pointers import DTYPES, adjacent, row_stride


def sparse_update(
    weight: Tensor,
    rows: Tensor,
    grad_rows: Tensor,
    step: float,
    factor: Tensor | None,
    clamp: bool,
    renormalise: bool,
) -> Tensor:
    """As reference.sparse_update with step times factor, in place; the movement alone is returned."""
    written, grad_rows, rows = adjacent(weight), adjacent(grad_rows), rows.contiguous()
    movement = torch.empty(len(rows), dtype=torch.float64, device=weight.device)
    _cuda_calls.call(
        "sparse_update", weight.device, dtype=DTYPES[weight.dtype], inputs=weight.shape[1], rows=len(rows),
        weight=written, weight_stride=row_stride(written), indices=rows, grad=grad_rows,
        grad_stride=row_stride(grad_rows), step=step,
        factor=None if factor is None else factor.to(weight.device, torch.float64).reshape(()), clamp=clamp,
        renormalise=renormalise, movement=movement,
    )  # fmt: skip
    if written is not weight:  # columns apart: the update was made on a copy
        weight.index_copy_(0, rows, written[rows])
    else:
        torch.autograd.graph.increment_version(weight)
    return movement
