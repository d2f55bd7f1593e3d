"""What a run writes down while it trains: where it stands, an epoch's sums, and the columns of the curves."""

from __future__ import annotations

import dataclasses
import math
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
    traffic: dict[str, float] = field(default_factory=dict)
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


def check_records(progress: Progress, sums: EpochSums, *, seed: int, stages: int, tasks: int, epochs: int) -> None:
    """Refuses records that no run of this shape writes, field by field: a checkpoint may have been forged.

    Raises:
        ValueError: names the field, what it holds, and what is allowed.
    """
    accuracies = f"at most {tasks} rows of {tasks} accuracies"

    def shares(row: object) -> bool:
        return isinstance(row, list) and len(row) == tasks and all(v is None or _number(v, 0, 1) for v in row)

    def matrix(rows: object) -> bool:
        return isinstance(rows, list) and len(rows) <= tasks and all(map(shares, rows))

    def named(value: object, least: float = -math.inf) -> bool:
        return isinstance(value, dict) and all(isinstance(n, str) and _number(v, least) for n, v in value.items())

    def counted(value: Any) -> bool:
        return named(value, 0) and all(kind in value and isinstance(value[kind], int) for kind in ROW_KINDS)

    p, timed = progress, set(Progress(0).seconds)
    ended = isinstance(p.stage, int) and p.stage == stages
    rules = {
        "seed": (_whole(p.seed, seed, seed), f"{seed}"),
        "stage": (_whole(p.stage, 0, stages), f"0 .. {stages}"),
        "started": (isinstance(p.started, bool) and not (ended and p.started), "true inside a stage, else false"),
        "epoch": (_whole(p.epoch, 0, 0 if ended else epochs), f"0 .. {epochs}, 0 at the end"),
        "position": (_whole(p.position, 0, 2**62), "0 or more"),
        "finished": (isinstance(p.finished, bool) and (ended or not p.finished), "true at the end only"),
        "matrix": (matrix(p.matrix), accuracies),
        "matrix_taw": (matrix(p.matrix) and matrix(p.matrix_taw) and len(p.matrix_taw) == len(p.matrix), accuracies),
        "accuracy": (p.accuracy is None or _number(p.accuracy, 0, 1), "0 .. 1 or null"),
        "accuracy_taw": (p.accuracy_taw is None or _number(p.accuracy_taw, 0, 1), "0 .. 1 or null"),
        "initial": (p.initial is None or shares(p.initial), f"{tasks} accuracies or null"),
        "loss_parts": (isinstance(p.loss_parts, list) and len(p.loss_parts) <= stages
                       and all(map(named, p.loss_parts)), f"named numbers for each of at most {stages} stages"),
        "path_length": (isinstance(p.path_length, list) and len(p.path_length) <= stages
                        and all(v is None or _number(v, 0) for v in p.path_length), f"at most {stages} lengths"),
        "rows": (counted(p.rows), f"counts of {', '.join(ROW_KINDS)}"),
        "phases": (named(p.phases, 0), "named seconds"),
        "activity": (isinstance(p.activity, dict) and all(named(v, 0) and {"steps", "seconds"} <= v.keys()
                                                          for v in p.activity.values()), "steps and seconds by kind"),
        "traffic": (named(p.traffic, 0), "named numbers"),
        "seconds": (named(p.seconds, 0) and timed <= p.seconds.keys(), f"seconds of {', '.join(sorted(timed))}"),
        "samples": (_whole(sums.samples, 0, 2**62), "0 or more"),
        "parts": (named(sums.parts), "named numbers"),
        "sums.rows": (counted(sums.rows), f"counts of {', '.join(ROW_KINDS)}"),
    }  # fmt: skip
    for name, (right, allowed) in rules.items():
        if not right:
            given = repr(getattr(sums if name in _SUMS else p, name.removeprefix("sums.")))
            raise ValueError(f"its {name} is {given[:100]}, allowed is {allowed}")


def _number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether it is a finite number within bounds; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and (
        least <= value <= most)  # fmt: skip


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and _number(value, least, most)


_SUMS = ("sums.rows", *(f.name for f in dataclasses.fields(EpochSums) if f.name != "rows"))


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""
