"""The Triton kernel of sparse_update_: gradient step, clamp, norm, renormalisation and movement in one pass.

Work per program: a few touched rows; each row is read once and written once, and its gradient read once: 3 D numbers a
row, which is all the traffic there is. A row wider than one block is read again for its norm and its movement, from
cache. Determinism: a row has one owner, and its sums have a fixed order; no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _triton
from .reference import SMALLEST_NORM

_NORM = tl.constexpr(SMALLEST_NORM)
_WIDEST_BLOCK = 2048  # numbers of a row in registers at once
_TILE = 1024  # numbers of one program, where rows are short


@triton.jit
def _stepped(weight_ptr, grad_ptr, factor, inside, CLAMP: tl.constexpr, ACC: tl.constexpr):
    """The stored rows, and w - factor * grad, clamped at 0 from below, both in the accumulation type."""
    old = tl.load(weight_ptr, mask=inside, other=0.0).to(ACC)
    new = old - factor * tl.load(grad_ptr, mask=inside, other=0.0).to(ACC)
    if CLAMP:
        new = tl.where(new <= 0, 0.0, new)  # NaN stays
    return old, new


@triton.jit
def _divided(new, norm, RENORMALISE: tl.constexpr):
    if RENORMALISE:  # fp64 is divided exactly by itself
        new = tl.div_rn(new, tl.broadcast_to(norm, new.shape)) if new.dtype == tl.float32 else new / norm
    return new


@triton.jit
def _guarded_norm(squares, ACC: tl.constexpr):
    norm = tl.sqrt(squares)
    return tl.where(norm < _NORM, _NORM, norm).to(ACC)[:, None]


# Long because a row's passes share its registers, and Triton wants a line per argument.
@triton.jit
def _sparse_update_kernel(
    weight_ptr,
    rows_ptr,
    grad_ptr,
    movement_ptr,
    factor_ptr,
    M,
    D,
    step_high,
    step_low,
    stride_wr,
    stride_wd,
    stride_gm,
    stride_gd,
    CLAMP: tl.constexpr,
    RENORMALISE: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,  # BLOCK_D holds a whole row
):
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows_ptr + m, mask=m < M, other=0)
    # Arguments are fp32; the sum of two has 48 bits.
    step = tl.full([], step_high, tl.float64) + tl.full([], step_low, tl.float64)
    if factor_ptr is not None:
        step = step * tl.load(factor_ptr).to(tl.float64)
    factor = step.to(ACC)
    column = tl.arange(0, BLOCK_D)
    weight_row = weight_ptr + row[:, None] * stride_wr
    grad_row = grad_ptr + m[:, None] * stride_gm
    if WHOLE:
        inside = (m < M)[:, None] & (column < D)[None, :]
        place = weight_row + column[None, :].to(tl.int64) * stride_wd
        gradient = grad_row + column[None, :].to(tl.int64) * stride_gd
        old, new = _stepped(place, gradient, factor, inside, CLAMP, ACC)
        norm = _guarded_norm(tl.sum(new.to(tl.float64) * new.to(tl.float64), 1), ACC)
        stored = _divided(new, norm, RENORMALISE).to(weight_ptr.dtype.element_ty)
        tl.store(place, stored, mask=inside)
        moved = tl.where(inside, stored.to(ACC).to(tl.float64) - old.to(tl.float64), 0.0)
        squares = tl.sum(moved * moved, 1)
    else:
        squares = tl.zeros([ROWS], tl.float64)
        if RENORMALISE:
            for start in range(0, D, BLOCK_D):
                inside = (m < M)[:, None] & (start + column < D)[None, :]
                place = weight_row + (start + column)[None, :].to(tl.int64) * stride_wd
                gradient = grad_row + (start + column)[None, :].to(tl.int64) * stride_gd
                old, new = _stepped(place, gradient, factor, inside, CLAMP, ACC)
                squares += tl.sum(new.to(tl.float64) * new.to(tl.float64), 1)
        norm = _guarded_norm(squares, ACC)
        squares = tl.zeros([ROWS], tl.float64)
        for start in range(0, D, BLOCK_D):
            inside = (m < M)[:, None] & (start + column < D)[None, :]
            place = weight_row + (start + column)[None, :].to(tl.int64) * stride_wd
            gradient = grad_row + (start + column)[None, :].to(tl.int64) * stride_gd
            old, new = _stepped(place, gradient, factor, inside, CLAMP, ACC)
            stored = _divided(new, norm, RENORMALISE).to(weight_ptr.dtype.element_ty)
            tl.store(place, stored, mask=inside)
            moved = tl.where(inside, stored.to(ACC).to(tl.float64) - old.to(tl.float64), 0.0)
            squares += tl.sum(moved * moved, 1)
    tl.store(movement_ptr + m, tl.sqrt(squares), mask=m < M)


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
    (count,), inputs = rows.shape, weight.shape[1]
    movement = torch.empty(count, dtype=torch.float64, device=rows.device)
    block = min(triton.next_power_of_2(max(inputs, 1)), _WIDEST_BLOCK)
    tile_rows = max(_TILE // block, 1) if count > _triton.machine_of(weight.device).multiprocessors else 1
    high, low = _triton.split_double(step)
    _triton.launch(
        _sparse_update_kernel, (triton.cdiv(count, tile_rows),),
        weight, rows.contiguous(), grad_rows, movement, factor, count, inputs, high, low,
        *weight.stride(), *grad_rows.stride(),
        CLAMP=clamp, RENORMALISE=renormalise, ACC=tl.float64 if weight.dtype == torch.float64 else tl.float32,
        ROWS=tile_rows, BLOCK_D=block, WHOLE=block >= inputs, num_warps=4 if tile_rows * block >= 512 else 1,
    )  # fmt: skip
    torch.autograd.graph.increment_version(weight)
    return movement
