"""The base of the methods that hold weights in place: loss + coef sum importance (w - anchor)^2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssd_kernels import QuadraticPenalty

from ..config import TrainConfig, option
from ..errors import need
from ..importance import Quadratic
from .base import Batch, Loss, Method
from .context import TaskContext


@dataclass
class PenaltyOptions:
    """How strongly the weights are held."""

    coef: float | None = option(None, "weight of the penalty; by default what the SDMLP paper used on CIFAR")

    def __post_init__(self) -> None:
        ok = self.coef is None or (math.isfinite(self.coef) and self.coef >= 0)
        need(ok, "coef", self.coef, "0 or more")


@dataclass
class ImportanceOptions(PenaltyOptions):
    """How strongly the weights are held, and how their importance is measured."""

    beta: float | None = option(None, "factor of the logits where importance is measured")

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.beta is None or (math.isfinite(self.beta) and self.beta > 0)
        need(ok, "beta", self.beta, "a positive number")


@dataclass
class SampledOptions(ImportanceOptions):
    """The options of an importance that is measured on samples after a task."""

    estimator: str | None = option(None, "how importance is estimated; by default as the SDMLP paper did")
    online: float | None = option(None, "one penalty instead of one per task: factor of the older importance; "
                                  "the task's is added to it (ewc) or weighs 1 - online (mas)")  # fmt: skip
    importance_samples: int = option(2048, "samples per task that importance is measured on; 0: all")

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.online is None or 0 <= self.online <= 1, "online", self.online, "0 .. 1, or null")
        need(self.importance_samples >= 0, "importance_samples", self.importance_samples, "0 or more")


class Penalized(Method):
    """Adds the penalty from the second task on, outside whatever the base method's loss is.

    Attributes:
        default_coef, default_beta: what the SDMLP paper used on CIFAR embeddings.
        estimators: what `--estimator` may name, the default first.
    """

    models = ("relu", "sdmlp")
    parts = ("ce", "penalty")
    Options = PenaltyOptions
    touches_all_rows = True
    default_coef = 1.0
    default_beta = 1.0
    estimators: tuple[str, ...] = ()

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.quadratic = Quadratic()
        given = self.options
        self.coef = self.default_coef if given.coef is None else given.coef
        beta, estimator = getattr(given, "beta", None), getattr(given, "estimator", None)
        self.beta = self.default_beta if beta is None else beta
        need(estimator in (None, *self.estimators), "estimator", estimator, ", ".join(self.estimators))
        self.kind = estimator or (self.estimators[0] if self.estimators else "")

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        base = super().loss(model, batch)
        if not self.quadratic:
            return base
        penalty = self.coef * self.quadratic.value(model)
        return Loss(base.total + penalty, base.parts | {"penalty": penalty.detach()}, base.output)

    def fused_terms(self) -> dict[str, Any]:
        terms = super().fused_terms()
        if self.quadratic:
            importance, anchor = self.quadratic.importance, self.quadratic.anchor
            terms["penalty"] = QuadraticPenalty(
                importance["weights.0"], anchor["weights.0"], importance["output_weight"], anchor["output_weight"],
                self.coef,
            )  # fmt: skip
        return terms

    def importance_rows(self, context: TaskContext) -> Tensor:
        """Which of the task's samples the importance is measured on: all in their order, or a random draw."""
        if not self.options.importance_samples:
            return torch.arange(len(context.x))
        count = min(self.options.importance_samples, len(context.x))
        return torch.randperm(len(context.x), generator=context.generator)[:count]

    def tensors(self) -> dict[str, Tensor]:
        named = super().tensors()
        if self.quadratic:
            named |= {f"quadratic.{name}": tensor for name, tensor in self.quadratic.tensors()}
        return named

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        super().load_tensors(tensors, context)
        prefix = "quadratic."
        named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if named:
            self.quadratic.load(named, context.device)

    def estimator(self) -> str:
        kind = f"{self.kind}, " if self.kind else ""
        given = getattr(self.options, "online", None)
        online = "" if given is None else f", online {given:g}"
        return f"{kind}coef {self.coef:g}, beta {self.beta:g}{online}"
