"""FlyModel: a fixed sparse binary projection, the top 1 % of its units, and one pass of associative learning."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import TrainConfig
from .base import Method
from .context import TaskContext

ACTIVE = 0.01
INPUTS = 0.1
STRENGTHEN = 0.01


class FlyModel(Method):
    """Every unit sums 10 % of the inputs, drawn at random; the top 1 % of the R units are active, the rest silent.

    For a sample of class c the weights from its active units to output c move towards 1 by 0.01 of their distance; no
    gradient, no second epoch. The network's own weights stay as they were drawn.
    """

    models = ("relu",)
    parts = ()
    ignores = frozenset({
        "epochs", "batch_size", "lr", "momentum", "max_grad_norm", "k", "k_start", "k_epochs", "topk", "gaba_switch",
        "engine", "eval_every",
    })  # fmt: skip

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.projection: Tensor | None = None
        self.weights: Tensor | None = None

    def before_task(self, context: TaskContext) -> None:
        if self.projection is None:
            dim, neurons = context.dim, self.config.neurons
            inputs = max(1, round(INPUTS * dim))
            order = torch.rand(neurons, dim, generator=context.generator).argsort(1)[:, :inputs]
            self.projection = torch.zeros(neurons, dim).scatter_(1, order, 1.0).to(context.train_x)
            self.weights = torch.zeros(context.classes, neurons).to(context.train_x)

    def code(self, x: Tensor) -> Tensor:
        """The active units of each sample, scaled to a largest value of 1: (B, R)."""
        centred = x - x.mean(1, keepdim=True)
        scores = centred @ self.projection.T
        top = scores.topk(max(1, round(ACTIVE * len(self.projection))), dim=1)
        values = (top.values - scores.min(1, keepdim=True).values).clamp_min(0)
        values = values / values[:, :1].clamp_min(1e-12)
        return torch.zeros_like(scores).scatter_(1, top.indices, values)

    @torch.no_grad()
    def after_task(self, context: TaskContext) -> None:
        order = torch.randperm(len(context.x), generator=context.generator)
        for rows in order.split(1024):
            for code, label in zip(self.code(context.x[rows]), context.y[rows].tolist()):
                self.weights[label] += STRENGTHEN * code * (1 - self.weights[label])

    @torch.no_grad()
    def predict(self, context: TaskContext, x: Tensor) -> Tensor:
        if self.weights is None:
            return context.predict(x)
        return torch.cat([self.code(part) @ self.weights.T for part in x.split(1024)])

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.weights is None else {"projection": self.projection, "weights": self.weights}

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        self.projection, self.weights = tensors.get("projection"), tensors.get("weights")

    def estimator(self) -> str:
        return f"associative, top {ACTIVE:.0%} of units, {INPUTS:.0%} of inputs each, step {STRENGTHEN:g}"
