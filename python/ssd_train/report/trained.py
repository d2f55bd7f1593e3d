"""What was trained for a row of a table or figure, and the curves of its runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint import CheckpointFolder
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
    folder = job.folder / f"seed-{job.config.seeds}" / "checkpoint"
    found = CheckpointFolder(folder).load()
    if found is None:
        raise BadInput(f"{folder}: no checkpoint; the curves of {job.name} are lost, delete its folder to train again")
    tensors = found[0]
    snapshots = tensors["snapshots"].numpy() if "snapshots" in tensors else None
    return tensors["history"].numpy(), snapshots


def curves(item: Trained) -> np.ndarray:
    """The curves of every seed: (seeds, points, columns)."""
    return np.array([history(job)[0] for job in item.jobs])
