"""LwF: learning without forgetting, distillation of the old classes' logits from the model after the previous task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssd_kernels import distill_loss

from ..config import TrainConfig, option
from ..errors import need
from ..model import frozen_copy, predict
from .base import Batch, Loss, Method
from .context import TaskContext

TEMPERATURE = 2.0


@dataclass
class LwFOptions:
    """How strongly the old classes are held."""

    coef: float | None = option(None, "weight of the distillation; by default 1")

    def __post_init__(self) -> None:
        ok = self.coef is None or (math.isfinite(self.coef) and self.coef >= 0)
        need(ok, "coef", self.coef, "0 or more")


class LwF(Method):
    """CE + coef T^2 KL(teacher || student) over the classes seen before, T = 2; the teacher is evaluated once."""

    models = ("relu", "sdmlp")
    parts = ("ce", "kd_logits")
    Options = LwFOptions

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.coef = 1.0 if self.options.coef is None else self.options.coef
        self.teacher: nn.Module | None = None
        self.old_classes: Tensor | None = None
        self.teacher_logits: Tensor | None = None

    def before_task(self, context: TaskContext) -> None:
        stage = context.stage
        if stage > 0:
            seen = sorted(c for classes in context.tasks.classes[:stage] for c in classes)
            self.old_classes = torch.tensor(seen, device=context.device)
            self.teacher = frozen_copy(context.model)

    def prepare(self, context: TaskContext) -> None:
        if self.teacher is not None:
            self.teacher_logits = predict(self.teacher, context.x)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        if self.teacher is None:
            return super().loss(model, batch)
        output = model(batch.x, normalized=True)
        _, ce, _, kd = distill_loss(
            output.logits, batch.y, None, self.teacher_logits[batch.rows], temperature=TEMPERATURE,
            old_classes=self.old_classes, backend=self.config.backend,
        )  # fmt: skip
        return Loss(ce + self.coef * kd, {"ce": ce.detach(), "kd_logits": kd.detach()}, output)

    def tensors(self) -> dict[str, Tensor]:
        if self.teacher is None:
            return {}
        named = {f"teacher.{name}": tensor for name, tensor in self.teacher.state_dict().items()}
        return named | {"old_classes": self.old_classes}

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        if "old_classes" in tensors:
            self.old_classes = tensors["old_classes"].to(context.device)
            self.teacher = frozen_copy(context.model)
            prefix = "teacher."
            named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self.teacher.load_state_dict(named)

    def estimator(self) -> str:
        return f"logit distillation of old classes, T {TEMPERATURE:g}, coef {self.coef:g}"
