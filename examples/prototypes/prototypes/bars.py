"""Bars: 16 x 16 images of one bright bar in noise; the class is its direction, one of ten.

`python -m prototypes.bars FILE.npz` writes them for `ssd-train --data FILE.npz`; `bars()` is for ssd_train.train.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from ssd_train import Dataset

SIZE, CLASSES = 16, 10


def images(per_class: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (10 per_class, 16, 16) with values in 0 .. 1, and their classes."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), per_class)
    angle = (labels + random.uniform(-0.3, 0.3, len(labels))) * np.pi / CLASSES
    offset = random.uniform(-2, 2, len(labels))
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    across = x * np.sin(angle)[:, None, None] - y * np.cos(angle)[:, None, None] - offset[:, None, None]
    bright = np.exp(-(across**2)) + random.normal(0, 0.1, across.shape)
    return bright.clip(0, 1).astype(np.float32), labels


def arrays(per_class: int = 100) -> dict[str, NDArray[np.generic]]:
    """The four arrays of a data set, with a quarter as many test images."""
    (x_train, y_train), (x_test, y_test) = images(per_class, seed=0), images(per_class // 4, seed=1)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def bars(per_class: int = 100) -> Dataset:
    return Dataset.of(**arrays(per_class), name="bars")


if __name__ == "__main__":
    np.savez(sys.argv[1], allow_pickle=False, **arrays())
