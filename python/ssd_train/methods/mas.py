"""MAS: memory aware synapses, importance from the sensitivity of the outputs; no labels needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..importance import sensitivity
from .penalized import Penalized

if TYPE_CHECKING:
    from ..trainer import Trainer


class MAS(Penalized):
    """coef sum over tasks of |d ||y||^2 / dw| (w - a)^2. The SDMLP paper used coef 10 on CIFAR, 0.5 on MNIST.

    With `--online a` there is one term instead of one per task: a times the older importance plus 1 - a times the
    task's, and the latest weights are its anchor.
    """

    fused = True
    default_coef = 10.0
    estimators = ("batch", "sample", "mean")

    def after_task(self, trainer: Trainer) -> None:
        super().after_task(trainer)
        x = trainer.x[self.importance_rows(trainer)]
        importance = sensitivity(trainer.model, x, self.kind, self.beta, self.config.batch_size)
        online = self.config.online
        if online is None:
            self.quadratic.add(trainer.model, importance)
        else:
            self.quadratic.replace(trainer.model, importance, online, 1 - online)
