"""threshold_linear and batch_topk_linear in Triton: two passes over the scores, which are never stored.

What is computed: the activations above a threshold, counted per sample and tile, then written where they belong. For
the B K largest of a batch the threshold is a bound from below: the smallest of B K + 1 that the Top-(K+1) of each
sample holds (the scan of topk_linear). What passes it is a few times B K entries; a stable sort keeps the largest.
Work per program: a block of samples and a tile of neurons.
Memory traffic: W once per block of samples and pass, and the entries. One host synchronisation: their number.
Determinism: each output has one owner; no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _triton
from ..topk_linear import triton_kernel as topk
from ..topk_linear.triton_kernel import tile_scores

COUNT, FILL = 1, 2


@triton.jit
def _above_kernel(
    x_ptr, w_ptr, bias_ptr, scale_ptr, threshold_ptr, value_ptr, index_ptr, start_ptr, batch, inputs, neurons,
    stride_x, stride_w, stride_threshold,
    BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ONE_STEP: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """The activations of one tile above their neurons' thresholds: counted per sample (MODE 1), or written (2)."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    row = first + tl.arange(0, BLOCK_B)
    tile = tl.program_id(1)
    column = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    x = tl.zeros((BLOCK_B, BLOCK_D), x_ptr.dtype.element_ty)
    if ONE_STEP:
        x = tl.load(
            x_ptr + row[:, None] * stride_x + d[None, :], mask=(row[:, None] < batch) & (d[None, :] < inputs), other=0.0
        )
    a = tile_scores(
        x, x_ptr, w_ptr, bias_ptr, None, scale_ptr, first, tile * BLOCK_R, batch, inputs, neurons, stride_x, stride_w,
        BLOCK_B, BLOCK_R, BLOCK_D, ONE_STEP, 1, PRECISION, COMPUTE, INDEX,
    )  # fmt: skip
    threshold = tl.load(threshold_ptr + column * stride_threshold, mask=column < neurons, other=0.0)
    stored = a.to(value_ptr.dtype.element_ty)
    inside = (row[:, None] < batch) & (column[None, :] < neurons)
    active = inside & ~(a <= threshold[None, :]) & ~(stored.to(tl.float32) <= 0)  # NaN is active
    taken = active.to(tl.int32)
    start_at = start_ptr + row * tl.num_programs(1) + tile
    if MODE == 1:
        tl.store(start_at, tl.sum(taken, axis=1).to(tl.int64), mask=row < batch)
    else:
        start = tl.load(start_at, mask=row < batch, other=0)
        end = tl.load(start_at + 1, mask=row < batch, other=0)
        place = start[:, None] + tl.cumsum(taken, axis=1) - 1
        active = active & (place < end[:, None])  # should this pass ever find more, they are nobody's
        tl.store(value_ptr + place, stored, mask=active)
        tl.store(index_ptr + place, tl.broadcast_to(column[None, :], (BLOCK_B, BLOCK_R)), mask=active)


def _operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """With adjacent columns; scale and shift as the scan of topk_linear has them."""
    bias = None if bias is None else bias.detach().contiguous()
    if scale is not None:  # s = scale (x . w + b), so the shift is scale b
        scale = scale.detach().float().contiguous()
        bias = None if bias is None else bias.float() * scale
    return _triton.rows_adjacent(x.detach()), _triton.rows_adjacent(weight.detach()), bias, scale


def _above(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, thresholds: Tensor, config: topk.Scan,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Values of `dtype`, indices and offsets. thresholds: (1,) or (R,) fp32. Waits for the GPU once.

    No fused operations: the passes that count and that fill are compiled apart, and must round alike.
    """
    batch, neurons = len(x), len(weight)
    tiles = triton.cdiv(neurons, config.block_r)

    def run(mode: int, values: Tensor, indices: Tensor | None, starts: Tensor) -> None:
        _triton.launch(
            _above_kernel, (triton.cdiv(batch, config.block_b), tiles), x, weight, bias, scale, thresholds, values,
            indices, starts, batch, x.shape[1], neurons, _triton.row_stride(x), _triton.row_stride(weight),
            0 if len(thresholds) == 1 else 1, BLOCK_B=config.block_b, BLOCK_R=config.block_r, BLOCK_D=config.block_d,
            ONE_STEP=config.one_step, PRECISION=_triton.dot_precision(x.dtype), COMPUTE=_triton.dot_dtype(x),
            INDEX=_triton.place_dtype(config.block_r, x, weight), MODE=mode, num_warps=config.num_warps,
            num_stages=config.num_stages, fusion=False,
        )  # fmt: skip

    counts = torch.empty(batch, tiles, dtype=torch.int64, device=x.device)
    run(COUNT, x.new_empty(1, dtype=dtype), None, counts)
    starts = torch.cat([counts.new_zeros(1), torch.cumsum(counts.flatten(), 0)])
    offsets = starts[::tiles].contiguous()
    values = torch.empty(int(offsets[-1]), dtype=dtype, device=x.device)
    indices = torch.empty(len(values), dtype=torch.int32, device=x.device)
    run(FILL, values, indices, starts)
    return values, indices, offsets


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, threshold: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As reference.forward."""
    _triton.check_dtype("threshold_linear", x)
    operands = _operands(x, weight, bias, scale)
    config = topk.scan_config(len(x), x.shape[1], len(weight), 2, x.dtype, _triton.machine_of(x.device))
    thresholds = threshold.detach().float().reshape(-1).contiguous()
    least = threshold.amin().to(x.dtype).expand(len(x)).clone()
    return (*_above(*operands, thresholds, config, x.dtype), least)


def batch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As batch_topk_linear.reference.forward."""
    _triton.check_dtype("batch_topk_linear", x)
    batch, neurons = len(x), len(weight)
    if k >= topk.MOST_WINNERS and k < neurons:
        raise ValueError(f"batch_topk_linear: k={k}: backend='triton' takes 1 to {topk.MOST_WINNERS - 1}, or R")
    if batch == 0:
        return x.new_empty(0), x.new_empty(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), x.new_empty(0)
    operands, machine, wanted = _operands(x, weight, bias, scale), _triton.machine_of(x.device), batch * k
    k1 = min(k + 1, neurons)
    config = topk.scan_config(batch, x.shape[1], neurons, k1, x.dtype, machine)
    low = torch.zeros(1, dtype=torch.float32, device=x.device)
    if wanted < batch * neurons:
        rows, columns, shift, factor = operands
        lists = topk.scan(rows, columns, shift, None, factor, k1, 1, config)
        winners, _, _ = topk.merge(*lists, k1, k1, False, torch.float32, machine)
        bound = torch.sort(winners.flatten(), descending=True).values[wanted : wanted + 1]  # NaN is the largest
        # What equals the bound may be among the B K: it must pass.
        low = torch.where(bound > 0, torch.nextafter(bound, low), low)
        low = torch.where(bound.isnan(), float("inf"), low)
    a, indices, offsets = _above(*operands, low, config, torch.float32)
    order = torch.sort(a, descending=True, stable=True)
    following = order.values[wanted] if len(a) > wanted else a.new_zeros(())
    kept = order.indices[:wanted].sort().values
    values, indices = a[kept].to(x.dtype), indices[kept]
    samples = torch.searchsorted(offsets, kept, right=True) - 1
    some = ~(values <= 0)  # a 16-bit type may round to 0
    values, indices, samples = values[some], indices[some], samples[some]
    offsets = torch.searchsorted(samples, torch.arange(batch + 1, device=x.device))
    return values, indices, offsets, following.to(x.dtype).expand(batch).clone()


def neuron_sums(terms: Tensor, indices: Tensor, neurons: int) -> Tensor:
    """(R,): the terms of each neuron, added in a fixed order."""
    out = torch.zeros(neurons, 1, dtype=torch.float32, device=terms.device)
    terms = terms.float().contiguous()
    if len(terms):
        samples = torch.zeros(len(terms), dtype=torch.int64, device=terms.device)
        _triton.segment_sum(_triton.Segments.of(indices, neurons), terms, samples, None, out)
    return out[:, 0]
