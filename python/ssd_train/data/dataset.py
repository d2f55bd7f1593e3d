"""What every loader returns, and the checks that every data set passes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput
from ..sizes import check_memory

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8)  # fmt: skip
BLOCK = 1 << 22  # values that are checked at a time
KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Dataset:
    """A labelled data set with its train and test split.

    x_train: (N, D) float32, y_train: (N,) int64 in 0 .. classes - 1; the same for test.
    """

    name: str
    sha256: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    @classmethod
    def of(cls, x_train: Any, y_train: Any, x_test: Any, y_test: Any, name: str = "data") -> Dataset:
        """A data set from arrays or tensors: x (N, ...), flattened to (N, D) float32; y (N,) integers from 0 up.

        Raises:
            BadInput: shapes that do not agree, labels that leave out a class, numbers that are not finite.
        """
        arrays = dict(zip(KEYS, (torch.as_tensor(a) for a in (x_train, y_train, x_test, y_test))))
        return build(name, arrays_sha256(arrays), arrays, name)

    @property
    def dim(self) -> int:
        return self.x_train.shape[1]

    def describe(self) -> dict[str, Any]:
        """The `data` entry of results.json."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "n_train": len(self.x_train),
            "n_test": len(self.x_test),
            "dim": self.dim,
            "classes": self.classes,
        }

    def held_out(self, share: float) -> Dataset:
        """The training data alone, `share` of each class (at least one sample) set apart as its test split.

        The split is the same for every seed of a run. The real test set stays out, for a last measurement.
        """
        generator = torch.Generator().manual_seed(0)
        apart = torch.zeros(len(self.y_train), dtype=torch.bool)
        for label in range(self.classes):
            rows = (self.y_train == label).nonzero().flatten()
            count = max(1, round(share * len(rows)))
            if count >= len(rows):
                raise BadInput(f"--validation: got {share}, allowed is less: class {label} has {len(rows)} samples")
            apart[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
        x, y = self.x_train, self.y_train
        name = f"{self.name}, validation {share:g}"
        return Dataset(name, self.sha256, x[~apart], y[~apart], x[apart], y[apart], self.classes)


def check_layout(shapes: dict[str, tuple[int, ...]], source: str) -> None:
    """Whether the shapes of the four arrays fit each other and the memory, before any of them is read.

    Raises:
        BadInput: names `source` and the array that is wrong, and says what was expected.
    """
    for split in ("train", "test"):
        x, y = shapes[f"x_{split}"], shapes[f"y_{split}"]
        if len(x) < 2 or math.prod(x) == 0:
            raise BadInput(f"{source}: x_{split} has shape {x}; expected (samples, values), neither of them 0")
        if len(y) != 1:
            raise BadInput(f"{source}: y_{split} has shape {y}; expected integers of shape (samples,)")
        if x[0] != y[0]:
            raise BadInput(f"{source}: x_{split} has {x[0]} rows and y_{split} has {y[0]} labels; they must agree")
    widths = [math.prod(shapes[f"x_{split}"][1:]) for split in ("train", "test")]
    if widths[0] != widths[1]:
        raise BadInput(f"{source}: x_train and x_test have {widths[0]} and {widths[1]} values per sample; "
                       "they must agree")  # fmt: skip
    check_memory(source, 4 * sum(math.prod(shapes[f"x_{split}"]) for split in ("train", "test")))


def build(name: str, sha256: str, arrays: dict[str, Tensor], source: str) -> Dataset:
    """Checks the four arrays and makes them a `Dataset`; images are flattened to one row per sample.

    `arrays` is emptied on the way, so that an array and its copy in float32 need not fit the memory together.

    Raises:
        BadInput: names `source` and the array that is wrong, and says what was expected.
    """
    check_layout({key: tuple(arrays[key].shape) for key in KEYS}, source)
    parts = {key: _labels(arrays.pop(key), source, key) for key in ("y_train", "y_test")}
    classes = _classes(parts["y_train"], parts["y_test"], source)
    parts |= {key: _features(arrays.pop(key), source, key) for key in ("x_train", "x_test")}
    return Dataset(name, sha256, **parts, classes=classes)


def _features(x: Tensor, source: str, key: str) -> Tensor:
    if x.dtype not in DTYPES:
        raise BadInput(f"{source}: {key} has dtype {x.dtype}; expected real numbers")
    x = x.reshape(len(x), -1).to(torch.float32).contiguous()
    count, first, block = 0, None, max(1, BLOCK // x.shape[1])
    for start in range(0, len(x), block):
        rows = (~torch.isfinite(x[start : start + block])).any(dim=1).nonzero().flatten()
        count += len(rows)
        first = start + int(rows[0]) if first is None and len(rows) else first
    if count:
        raise BadInput(f"{source}: {key} holds NaN or infinity in {count} rows, the first is row {first}")
    return x


def _labels(y: Tensor, source: str, key: str) -> Tensor:
    if y.is_floating_point() or y.dtype not in DTYPES:
        raise BadInput(f"{source}: {key} is {y.dtype} of shape {tuple(y.shape)}; expected integers of shape (samples,)")
    y = y.to(torch.int64)
    if int(y.min()) < 0:
        raise BadInput(f"{source}: {key} holds the label {int(y.min())}; labels are 0 .. classes - 1")
    return y


def _classes(y_train: Tensor, y_test: Tensor, source: str) -> int:
    """Number of classes. Every label from 0 up occurs in training, so a stray label cannot invent classes."""
    present = torch.unique(y_train)
    classes = len(present)
    if int(present[-1]) != classes - 1:
        missing = next(i for i, label in enumerate(present.tolist()) if i != label)
        raise BadInput(
            f"{source}: y_train holds the label {int(present[-1])} but no sample of class {missing}; "
            f"labels are 0 .. classes - 1, each present"
        )
    if int(y_test.max()) >= classes:
        raise BadInput(f"{source}: y_test holds the label {int(y_test.max())}; y_train has only 0 .. {classes - 1}")
    if classes < 2:
        raise BadInput(f"{source}: y_train holds one class; at least 2 are needed")
    tested = torch.bincount(y_test, minlength=classes)
    if int(tested.min()) == 0:
        raise BadInput(f"{source}: y_test holds no sample of class {int(tested.argmin())}; each class needs one")
    return classes


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def arrays_sha256(arrays: dict[str, Tensor]) -> str:
    """SHA-256 over the arrays' names, dtypes, shapes and bytes: for data that does not come from one file."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = arrays[key].contiguous()
        digest.update(f"{key} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.view(torch.uint8).numpy().data)
    return digest.hexdigest()
