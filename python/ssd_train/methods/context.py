"""What a method sees of a run: the task's data, the model, and what the running engine can say about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.tasks import Tasks
from ..model import Network
from ..parallel.shards import Whole


class Evaluator(Protocol):
    """What an engine computes for a method."""

    def predict(self, x: Tensor) -> Tensor: ...

    def activity(self, x: Tensor) -> list[Tensor]: ...

    def make_teacher(self, model: Network, units: list[Tensor], x: Tensor) -> Any: ...


@dataclass
class TaskContext:
    """The state of a run, as the hooks of a method get it.

    Attributes:
        config: the settings; the method's own are `method.options`.
        dim: D, values per sample. classes: C, of all tasks.
        order: the classes in the order in which they are met. tasks: their split, rows of the data set.
        stages: the training rows of each stage, (n,) int64 each; one stage per task unless the method says otherwise.
        model: the network that is trained.
        train_x: (N, D) all training data, prepared for the model. train_y: (N,) int64.
        generator: the run's random numbers; they are part of a checkpoint.
        stage: the stage that is trained, from 0.
        parts: which part of the model this process has, where several train one.
        x: (n, D) the stage's data, prepared; `prepare` may replace it. y: (n,) int64.
    """

    config: TrainConfig
    dim: int
    classes: int
    order: list[int]
    tasks: Tasks
    stages: list[Tensor]
    model: Network
    train_x: Tensor
    train_y: Tensor
    generator: torch.Generator
    stage: int = 0
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    y: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    evaluator: Evaluator | None = field(default=None, repr=False)
    parts: Whole = field(default_factory=Whole, repr=False)

    @property
    def device(self) -> torch.device:
        return self.train_x.device

    def enter(self, stage: int) -> None:
        """Makes `stage` the present one, with its own data."""
        self.stage = stage
        self.x, self.y = self.train_x[self.stages[stage]], self.train_y[self.stages[stage]]

    def predict(self, x: Tensor) -> Tensor:
        """Logits of prepared inputs x: (N, D), by the running engine: (N, C)."""
        return self._engine.predict(x)

    def activity(self, x: Tensor) -> list[Tensor]:
        """Per hidden layer, how many of the prepared samples x: (N, D) activate each neuron: (R,) int64."""
        return self._engine.activity(x)

    def make_teacher(self, model: Network, units: list[Tensor]) -> Any:
        """What a frozen model says about the stage's data, in the form that the running engine distils from.

        Args:
            model: see `ssd_train.model.frozen_copy`. units: per hidden layer the neurons to distil, (n,) int64.

        Returns:
            `ssd_train.distill.Answers` for the engine `autograd`, `ssd_kernels.Teacher` for `fused`.
        """
        return self._engine.make_teacher(model, units, self.x)

    @property
    def _engine(self) -> Evaluator:
        if self.evaluator is None:
            raise RuntimeError("the context of a run that has not begun computes nothing")
        return self.evaluator
