"""The Triton kernels of activation_counts and top_n.

Dense counts: a program owns a strip of columns of a slab of rows; slabs are added with integer atomics, whose sum is
the same in any order. Traffic: the activations once. Sparse counts: one integer atomic per active entry.

top_n by ranks, exact for any int64 counts: blocks of neurons are sorted, each by counting who comes before whom, then
a neuron's rank among all is its rank in its block plus, for every other block, the number of neurons that come before
it, found by bisection. Work: R (block + R / block log block) comparisons; no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _triton

_STRIP, _SLAB = 64, 32  # columns of a program, rows it reads at once
_ENTRIES = 1024  # sparse entries of a program
_SORTED, _COMPARED = 1024, 8  # neurons of a sorted block, neurons that each is compared with at once


@triton.jit
def _positive(values):
    return values > 0 if values.dtype == tl.float64 else values.to(tl.float32) > 0


@triton.jit
def _count_columns_kernel(
    h_ptr, counts_ptr, B, R, rows_per_program, stride_hb, stride_hr, STRIP: tl.constexpr, SLAB: tl.constexpr
):
    column = tl.program_id(0) * STRIP + tl.arange(0, STRIP)
    first = tl.program_id(1) * rows_per_program
    last = tl.minimum(first + rows_per_program, B)
    total = tl.zeros([STRIP], tl.int32)
    for start in range(first, last, SLAB):
        row = start + tl.arange(0, SLAB)
        inside = (row < last)[:, None] & (column < R)[None, :]
        place = row[:, None].to(tl.int64) * stride_hb + column[None, :].to(tl.int64) * stride_hr
        total += tl.sum(_positive(tl.load(h_ptr + place, mask=inside, other=0.0)).to(tl.int32), 0)
    tl.atomic_add(counts_ptr + column, total.to(tl.int64), mask=(column < R) & (total > 0), sem="relaxed")


@triton.jit
def _count_entries_kernel(values_ptr, indices_ptr, counts_ptr, entries, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    active = _positive(tl.load(values_ptr + at, mask=at < entries, other=0.0))
    neuron = tl.load(indices_ptr + at, mask=active, other=0)
    tl.atomic_add(counts_ptr + neuron, tl.full([BLOCK], 1, tl.int64), mask=active, sem="relaxed")


@triton.jit
def _sort_blocks_kernel(counts_ptr, sorted_ptr, neurons_ptr, R, stride, BLOCK: tl.constexpr, COMPARED: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    neuron = first + tl.arange(0, BLOCK)
    count = tl.load(counts_ptr + neuron * stride, mask=neuron < R, other=-1)
    rank = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tl.minimum(R - first, BLOCK), COMPARED):
        other = first + start + tl.arange(0, COMPARED)
        count_other = tl.load(counts_ptr + other * stride, mask=other < R, other=-1)
        before = (count_other[None, :] > count[:, None]) | (
            (count_other[None, :] == count[:, None]) & (other[None, :] < neuron[:, None])
        )
        rank += tl.sum((before & (other < R)[None, :]).to(tl.int32), 1)
    tl.store(sorted_ptr + first + rank, count, mask=neuron < R)
    tl.store(neurons_ptr + first + rank, neuron, mask=neuron < R)


@triton.jit
def _merge_ranks_kernel(sorted_ptr, neurons_ptr, selected_ptr, R, n, blocks, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    block = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    at = block.to(tl.int64) * BLOCK + place
    inside = (at < R) & (place < n)  # who is not among its block's first n is not among the first n
    count = tl.load(sorted_ptr + at, mask=inside, other=0)
    rank = place.to(tl.int64)
    for other in range(0, blocks):
        start = tl.full([], other, tl.int64) * BLOCK
        low = tl.zeros([BLOCK], tl.int32)
        high = low + tl.minimum(R - start, BLOCK).to(tl.int32)
        for _ in range(STEPS):  # low: how many of the other block come before
            middle = (low + high) // 2
            open_ = low < high
            seen = tl.load(sorted_ptr + start + middle, mask=inside & open_, other=0)
            before = (seen > count) | ((seen == count) & (other < block))
            low = tl.where(open_ & before, middle + 1, low)
            high = tl.where(open_ & ~before, middle, high)
        rank += tl.where(block != other, low, 0)
    winner = inside & (rank < n)
    tl.store(selected_ptr + rank, tl.load(neurons_ptr + at, mask=winner, other=0), mask=winner)


def activation_counts(values: Tensor, indices: Tensor | None, neurons: int) -> Tensor:
    """As reference.activation_counts."""
    counts = torch.zeros(neurons, dtype=torch.int64, device=values.device)
    if indices is not None:
        entries = values.numel()
        _triton.launch(
            _count_entries_kernel, (triton.cdiv(entries, _ENTRIES),),
            values.contiguous(), indices.contiguous(), counts, entries, BLOCK=_ENTRIES,
        )  # fmt: skip
        return counts
    batch = values.shape[0]
    strips = triton.cdiv(neurons, _STRIP)
    wanted = triton.cdiv(4 * _triton.machine_of(values.device).multiprocessors, strips)
    slabs = max(min(wanted, triton.cdiv(batch, _SLAB)), 1)
    rows = triton.cdiv(triton.cdiv(batch, slabs), _SLAB) * _SLAB
    _triton.launch(
        _count_columns_kernel, (strips, triton.cdiv(batch, rows) if batch else 0),
        values, counts, batch, neurons, rows, *values.stride(), STRIP=_STRIP, SLAB=_SLAB,
    )  # fmt: skip
    return counts


def top_n(counts: Tensor, n: int) -> Tensor:
    """As reference.top_n."""
    (neurons,) = counts.shape
    selected = torch.empty(n, dtype=torch.int64, device=counts.device)
    blocks = triton.cdiv(neurons, _SORTED)
    ordered = torch.empty(neurons, dtype=torch.int64, device=counts.device)
    order = torch.empty_like(ordered)
    _triton.launch(
        _sort_blocks_kernel, (blocks,), counts, ordered, order, neurons, counts.stride(0),
        BLOCK=_SORTED, COMPARED=_COMPARED, num_warps=8,
    )  # fmt: skip
    _triton.launch(
        _merge_ranks_kernel, (blocks if n else 0,), ordered, order, selected, neurons, n, blocks,
        BLOCK=_SORTED, STEPS=_SORTED.bit_length(), num_warps=8,
    )  # fmt: skip
    return selected
