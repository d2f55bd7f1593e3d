"""MNIST and its relatives: four IDX files, plain or .gz. Sizes come from the headers, never from a table."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import BadInput, reading
from ..sizes import check_expansion, file_size
from .dataset import Dataset, arrays_sha256, build, check_layout

ROLES = {
    "x_train": ("train", "images", 3),
    "y_train": ("train", "labels", 1),
    "x_test": ("t10k", "images", 3),
    "y_test": ("t10k", "labels", 1),
}


def load(folder: Path) -> Dataset:
    """Pixels / 255 from train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k counterparts in `folder`."""
    paths = {key: _find(folder, *role) for key, role in ROLES.items()}
    check_layout({key: idx_shape(path, ROLES[key][2]) for key, path in paths.items()}, str(folder))
    arrays = {}
    for key, path in paths.items():
        values = torch.from_numpy(read_idx(path, ROLES[key][2]))
        arrays[key] = values.to(torch.float32) / 255 if key.startswith("x") else values
    return build(folder.resolve().name, arrays_sha256(arrays), arrays, str(folder))


def _find(folder: Path, split: str, kind: str, dimensions: int) -> Path:
    names = [f"{split}-{kind}{dot}idx{dimensions}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise BadInput(
        f"{folder}: no {names[0]} (nor {names[1]}) in it; the four IDX files of MNIST are part of every mirror of "
        "'the MNIST database of handwritten digits'"
    )


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def idx_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """The sizes in an IDX file's header, after they were found to agree with the file's size.

    Raises:
        BadInput: another magic number, fewer or more bytes than the header says, or a damaged .gz.
    """
    size = file_size(path)
    with reading(path, "damaged or truncated"), _open(path) as file:
        header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions:
        raise BadInput(f"{path}: {len(header)} bytes, too short for an IDX header of {dimensions} dimensions")
    if header[:4] != bytes((0, 0, 8, dimensions)):
        wanted = f"0x000008{dimensions:02x} (unsigned bytes, {dimensions} dimensions)"
        raise BadInput(f"{path}: magic number 0x{header[:4].hex()}, expected {wanted}")
    shape = tuple(int(length) for length in np.frombuffer(header[4:], dtype=">u4"))
    expected = math.prod(shape)
    if path.suffix == ".gz":
        check_expansion(f"{path}: its header {shape}", expected, size)
    elif size - len(header) != expected:
        raise _damaged(path, shape, size - len(header))
    return shape


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of an IDX file of the given number of dimensions, as uint8.

    Raises:
        BadInput: as `idx_shape`.
    """
    shape = idx_shape(path, dimensions)
    expected = math.prod(shape)
    with reading(path, "damaged or truncated"), _open(path) as file:
        file.read(4 + 4 * dimensions)
        # One byte more than expected tells an oversized .gz without reading all of it.
        content = file.read(expected + 1)
    if len(content) != expected:
        raise _damaged(path, shape, "more" if len(content) > expected else len(content))
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _damaged(path: Path, shape: tuple[int, ...], found: int | str) -> BadInput:
    wanted = f"its header {shape} asks for {math.prod(shape)} bytes of data"
    return BadInput(f"{path}: {wanted}, the file holds {found}; it is damaged")
