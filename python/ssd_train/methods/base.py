"""What a method is: four hooks around the trainer's loop, in one file of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.tasks import Tasks
from ..model import Output

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..trainer import Trainer


class Batch(NamedTuple):
    """One training batch. x: (B, D) prepared inputs; y: (B,) int64; rows: (B,) int64, positions in the task's data."""

    x: Tensor
    y: Tensor
    rows: Tensor


class Loss(NamedTuple):
    """total: scalar to differentiate. parts: detached scalars to report. output: the forward pass it came from."""

    total: Tensor
    parts: dict[str, Tensor]
    output: Output


class Method:
    """A continual-learning method. Override what differs; see CONTRIBUTING.md, "add a method".

    Attributes:
        models: the networks it trains, the default first.
        fused: whether SDMLPEngine can train it (a teacher and a quadratic penalty are all that the engine knows).
        touches_all_rows: whether rows without a gradient move too (a penalty does that), so that all are projected.
    """

    models: tuple[str, ...] = ("sdmlp",)
    fused = False
    touches_all_rows = False

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def stages(self, tasks: Tasks) -> list[Tensor]:
        """The training rows of each stage; one stage per task unless a method says otherwise."""
        return tasks.train

    def before_task(self, trainer: Trainer) -> None:
        """Called once before a task's first step."""

    def prepare(self, trainer: Trainer) -> None:
        """Called after `before_task` and again after a resume inside the task: rebuild what is not in the state."""

    def before_epoch(self, trainer: Trainer) -> None:
        """Called before an epoch's first step, and not again where an interrupted epoch goes on."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss of one batch; by default its cross entropy."""
        output = model(batch.x, normalized=True)
        ce = torch.nn.functional.cross_entropy(output.logits, batch.y)
        return Loss(ce, {"ce": ce.detach()}, output)

    def before_projection(self, steps: dict[str, Tensor]) -> None:
        """Called in every step of a method that `touches_all_rows` with each parameter's step, not yet projected."""

    def after_step(self, trainer: Trainer) -> None:
        """Called after every optimizer step."""

    def after_task(self, trainer: Trainer) -> None:
        """Called once after a task's last step."""

    def tensors(self) -> dict[str, Tensor]:
        """The method's state, for a checkpoint."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], trainer: Trainer) -> None:
        """Takes back what `tensors` gave."""

    def epochs(self) -> int:
        """Epochs per task; a method without gradient steps has none."""
        return self.config.epochs

    def predict(self, trainer: Trainer, x: Tensor) -> Tensor:
        """Scores whose largest is the predicted class, for prepared inputs x: (N, D); by default the logits."""
        return trainer.engine.predict(x)

    def fused_terms(self, trainer: Trainer) -> dict[str, Any]:
        """The keyword arguments for SDMLPEngine.train_epoch: `teacher` and `penalty`."""
        return {}

    def estimator(self) -> str:
        """What a report must name beside the numbers: how the method estimates what it needs."""
        return "none"
