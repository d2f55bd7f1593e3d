"""The training step of today's code, in eager torch: the baseline of every ratio that the engine quotes.

Per step: the teacher's forward, the student's forward (relu, topk(K + 1), inhibition), cross-entropy, hidden and logit
distillation, autograd, clip_grad_norm_, SGD, and the projection of all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax


class EagerSDMLP(torch.nn.Module):
    """SDMLP with one hidden layer, every neuron scored and every gradient dense."""

    def __init__(self, weight: Tensor, output_weight: Tensor, counts: Tensor, k: int, gaba_switch: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())
        self.output_weight = torch.nn.Parameter(output_weight.clone())
        self.register_buffer("counts", counts.clone())
        self.k, self.gaba_switch = k, gaba_switch

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(x @ self.weight.t())
        threshold = torch.topk(a.detach(), self.k + 1, dim=1).values[:, -1:]
        g = (-1 + 2 * self.counts / self.gaba_switch).clamp(-1, 1).to(a.dtype)
        h = torch.relu(a - g * threshold)
        if self.training:
            self.counts += (h.detach() > 0).sum(0)
        return h, h @ self.output_weight.t()


class EagerTrainer:
    """SGD on an EagerSDMLP, optionally with a teacher evaluated at every step, or one whose outputs are cached."""

    def __init__(
        self, model: EagerSDMLP, teacher: EagerSDMLP | None, units: Tensor | None, *, lr=0.05, alpha=0.7, lam=0.1, t=8.0
    ) -> None:
        self.model, self.teacher, self.units = model, teacher, units
        self.alpha, self.lam, self.t = alpha, lam, t
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        if teacher is not None:
            teacher.eval()

    def step(self, x: Tensor, y: Tensor, cached: tuple[Tensor, Tensor] | None = None) -> None:
        h, logits = self.model(x)
        loss = cross_entropy(logits, y)
        if self.teacher is not None:
            if cached is None:
                with torch.no_grad():
                    teacher_h, teacher_logits = self.teacher(x)
                    cached = teacher_h[:, self.units], teacher_logits
            kd = self.lam * self._kd(h[:, self.units], cached[0]) + (1 - self.lam) * self._kd(logits, cached[1])
            loss = self.alpha * loss + (1 - self.alpha) * kd
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.weight.clamp_(min=0)
            self.model.output_weight.clamp_(min=0)
            self.model.weight.div_(torch.linalg.vector_norm(self.model.weight, dim=1, keepdim=True).clamp_min(1e-12))

    def _kd(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_s, log_t = log_softmax(student / self.t, 1), log_softmax(teacher / self.t, 1)
        return self.t**2 * kl_div(log_s, log_t, reduction="batchmean", log_target=True)
