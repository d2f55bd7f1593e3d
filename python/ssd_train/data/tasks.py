"""Class-incremental tasks: an order of the classes, taken in groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import bad
from .dataset import Dataset

ORDERS = "ordinal, seed:N, numpy:N, or seed (the run's own seed)"


def class_order(classes: int, spec: str, run_seed: int = 0) -> list[int]:
    """The order in which the classes are met.

    `ordinal` is 0, 1, 2, ...; `seed:N` a permutation from numpy's PCG64 generator; `numpy:N` the legacy permutation
    `np.random.seed(N); np.random.choice(np.arange(C), C, replace=False)` that the SDMLP paper used; `seed` is
    `seed:N` with the run's seed.
    """
    if spec == "ordinal":
        return list(range(classes))
    kind, colon, number = spec.partition(":")
    if spec == "seed":
        number = str(run_seed)
    elif not colon:
        raise bad("--order", spec, ORDERS)
    if kind not in ("seed", "numpy") or not (number.isascii() and number.isdigit()) or int(number) >= 2**32:
        raise bad("--order", spec, ORDERS)
    if kind == "seed":
        return np.random.default_rng(int(number)).permutation(classes).tolist()
    return np.random.RandomState(int(number)).choice(np.arange(classes), classes, replace=False).tolist()


@dataclass(frozen=True)
class Tasks:
    """The tasks of one run.

    classes: the classes of each task. train, test: int64 indices into the data set's rows, in the file's order.
    """

    classes: list[list[int]]
    train: list[Tensor]
    test: list[Tensor]

    def __len__(self) -> int:
        return len(self.classes)


def make_tasks(data: Dataset, order: list[int], classes_per_task: int) -> Tasks:
    """Splits `data` into tasks of `classes_per_task` classes; the last one takes what is left."""
    if not 1 <= classes_per_task <= data.classes:
        raise bad("--classes-per-task", classes_per_task, f"1 .. {data.classes} (the classes of {data.name})")
    groups = [order[i : i + classes_per_task] for i in range(0, data.classes, classes_per_task)]
    return Tasks(groups, [_rows(data.y_train, g) for g in groups], [_rows(data.y_test, g) for g in groups])


def _rows(labels: Tensor, classes: list[int]) -> Tensor:
    return torch.isin(labels, torch.tensor(classes)).nonzero().flatten()
