"""Continual-learning metrics from an accuracy matrix. Everything undefined is None, never a number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Matrix = list[list[float | None]]


def accuracies(logits: Tensor, labels: Tensor, classes: list[int]) -> tuple[float | None, float | None]:
    """Accuracy of one task's test samples without (TAg) and with (TAw) the task known.

    TAg takes the argmax over all C outputs, TAw over the task's classes only. None for a task without samples.

    Args:
        logits: (N, C) float. labels: (N,) int64. classes: the classes of the task.
    """
    if len(labels) == 0:
        return None, None
    own = logits.new_tensor(classes).long()
    agnostic = (logits.argmax(1) == labels).double().mean().item()
    aware = (own[logits[:, own].argmax(1)] == labels).double().mean().item()
    return agnostic, aware


def weighted(row: Sequence[float | None], sizes: Sequence[int]) -> float | None:
    """Accuracy over all samples: the tasks' accuracies weighted by their number of test samples."""
    known = [(a, n) for a, n in zip(row, sizes) if a is not None]
    total = sum(n for _, n in known)
    return sum(a * n for a, n in known) / total if total else None


def _mean(values: list[float | None]) -> float | None:
    return sum(values) / len(values) if values and None not in values else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def bwt(matrix: Matrix) -> float | None:
    """Backward transfer: mean over i < last of Acc[last, i] - Acc[i, i] (Eq. 7); closer to 0 is better."""
    last = len(matrix) - 1
    return _mean([_difference(matrix[last][i], matrix[i][i]) for i in range(last)])


def forgetting(matrix: Matrix) -> float | None:
    """Mean over i < last of max over t >= i of Acc[t, i], minus Acc[last, i]; never negative."""
    last = len(matrix) - 1
    drops = []
    for i in range(last):
        column = [matrix[t][i] for t in range(i, last + 1)]
        drops.append(None if None in column else max(column) - column[-1])
    return _mean(drops)


def fwt(matrix: Matrix, initial: Sequence[float | None]) -> float | None:
    """Forward transfer: mean over i >= 1 of Acc[i - 1, i] minus the accuracy of the random initial model."""
    return _mean([_difference(matrix[i - 1][i], initial[i]) for i in range(1, len(matrix))])


def triple(values: Sequence[float | None]) -> dict:
    """Mean, standard deviation (ddof 1) and the values themselves; undefined entries are None."""
    mean = _mean(list(values))
    std = None
    if mean is not None and len(values) > 1:
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return {"mean": mean, "std": std, "per_seed": list(values)}
