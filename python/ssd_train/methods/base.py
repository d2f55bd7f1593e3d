"""What a method is: options of its own, and hooks around the trainer's loop, in one file of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..config import GENERAL, TrainConfig
from ..data.tasks import Tasks
from ..model import Output
from .context import TaskContext


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


@dataclass
class NoOptions:
    """A method without options of its own."""


class Method:
    """A continual-learning method. Override what differs; see CONTRIBUTING.md, "Adding a continual-learning method".

    Attributes:
        models: the networks it trains, the default first.
        parts: the names of its loss's parts: columns of metrics.csv from the start.
        Options: a dataclass of the settings of its own; each is an option of the command line. A `help` in a field's
            metadata says what it does; `__post_init__` may refuse values with a ValueError.
        ignores: general settings that do nothing for it; typing one of them is an error.
        fused: whether SDMLPEngine can train it (a teacher and a quadratic penalty are all that the engine knows); a
            class with a `loss` or an `after_step` of its own must say so itself.
        by_neurons: whether it can be trained with `--parallel neurons`, where `context.model` holds a range of the
            neurons and what looks at all of them asks `context.parts`; a class must say so itself, it is not inherited.
        trains_network: whether the network is trained at all; if not, the model file holds `tensors()` in its place.
        touches_all_rows: whether rows without a gradient move too (a penalty does that), so that all are projected.
        options: the values of `Options` in this run.

    Raises:
        TypeError: at the class statement, an option that has the name of a general setting.
    """

    models: ClassVar[tuple[str, ...]] = ("sdmlp",)
    parts: ClassVar[tuple[str, ...]] = ("ce",)
    Options: ClassVar[type] = NoOptions
    ignores: ClassVar[frozenset[str]] = frozenset()
    fused = False
    by_neurons = False
    trains_network = True
    touches_all_rows = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not dataclasses.is_dataclass(cls.Options):
            raise TypeError(f"{cls.__name__}.Options: got {cls.Options!r}, allowed is a dataclass")
        taken = sorted(GENERAL & {f.name for f in dataclasses.fields(cls.Options)})
        if taken:
            raise TypeError(f"{cls.__name__}.Options: {taken[0]!r} is the name of a general setting; choose another")
        own = vars(cls)
        cls.by_neurons = own.get("by_neurons", False)
        if ("loss" in own or "after_step" in own) and "fused" not in own:
            cls.fused = False  # the native engine would train the base's loss, without a word

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.options: Any = self.Options(**config.options)

    def stages(self, tasks: Tasks) -> list[Tensor]:
        """The training rows of each stage; one stage per task unless a method says otherwise."""
        return tasks.train

    def before_task(self, context: TaskContext) -> None:
        """Called once before a task's first step."""

    def prepare(self, context: TaskContext) -> None:
        """Called after `before_task` and again after a resume inside the task: rebuild what is not in the state."""

    def before_epoch(self, context: TaskContext) -> None:
        """Called before an epoch's first step, and not again where an interrupted epoch goes on."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss of one batch; by default its cross entropy."""
        output = model(batch.x, normalized=True)
        ce = torch.nn.functional.cross_entropy(output.logits, batch.y)
        return Loss(ce, {"ce": ce.detach()}, output)

    def before_projection(self, steps: dict[str, Tensor]) -> None:
        """Called in every step of a method that `touches_all_rows` with each parameter's step, not yet projected."""

    def after_step(self, context: TaskContext) -> None:
        """Called after every optimizer step of the engine `autograd`."""

    def after_task(self, context: TaskContext) -> None:
        """Called once after a task's last step."""

    def predict(self, context: TaskContext, x: Tensor) -> Tensor:
        """Scores whose largest is the predicted class, for prepared inputs x: (N, D); by default the logits."""
        return context.predict(x)

    def activity(self, context: TaskContext, x: Tensor) -> list[Tensor]:
        """Per hidden layer, how many of the prepared samples x: (N, D) activate each neuron; by default the model's."""
        return context.activity(x)

    def tensors(self) -> dict[str, Tensor]:
        """The method's state, for a checkpoint."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        """Takes back what `tensors` gave."""

    def estimator(self) -> str:
        """What a report must name beside the numbers: how the method estimates what it needs."""
        return "none"

    def fused_settings(self) -> dict[str, Any]:
        """For a method that is `fused`: the keyword arguments of SDMLPEngine that are the method's."""
        return {}

    def fused_terms(self) -> dict[str, Any]:
        """For a method that is `fused`: the keyword arguments of each SDMLPEngine.train_epoch, teacher and penalty."""
        return {}
