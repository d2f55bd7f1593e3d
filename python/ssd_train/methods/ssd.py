"""SSD: selective subnetwork distillation from the model after the previous task (Eq. 2-6 of the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
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

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.fused = config.hidden == "activations" and not config.old_classes_only
        self.touches_all_rows = config.hidden == "scores" or self.touches_all_rows
        self.units: list[Tensor] | None = None
        self.counts_before: list[Tensor] = []
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
            self.teacher.evaluate(trainer.x, scores=self.config.hidden == "scores")
            seen = sorted(c for classes in trainer.tasks.classes[: trainer.progress.stage] for c in classes)
            self.old_classes = torch.tensor(seen, device=trainer.config.device)

    def before_epoch(self, trainer: Trainer) -> None:
        super().before_epoch(trainer)
        if self.config.frequency == "last_epoch":
            self.counts_before = [c.clone() for c in trainer.model.counts]

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        if self.teacher is None:
            return super().loss(model, batch)
        output = model(batch.x, normalized=True)
        teacher_logits, teacher_hidden = self.teacher.batch(batch.rows)
        config, hidden, units = self.config, output.hidden, self.teacher.units
        if config.hidden == "scores":
            hidden, teacher_hidden = [batch.x @ model.weights[0][units[0]].T], [self.teacher.scores[batch.rows]]
            units = [torch.arange(len(units[0]), device=units[0].device)]
        loss, ce, kd_hidden, kd_logits = distill_loss(
            output.logits, batch.y, tuple(hidden), teacher_logits, tuple(teacher_hidden), units=tuple(units),
            alpha=config.alpha, lam=config.lam, temperature=config.temperature, kl=config.kl, backend=config.backend,
            old_classes=self.old_classes if config.old_classes_only else None,
        )  # fmt: skip
        parts = {"ce": ce.detach(), "kd_hidden": kd_hidden.detach(), "kd_logits": kd_logits.detach()}
        return Loss(loss, parts, output)

    def after_task(self, trainer: Trainer) -> None:
        """Chooses the neurons to distil from the task's own data, with the counters as training left them."""
        super().after_task(trainer)
        config = self.config
        if config.frequency == "last_epoch" and self.counts_before:
            # The GABA counters count training activity, so their growth is the last epoch's.
            counts = [now - before for now, before in zip(trainer.model.counts, self.counts_before)]
        else:
            counts = trainer.engine.activity(trainer.x)
        self.units = select_units(counts, config.n_distill, config.k, len(trainer.x), config.rank)

    def tensors(self) -> dict[str, Tensor]:
        named = super().tensors() | {f"units{i}": u for i, u in enumerate(self.units or [])}
        named |= {f"counts_before{i}": c for i, c in enumerate(self.counts_before)}
        return named | {f"teacher.{k}": v for k, v in (self.teacher.tensors() if self.teacher else {}).items()}

    def load_tensors(self, tensors: dict[str, Tensor], trainer: Trainer) -> None:
        super().load_tensors(tensors, trainer)
        device = trainer.config.device
        if "units0" in tensors:
            self.units = [tensors[f"units{i}"].to(device) for i in range(trainer.config.layers)]
        self.counts_before = [v.to(device) for k, v in sorted(tensors.items()) if k.startswith("counts_before")]
        prefix = "teacher."
        named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.teacher = Teacher.from_tensors(named, trainer.model) if named else None

    def estimator(self) -> str:
        source = "the previous task's data" if self.config.frequency == "eval" else "the previous task's last epoch"
        units = min(max(self.config.n_distill, self.config.k), self.config.neurons)
        chosen = f"{units} units by {self.config.rank} over {source}"
        if units == self.config.neurons:
            chosen = f"all {units} units, so that nothing is selected"
        own = f"{chosen}, {self.config.hidden}"
        return own if super().estimator() == "none" else f"{own}; {super().estimator()}"

    def fused_terms(self, trainer: Trainer) -> dict[str, Any]:
        return super().fused_terms(trainer) | {"teacher": self.fused_teacher}
