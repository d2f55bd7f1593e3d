"""The specification of the engine: its README's formulas in dense plain torch, for any float dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from .types import EpochStats, NonFiniteStep, QuadraticPenalty, Settings, Teacher, gaba_coefficients


class ReferenceTrainer:
    """One step after another, every neuron scored, every gradient dense, by the formulas of the specification."""

    def __init__(self, weight: Tensor, output_weight: Tensor, counts: Tensor, settings: Settings) -> None:
        self.weight, self.output_weight, self.counts, self.settings = weight, output_weight, counts, settings
        self.velocity = (torch.zeros_like(weight), torch.zeros_like(output_weight)) if settings.momentum else None

    def hidden(self, x: Tensor) -> Tensor:
        """h_j = relu(a_j - g_j I), a = relu(x W^T), I the (K+1)-th largest of a; (B, R)."""
        a = torch.relu(x @ self.weight.t())
        threshold = torch.topk(a, self.settings.k + 1).values[:, -1:]
        g = gaba_coefficients(self.counts, self.settings.gaba_switch).to(a.dtype)
        return torch.relu(a - g * threshold)

    def infer(self, x: Tensor, units: Tensor | None = None) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Logits (N, C), frequencies (R,), and the activations of `units` as values, indices, offsets."""
        h = self.hidden(x)
        frequencies = (h > 0).sum(0)
        keep = torch.zeros(h.shape[1], dtype=torch.bool, device=h.device)
        if units is not None:
            keep[units] = True
        sample, neuron = ((h > 0) & keep).nonzero(as_tuple=True)
        offsets = torch.zeros(x.shape[0] + 1, dtype=torch.int64, device=h.device)
        torch.cumsum(torch.bincount(sample, minlength=x.shape[0]), 0, out=offsets[1:])
        return h @ self.output_weight.t(), frequencies, (h[sample, neuron], neuron.to(torch.int32), offsets)

    def train(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        batch_size: int,
        teacher: Teacher | None,
        penalty: QuadraticPenalty | None,
        should_stop: Callable[[], bool] | None,
    ) -> tuple[EpochStats, BaseException | None]:
        stats, error = EpochStats(), None
        seen = 0
        for batch in order.split(batch_size):
            if should_stop is not None and should_stop():
                break
            try:
                self._step(x[batch], y[batch], batch, teacher, penalty, stats)
            except NonFiniteStep as raised:
                error = raised
                break
            seen += len(batch)
        for name in ("loss", "ce", "kd_hidden", "kd_logits", "active_per_row"):
            setattr(stats, name, getattr(stats, name) / max(seen, 1))
        for name in ("grad_norm", "touched"):
            setattr(stats, name, getattr(stats, name) / max(stats.steps, 1))
        stats.scanned = seen
        return stats, error

    def _step(
        self,
        x: Tensor,
        y: Tensor,
        batch: Tensor,
        teacher: Teacher | None,
        penalty: QuadraticPenalty | None,
        stats: EpochStats,
    ) -> None:
        s = self.settings
        h = self.hidden(x)
        if not torch.isfinite(h).all():
            raise NonFiniteStep("score", stats.steps)
        active = h > 0
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            output_weight = self.output_weight.detach().requires_grad_()
            logits = h @ output_weight.t()
            ce = cross_entropy(logits, y)
            kd_hidden = kd_logits = logits.new_zeros(())
            loss = ce
            if teacher is not None:
                kd_hidden = _divergence(h[:, teacher.units], _dense(teacher, batch).to(h.dtype), s)
                kd_logits = _divergence(logits, teacher.logits[batch].to(h.dtype), s)
                loss = s.alpha * ce + (1 - s.alpha) * (s.lam * kd_hidden + (1 - s.lam) * kd_logits)
            grad_h, grad_output = torch.autograd.grad(loss, (h, output_weight))
        grad_weight = (grad_h * active).t() @ x
        if penalty is not None:
            grad_weight = grad_weight + 2 * penalty.coef * penalty.weight_importance * (
                self.weight - penalty.weight_anchor
            )
            grad_output = grad_output + 2 * penalty.coef * penalty.output_importance * (
                self.output_weight - penalty.output_anchor
            )
        norm = (grad_weight.double().square().sum() + grad_output.double().square().sum()).sqrt().item()
        for what, value in (("loss", loss.item()), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise NonFiniteStep(what, stats.steps)
        self._update(grad_weight, grad_output, min(1.0, s.max_grad_norm / (norm + 1e-6)))
        self.counts += active.sum(0)

        rows = len(batch)
        for name, value in (("loss", loss), ("ce", ce), ("kd_hidden", kd_hidden), ("kd_logits", kd_logits)):
            setattr(stats, name, getattr(stats, name) + value.item() * rows)
        stats.active_per_row += active.sum().item()
        stats.grad_norm += norm
        stats.touched += active.any(0).sum().item()
        stats.steps += 1

    def _update(self, grad_weight: Tensor, grad_output: Tensor, scale: float) -> None:
        """Clip, SGD, and the projection."""
        for index, (parameter, gradient) in enumerate(((self.weight, grad_weight), (self.output_weight, grad_output))):
            gradient = gradient * scale
            if self.velocity is not None:
                gradient = self.velocity[index].mul_(self.settings.momentum).add_(gradient)
            parameter.sub_(self.settings.lr * gradient).clamp_(min=0)
        norm = torch.linalg.vector_norm(self.weight.double(), dim=1, keepdim=True)  # squares may leave fp32
        self.weight.div_(torch.where(norm > 0, norm, torch.ones_like(norm)).to(self.weight.dtype))


def _dense(teacher: Teacher, batch: Tensor) -> Tensor:
    """The teacher's activations on the selected units for some samples; (B, n)."""
    dense = torch.zeros(len(batch), len(teacher.units), dtype=teacher.values.dtype)
    for row, sample in enumerate(batch.tolist()):
        entries = slice(int(teacher.offsets[sample]), int(teacher.offsets[sample + 1]))
        dense[row, torch.searchsorted(teacher.units, teacher.indices[entries].long())] = teacher.values[entries]
    return dense


def _divergence(student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
    """T^2 KL(teacher || student) of the softened outputs, or its reverse; mean over the batch. In float64."""
    p = log_softmax(student.double() / settings.temperature, 1)
    q = log_softmax(teacher.double() / settings.temperature, 1)
    kl = (q.exp() * (q - p)).sum(1) if settings.kl == "forward" else (p.exp() * (p - q)).sum(1)
    return (settings.temperature**2 * kl.mean()).to(student.dtype)
