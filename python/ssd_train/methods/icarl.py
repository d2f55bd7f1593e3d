"""iCaRL: exemplars, distillation of old classes, and the nearest class mean of the features as classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TrainConfig
from ..model import frozen_copy, predict
from .base import Batch, Loss, Method
from .context import TaskContext

MEMORY = 2000


class ICaRL(Method):
    """Trains on the task's samples and the exemplars with a sigmoid loss per class, and predicts by nearest mean.

    Targets are 0 or 1 for the classes of the task and the previous model's sigmoid outputs for older ones (Rebuffi et
    al. 2017, Eq. in Algorithm 3). Exemplars are chosen by herding on the unit-norm features of the last hidden layer;
    the memory of 2000 is shared by all classes seen.
    """

    models = ("relu", "sdmlp")
    parts = ("ce", "kd_logits")

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.teacher: nn.Module | None = None
        self.exemplars: dict[int, Tensor] = {}
        self.current: int | None = None  # the stage that is trained

    def before_task(self, context: TaskContext) -> None:
        if context.stage > 0:
            self.teacher = frozen_copy(context.model)

    def prepare(self, context: TaskContext) -> None:
        """Adds the exemplars' rows to the task's data, and evaluates the previous model on all of it."""
        self.current = context.stage
        if self.exemplars:
            rows = torch.cat([context.stages[context.stage], *self.exemplars.values()])
            context.x, context.y = context.train_x[rows], context.train_y[rows]
        classes = context.tasks.classes[: context.stage + 1]
        self.old = torch.tensor(sorted(c for task in classes[:-1] for c in task), dtype=torch.int64)
        self.new = torch.tensor(sorted(classes[-1]), dtype=torch.int64)
        self.seen = torch.tensor(sorted(c for task in classes for c in task), dtype=torch.int64)
        self.old_targets = None if self.teacher is None else predict(self.teacher, context.x).sigmoid()[:, self.old]

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        output = model(batch.x, normalized=True)
        targets = F.one_hot(batch.y, output.logits.shape[1]).to(output.logits.dtype)
        if self.old_targets is not None:
            targets[:, self.old] = self.old_targets[batch.rows]
        losses = F.binary_cross_entropy_with_logits(output.logits, targets, reduction="none").mean(0)
        parts = {"ce": losses[self.seen].sum().detach()}
        if self.old_targets is not None:
            parts = {"ce": losses[self.new].sum().detach(), "kd_logits": losses[self.old].sum().detach()}
        return Loss(losses[self.seen].sum(), parts, output)

    def after_task(self, context: TaskContext) -> None:
        own = context.stages[context.stage]
        share = max(1, MEMORY // len(self.seen))
        for label in context.tasks.classes[context.stage]:
            rows = own[context.train_y[own] == label]
            self.exemplars[label] = rows[herd(self.features(context.model, context.train_x[rows]), share)]
        self.exemplars = {label: rows[:share] for label, rows in self.exemplars.items()}

    @torch.no_grad()
    def measure_means(self, context: TaskContext) -> Tensor:
        """Unit-norm mean feature of each class; the features move with every step.

        Of exemplars, or for a class of the task that is being trained, which has none yet, of its training samples.
        """
        means = torch.full((context.classes, self.config.neurons), float("nan"), dtype=context.train_x.dtype)
        rows_of = dict(self.exemplars)
        if self.current is not None:
            own = context.stages[self.current]
            for label in set(context.train_y[own].tolist()) - rows_of.keys():
                rows_of[label] = own[context.train_y[own] == label][:MEMORY]
        for label, rows in rows_of.items():
            means[label] = F.normalize(self.features(context.model, context.train_x[rows]).mean(0), dim=0)
        return means

    @staticmethod
    @torch.no_grad()
    def features(model: nn.Module, x: Tensor) -> Tensor:
        """Unit-norm inputs of the output layer: (N, R)."""
        return F.normalize(torch.cat([model.layers(part)[-1].x for part in x.split(1024)]), dim=1)

    def predict(self, context: TaskContext, x: Tensor) -> Tensor:
        """Scores whose largest is the nearest mean: minus the squared distance; classes not seen never win."""
        if not self.exemplars and self.current is None:
            return context.predict(x)
        means = self.measure_means(context)
        distance = torch.cdist(self.features(context.model, x), means.nan_to_num()).square()
        return torch.where(means.isnan().any(1), -torch.inf, -distance)

    def tensors(self) -> dict[str, Tensor]:
        named = {f"exemplars.{label}": rows for label, rows in self.exemplars.items()}
        if self.teacher is not None:
            named |= {f"teacher.{name}": tensor for name, tensor in self.teacher.state_dict().items()}
        return named

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        self.exemplars = {int(k[10:]): rows for k, rows in tensors.items() if k.startswith("exemplars.")}
        self.exemplars = {label: self.exemplars[label] for label in context.order if label in self.exemplars}
        named = {k.removeprefix("teacher."): v for k, v in tensors.items() if k.startswith("teacher.")}
        if named:
            self.teacher = frozen_copy(context.model)
            self.teacher.load_state_dict(named)

    def estimator(self) -> str:
        return f"nearest mean of {MEMORY} exemplars, sigmoid losses"


def herd(features: Tensor, count: int) -> Tensor:
    """Indices of samples, chosen one by one so that the mean of those chosen stays closest to the mean of all."""
    mean, chosen, total = features.mean(0), [], torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool)
    for k in range(min(count, len(features))):
        distance = (mean - (total + features) / (k + 1)).square().sum(1)
        best = int(torch.where(free, distance, torch.inf).argmin())
        free[best] = False
        total = total + features[best]
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.int64)
