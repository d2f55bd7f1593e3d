"""How much replay? The method over three weights and two seeds, in Python; `mypy --strict study.py` passes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from prototypes.bars import bars
from prototypes.method import Prototypes
from ssd_train import Dataset, Result, train


def accuracy(data: Dataset, replay: float, epochs: int) -> tuple[float, float]:
    """Mean accuracy after the last task, and mean backward transfer."""
    settings = {"method": Prototypes, "replay": replay, "neurons": 500, "epochs": epochs, "batch_size": 16}
    result: Result = train(settings | {"seeds": "0,1"}, data)
    last: NDArray[np.float64] = result.accuracy_matrix[:, -1]
    return float(last.mean()), float(result.metrics["bwt"]["mean"])


def study(data: Dataset, replays: tuple[float, ...] = (0, 1, 3), epochs: int = 20) -> dict[float, tuple[float, float]]:
    return {replay: accuracy(data, replay, epochs) for replay in replays}


if __name__ == "__main__":
    for replay, (mean, bwt) in study(bars()).items():
        print(f"replay {replay:g}: accuracy {mean:.3f}, BWT {bwt:+.3f}")
