"""Optimisation with row-sparse gradients: only the rows that were active in a batch are read or written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from .sparse_update import sparse_update_

# So many gradient entries at a time are copied to fp64: on a CPU the copy stays in a core's cache.
CHUNK = 1 << 16


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), norm being that of all of them together.

    As torch.nn.utils.clip_grad_norm_, with its arguments in its order, for dense and row-sparse (COO) gradients alike,
    and with powers summed in fp64: sums in fp32 err by 1e-3 at 100 000 x 256 entries. A gradient that is not coalesced
    is coalesced first. On a CPU, gradients below the bound are not touched.

    Args:
        parameters: a tensor or several, on any devices; those without a gradient are ignored.
        max_norm: the largest norm allowed, >= 0.
        norm_type: p of the p-norm: a number > 0, or infinity for the largest magnitude.
        error_if_nonfinite: raise where the norm is NaN or infinite.
        foreach: scale the gradients of a device and dtype together; None and True do, False goes one by one. The
            result is the same.

    Returns:
        The norm before scaling: float64, a tensor without dimensions.

    Raises:
        ValueError: max_norm is negative or NaN, norm_type is not > 0.
        RuntimeError: the norm is not finite and error_if_nonfinite is set; no gradient has changed.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm_(weight, 1.0), weight.grad
        (tensor(5., dtype=torch.float64), tensor([0.6000, 0.8000]))
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm={max_norm}: allowed are numbers >= 0")
    norm_type = float(norm_type)
    if not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: norm_type={norm_type}: allowed are numbers > 0, and inf")
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    entries = [_entries(parameter) for parameter in parameters if parameter.grad is not None]
    if not entries:
        return torch.zeros((), dtype=torch.float64)
    device = entries[0].device
    sums = torch.stack([_power_sum(entry, norm_type).to(device) for entry in entries])
    if norm_type == math.inf:
        norm = sums.amax()
    else:
        norm = sums.sum().sqrt() if norm_type == 2 else sums.sum() ** (1 / norm_type)
    if error_if_nonfinite and not torch.isfinite(norm):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {norm.item()}")
    coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if device.type == "cpu" and coefficient == 1.0:  # elsewhere the comparison would wait for the device
        return norm
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for entry in entries:
        groups.setdefault((entry.device, entry.dtype), []).append(entry)
    for (where, dtype), members in groups.items():
        factor = coefficient.to(device=where, dtype=dtype)
        if foreach is False:
            for entry in members:
                entry.mul_(factor)
        else:
            torch._foreach_mul_(members, factor)
    return norm


def _entries(parameter: Tensor) -> Tensor:
    """The stored entries of a gradient, as a tensor that shares its memory."""
    assert parameter.grad is not None
    if not parameter.grad.is_sparse:
        return parameter.grad
    if not parameter.grad.is_coalesced():
        parameter.grad = parameter.grad.coalesce()
    return parameter.grad._values()


def _power_sum(entries: Tensor, p: float) -> Tensor:
    """The sum of |entry|^p in fp64; the largest |entry| where p is infinite."""
    if entries.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=entries.device)
    if p == math.inf:
        return torch.linalg.vector_norm(entries, ord=p).double()
    flat = entries.reshape(-1) if entries.is_contiguous() else entries.flatten()
    chunk = CHUNK if entries.device.type == "cpu" else len(flat)
    wide, sums = flat.new_empty(min(chunk, len(flat)), dtype=torch.float64), []
    for part in flat.split(chunk):
        copy = wide[: len(part)].copy_(part)
        sums.append(torch.dot(copy, copy) if p == 2 else copy.abs_().pow_(p).sum())
    return torch.stack(sums).sum()


class SparseSGD(torch.optim.Optimizer):
    """Plain SGD, w - lr * grad, on the touched rows alone, with the SDMLP's projection where asked.

    Rows without a gradient do not move under plain SGD, so for row-sparse gradients the result is that of
    torch.optim.SGD; momentum and weight decay would move every row, and are not offered. Dense gradients (a bias, say)
    take the ordinary step. Source: sections 2 and 3 of the SDMLP's training (Bricken et al. 2023, arXiv 2303.11934).

    Args:
        params: parameters or groups; a row-sparse gradient belongs to a matrix (R, D).
        lr: learning rate, >= 0.
        clamp: clamp the moved weights at 0 from below (Dale's principle).
        renormalise: divide each moved row of a matrix by its L2 norm. A dense gradient moves every row.

    Raises:
        ValueError: lr is negative or NaN.

    Examples:
        >>> layer = ssd_kernels.SparseTopKLinear(8, 64, 4, bias=False, sparse_grad=True)
        >>> optimizer = ssd_kernels.SparseSGD(layer.parameters(), lr=0.1)
        >>> layer(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.05,
        *,
        clamp: bool = False,
        renormalise: bool = False,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"SparseSGD: lr={lr}: allowed are numbers >= 0")
        super().__init__(params, {"lr": lr, "clamp": clamp, "renormalise": renormalise})

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; with a closure it evaluates the loss first and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _step(parameter, group["lr"], group["clamp"], group["renormalise"])
        return loss


def _step(weight: Tensor, lr: float, clamp: bool, renormalise: bool) -> None:
    grad = weight.grad
    assert grad is not None
    if grad.is_sparse:
        if grad.sparse_dim() != 1 or grad.dim() != 2:
            raise ValueError(f"SparseSGD: a sparse gradient must be (R, D) with one sparse dimension, got {grad.shape}")
        grad = grad.coalesce()
        sparse_update_(weight, grad._indices()[0], grad._values(), lr=lr, clamp=clamp, renormalise=renormalise)
        return
    weight.add_(grad, alpha=-lr)
    if clamp:
        weight.clamp_(min=0)
    if renormalise and weight.dim() == 2:
        weight.div_(
            torch.linalg.vector_norm(weight, dim=1, keepdim=True, dtype=torch.float64).clamp_min(1e-12).to(weight.dtype)
        )
