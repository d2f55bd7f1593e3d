"""sparse_linear in Triton: gathers of the weight's columns, and their gradients by segments.

What is computed: y_b = sum of value * weight[:, index]; dvalue = dy_b . weight[:, index]; and dweight[:, j] = sum of
value * dy_b over the entries of neuron j.
Work per program: the sums of one sample, of a few entries, of one neuron, over a block of outputs.
Memory traffic: one column of the weight per entry, and dy once per entry; a weight that is the transpose of a
contiguous (R, C) tensor is read in whole lines.
Determinism: every sum has one owner and a fixed order; no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import _triton


@triton.jit
def _entry_dots_kernel(
    grad_ptr, index_ptr, sample_ptr, w_ptr, out_ptr, entries, per_sample, width, stride_grad, stride_row, stride_column,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[entry] = grad[sample of the entry, :] . weight[:, index]."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = entry < entries
    neuron = tl.load(index_ptr + entry, mask=inside, other=0).to(tl.int64)
    sample = entry // per_sample
    if sample_ptr is not None:
        sample = tl.load(sample_ptr + entry, mask=inside, other=0)
    total = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(0, width, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        both = inside[:, None] & (column < width)[None, :]
        grad = tl.load(grad_ptr + sample[:, None] * stride_grad + column[None, :], mask=both, other=0.0)
        w_at = w_ptr + neuron[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column
        w = tl.load(w_at, mask=both, other=0.0)
        total += tl.sum(grad.to(tl.float32) * w.to(tl.float32), axis=1)
    tl.store(out_ptr + entry, total.to(out_ptr.dtype.element_ty), mask=inside)


def _samples(count: int, offsets: torch.Tensor | None) -> torch.Tensor | None:
    """(nnz,) int64, the sample of each entry; None where each sample has K of them. No synchronisation."""
    if offsets is None:
        return None
    return torch.searchsorted(offsets, torch.arange(count, device=offsets.device), right=True) - 1


def entry_dots(
    grad: torch.Tensor, indices: torch.Tensor, samples: torch.Tensor | None, weight: torch.Tensor, out: torch.Tensor
) -> None:
    """out[entry] = grad[sample of the entry, :] . weight[:, index]; entries are (B, K) where `samples` is None."""
    entries, width = indices.numel(), weight.shape[0]
    block_n = min(256, triton.next_power_of_2(width))
    keys = _triton.machine_of(weight.device).keys
    block_p = max(1, min(keys // block_n, triton.next_power_of_2(max(entries, 1))))
    _triton.launch(
        _entry_dots_kernel, (triton.cdiv(entries, block_p),), grad, indices, samples, weight, out, entries,
        1 if samples is not None else indices.shape[-1], width, _triton.row_stride(grad), weight.stride(1),
        weight.stride(0), BLOCK_P=block_p, BLOCK_N=block_n,
    )  # fmt: skip


def forward(
    values: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor | None, weight: torch.Tensor
) -> torch.Tensor:
    """As reference.sparse_linear."""
    _triton.check_dtype("sparse_linear", weight)
    values, indices = values.contiguous(), indices.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    y = torch.empty(batch, weight.shape[0], dtype=weight.dtype, device=weight.device)
    _triton.gather_sum(values, indices, offsets, weight.t(), y)
    return y


def backward(
    grad_y: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    weight: torch.Tensor,
    grad_values: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
) -> None:
    """As reference.sparse_linear_backward, into the tensors given: contiguous values, (C, R) weight of any strides."""
    grad_y, values, indices = _triton.rows_adjacent(grad_y), values.contiguous(), indices.contiguous()
    samples = _samples(values.numel(), offsets)
    if grad_values is not None:
        entry_dots(grad_y, indices, samples, weight, grad_values)
    if grad_weight is not None:
        segments = _triton.Segments.of(indices, weight.shape[1])
        _triton.segment_sum(segments, values, samples, grad_y, grad_weight.zero_().t())
