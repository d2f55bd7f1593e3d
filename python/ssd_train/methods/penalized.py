"""The base of the methods that hold weights in place: loss + coef sum importance (w - anchor)^2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssd_kernels import QuadraticPenalty

from ..importance import Quadratic
from .base import Batch, Loss, Method

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..trainer import Trainer


class Penalized(Method):
    """Adds the penalty from the second task on, outside whatever the base method's loss is.

    Attributes:
        default_coef, default_beta: what the SDMLP paper used on CIFAR embeddings.
        estimators: what `--estimator` may name, the default first.
    """

    models = ("relu", "sdmlp")
    touches_all_rows = True
    default_coef = 1.0
    default_beta = 1.0
    estimators: tuple[str, ...] = ()

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.quadratic = Quadratic()
        self.coef = self.default_coef if config.coef is None else config.coef
        self.beta = self.default_beta if config.beta is None else config.beta
        self.kind = config.estimator or (self.estimators[0] if self.estimators else "")

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        base = super().loss(model, batch)
        if not self.quadratic:
            return base
        penalty = self.coef * self.quadratic.value(model)
        return Loss(base.total + penalty, base.parts | {"penalty": penalty.detach()}, base.output)

    def fused_terms(self, trainer: Trainer) -> dict[str, Any]:
        terms = super().fused_terms(trainer)
        if self.quadratic:
            importance, anchor = self.quadratic.importance, self.quadratic.anchor
            terms["penalty"] = QuadraticPenalty(
                importance["weights.0"], anchor["weights.0"], importance["output_weight"], anchor["output_weight"],
                self.coef,
            )  # fmt: skip
        return terms

    def importance_rows(self, trainer: Trainer) -> Tensor:
        """Which of the task's samples the importance is measured on: all in their order, or a random draw."""
        if not self.config.importance_samples:
            return torch.arange(len(trainer.x))
        count = min(self.config.importance_samples, len(trainer.x))
        return torch.randperm(len(trainer.x), generator=trainer.generator)[:count]

    def tensors(self) -> dict[str, Tensor]:
        named = super().tensors()
        if self.quadratic:
            named |= {f"quadratic.{name}": tensor for name, tensor in self.quadratic.tensors()}
        return named

    def load_tensors(self, tensors: dict[str, Tensor], trainer: Trainer) -> None:
        super().load_tensors(tensors, trainer)
        prefix = "quadratic."
        named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if named:
            self.quadratic.load(named, trainer.config.device)

    def estimator(self) -> str:
        kind = f"{self.kind}, " if self.kind else ""
        online = "" if self.config.online is None else f", online {self.config.online:g}"
        return f"{kind}coef {self.coef:g}, beta {self.beta:g}{online}"
