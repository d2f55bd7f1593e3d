"""The public function sparse_update_: validation and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

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
        ValueError: a shape, dtype, device or backend that is not allowed; rows that are not strictly ascending or
            out of range (checked on CPUs).

    Examples:
        >>> weight = torch.eye(2)
        >>> sparse_update_(weight, torch.tensor([1]), torch.tensor([[-1.0, 0.0]]), lr=0.5)
        tensor([0.4595], dtype=torch.float64)
    """
    _check(weight, rows, grad_rows)
    if max_norm is not None and not max_norm >= 0:
        raise ValueError(f"max_norm must be at least 0, got {max_norm}")
    name = resolve(backend, "sparse_update", weight.device)
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
    shape, dtype, device = weight.shape, weight.dtype, weight.device
    if len(shape) != 2 or not dtype.is_floating_point:
        raise ValueError(f"weight must be floating point (R, D), got {dtype} {tuple(shape)}")
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise ValueError(f"rows must be int64 (M,), got {rows.dtype} {tuple(rows.shape)}")
    if grad_rows.shape != (rows.shape[0], shape[1]) or grad_rows.dtype != dtype:
        raise ValueError(
            f"grad_rows must be {dtype} {(rows.shape[0], shape[1])}, got {grad_rows.dtype} {tuple(grad_rows.shape)}"
        )
    if rows.device != device or grad_rows.device != device:
        raise ValueError(
            f"rows and grad_rows must be on the device of weight, {device}, got {rows.device} and {grad_rows.device}"
        )
