"""What was trained for a row of a table or figure, and the curves of its runs."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BadInput
from ..jobs.job import Job


@dataclass(frozen=True)
class Trained:
    """A row in one column: the jobs (one per seed) and their results."""

    row: str
    column: str
    paper: float | None
    jobs: list[Job]
    results: list[dict[str, Any]]


def history(job: Job) -> tuple[np.ndarray, np.ndarray | None]:
    """A finished run's curve, (points, columns), and its neuron counts per point, (points, R)."""
    path = job.folder / f"seed-{job.config.seeds}" / "curves.npz"
    try:
        with np.load(path) as found:
            points, snapshots = found["points"], found["snapshots"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        advice = f"the curves of {job.name} are lost, delete its folder to train again"
        raise BadInput(f"{path}: cannot be read; {advice}") from None
    return points, snapshots if snapshots.size else None


def curves(item: Trained) -> np.ndarray:
    """The curves of every seed: (seeds, points, columns)."""
    return np.array([history(job)[0] for job in item.jobs])
