"""What a run writes down while it trains: where it stands, an epoch's sums, and the columns of the curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PARTS = ("loss", "ce", "kd_hidden", "kd_logits", "penalty")
# What one point of the curves holds; the accuracy on each task follows.
COLUMNS = ("task", "epoch", *PARTS, "accuracy", "accuracy_taw", "train_accuracy", "entropy", "class_entropy",
           "coverage", "jaccard", "cosine")  # fmt: skip
ROW_KINDS = ("certified", "refreshed", "scanned")


@dataclass
class Progress:
    """Where a run stands, beside its tensors: what a checkpoint's JSON document holds."""

    seed: int
    stage: int = 0
    started: bool = False
    epoch: int = 0
    position: int = 0
    finished: bool = False
    matrix: list[list[float | None]] = field(default_factory=list)
    matrix_taw: list[list[float | None]] = field(default_factory=list)
    accuracy: float | None = None
    accuracy_taw: float | None = None
    initial: list[float | None] | None = None
    loss_parts: list[dict[str, Any]] = field(default_factory=list)
    path_length: list[float | None] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=lambda: {"certified": 0, "refreshed": 0, "scanned": 0})
    phases: dict[str, float] = field(default_factory=dict)
    activity: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("train", "eval", "total", "cpu"), 0.0))


@dataclass
class EpochSums:
    """What an epoch adds up, part by part, so that an interrupted epoch can go on where it stopped."""

    samples: int = 0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROW_KINDS, 0))

    def add(self, name: str, mean: float, samples: int) -> None:
        """Adds a part's mean over some samples; a part that was not announced begins here."""
        self.parts[name] = self.parts.get(name, 0.0) + mean * samples

    def means(self) -> dict[str, float]:
        return {name: value / max(self.samples, 1) for name, value in self.parts.items()}


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""
