"""The SSD loss on plain CPU tensors, past the dispatcher: one node of the autograd graph for the whole loss.

The kernels and the formulas are those of ops.py, which compiled, traced and watched calls go through.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import cpu, ops

Layer = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor]


class Settings(NamedTuple):
    """What a call to distill_loss holds beside the tensors that may be differentiated."""

    labels: Tensor
    teacher: Tensor
    old_classes: Tensor | None
    layers: list[Layer]  # values, indices, offsets; the teacher's; units
    alpha: float
    lam: float
    temperature: float
    reverse: bool


class DirectLoss(torch.autograd.Function):
    """(loss, ce, kd_hidden, kd_logits) of distill_loss with a teacher."""

    @staticmethod
    def forward(ctx, given: Settings, logits: Tensor, *values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if given.old_classes is not None:
            ops._check_range("old_classes", given.old_classes, logits.shape[1])
            ops._check_distinct("old_classes", given.old_classes)
        ce, kd_logits, grad_ce, grad_kd = cpu.distill_logits(
            logits, given.labels, given.teacher, given.old_classes, given.temperature, given.reverse
        )
        kd_hidden, saved = None, []
        for layer in given.layers:
            ops.check_contents(*layer[:6])
            kd, grad = cpu.distill_hidden(*layer, given.temperature, given.reverse)
            kd_hidden = kd if kd_hidden is None else kd_hidden + kd
            saved += grad, layer[6], layer[0]
        if kd_hidden is None:
            kd_hidden = torch.zeros_like(ce)
        rest = 1 - given.alpha
        ctx.weights = given.alpha, rest * given.lam, rest * (1 - given.lam)
        loss = ce * ctx.weights[0]
        loss.add_(kd_hidden, alpha=ctx.weights[1]).add_(kd_logits, alpha=ctx.weights[2])
        ctx.widths = [_width(layer) for layer in given.layers]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_ce, grad_kd, logits, *saved)
        return loss, ce, kd_hidden, kd_logits

    @staticmethod
    def backward(ctx, of_loss: Tensor | None, *of_parts: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        scale_ce, scale_hidden, scale_kd = (
            _scale(of_loss, weight, of_part) for weight, of_part in zip(ctx.weights, of_parts)
        )
        grads: list[Tensor | None] = [None, None]
        if ctx.needs_input_grad[1] and not (scale_ce is None and scale_kd is None):
            grads[1] = _logits_gradient(scale_ce, scale_kd, *tensors[:3])
        for layer, width in enumerate(ctx.widths):
            needed = ctx.needs_input_grad[2 + layer] and scale_hidden is not None
            part = tensors[3 + 3 * layer : 6 + 3 * layer]
            grads.append(_hidden_gradient(scale_hidden, *part, width) if needed else None)
        return tuple(grads)


class DirectHidden(torch.autograd.Function):
    """KD_hidden of one layer."""

    @staticmethod
    def forward(ctx, values: Tensor, layer: Layer, temperature: float, reverse: bool) -> Tensor:
        ops.check_contents(*layer[:6])
        kd, grad = cpu.distill_hidden(*layer, temperature, reverse)
        ctx.width = _width(layer)
        ctx.save_for_backward(grad, layer[6], values)
        return kd

    @staticmethod
    def backward(ctx, of_kd: Tensor) -> tuple[Tensor | None, ...]:
        scale = _scale(of_kd, 1.0, None)
        return _hidden_gradient(scale, *ctx.saved_tensors, ctx.width), None, None, None


def _width(layer: Layer) -> int:
    """R where the student is dense, else 0."""
    return layer[0].shape[1] if layer[1] is None else 0


def _scale(of_loss: Tensor | None, weight: float, of_part: Tensor | None) -> Tensor | float | None:
    """weight * of_loss + of_part, None standing for 0: a number, or a tensor where it has to be differentiable."""
    if not torch.is_grad_enabled():
        of_loss = None if of_loss is None else of_loss.item()
        of_part = None if of_part is None else of_part.item()
    if of_loss is None:
        return of_part
    return of_loss * weight if of_part is None else of_loss * weight + of_part


def _logits_gradient(scale_ce, scale_kd, grad_ce: Tensor, grad_kd: Tensor, logits: Tensor) -> Tensor:
    scale_ce, scale_kd = (0.0 if scale is None else scale for scale in (scale_ce, scale_kd))
    if torch.is_grad_enabled():  # the operation raises where its result is differentiated
        scale_ce, scale_kd = (torch.as_tensor(scale, dtype=grad_ce.dtype) for scale in (scale_ce, scale_kd))
        return torch.ops.ssd_kernels.distill_logits_bwd(scale_ce, scale_kd, grad_ce, grad_kd, logits)
    return (grad_ce * scale_ce).add_(grad_kd, alpha=scale_kd)


def _hidden_gradient(scale, grad: Tensor, units: Tensor, values: Tensor, width: int) -> Tensor:
    run = torch.ops.ssd_kernels.distill_hidden_bwd if torch.is_grad_enabled() else ops._hidden_bwd
    return run(scale, grad, units, values, width)
