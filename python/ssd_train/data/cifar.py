"""CIFAR-10 and CIFAR-100 from their binary releases. The Python releases are pickles and are never read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput
from ..sizes import file_size
from .dataset import Dataset, arrays_sha256, build

PIXELS = 3 * 32 * 32
MAX_RECORDS = 100_000  # per file; the releases have at most 50 000
FILES = {
    10: ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    100: (["train.bin"], ["test.bin"]),
}
FOLDERS = {10: "cifar-10-batches-bin", 100: "cifar-100-binary"}
ARCHIVES = {10: "cifar-10-binary.tar.gz", 100: "cifar-100-binary.tar.gz"}


def load(folder: Path, classes: int) -> Dataset:
    """Pixels / 255; CIFAR-100 with its fine labels. `folder` is the release's folder or the one around it."""
    inner = folder / FOLDERS[classes]
    folder = inner if inner.is_dir() else folder
    arrays = {}
    for names in FILES[classes]:  # all sizes before any file is read
        for name in names:
            _records(folder / name, classes)
    for split, names in zip(("train", "test"), FILES[classes]):
        parts = [_read(folder / name, classes) for name in names]
        arrays[f"x_{split}"] = torch.from_numpy(np.concatenate([p[0] for p in parts])).to(torch.float32) / 255
        arrays[f"y_{split}"] = torch.from_numpy(np.concatenate([p[1] for p in parts]))
    return build(f"CIFAR-{classes}", arrays_sha256(arrays), arrays, str(folder))


def _records(path: Path, classes: int) -> int:
    """How many samples the file's size says it holds."""
    if not path.exists():
        pickled = path.with_suffix("") if classes == 10 else path.parent / path.stem
        hint = " (what lies there is the Python release, a pickle)" if pickled.exists() else ""
        raise BadInput(f"{path}: no such file{hint}; expected the binary release, {ARCHIVES[classes]}, unpacked")
    record = (1 if classes == 10 else 2) + PIXELS
    size = file_size(path)
    if size == 0 or size % record:
        raise BadInput(f"{path}: {size} bytes, expected a multiple of {record} (label and 3 x 32 x 32 pixels)")
    if size // record > MAX_RECORDS:
        raise BadInput(f"{path}: {size // record} samples, allowed are at most {MAX_RECORDS}; it is damaged")
    return size // record


def _read(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) and labels (N,) of one file, uint8."""
    labels = 1 if classes == 10 else 2
    records = np.fromfile(path, dtype=np.uint8).reshape(_records(path, classes), labels + PIXELS)
    label = records[:, labels - 1]
    if label.max() >= classes or (labels == 2 and records[:, 0].max() >= 20):
        raise BadInput(f"{path}: holds the label {records[:, :labels].max()}; labels are 0 .. {classes - 1}")
    return records[:, labels:].copy(), label.copy()
