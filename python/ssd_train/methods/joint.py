"""Joint: all tasks at once. The upper bound (oracle), not a continual-learning method."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.tasks import Tasks
from .base import Method


class Joint(Method):
    """One stage over the training data of every task."""

    models = ("relu", "sdmlp")
    fused = True

    def stages(self, tasks: Tasks) -> list[Tensor]:
        return [torch.cat(tasks.train).sort().values]
