"""Embeddings or images in one .npz file with the keys x_train, y_train, x_test, y_test; never unpickled."""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy

from ..errors import BadInput, reading
from ..sizes import check_expansion, file_size
from .dataset import KEYS, Dataset, build, check_layout, file_sha256

END, END64 = b"PK\5\6", b"PK\6\6"  # signatures of a zip's last records
MAX_DIRECTORY = 1 << 20  # bytes of a zip's list of members; an .npz of four arrays needs about 300
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def load(path: Path) -> Dataset:
    """Reads every array's header first, then the labels, then the rest, with allow_pickle=False."""
    with reading(path, "not a whole .npz file without pickles"):
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            found = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
            if missing := [key for key in KEYS if key not in found]:
                names = ", ".join(sorted(found))[:200] or "no keys"
                raise BadInput(f"{path}: missing {', '.join(missing)}; expected {', '.join(KEYS)}, found {names}")
            check_layout({key: _header(archive, found[key], path, key) for key in KEYS}, str(path))
            arrays = {}
            for key in sorted(KEYS, reverse=True):  # labels are small and tell whether the rest is worth reading
                with archive.open(found[key]) as member:
                    arrays[key] = _tensor(npy.read_array(member, allow_pickle=False))
                    if member.read(1):
                        raise BadInput(f"{path}: {key} holds more bytes than its header says")
    return build(path.stem, file_sha256(path), arrays, str(path))


def _check_directory(path: Path) -> None:
    """A zip's list of members is read whole by zipfile: it must be as short as that of an .npz."""
    size = file_size(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 66_000))
        tail = file.read()
    at = tail.rfind(END)
    if at < 0 or len(tail) < at + 22:
        raise BadInput(f"{path}: not a whole .npz file: it is truncated, damaged or of another kind (one .npy?)")
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if length == 0xFFFFFFFF:
        far = tail.rfind(END64)
        length = int.from_bytes(tail[far + 40 : far + 48], "little") if far >= 0 else length
    if length > MAX_DIRECTORY:
        raise BadInput(f"{path}: its list of members has {length} bytes, allowed are {MAX_DIRECTORY}")


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, key: str) -> tuple[int, ...]:
    """The shape in a member's header, after it was found to agree with the sizes in the zip's directory."""
    if info.flag_bits & 1:
        raise BadInput(f"{path}: {key} is encrypted")
    with archive.open(info) as member:
        shape, dtype = _read_header(member, path, key)
        expected = math.prod(shape) * dtype.itemsize + member.tell()
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise BadInput(f"{path}: {key} has dtype {str(dtype)[:200]}; expected numbers of at most 64 bits, no pickles")
    if expected != info.file_size:
        raise BadInput(f"{path}: {key} of shape {shape} needs {expected} bytes, the file holds {info.file_size}")
    check_expansion(f"{path}: {key}", info.file_size, info.compress_size)
    return shape


def _read_header(member: BinaryIO, path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(member)
    if version not in READERS:
        raise BadInput(f"{path}: {key} has .npy version {version}; expected 1.0 or 2.0")
    with warnings.catch_warnings():  # numpy warns of headers that Python 2 wrote, which it reads
        warnings.simplefilter("ignore", UserWarning)
        shape, _, dtype = READERS[version](member)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise BadInput(f"{path}: {key} has shape {shape}; expected sizes of 0 or more")
    return shape, dtype


def _tensor(array: np.ndarray) -> torch.Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(native))
