"""The curves as TensorBoard shows them (`--log tensorboard`); the package is an extra."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadInput


class Board:
    """Event files of one seed, in its folder `tensorboard`. A resume writes the same steps again, which replace."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            text = "--log: got 'tensorboard', but it is not installed: pip install 'ssd-kernels[tensorboard]'"
            raise BadInput(text) from None
        self._make: Any = lambda step: SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self._writer: Any = None

    def add(self, point: Mapping[str, float | None], step: int) -> None:
        """Every defined number of a point of the curves, at the epoch `step` counted over all tasks."""
        if self._writer is None:
            self._writer = self._make(step)
        for name, value in point.items():
            if name not in ("task", "epoch") and value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def open_board(log: str | None, folder: Path) -> Board | None:
    """The board that `--log` asks for.

    Raises:
        BadInput: TensorBoard is not installed.
    """
    return Board(folder) if log == "tensorboard" else None
