"""SSD: selective subnetwork distillation from the model after the previous task (Eq. 2-6 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssd_kernels import distill_loss

from ..config import TrainConfig, option
from ..distill import Teacher, select_units
from ..errors import need
from .base import Batch, Loss, Method
from .context import TaskContext


@dataclass
class SSDOptions:
    """What SSD distils, and how strongly."""

    alpha: float = option(0.7, "weight of the cross entropy against the distillation")
    lam: float = option(0.1, "weight of the hidden against the logit distillation")
    temperature: float = option(8.0, "T of the distillation")
    n_distill: int = option(1000, "n, distilled neurons per hidden layer, clamped to K .. R")
    kl: Literal["forward", "reverse"] = option("forward", "forward: KL(teacher || student); reverse: as Eq. 2-3 print")
    hidden: Literal["activations", "scores"] = option("activations", "what the hidden distillation compares")
    frequency: Literal["eval", "last_epoch"] = option("eval", "where activity is counted: a pass after the task, or "
                                                       "its last epoch's steps")  # fmt: skip
    rank: Literal["frequency", "entropy"] = option("frequency", "distilled neurons: most frequent, or active ones "
                                                    "of least entropy")  # fmt: skip
    old_classes_only: bool = option(False, "distil the logits of classes seen before only")

    def __post_init__(self) -> None:
        need(0 <= self.alpha <= 1, "alpha", self.alpha, "0 .. 1")
        need(0 <= self.lam <= 1, "lam", self.lam, "0 .. 1")
        # Beyond these its square leaves the range of fp64.
        need(1e-150 <= self.temperature <= 1e150, "temperature", self.temperature, "1e-150 .. 1e150")
        need(self.n_distill >= 1, "n_distill", self.n_distill, "1 or more")


class SSD(Method):
    """L = alpha CE + (1 - alpha) [lam KD_hidden + (1 - lam) KD_logits] from the second task on; task 0 is plain CE."""

    parts = ("ce", "kd_hidden", "kd_logits")
    Options = SSDOptions
    fused = True
    by_neurons = True

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        scores = self.options.hidden == "scores"
        one = config.layers == 1
        need(one or not scores, "hidden", "scores", "activations with more than one hidden layer")
        self.fused = self.fused and not scores and not self.options.old_classes_only
        self.touches_all_rows = scores or self.touches_all_rows
        self.units: list[Tensor] | None = None
        self.counts_before: list[Tensor] = []
        self.teacher: Teacher | None = None
        self.answers: Any = None

    def before_task(self, context: TaskContext) -> None:
        super().before_task(context)
        if self.units is not None:
            self.teacher = Teacher(context.model, self.units)

    def prepare(self, context: TaskContext) -> None:
        if self.teacher is None:
            return
        model, units = self.teacher.model, self.teacher.units
        self.answers = context.make_teacher(model, units)
        if self.options.hidden == "scores":
            self.scores = context.x @ model.weights[0][units[0]].T
        seen = sorted(c for classes in context.tasks.classes[: context.stage] for c in classes)
        self.old_classes = torch.tensor(seen, device=context.device)

    def before_epoch(self, context: TaskContext) -> None:
        super().before_epoch(context)
        if self.options.frequency == "last_epoch":
            self.counts_before = [c.clone() for c in context.model.counts]

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        if self.teacher is None:
            return super().loss(model, batch)
        output = model(batch.x, normalized=True)
        teacher_logits, teacher_hidden = self.answers.batch(batch.rows)
        options, hidden, units = self.options, output.hidden, self.teacher.units
        if options.hidden == "scores":
            hidden, teacher_hidden = [batch.x @ model.weights[0][units[0]].T], [self.scores[batch.rows]]
            units = [torch.arange(len(units[0]), device=units[0].device)]
        loss, ce, kd_hidden, kd_logits = distill_loss(
            output.logits, batch.y, tuple(hidden), teacher_logits, tuple(teacher_hidden), units=tuple(units),
            alpha=options.alpha, lam=options.lam, temperature=options.temperature, kl=options.kl,
            backend=self.config.backend, old_classes=self.old_classes if options.old_classes_only else None,
        )  # fmt: skip
        parts = {"ce": ce.detach(), "kd_hidden": kd_hidden.detach(), "kd_logits": kd_logits.detach()}
        return Loss(loss, parts, output)

    def after_task(self, context: TaskContext) -> None:
        """Chooses the neurons to distil from the task's own data, with the counters as training left them."""
        super().after_task(context)
        options = self.options
        if options.frequency == "last_epoch" and self.counts_before:
            # The GABA counters count training activity, so their growth is the last epoch's.
            counts = [now - before for now, before in zip(context.model.counts, self.counts_before)]
            counts = [context.parts.join(f"counts{i}", c) for i, c in enumerate(counts)]
        else:
            counts = self.activity(context, context.x)
        self.units = select_units(counts, options.n_distill, self.config.k, len(context.x), options.rank)

    def tensors(self) -> dict[str, Tensor]:
        named = super().tensors() | {f"units{i}": u for i, u in enumerate(self.units or [])}
        named |= {f"counts_before{i}": c for i, c in enumerate(self.counts_before)}
        return named | {f"teacher.{k}": v for k, v in (self.teacher.tensors() if self.teacher else {}).items()}

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        super().load_tensors(tensors, context)
        device = context.device
        if "units0" in tensors:
            self.units = [tensors[f"units{i}"].to(device) for i in range(context.config.layers)]
        self.counts_before = [v.to(device) for k, v in sorted(tensors.items()) if k.startswith("counts_before")]
        prefix = "teacher."
        named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.teacher = Teacher.from_tensors(named, context.model) if named else None

    def estimator(self) -> str:
        options = self.options
        source = "the previous task's data" if options.frequency == "eval" else "the previous task's last epoch"
        units = min(max(options.n_distill, self.config.k), self.config.neurons)
        chosen = f"{units} units by {options.rank} over {source}"
        if units == self.config.neurons:
            chosen = f"all {units} units, so that nothing is selected"
        own = f"{chosen}, {options.hidden}"
        return own if super().estimator() == "none" else f"{own}; {super().estimator()}"

    def fused_settings(self) -> dict[str, Any]:
        options = self.options
        return {"alpha": options.alpha, "lam": options.lam, "temperature": options.temperature, "kl": options.kl}

    def fused_terms(self) -> dict[str, Any]:
        return super().fused_terms() | {"teacher": self.answers}
