"""topk_linear in Triton: scores, selection and merge; never the (B, R) scores in memory.

What is computed: s = x W^T (scaled, shifted, rectified), and per sample the K + 1 largest keys (score, neuron).
Work per program: `_scan_kernel` owns a block of samples and one part of the neurons, `_merge_kernel` a few samples.
Memory traffic: W once per block of samples, x once per part; survivors are a few hundred keys per sample and part.
Determinism: keys are unique and the K + 1 largest are one definite set. Parts, tiles and the order of survivors cannot
change it; no atomics.

It is long because the scan, what shortens its survivors and the merge share one form of keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import _triton, _tuning
from .._triton import key_index, key_score, ordered_key, smallest_of_largest
from ..sparse_linear.triton_kernel import entry_dots
from .triton_norms import inverse_norms
from .triton_schedule import Scan, merge_block, scan_config, scan_configs

NO_KEY = tl.constexpr(-(2**63))
MOST_WINNERS = 128
# Keys that a program prunes at a time: with more, Triton 3.6 spills on sm_80 and sm_90.
_PRUNED = 2048 if _triton.VERSION >= (3, 9) else 512


@triton.jit
def tile_scores(
    x, x_ptr, w_ptr, bias_ptr, x_scale_ptr, w_scale_ptr, first, start, batch, inputs, neurons, stride_x, stride_w,
    BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ONE_STEP: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The activations of samples from `first` and neurons from `start` on, (BLOCK_B, BLOCK_R) fp32.

    `x` is the tile's x where ONE_STEP, else unused. RELU is 1 for relu, 2 for |s|, 0 for s itself. INDEX is the type of
    places in a tile.
    """
    b, r, d = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    rows, columns = (batch - first).to(tl.int32), neurons - start
    w_at = w_ptr + start.to(tl.int64) * stride_w + (r[:, None].to(INDEX) * stride_w + d[None, :])
    acc = tl.zeros((BLOCK_B, BLOCK_R), tl.float32)
    if ONE_STEP:
        w = tl.load(w_at, mask=(r[:, None] < columns) & (d[None, :] < inputs), other=0.0)
        acc = tl.dot(x.to(COMPUTE), w.to(COMPUTE).T, acc, input_precision=PRECISION)
    else:
        x_at = x_ptr + first * stride_x + (b[:, None].to(INDEX) * stride_x + d[None, :])
        for begin in range(0, inputs, BLOCK_D):
            left = inputs - begin
            part = tl.load(x_at + begin, mask=(b[:, None] < rows) & (d[None, :] < left), other=0.0)
            w = tl.load(w_at + begin, mask=(r[:, None] < columns) & (d[None, :] < left), other=0.0)
            acc = tl.dot(part.to(COMPUTE), w.to(COMPUTE).T, acc, input_precision=PRECISION)
    if x_scale_ptr is not None:
        acc *= tl.load(x_scale_ptr + first + b, mask=b < rows, other=0.0)[:, None]
    if w_scale_ptr is not None:
        acc *= tl.load(w_scale_ptr + start + r, mask=r < columns, other=0.0)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + start + r, mask=r < columns, other=0.0).to(tl.float32)[None, :]
    if RELU == 1:
        acc = tl.where(acc <= 0, 0.0, acc)  # keeps NaN
    elif RELU == 2:
        acc = tl.abs(acc)
    return acc


@triton.jit
def _largest(numbers):
    """The largest of a vector that a tile's scores gave, by pairs first: Triton 3.6 cannot reduce it for sm_100."""
    left, right = tl.split(tl.reshape(numbers, (numbers.shape[0] // 2, 2)))
    return tl.max(tl.maximum(left, right), axis=0)


@triton.jit
def _raise_limit(maxima, limit, used, k1):
    """The largest bound that a few halvings find and that K + 1 of a sample's column maxima reach, per row.

    Each column's maximum is the score of another neuron, so K + 1 neurons reach the bound: no smaller score can be
    among the K + 1 largest. The search halves an interval of ordered floats; it stops once at most 2 (K + 1) reach it.
    """
    low = tl.maximum(_order(limit), _order(tl.min(maxima, axis=1)))
    high = _order(tl.max(maxima, axis=1)) + 1
    open_rows = used & (low < high - 1)
    while _largest(open_rows.to(tl.int32)) > 0:
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        bound = (middle ^ ((middle >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        reached = tl.sum((maxima >= bound[:, None]).to(tl.int32), axis=1)
        enough = reached >= k1
        low = tl.where(open_rows & enough, middle, low)
        high = tl.where(open_rows & (reached < k1), middle, high)
        open_rows = open_rows & (low < high - 1) & ((reached < k1) | (reached > 2 * k1))
    return _float(low)


@triton.jit
def _order(score):
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _float(order):
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _prune(
    key_ptr, count_ptr, limit_ptr, rows, k1, BLOCK_B: tl.constexpr, CAPACITY: tl.constexpr, PRUNE_B: tl.constexpr
):
    """Cuts the lists of a block of samples to their K + 1 largest keys, and writes the limits that follow.

    Later neurons lose every tie, so the limit is the float above the smallest score that stays.
    """
    slot = tl.arange(0, CAPACITY)
    for start in range(0, BLOCK_B, PRUNE_B):
        row = start + tl.arange(0, PRUNE_B)
        count = tl.load(count_ptr + row, mask=row < rows, other=0)
        list_ptr = key_ptr + row[:, None] * CAPACITY
        key = tl.load(list_ptr + slot[None, :], mask=slot[None, :] < count[:, None], other=NO_KEY)
        smallest = smallest_of_largest(key, count, k1)
        keep = (slot[None, :] < count[:, None]) & (key >= smallest[:, None])
        tl.debug_barrier()  # every key has been read
        place = tl.cumsum(keep.to(tl.int32), axis=1) - 1
        tl.store(list_ptr + place, key, mask=keep)
        tl.store(count_ptr + row, tl.minimum(count, k1), mask=row < rows)
        above = tl.minimum((smallest >> 32).to(tl.int32) + 1, 0x7F800000)  # infinity where K + 1 scores are NaN
        limit = tl.where(count >= k1, _float(above), float("-inf"))
        tl.store(limit_ptr + row, limit, mask=row < rows)


@triton.jit
def _quarters(tile, BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr):
    """A tile's halves and quarters by bits 4 and 5 of the column: numbers that one thread holds anyway.

    Quarter q holds the columns 64 i + 16 q + (0 to 15). Handling one at a time keeps a thread's registers few.
    """
    tile = tl.reshape(tile, (BLOCK_B, BLOCK_R // 64, 2, 2, 16))
    tile = tl.reshape(tl.permute(tile, (0, 1, 4, 2, 3)), (BLOCK_B, BLOCK_R // 4, 2, 2))
    even, odd = tl.split(tile)
    part0, part2 = tl.split(even)
    part1, part3 = tl.split(odd)
    even = tl.reshape(even, (BLOCK_B, BLOCK_R // 2))
    odd = tl.reshape(odd, (BLOCK_B, BLOCK_R // 2))
    return even, odd, part0, part1, part2, part3


@triton.jit
def _append(
    part, key_ptr, count, limit, rows, start, neurons,
    BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Appends the keys of one quarter of a tile that reach the limit; returns the new counts."""
    row, lane = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_R // 4)
    column = start + (lane // 16) * 64 + lane % 16
    hit = ~(part < limit[:, None]) & (row[:, None] < rows) & (column[None, :] < neurons)
    taken = hit.to(tl.int32)
    place = (row * CAPACITY + count)[:, None] + tl.cumsum(taken, axis=1) - 1
    tl.store(key_ptr + place, ordered_key(part, column[None, :]), mask=hit)
    return count + tl.sum(taken, axis=1)


@triton.jit
def _scan_kernel(
    x_ptr, w_ptr, bias_ptr, x_scale_ptr, w_scale_ptr, key_ptr, count_ptr, limit_ptr,
    batch, inputs, neurons, stride_x, stride_w, k1, tiles,
    BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ONE_STEP: tl.constexpr, RELU: tl.constexpr,
    CAPACITY: tl.constexpr, PRUNE_B: tl.constexpr, GROUPS: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Lists, for BLOCK_B samples and `tiles` tiles of neurons, every key that may be among the K + 1 largest."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    rows = (batch - first).to(tl.int32)  # of the block, and after it
    row, d = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_D)
    part = tl.program_id(1)
    begin = part * tiles * BLOCK_R
    list_of_first = part.to(tl.int64) * batch + first
    key_ptr += list_of_first * CAPACITY
    count_ptr += list_of_first
    limit_ptr += list_of_first
    x = tl.zeros((BLOCK_B, BLOCK_D), x_ptr.dtype.element_ty)
    if ONE_STEP:
        x_at = x_ptr + first * stride_x + (row[:, None].to(INDEX) * stride_x + d[None, :])
        x = tl.load(x_at, mask=(row[:, None] < rows) & (d[None, :] < inputs), other=0.0)
    count = tl.zeros((BLOCK_B,), tl.int32)
    limit = tl.where(row < rows, float("-inf"), float("inf"))
    maxima = tl.full((BLOCK_B, GROUPS), float("-inf"), tl.float32)
    for tile in range(0, tiles):
        start = begin + tile * BLOCK_R
        score = tile_scores(
            x, x_ptr, w_ptr, bias_ptr, x_scale_ptr, w_scale_ptr, first, start, batch, inputs, neurons, stride_x,
            stride_w, BLOCK_B, BLOCK_R, BLOCK_D, ONE_STEP, RELU, PRECISION, COMPUTE, INDEX,
        )  # fmt: skip
        score = tl.where((start + tl.arange(0, BLOCK_R))[None, :] < neurons, score, float("-inf"))
        even, odd, part0, part1, part2, part3 = _quarters(score, BLOCK_B, BLOCK_R)
        if GROUPS > 1:
            if GROUPS == BLOCK_R:
                maxima = tl.maximum(maxima, score)
            elif GROUPS == BLOCK_R // 2:
                maxima = tl.maximum(maxima, tl.maximum(even, odd))
            else:
                maxima = tl.maximum(maxima, tl.maximum(tl.maximum(part0, part1), tl.maximum(part2, part3)))
            if (tile & (tile + 1)) == 0:  # after 1, 2, 4, 8, ... tiles
                limit = _raise_limit(maxima, limit, row < rows, k1)
        hits = tl.sum((~(score < limit[:, None])).to(tl.int32), axis=1)  # NaN passes
        if _largest(hits) > 0:
            if _largest(count + hits) > CAPACITY:
                tl.store(count_ptr + row, count, mask=row < rows)
                tl.debug_barrier()  # counts and keys are visible to every thread of the program
                _prune(key_ptr, count_ptr, limit_ptr, rows, k1, BLOCK_B, CAPACITY, PRUNE_B)
                tl.debug_barrier()
                count = tl.load(count_ptr + row, mask=row < rows, other=0)
                limit = tl.maximum(limit, tl.load(limit_ptr + row, mask=row < rows, other=float("inf")))
            count = _append(part0, key_ptr, count, limit, rows, start, neurons, BLOCK_B, BLOCK_R, CAPACITY)
            count = _append(part1, key_ptr, count, limit, rows, start + 16, neurons, BLOCK_B, BLOCK_R, CAPACITY)
            count = _append(part2, key_ptr, count, limit, rows, start + 32, neurons, BLOCK_B, BLOCK_R, CAPACITY)
            count = _append(part3, key_ptr, count, limit, rows, start + 48, neurons, BLOCK_B, BLOCK_R, CAPACITY)
    tl.store(count_ptr + row, count, mask=row < rows)


@triton.jit
def _largest_keys(
    key_ptr, count_ptr, row, batch, first, last, capacity, k1, scratch_ptr, WIDTH: tl.constexpr, SLOTS: tl.constexpr
):
    """The K + 1 largest keys of the lists `first` to `last` - 1 of each sample, unordered, written to scratch.

    `scratch_ptr` holds one address per sample. Returns how many keys each sample has there.
    """
    lane = tl.arange(0, WIDTH)
    which, slot = (first + lane // SLOTS)[None, :], (lane % SLOTS)[None, :]
    entry = which.to(tl.int64) * batch + row[:, None]
    inside = (which < last) & (row[:, None] < batch)
    used = slot < tl.load(count_ptr + entry, mask=inside, other=0)
    key = tl.load(key_ptr + entry * capacity + slot, mask=used, other=NO_KEY)
    total = tl.sum(used.to(tl.int32), axis=1)
    smallest = smallest_of_largest(key, total, k1)
    keep = used & (key >= smallest[:, None])
    place = tl.cumsum(keep.to(tl.int32), axis=1) - 1
    tl.store(scratch_ptr[:, None] + place, key, mask=keep)
    return tl.minimum(total, k1)


@triton.jit
def _shorten_kernel(
    key_ptr, count_ptr, out_ptr, out_count_ptr, batch, lists, capacity, k1,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, KEEP: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Every GROUP lists of a sample become one, of its K + 1 largest keys."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    group = tl.program_id(1)
    entry = group.to(tl.int64) * batch + row
    last = tl.minimum(lists, (group + 1) * GROUP)
    total = _largest_keys(
        key_ptr, count_ptr, row, batch, group * GROUP, last, capacity, k1, out_ptr + entry * KEEP, WIDTH, SLOTS
    )
    tl.store(out_count_ptr + entry, total, mask=row < batch)


@triton.jit
def _merge_kernel(
    key_ptr, count_ptr, scratch_ptr, value_ptr, index_ptr, threshold_ptr, batch, lists, capacity, k, k1,
    INHIBITION: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, KEEP: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The winners of BLOCK_B samples in their order, and the thresholds: 0 where there is no (K+1)-th."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    scratch = scratch_ptr + row * KEEP
    total = _largest_keys(key_ptr, count_ptr, row, batch, 0, lists, capacity, k1, scratch, WIDTH, SLOTS)
    tl.debug_barrier()  # the keys are visible to every thread of the program
    lane = tl.arange(0, KEEP)[None, :]
    found = lane < total[:, None]
    key = tl.load(scratch[:, None] + lane, mask=found, other=NO_KEY)
    rank = tl.zeros((BLOCK_B, KEEP), tl.int32)  # of each key: how many are larger
    for start in range(0, k1, 16):
        other = start + tl.arange(0, 16)[None, :]
        against = tl.load(scratch[:, None] + other, mask=other < total[:, None], other=NO_KEY)
        rank += tl.sum((against[:, None, :] > key[:, :, None]).to(tl.int32), axis=2)
    score = key_score(key)
    threshold = tl.sum(tl.where((rank == k) & found, score, 0.0), axis=1)
    value = score
    if INHIBITION:
        value = score - threshold[:, None]
        value = tl.where(value <= 0, 0.0, value)  # keeps NaN
    out = value_ptr.dtype.element_ty
    winner = (rank < k) & found
    tl.store(value_ptr + row[:, None] * k + rank, value.to(out), mask=winner)
    tl.store(index_ptr + row[:, None] * k + rank, key_index(key), mask=winner)
    tl.store(threshold_ptr + row, threshold.to(out), mask=row < batch)


# ---- Launches.
def scan(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None, k1: int, relu: int, config: Scan,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The survivors of each part: keys (parts, B, capacity) int64 and counts (parts, B) int32."""
    batch, (neurons, inputs) = len(x), weight.shape
    keys = torch.empty(config.parts, batch, config.capacity, dtype=torch.int64, device=x.device)
    counts = torch.empty(config.parts, batch, dtype=torch.int32, device=x.device)
    limits = torch.empty(config.parts, batch, dtype=torch.float32, device=x.device)
    _triton.launch(
        _scan_kernel, (triton.cdiv(batch, config.block_b), config.parts), x, weight, bias, x_scale, w_scale, keys,
        counts, limits, batch, inputs, neurons, _triton.row_stride(x), _triton.row_stride(weight), k1, config.tiles,
        BLOCK_B=config.block_b, BLOCK_R=config.block_r, BLOCK_D=config.block_d, ONE_STEP=config.one_step, RELU=relu,
        CAPACITY=config.capacity, PRUNE_B=min(config.block_b, max(1, _PRUNED // config.capacity)),
        GROUPS=config.groups, PRECISION=_triton.dot_precision(x.dtype), COMPUTE=_triton.dot_dtype(x),
        INDEX=_triton.place_dtype(config.block_r, x, weight), num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return keys, counts


def shorten(
    keys: torch.Tensor, counts: torch.Tensor, k1: int, machine: _triton.Machine
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same largest K + 1 keys in fewer, shorter lists, until one program can hold those of a sample."""
    keep = triton.next_power_of_2(k1)
    while keys.shape[0] > 1 and keys.shape[0] * triton.next_power_of_2(keys.shape[2]) > machine.keys:
        lists, batch, capacity = keys.shape
        group = max(2, machine.keys // capacity)
        width, groups = group * capacity, triton.cdiv(lists, group)
        block_b = merge_block(batch, width, machine)
        out = torch.empty(groups, batch, keep, dtype=torch.int64, device=keys.device)
        out_counts = torch.empty(groups, batch, dtype=torch.int32, device=keys.device)
        _triton.launch(
            _shorten_kernel, (triton.cdiv(batch, block_b), groups), keys, counts, out, out_counts, batch, lists,
            capacity, k1, GROUP=group, WIDTH=width, SLOTS=capacity, KEEP=keep, BLOCK_B=block_b, num_warps=8,
        )  # fmt: skip
        keys, counts = out, out_counts
    return keys, counts


def merge(
    keys: torch.Tensor, counts: torch.Tensor, k: int, k1: int, inhibition: bool, dtype: torch.dtype,
    machine: _triton.Machine,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Values (B, K), indices (B, K) int32 and threshold (B,) of the survivors."""
    keys, counts = shorten(keys, counts, k1, machine)
    lists, batch, capacity = keys.shape
    keep = triton.next_power_of_2(k1)
    scratch = torch.empty(batch, keep, dtype=torch.int64, device=keys.device)
    values = torch.empty(batch, k, dtype=dtype, device=keys.device)
    indices = torch.empty(batch, k, dtype=torch.int32, device=keys.device)
    threshold = torch.empty(batch, dtype=dtype, device=keys.device)
    width = triton.next_power_of_2(lists) * capacity
    block_b = merge_block(batch, width, machine)
    _triton.launch(
        _merge_kernel, (triton.cdiv(batch, block_b),), keys, counts, scratch, values, indices, threshold, batch, lists,
        capacity, k, k1, INHIBITION=inhibition, WIDTH=width, SLOTS=capacity, KEEP=keep, BLOCK_B=block_b, num_warps=8,
    )  # fmt: skip
    return values, indices, threshold


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
    """As reference.forward, for one group. The chosen rows of the weight are gathered, a transposed one is copied."""
    _triton.check_dtype("topk_linear", x)
    if k > MOST_WINNERS:
        raise ValueError(f"topk_linear: k={k}: backend='triton' takes 1 to {MOST_WINNERS}")
    if chosen is not None:
        weight = weight.detach()[chosen]
        bias, scale = (None if t is None else t.detach()[chosen] for t in (bias, scale))
    lead, neurons = x.shape[:-1], len(weight)
    rows, weight = _triton.rows_adjacent(x.detach().reshape(-1, x.shape[-1])), _triton.rows_adjacent(weight.detach())
    bias = None if bias is None else bias.detach().contiguous()
    w_scale = inverse_norms(weight) if normalize == "both" else None
    if scale is not None:  # s = scale (x . w + b), so the shift is scale b
        factor = scale.detach().float()
        w_scale = factor.contiguous() if w_scale is None else w_scale * factor
        bias = None if bias is None else bias.float() * factor
    k1 = min(k + 1, neurons)
    machine = _triton.machine_of(x.device)
    shape = len(rows), rows.shape[1], neurons, k1, x.dtype, machine
    operands = (
        rows, weight, bias, inverse_norms(rows) if normalize != "none" else None,
        w_scale, k1, {"none": 0, "relu": 1, "abs": 2}[activation],
    )  # fmt: skip
    config = scan_config(*shape)
    if _tuning.requested() and x.device.type != "meta" and len(rows):
        key = ("topk_linear", *shape, x.device, activation, normalize, bias is None)
        config = _tuning.fastest(key, scan_configs(*shape), lambda chosen: scan(*operands, chosen), x.device)
    keys, counts = scan(*operands, config)
    values, indices, threshold = merge(keys, counts, k, k1, inhibition, x.dtype, machine)
    if activation == "abs":
        values = _signed(values, indices, rows, weight, bias, w_scale)
    if chosen is not None:
        indices = chosen[indices.long()].to(torch.int32)
    return values.reshape(*lead, k), indices.reshape(*lead, k), threshold.reshape(lead)


def _signed(
    values: torch.Tensor, indices: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    w_scale: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """The magnitudes with the signs of their scores: K dot products per sample."""
    dots = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    entry_dots(x, indices, None, weight.t(), dots)
    at = indices.long()
    if w_scale is not None:
        dots *= w_scale[at]
    if bias is not None:
        dots += bias[at].float()
    return torch.where(dots < 0, -values, values)
