"""gaba_linear in Triton: two passes over the scores, which are never stored.

What is computed: I, the (K+1)-th largest activation of each sample (the scan of topk_linear); then, with the scores
computed once more by the same code, h = relu(a - g I): all of it, or its non-zero entries, counted and then written.
Work per program: a block of samples and a tile of neurons; in the gradients, a tile of the product or one sum of pairs.
Memory traffic: W once per block of samples and pass; h once. Rows cost a third pass and one host synchronisation.
Determinism: each output has one owner and a fixed order of summation; no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import _triton
from ..topk_linear import triton_kernel as topk
from ..topk_linear.triton_kernel import tile_scores

DENSE, COUNT, FILL = 0, 1, 2


@triton.jit
def _activation_kernel(
    x_ptr, w_ptr, g_ptr, threshold_ptr, value_ptr, index_ptr, start_ptr, batch, inputs, neurons, stride_x, stride_w,
    BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ONE_STEP: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """h of one tile: stored (MODE 0), its non-zero entries counted per sample (1), or written where they belong (2)."""
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
        x, x_ptr, w_ptr, None, None, None, first, tile * BLOCK_R, batch, inputs, neurons, stride_x, stride_w,
        BLOCK_B, BLOCK_R, BLOCK_D, ONE_STEP, True, PRECISION, COMPUTE, INDEX,
    )  # fmt: skip
    threshold = tl.load(threshold_ptr + row, mask=row < batch, other=0.0)
    g = tl.load(g_ptr + column, mask=column < neurons, other=0.0)
    h = a - g[None, :] * threshold[:, None]
    h = tl.where(h <= 0, 0.0, h).to(value_ptr.dtype.element_ty)  # keeps NaN
    inside = (row[:, None] < batch) & (column[None, :] < neurons)
    if MODE == 0:
        tl.store(value_ptr + row[:, None] * neurons + column[None, :], h, mask=inside)
    else:
        active = inside & ~(h.to(tl.float32) <= 0)
        taken = active.to(tl.int32)
        tiles = tl.num_programs(1)
        start_at = start_ptr + row * tiles + tile
        if MODE == 1:
            tl.store(start_at, tl.sum(taken, axis=1).to(tl.int64), mask=row < batch)
        else:
            start = tl.load(start_at, mask=row < batch, other=0)
            end = tl.load(start_at + 1, mask=row < batch, other=0)
            place = start[:, None] + tl.cumsum(taken, axis=1) - 1
            active = active & (place < end[:, None])  # should this pass ever find more, they are nobody's
            tl.store(value_ptr + place, h, mask=active)
            tl.store(index_ptr + place, tl.broadcast_to(column[None, :], (BLOCK_B, BLOCK_R)), mask=active)


@triton.jit
def _masked_product_kernel(
    grad_ptr, h_ptr, b_ptr, out_ptr, many, inner, width, stride_m, stride_k, stride_b,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """out[m, n] = sum over k of (grad[m, k] where h[m, k] > 0 or NaN, else 0) * b[k, n]."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, inner, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        inside = (m[:, None] < many) & (k[None, :] < inner)
        at = m[:, None] * stride_m + k[None, :] * stride_k
        h = tl.load(h_ptr + at, mask=inside, other=0.0)
        grad = tl.load(grad_ptr + at, mask=inside & ~(h.to(tl.float32) <= 0), other=0.0)
        b = tl.load(
            b_ptr + k[:, None] * stride_b + n[None, :], mask=(k[:, None] < inner) & (n[None, :] < width), other=0.0
        )
        acc = tl.dot(grad.to(COMPUTE), b.to(COMPUTE), acc, input_precision=PRECISION)
    out_at = out_ptr + m[:, None] * width + n[None, :]
    tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=(m[:, None] < many) & (n[None, :] < width))


class _Passes:
    """The operands of one call, its thresholds, and the launches of the pass over h that follows."""

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor, k: int) -> None:
        _triton.check_dtype("gaba_linear", x)
        if k > topk.MOST_WINNERS:
            raise ValueError(f"gaba_linear: k={k}: backend='triton' takes 1 to {topk.MOST_WINNERS}")
        self.x, self.weight = _triton.rows_adjacent(x.detach()), _triton.rows_adjacent(weight.detach())
        self.g = g.to(torch.float32).contiguous()
        machine = _triton.machine_of(x.device)
        self.config = topk.scan_config(len(x), x.shape[1], len(weight), k + 1, x.dtype, machine)
        lists = topk.scan(self.x, self.weight, None, None, None, k + 1, True, self.config)
        _, _, self.threshold = topk.merge(*lists, k, k + 1, False, torch.float32, machine)
        self.tiles = triton.cdiv(len(weight), self.config.block_r)

    def run(
        self, mode: int, values: torch.Tensor, indices: torch.Tensor | None = None, starts: torch.Tensor | None = None
    ) -> None:
        """One pass over h; every argument of the scan's tile is the scan's own, so its scores are the same bits.

        No fused operations: the passes that count and that fill are compiled apart, and must round alike.
        """
        config, x, weight = self.config, self.x, self.weight
        _triton.launch(
            _activation_kernel, (triton.cdiv(len(x), config.block_b), self.tiles), x, weight, self.g, self.threshold,
            values, indices, starts, *x.shape, len(weight), _triton.row_stride(x), _triton.row_stride(weight),
            BLOCK_B=config.block_b, BLOCK_R=config.block_r, BLOCK_D=config.block_d, ONE_STEP=config.one_step,
            PRECISION=_triton.dot_precision(x.dtype), COMPUTE=_triton.dot_dtype(x),
            INDEX=_triton.place_dtype(config.block_r, x, weight), MODE=mode, num_warps=config.num_warps,
            num_stages=config.num_stages, fusion=False,
        )  # fmt: skip


def dense(x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As reference.gaba_linear."""
    passes = _Passes(x, weight, g, k)
    h = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    passes.run(DENSE, h)
    return h, passes.threshold.to(x.dtype)


def rows(
    x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, indices, offsets and threshold. Waits for the GPU once: the number of entries is a shape."""
    passes = _Passes(x, weight, g, k)
    batch, tiles, device = len(x), passes.tiles, x.device
    counts = torch.empty(batch, tiles, dtype=torch.int64, device=device)
    passes.run(COUNT, x.new_empty(1), None, counts)
    starts = torch.cat([counts.new_zeros(1), torch.cumsum(counts.flatten(), 0)])
    offsets = starts[::tiles].contiguous()
    total = int(offsets[-1])
    values = torch.empty(total, dtype=x.dtype, device=device)
    indices = torch.empty(total, dtype=torch.int32, device=device)
    passes.run(FILL, values, indices, starts)
    return values, indices, offsets, passes.threshold.to(x.dtype)


def dense_backward(
    grad_h: torch.Tensor, h: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, need_x: bool, need_weight: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As reference.gaba_linear_backward, for the gradients that are needed."""
    grad_h, h = grad_h.contiguous(), h.contiguous()
    (batch, inputs), neurons = x.shape, len(weight)
    x, weight = _triton.rows_adjacent(x), _triton.rows_adjacent(weight)
    grad_x = x.new_empty(batch, inputs) if need_x else x.new_empty(0)
    grad_weight = weight.new_empty(neurons, inputs) if need_weight else weight.new_empty(0)
    if need_x:
        _product(grad_h, h, weight, grad_x, (neurons, 1))
    if need_weight:
        _product(grad_h, h, x, grad_weight, (1, neurons))
    return grad_x, grad_weight


def _product(
    grad: torch.Tensor, h: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor, strides: tuple[int, int]
) -> None:
    """out = the masked gradient (or its transpose, by its strides) times matrix."""
    many, width = out.shape
    block = 16 if min(many, width) <= 16 else 64
    _triton.launch(
        _masked_product_kernel, (triton.cdiv(many, block), triton.cdiv(width, block)), grad, h, matrix, out, many,
        len(matrix), width, *strides, _triton.row_stride(matrix), BLOCK_M=block, BLOCK_N=block, BLOCK_K=32,
        PRECISION=_triton.dot_precision(out.dtype), COMPUTE=_triton.dot_dtype(out), num_warps=4,
    )  # fmt: skip


def rows_backward(
    grad_values: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    need_x: bool,
    need_weight: bool,
    *,
    as_rows: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """grad_x, the active neurons (empty unless as_rows), and the gradient of the weight: dense, or those rows alone.

    `as_rows` waits for the GPU once: how many rows are active decides a shape.
    """
    grad_values, values, indices, offsets = (t.contiguous() for t in (grad_values, values, indices, offsets))
    x, weight = _triton.rows_adjacent(x), _triton.rows_adjacent(weight)
    grad_x = x.new_empty(x.shape if need_x else 0)
    if need_x:
        _triton.gather_sum(grad_values, indices, offsets, weight, grad_x, mask=values)
    neurons, place, grad_weight = torch.empty(0, dtype=torch.int64, device=x.device), None, weight.new_empty(0)
    if need_weight:
        segments = _triton.Segments.of(indices, len(weight), values <= 0)
        if as_rows:
            neurons, place = segments.rows()
        grad_weight = weight.new_zeros(len(neurons) if as_rows else len(weight), weight.shape[1])
        pairs = torch.arange(values.numel(), device=x.device)
        samples = torch.searchsorted(offsets, pairs, right=True) - 1
        _triton.segment_sum(segments, grad_values, samples, x, grad_weight, place=place)
    return grad_x, neurons, grad_weight
