"""torch.library registration of sparse_update_: schema and fake. It changes its weight and has no derivative."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._library import register
from . import cpu, reference

_LONGEST_STEP = 1e38  # beyond it a weight may leave float32


def _check_rows(rows: Tensor, count: int) -> None:
    """Refuses rows that are out of range or not ascending where looking costs no synchronisation."""
    if rows.device.type != "cpu" or rows.numel() == 0:
        return
    if int(rows[0]) < 0 or int(rows[-1]) >= count or bool((rows.diff() <= 0).any()):
        raise ValueError(cpu.BAD_ROWS.format(count - 1))


def _clip(norm: float, max_norm: float | None) -> float:
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))


def update(
    weight: Tensor,
    rows: Tensor,
    grad_rows: Tensor,
    lr: float,
    scale: float,
    factor: Tensor | None,
    max_norm: float | None,
    clamp: bool,
    renormalise: bool,
    backend: str,
) -> Tensor:
    """The operation on real tensors, in place; returns the movement."""
    step = lr * scale
    if factor is not None and factor.device.type == "cpu":
        step *= factor.item()
        if not step >= 0:
            raise ValueError(f"scale must be 0 or more and finite, got {factor.item()}")
    if backend == "cpu":
        return cpu.sparse_update(weight, rows, grad_rows, step, max_norm, clamp, renormalise)
    _check_rows(rows, weight.shape[0])
    if grad_rows.device.type == "cpu" and grad_rows.numel():
        norm = torch.linalg.vector_norm(grad_rows, dtype=torch.float64).item()
        most = torch.finfo(torch.float64).max if weight.dtype == torch.float64 else _LONGEST_STEP
        if not (math.isfinite(norm) and step * norm * _clip(norm, max_norm) <= most):
            raise FloatingPointError(cpu.NOT_FINITE)
    if max_norm is not None:
        clip = reference.clip_coefficient(grad_rows, max_norm)
        factor = clip if factor is None else factor.double().reshape(()) * clip
    if backend == "triton":
        from . import triton_kernel

        return triton_kernel.sparse_update(weight, rows, grad_rows, lr * scale, factor, clamp, renormalise)
    if backend == "cuda":
        from . import cuda

        return cuda.sparse_update(weight, rows, grad_rows, lr * scale, factor, clamp, renormalise)
    step = lr * scale if factor is None else lr * scale * factor.double().reshape(())
    new, movement = reference.sparse_update(weight, rows, grad_rows, step, clamp, renormalise)
    weight.index_copy_(0, rows, new)
    return movement


def _update_fake(weight, rows, grad_rows, lr, scale, factor, max_norm, clamp, renormalise, backend):
    return rows.new_empty(rows.shape, dtype=torch.float64)


register(
    "sparse_update_(Tensor(a!) weight, Tensor rows, Tensor grad_rows, float lr, float scale, Tensor? factor,"
    " float? max_norm, bool clamp, bool renormalise, str backend) -> Tensor",
    update,
    _update_fake,
)
