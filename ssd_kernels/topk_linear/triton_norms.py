"""The L2 norms of rows in Triton, and the gradient through a division by them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import _triton
from .triton_schedule import row_blocks

EPS = 1e-12  # guards the L2 norms, as in the reference


@triton.jit
def _inverse_norms_kernel(
    m_ptr, out_ptr, rows, columns, stride_m, EPSILON: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """out[i] = 1 / max(||m[i, :]||, eps)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, columns, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        m = tl.load(m_ptr + row[:, None] * stride_m + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(m * m, axis=1)
    norm = tl.sqrt_rn(total)
    tl.store(out_ptr + row, 1.0 / tl.where(norm < EPSILON, EPSILON, norm), mask=row < rows)


def inverse_norms(matrix: torch.Tensor) -> torch.Tensor:
    """1 / max(||row||, eps), (rows,) fp32."""
    rows, columns = matrix.shape
    out = torch.empty(rows, dtype=torch.float32, device=matrix.device)
    block_m, block_n = row_blocks(rows, columns, _triton.machine_of(matrix.device))
    _triton.launch(
        _inverse_norms_kernel, (triton.cdiv(rows, block_m),), matrix, out, rows, columns, _triton.row_stride(matrix),
        EPSILON=EPS, BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip
    return out


@triton.jit
def _through_norm_kernel(
    grad_ptr, m_ptr, row_ptr, scale_ptr, out_ptr, rows, columns, stride_m,
    EPSILON: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of m[row, :], given that of m / max(||m||, eps), which is grad[i, :]; scale is the inverse norm."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = entry
    if row_ptr is not None:
        row = tl.load(row_ptr + entry, mask=entry < rows, other=0)
    scale = tl.load(scale_ptr + row, mask=entry < rows, other=0.0)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, columns, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = (entry < rows)[:, None] & (column < columns)[None, :]
        grad = tl.load(grad_ptr + entry[:, None] * columns + column[None, :], mask=inside, other=0.0)
        m = tl.load(m_ptr + row[:, None] * stride_m + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(m * scale[:, None] * grad, axis=1)
    total = tl.where(scale < 1.0 / EPSILON, total, 0.0)  # a norm below eps was replaced by a constant
    for start in range(0, columns, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = (entry < rows)[:, None] & (column < columns)[None, :]
        grad = tl.load(grad_ptr + entry[:, None] * columns + column[None, :], mask=inside, other=0.0)
        m = tl.load(m_ptr + row[:, None] * stride_m + column[None, :], mask=inside, other=0.0).to(tl.float32)
        out = (grad - total[:, None] * (m * scale[:, None])) * scale[:, None]
        out_at = out_ptr + entry[:, None] * columns + column[None, :]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=inside)


def through_norm(
    grad: torch.Tensor, matrix: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor | None
) -> torch.Tensor:
    out = torch.empty(grad.shape, dtype=matrix.dtype, device=grad.device)
    block_m, block_n = row_blocks(*grad.shape, _triton.machine_of(grad.device))
    _triton.launch(
        _through_norm_kernel, (triton.cdiv(len(grad), block_m),), grad, matrix, rows, scale, out, *grad.shape,
        _triton.row_stride(matrix), EPSILON=EPS, BLOCK_M=block_m, BLOCK_N=block_n, registers=_triton.MOST_REGISTERS,
    )  # fmt: skip
    return out
