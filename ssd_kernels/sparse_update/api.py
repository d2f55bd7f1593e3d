"""The public function sparse_update_: validation and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._backend import resolve
from .._library import direct
from .._types import Backend
from . import ops


def sparse_update_(
    weight: Tensor,
    rows: Tensor,
    grad_rows: Tensor,
    *,
    lr: float,
    scale: float | Tensor = 1.0,
    max_norm: float | None = None,
    clamp: bool = True,
    renormalise: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """SGD and projection on the touched rows, in place: w - lr * scale * grad, clamped at 0, divided by its norm.

    With plain SGD a row without a gradient does not move, and projecting a projected row changes nothing but
    rounding, so this is the dense step of the SDMLP, at the cost of the touched rows. A row
    whose norm is below 1e-12 (all zeros after the clamp) is divided by 1e-12 instead.

    Args:
        weight: (R, D) float, changed in place. It may require grad; the step is not recorded.
        rows: (M,) int64, strictly ascending, as the indices of a coalesced gradient.
        grad_rows: (M, D) float, the dtype of weight.
        lr: learning rate.
        scale: factor of the gradient, as the coefficient of clipping by the global norm; a number or a tensor of one.
        max_norm: also multiply by min(1, max_norm / (||grad_rows|| + 1e-6)), as clipping by this gradient's own norm;
            the norm is summed in fp64. None: no clipping.
        clamp: clamp the new rows at 0 from below (Dale's principle).
        renormalise: divide each new row by its L2 norm.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        movement: (M,) float64, ||new - old|| of the stored values of each row, renormalisation included; to a relative
            1e-6 where the weight is not float64.

    Raises:
        ValueError: a shape, dtype, device, number or backend that is not allowed; a weight that shares memory with
            itself; rows that are not strictly ascending or out of range (checked on CPUs).
        FloatingPointError: a gradient, or the step times it, is not finite (checked on CPUs; elsewhere it stays in its
            row). Nothing has changed then.

    Examples:
        >>> weight = torch.eye(2)
        >>> sparse_update_(weight, torch.tensor([1]), torch.tensor([[-1.0, 0.0]]), lr=0.5)
        tensor([0.4595], dtype=torch.float64)
    """
    _check(weight, rows, grad_rows)
    if not _checks.finite(lr) or lr < 0:
        raise ValueError(f"lr must be 0 or more and finite, got {lr!r}")
    if max_norm is not None and not (_checks.is_real(max_norm) and max_norm >= 0):
        raise ValueError(f"max_norm must be at least 0, got {max_norm!r}")
    name = resolve(backend, "sparse_update", weight.device)
    if not isinstance(scale, Tensor) and not (_checks.finite(scale) and scale >= 0):
        raise ValueError(f"scale must be 0 or more and finite, got {scale!r}")
    factor, number = (scale, 1.0) if isinstance(scale, Tensor) else (None, float(scale))
    if factor is not None:
        if factor.numel() != 1:
            raise ValueError(f"scale must be a number or a tensor of one element, got {tuple(factor.shape)}")
        factor = factor.detach().to(weight.device)
    options = (float(lr), number, factor, max_norm, clamp, renormalise, name)
    if name == "cpu" and direct(weight, rows, grad_rows, factor):
        return ops.update(weight, rows, grad_rows, *options)
    return torch.ops.ssd_kernels.sparse_update_(weight.detach(), rows, grad_rows.detach(), *options)


def _check(weight: Tensor, rows: Tensor, grad_rows: Tensor) -> None:
    _checks.dense("weight", weight)
    _checks.dense("grad_rows", grad_rows)
    if weight.dim() != 2:
        raise ValueError(f"weight must be floating point (R, D), got {weight.dtype} {tuple(weight.shape)}")
    if _checks.overlaps(weight):
        raise ValueError(f"weight must not share memory with itself, got strides {weight.stride()}")
    _checks.integers("rows", rows, torch.int64, "(M,)")
    wanted = (rows.shape[0], weight.shape[1])
    if grad_rows.shape != wanted or grad_rows.dtype != weight.dtype:
        raise ValueError(f"grad_rows must be {weight.dtype} {wanted}, got {grad_rows.dtype} {tuple(grad_rows.shape)}")
    for name, tensor in (("rows", rows), ("grad_rows", grad_rows)):
        _checks.on_device(name, tensor, weight.device)
