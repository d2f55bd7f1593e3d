"""EWC: elastic weight consolidation, the Fisher information of each task as importance; and SSD with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..importance import ESTIMATORS, fisher
from .penalized import Penalized
from .ssd import SSD

if TYPE_CHECKING:
    from ..trainer import Trainer


class EWC(Penalized):
    """coef sum over tasks of F (w - a)^2, without a factor 1/2.

    With `--online g` there is one term instead of one per task (online EWC): F = g F_before + F_task, and the latest
    weights are its anchor. The default estimator is the one of the SDMLP paper: per batch of 512, with the argmax as
    label and the logits scaled by beta. On MNIST it used coef 200 (pixels in 0 .. 255) or 20000 (0 .. 1), beta 0.005.
    """

    fused = True
    default_coef = 100.0
    default_beta = 0.08
    estimators = ESTIMATORS

    def after_task(self, trainer: Trainer) -> None:
        super().after_task(trainer)
        rows = self.importance_rows(trainer)
        information = fisher(
            trainer.model, trainer.x[rows], trainer.y[rows], self.kind, self.beta, trainer.generator,
            self.config.batch_size,
        )  # fmt: skip
        if self.config.online is None:
            self.quadratic.add(trainer.model, information)
        else:
            self.quadratic.replace(trainer.model, information, self.config.online)

    def estimator(self) -> str:
        return f"Fisher {super().estimator()}, {self.config.importance_samples or 'all'} samples per task"


class SSDEWC(EWC, SSD):
    """L_SSD + coef sum F (w - a)^2, the penalty outside alpha."""

    models = ("sdmlp",)

    def estimator(self) -> str:
        return f"{SSD.estimator(self)}; {EWC.estimator(self)}"
