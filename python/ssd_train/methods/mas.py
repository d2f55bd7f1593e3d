"""MAS: memory aware synapses, importance from the sensitivity of the outputs; no labels needed."""

from __future__ import annotations

from ..importance import sensitivity
from .context import TaskContext
from .penalized import Penalized, SampledOptions


class MAS(Penalized):
    """coef sum over tasks of |d ||y||^2 / dw| (w - a)^2. The SDMLP paper used coef 10 on CIFAR, 0.5 on MNIST.

    With `--online a` there is one term instead of one per task: a times the older importance plus 1 - a times the
    task's, and the latest weights are its anchor.
    """

    fused = True
    Options = SampledOptions
    default_coef = 10.0
    estimators = ("batch", "sample", "mean")

    def after_task(self, context: TaskContext) -> None:
        super().after_task(context)
        x = context.x[self.importance_rows(context)]
        importance = sensitivity(context.model, x, self.kind, self.beta, self.config.batch_size)
        online = self.options.online
        if online is None:
            self.quadratic.add(context.model, importance)
        else:
            self.quadratic.replace(context.model, importance, online, 1 - online)
