"""EWC: elastic weight consolidation, the Fisher information of each task as importance; and SSD with it."""

from __future__ import annotations

from dataclasses import dataclass

from ..importance import ESTIMATORS, fisher
from .context import TaskContext
from .penalized import Penalized, SampledOptions
from .ssd import SSD, SSDOptions


class EWC(Penalized):
    """coef sum over tasks of F (w - a)^2, without a factor 1/2.

    With `--online g` there is one term instead of one per task (online EWC): F = g F_before + F_task, and the latest
    weights are its anchor. The default estimator is the one of the SDMLP paper: per batch of 512, with the argmax as
    label and the logits scaled by beta. On MNIST it used coef 200 (pixels in 0 .. 255) or 20000 (0 .. 1), beta 0.005.
    """

    fused = True
    Options = SampledOptions
    default_coef = 100.0
    default_beta = 0.08
    estimators = ESTIMATORS
    by_neurons = True

    def after_task(self, context: TaskContext) -> None:
        super().after_task(context)
        rows = self.importance_rows(context)
        parts, quadratic = context.parts, self.quadratic
        model = parts.whole(context.model)
        information = fisher(
            model, context.x[rows], context.y[rows], self.kind, self.beta, context.generator,
            self.config.batch_size,
        )  # fmt: skip
        quadratic.change(parts.joined)
        if self.options.online is None:
            quadratic.add(model, information)
        else:
            quadratic.replace(model, information, self.options.online)
        quadratic.change(parts.owned)

    def estimator(self) -> str:
        return f"Fisher {super().estimator()}, {self.options.importance_samples or 'all'} samples per task"


@dataclass
class SSDEWCOptions(SampledOptions, SSDOptions):
    """The options of both."""

    def __post_init__(self) -> None:
        SSDOptions.__post_init__(self)
        super().__post_init__()


class SSDEWC(EWC, SSD):
    """L_SSD + coef sum F (w - a)^2, the penalty outside alpha."""

    models = ("sdmlp",)
    parts = (*SSD.parts, "penalty")
    Options = SSDEWCOptions
    by_neurons = True

    def estimator(self) -> str:
        return f"{SSD.estimator(self)}; {EWC.estimator(self)}"
