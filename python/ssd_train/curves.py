"""The curves of one seed while it trains.

In the seed's folder metrics.csv grows by a line per point and curves.npz is written with each checkpoint. A resume cuts
both at the checkpoint.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import write_atomic

NAN = float("nan")


class Curves:
    """Points of named columns, and the neurons' activity at each.

    Attributes:
        columns: names; the first ones are `records.COLUMNS`, then `task_i`, then parts of the loss that only this
            method has. rows: a list of numbers per point, NaN where undefined.
        snapshots: (R,) int32 per point, how many probe samples activate each neuron. probe: number of probe samples.

    Args:
        folder: None keeps them in memory only.
    """

    def __init__(self, folder: Path | None, seed: int, columns: Sequence[str], probe: int = 0) -> None:
        self.folder, self.seed, self.columns, self.probe = folder, seed, list(columns), probe
        self.rows: list[list[float]] = []
        self.snapshots: list[Tensor] = []
        self._on_disk = False

    def add(self, point: Mapping[str, float | None]) -> None:
        """Appends a point to the curves and to metrics.csv. A name that no column has begins a new one."""
        new = [name for name in point if name not in self.columns]
        if new:
            self.columns += new
            self.rows = [row + [NAN] * len(new) for row in self.rows]
        values = (point.get(name) for name in self.columns)
        self.rows.append([NAN if value is None else float(value) for value in values])
        if self.folder is None:
            return
        if new or not self._on_disk:
            self.write_csv()
        else:
            with open(self.folder / "metrics.csv", "a", newline="") as file:
                file.write(_lines(self.seed, self.rows[-1:]))

    def write_csv(self) -> None:
        """Replaces metrics.csv by the points so far."""
        if self.folder is None:
            return
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.folder / "metrics.csv", self.csv().encode())
        self._on_disk = True

    def write_arrays(self) -> None:
        """Replaces curves.npz: `columns` (names), `points` (points, columns), `snapshots` (points, R), `probe`."""
        if self.folder is None:
            return
        file = io.BytesIO()
        snapshots = torch.stack(self.snapshots).numpy() if self.snapshots else np.zeros((0, 0), dtype=np.int32)
        points = np.array(self.rows, dtype=np.float64).reshape(len(self.rows), len(self.columns))
        np.savez(file, columns=np.array(self.columns), points=points, snapshots=snapshots, probe=np.array(self.probe))
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.folder / "curves.npz", file.getvalue())

    def arrays(self) -> dict[str, np.ndarray]:
        """Each column, (points,) float64."""
        points = np.array(self.rows, dtype=np.float64).reshape(len(self.rows), len(self.columns))
        return dict(zip(self.columns, points.T))

    def csv(self) -> str:
        return _header(self.columns) + _lines(self.seed, self.rows)

    def restore(self, columns: Sequence[str], rows: list[list[float]], snapshots: Iterable[Tensor]) -> None:
        """Takes a checkpoint's points; what came after it goes from the files too."""
        self.columns, self.rows, self.snapshots = list(columns), rows, list(snapshots)
        self.write_csv()
        self.write_arrays()


def merged_csv(curves: Sequence[Curves]) -> str:
    """The metrics.csv of a run: every seed's points under one header."""
    columns = list(dict.fromkeys(name for c in curves for name in c.columns))
    text = _header(columns)
    for c in curves:
        places = [c.columns.index(name) if name in c.columns else None for name in columns]
        text += _lines(c.seed, [[NAN if p is None else row[p] for p in places] for row in c.rows])
    return text


def _header(columns: Sequence[str]) -> str:
    return ",".join(["seed", *columns]) + "\n"


def _lines(seed: int, rows: list[list[float]]) -> str:
    """One line per point; an undefined value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for task, epoch, *values in rows:
        writer.writerow([seed, int(task), int(epoch), *("" if v != v else repr(v) for v in values)])
    return text.getvalue()
