"""MNIST and its relatives: four IDX files, plain or .gz. Sizes come from the headers, never from a table."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput
from .dataset import Dataset, arrays_sha256, build

ROLES = {
    "x_train": ("train", "images", 3),
    "y_train": ("train", "labels", 1),
    "x_test": ("t10k", "images", 3),
    "y_test": ("t10k", "labels", 1),
}
MAX_BYTES = 1 << 33


def load(folder: Path) -> Dataset:
    """Pixels / 255 from train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k counterparts in `folder`."""
    arrays = {}
    for key, (split, kind, dimensions) in ROLES.items():
        path = _find(folder, split, kind, dimensions)
        values = torch.from_numpy(read_idx(path, dimensions))
        arrays[key] = values.to(torch.float32) / 255 if kind == "images" else values
    return build(folder.resolve().name, arrays_sha256(arrays), arrays, str(folder))


def _find(folder: Path, split: str, kind: str, dimensions: int) -> Path:
    names = [f"{split}-{kind}{dot}idx{dimensions}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(
        f"{folder}: no {names[0]} (nor {names[1]}) in it; the four IDX files of MNIST are part of every mirror of "
        "'the MNIST database of handwritten digits'"
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes of an IDX file of the given number of dimensions, as uint8.

    Raises:
        BadInput: another magic number, fewer or more bytes than the header says, or a damaged .gz.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            shape = _shape(path, header, dimensions)
            expected = math.prod(shape)
            # One byte more than expected tells an oversized file without reading all of it.
            content = file.read(expected + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path}: damaged or truncated .gz ({error})") from None
    if len(content) != expected:
        found = "more" if len(content) > expected else f"{len(content)}"
        raise BadInput(f"{path}: its header {shape} asks for {expected} bytes of data, the file holds {found}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    if len(header) < 4 + 4 * dimensions:
        raise BadInput(f"{path}: {len(header)} bytes, too short for an IDX header of {dimensions} dimensions")
    if header[:4] != bytes((0, 0, 8, dimensions)):
        wanted = f"0x000008{dimensions:02x} (unsigned bytes, {dimensions} dimensions)"
        raise BadInput(f"{path}: magic number 0x{header[:4].hex()}, expected {wanted}")
    shape = tuple(int(size) for size in np.frombuffer(header[4:], dtype=">u4"))
    if math.prod(shape) > MAX_BYTES:
        raise BadInput(f"{path}: its header {shape} asks for more than {MAX_BYTES} bytes; it is damaged")
    return shape
