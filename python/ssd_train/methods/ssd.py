"""SSD: selective subnetwork distillation from the model after the previous task (Eq. 2-6 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ssd_kernels import distill_loss

from ..distill import Teacher, select_units
from ..model import sdmlp_engine
from .base import Batch, Loss, Method

if TYPE_CHECKING:
    from ..config import TrainConfig
    from ..trainer import Trainer


class SSD(Method):
    """L = alpha CE + (1 - alpha) [lam KD_hidden + (1 - lam) KD_logits] from the second task on; task 0 is plain CE."""

    fused = True

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.units: list[Tensor] | None = None
        self.teacher: Teacher | None = None
        self.fused_teacher: Any = None

    def before_task(self, trainer: Trainer) -> None:
        super().before_task(trainer)
        if self.units is not None:
            self.teacher = Teacher(trainer.model, self.units)

    def prepare(self, trainer: Trainer) -> None:
        if self.teacher is None:
            return
        if trainer.engine.name == "fused":
            frozen = sdmlp_engine(self.teacher.model, trainer.config)
            self.fused_teacher = frozen.make_teacher(trainer.x, self.teacher.units[0])
        else:
            self.teacher.evaluate(trainer.x)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        if self.teacher is None:
            return super().loss(model, batch)
        output = model(batch.x, normalized=True)
        teacher_logits, teacher_hidden = self.teacher.batch(batch.rows)
        config = self.config
        loss, ce, kd_hidden, kd_logits = distill_loss(
            output.logits, batch.y, tuple(output.hidden), teacher_logits, tuple(teacher_hidden),
            units=tuple(self.teacher.units), alpha=config.alpha, lam=config.lam, temperature=config.temperature,
            kl=config.kl, backend=config.backend,
        )  # fmt: skip
        parts = {"ce": ce.detach(), "kd_hidden": kd_hidden.detach(), "kd_logits": kd_logits.detach()}
        return Loss(loss, parts, output)

    def after_task(self, trainer: Trainer) -> None:
        """Counts on the task's own data, with the counters as training left them, which neurons it uses."""
        super().after_task(trainer)
        self.units = select_units(trainer.engine.activity(trainer.x), self.config.n_distill, self.config.k)

    def tensors(self) -> dict[str, Tensor]:
        named = super().tensors() | {f"units{i}": u for i, u in enumerate(self.units or [])}
        return named | {f"teacher.{k}": v for k, v in (self.teacher.tensors() if self.teacher else {}).items()}

    def load_tensors(self, tensors: dict[str, Tensor], trainer: Trainer) -> None:
        super().load_tensors(tensors, trainer)
        device = trainer.config.device
        if "units0" in tensors:
            self.units = [tensors[f"units{i}"].to(device) for i in range(trainer.config.layers)]
        prefix = "teacher."
        named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.teacher = Teacher.from_tensors(named, trainer.model) if named else None

    def estimator(self) -> str:
        own = f"{self.config.n_distill} units by frequency over the previous task's data"
        return own if super().estimator() == "none" else f"{own}; {super().estimator()}"

    def fused_terms(self, trainer: Trainer) -> dict[str, Any]:
        return super().fused_terms(trainer) | {"teacher": self.fused_teacher}
