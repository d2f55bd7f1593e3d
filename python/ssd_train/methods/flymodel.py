"""FlyModel: a fixed sparse binary projection, its few strongest units, and one pass of associative learning."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TrainConfig, option
from ..errors import bad, need
from .base import Method
from .context import TaskContext

BATCH = 1024


@dataclass
class FlyModelOptions:
    """The projection and the one pass. The SDMLP paper's: 32 or 64 inputs, step .005 on CIFAR-10."""

    step: float = option(0.005, "how much one sample adds to a weight of its class, at the unit that is active most")
    winners: float = option(0.01, "share of the units that stay active per sample")
    inputs: int = option(32, "inputs that each unit sums")

    def __post_init__(self) -> None:
        need(math.isfinite(self.step) and self.step > 0, "step", self.step, "a positive number")
        need(0 < self.winners <= 1, "winners", self.winners, "a share above 0, at most 1")
        need(self.inputs >= 1, "inputs", self.inputs, "1 or more")


class FlyModel(Method):
    """Every unit sums some inputs, drawn at random; the share `winners` of the R units is active, the rest silent.

    The inputs of a sample are first scaled to 0 .. 1, least to greatest, as the authors of the SDMLP paper do for it.

    For a sample of class c each weight from an active unit to output c grows by `step` times the unit's activity and
    stops at 1: sums that are cut off, so the order of the samples changes nothing but rounding. No gradient, no second
    epoch, and no other class's weights move. The network's own weights stay as they were drawn.
    """

    models = ("relu",)
    trains_network = False
    parts = ()
    Options = FlyModelOptions
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
            if self.options.inputs > dim:
                raise bad("--inputs", self.options.inputs, f"at most the {dim} values of a sample")
            order = torch.rand(neurons, dim, generator=context.generator).argsort(1)[:, : self.options.inputs]
            self.projection = torch.zeros(neurons, dim).scatter_(1, order, 1.0).to(context.train_x)
            self.weights = torch.zeros(context.classes, neurons).to(context.train_x)

    def code(self, x: Tensor) -> Tensor:
        """The active units of each sample, scaled to a largest value of 1, none below 0: (B, R)."""
        low, high = x.aminmax(dim=1, keepdim=True)
        scores = ((x - low) / (high - low).clamp_min(1e-12)) @ self.projection.T
        top = scores.topk(max(1, round(self.options.winners * len(self.projection))), dim=1)
        values = top.values.clamp_min(0)
        values = values / values[:, :1].clamp_min(1e-12)
        return torch.zeros_like(scores).scatter_(1, top.indices, values)

    @torch.no_grad()
    def after_task(self, context: TaskContext) -> None:
        for x, y in zip(context.x.split(BATCH), context.y.split(BATCH)):
            self.weights.index_add_(0, y, self.code(x), alpha=self.options.step)
        self.weights.clamp_max_(1.0)

    @torch.no_grad()
    def predict(self, context: TaskContext, x: Tensor) -> Tensor:
        if self.weights is None:
            return context.predict(x)
        return torch.cat([self.code(part) @ self.weights.T for part in x.split(BATCH)])

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.weights is None else {"projection": self.projection, "weights": self.weights}

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        self.projection, self.weights = tensors.get("projection"), tensors.get("weights")

    def estimator(self) -> str:
        own = self.options
        return f"associative, top {own.winners:.3g} of units, {own.inputs} inputs each, step {own.step:g}"
