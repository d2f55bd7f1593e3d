"""Replay of one prototype per class: the whole of a continual-learning method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ssd_train import Batch, Loss, Method, TaskContext, option
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


@dataclass
class Settings:
    """The method's own: `--replay` on the command line, `replay` in YAML, in results.json and for ssd_train.train."""

    replay: float = option(1.0, "weight of the cross entropy on the prototypes of earlier classes")

    def __post_init__(self) -> None:
        if self.replay < 0:
            raise ValueError(f"replay: got {self.replay}, allowed is 0 or more")


class Prototypes(Method):
    """Cross entropy of the batch, plus `replay` times that of one prototype of every class of earlier tasks.

    A prototype is the mean of a class's training samples, scaled to norm 1 as all inputs are.
    """

    parts, Options = ("ce", "replay"), Settings
    prototypes: Tensor | None = None  # (classes so far, D)
    labels: Tensor | None = None  # (classes so far,) int64

    def loss(self, model: Any, batch: Batch) -> Loss:
        total, parts, output = super().loss(model, batch)
        replay = total.new_zeros(())
        if self.prototypes is not None and self.labels is not None:
            replay = cross_entropy(model(self.prototypes, normalized=True).logits, self.labels)
        return Loss(total + self.options.replay * replay, parts | {"replay": replay.detach()}, output)

    def after_task(self, context: TaskContext) -> None:
        labels = torch.tensor(sorted(set(context.y.tolist())))
        means = normalize(torch.stack([context.x[context.y == label].mean(0) for label in labels]))
        if self.prototypes is not None and self.labels is not None:
            means, labels = torch.cat([self.prototypes, means]), torch.cat([self.labels, labels])
        self.prototypes, self.labels = means, labels

    def tensors(self) -> dict[str, Tensor]:
        if self.prototypes is None or self.labels is None:
            return {}
        return {"prototypes": self.prototypes, "labels": self.labels}

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        self.prototypes, self.labels = tensors.get("prototypes"), tensors.get("labels")
