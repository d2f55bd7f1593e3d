"""torch.library registration of the SSD loss: schemas, fakes, derivatives.

The forward pass computes the gradients too; the backward pass only scales them. It is given the differentiated input
as well, unused, so that a double backward meets the formula that raises.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .. import _checks
from .._library import register, register_backward
from ..gaba_linear.reference import accumulation_dtype
from . import cpu, reference


def _check_range(name: str, values: Tensor, count: int) -> None:
    """Refuses numbers outside [0, count) where looking costs no synchronisation."""
    if values.device.type == "cpu" and values.numel():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= count:
            raise ValueError(f"{name} must be from 0 to {count - 1}, got {low if low < 0 else high}")


def _check_distinct(name: str, values: Tensor) -> None:
    if values.device.type == "cpu" and torch.unique(values).numel() != values.numel():
        raise ValueError(f"{name} must be distinct")


def _implementation(backend: str) -> ModuleType:
    match backend:
        case "cpu":
            return cpu
        case "triton":
            from . import triton_kernel

            return triton_kernel
        case _:
            return reference


def _logits(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    old_classes: Tensor | None,
    temperature: float,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend != "cpu":  # the native kernels look at labels and units themselves
        _check_range("labels", labels, logits.shape[1])
    if old_classes is not None:
        _check_range("old_classes", old_classes, logits.shape[1])
        _check_distinct("old_classes", old_classes)
    return _implementation(backend).distill_logits(logits, labels, teacher, old_classes, temperature, reverse)


def _logits_fake(logits, labels, teacher, old_classes, temperature, reverse, backend):
    scalar = logits.new_empty((), dtype=accumulation_dtype(logits.dtype))
    grad_kd = logits.new_empty(0 if teacher is None else logits.shape)
    return scalar, torch.empty_like(scalar), logits.new_empty(logits.shape), grad_kd


def _logits_bwd(scale_ce: Tensor, scale_kd: Tensor, grad_ce: Tensor, grad_kd: Tensor, logits: Tensor) -> Tensor:
    grad = grad_ce * scale_ce
    return grad if grad_kd.dim() == 1 else grad.add_(grad_kd * scale_kd)


def _logits_setup(ctx, inputs, output):
    grad_ce, grad_kd = output[2:]
    ctx.mark_non_differentiable(grad_ce, grad_kd)
    ctx.save_for_backward(grad_ce, grad_kd, inputs[0])


def _logits_backward(ctx, scale_ce, scale_kd, *_):
    # The operation is for a graph of the backward pass itself: there it raises. Else two products are all there is.
    run = torch.ops.ssd_kernels.distill_logits_bwd if torch.is_grad_enabled() else _logits_bwd
    return run(scale_ce, scale_kd, *ctx.saved_tensors), None, None, None, None, None, None


def _hidden(
    values: Tensor,
    indices: Tensor | None,
    offsets: Tensor | None,
    teacher_values: Tensor,
    teacher_indices: Tensor | None,
    teacher_offsets: Tensor | None,
    units: Tensor,
    temperature: float,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend != "cpu":
        dense = [v.shape[1] for v, i in ((values, indices), (teacher_values, teacher_indices)) if i is None]
        _check_range("units", units, min(dense, default=2**31))
        _check_distinct("units", units)
    check_contents(values, indices, offsets, teacher_values, teacher_indices, teacher_offsets)
    return _implementation(backend).distill_hidden(
        values, indices, offsets, teacher_values, teacher_indices, teacher_offsets, units, temperature, reverse
    )


def check_contents(values, indices, offsets, teacher_values, teacher_indices, teacher_offsets) -> None:
    """Refuses offsets and indices of sparse activations that lead outside; R is known where one of the two is dense."""
    dense = [v.shape[1] for v, i in ((values, indices), (teacher_values, teacher_indices)) if i is None]
    neurons = min(dense, default=2**31)
    for name, of, at in (("hidden", indices, offsets), ("teacher_hidden", teacher_indices, teacher_offsets)):
        if of is not None:
            _checks.contents(name, of, at, neurons)


def _hidden_fake(values, indices, offsets, t_values, t_indices, t_offsets, units, temperature, reverse, backend):
    kd = values.new_empty((), dtype=accumulation_dtype(values.dtype))
    return kd, values.new_empty((values.shape[0], units.shape[0]) if indices is None else values.shape)


def _hidden_bwd(scale: Tensor, grad: Tensor, units: Tensor, values: Tensor, width: int) -> Tensor:
    if width == 0:
        return grad * scale
    return grad.new_zeros(grad.shape[0], width).index_copy_(1, units, grad * scale)


def _hidden_bwd_fake(scale, grad, units, values, width):
    return grad.new_empty(grad.shape) if width == 0 else grad.new_empty(grad.shape[0], width)


def _hidden_setup(ctx, inputs, output):
    values, indices, units = inputs[0], inputs[1], inputs[6]
    ctx.width = values.shape[1] if indices is None else 0
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], units, values)


def _hidden_backward(ctx, scale, _):
    run = torch.ops.ssd_kernels.distill_hidden_bwd if torch.is_grad_enabled() else _hidden_bwd
    return run(scale, *ctx.saved_tensors, ctx.width), *(None,) * 9


register_backward(
    "distill_logits_bwd(Tensor scale_ce, Tensor scale_kd, Tensor grad_ce, Tensor grad_kd, Tensor logits) -> Tensor",
    _logits_bwd,
    lambda scale_ce, scale_kd, grad_ce, grad_kd, logits: torch.empty_like(grad_ce),
)
register_backward(
    "distill_hidden_bwd(Tensor scale, Tensor grad, Tensor units, Tensor values, int width) -> Tensor",
    _hidden_bwd,
    _hidden_bwd_fake,
)
register(
    "distill_logits(Tensor logits, Tensor labels, Tensor? teacher, Tensor? old_classes, float temperature,"
    " bool reverse, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _logits,
    _logits_fake,
    setup_context=_logits_setup,
    backward=_logits_backward,
)
register(
    "distill_hidden(Tensor values, Tensor? indices, Tensor? offsets, Tensor teacher_values, Tensor? teacher_indices,"
    " Tensor? teacher_offsets, Tensor units, float temperature, bool reverse, str backend) -> (Tensor, Tensor)",
    _hidden,
    _hidden_fake,
    setup_context=_hidden_setup,
    backward=_hidden_backward,
)
