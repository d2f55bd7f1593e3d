"""SI: synaptic intelligence, importance from how much each weight's path lowered the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TrainConfig
from .base import Batch, Loss
from .context import TaskContext
from .penalized import ImportanceOptions, Penalized

DAMPING = 0.1


class SI(Penalized):
    """coef sum Omega (w - a)^2 with Omega += omega / (Delta^2 + 0.1) at the end of a task.

    omega -= g dw at every step: g is the gradient of the cross entropy at the logits scaled by beta, without the
    penalty; dw is the optimizer's step before the projection. omega is not clamped at 0. The SDMLP paper used coef 1350
    and beta 0.02 on CIFAR, 1500 and 0.005 on MNIST.
    """

    Options = ImportanceOptions
    default_coef = 1350.0
    default_beta = 0.02

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.omega: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}
        self.gradient: dict[str, Tensor] = {}

    def before_task(self, context: TaskContext) -> None:
        super().before_task(context)
        self.start = {name: p.detach().clone() for name, p in context.model.named_parameters()}
        self.omega = {name: torch.zeros_like(p) for name, p in context.model.named_parameters()}

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        loss = super().loss(model, batch)
        names, parameters = zip(*model.named_parameters())
        unregularised = F.cross_entropy(self.beta * loss.output.logits, batch.y)
        self.gradient = dict(zip(names, torch.autograd.grad(unregularised, parameters, retain_graph=True)))
        return loss

    @torch.no_grad()
    def before_projection(self, steps: dict[str, Tensor]) -> None:
        for name, step in steps.items():
            self.omega[name].addcmul_(self.gradient[name], step, value=-1)

    def after_task(self, context: TaskContext) -> None:
        super().after_task(context)
        importance = {}
        for name, parameter in context.model.named_parameters():
            moved = parameter.detach() - self.start[name]
            new = self.omega[name] / (moved.square() + DAMPING)
            importance[name] = new + self.quadratic.importance[name] if self.quadratic else new
        self.quadratic.replace(context.model, importance)

    def tensors(self) -> dict[str, Tensor]:
        named = super().tensors()
        for kind, values in (("omega", self.omega), ("start", self.start)):
            named |= {f"{kind}.{name}": tensor for name, tensor in values.items()}
        return named

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        super().load_tensors(tensors, context)
        for kind in ("omega", "start"):
            prefix = f"{kind}."
            named = {
                k.removeprefix(prefix): v.to(context.device) for k, v in tensors.items() if k.startswith(prefix)
            }
            setattr(self, kind, named)

    def estimator(self) -> str:
        return f"path integral, {super().estimator()}"
