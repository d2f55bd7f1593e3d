"""Embeddings or images in one .npz file with the keys x_train, y_train, x_test, y_test; never unpickled."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput
from .dataset import KEYS, Dataset, build, file_sha256


def load(path: Path) -> Dataset:
    """Reads the file with allow_pickle=False."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise BadInput(f"{path}: one .npy array; expected an .npz archive with {', '.join(KEYS)}")
            missing = [key for key in KEYS if key not in file.files]
            if missing:
                found = ", ".join(sorted(file.files))[:200] or "no keys"
                raise BadInput(f"{path}: missing {', '.join(missing)}; expected {', '.join(KEYS)}, found {found}")
            arrays = {key: _tensor(file[key], path, key) for key in KEYS}
    except BadInput:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        reason = " ".join(str(error).split())[:200]  # numpy quotes a whole damaged header
        raise BadInput(f"{path}: not a whole .npz file without pickles ({reason})") from None
    return build(path.stem, file_sha256(path), arrays, str(path))


def _tensor(array: np.ndarray, path: Path, key: str) -> torch.Tensor:
    if array.dtype.kind not in "fiu":
        raise BadInput(f"{path}: {key} has dtype {str(array.dtype)[:200]}; expected numbers")
    native = array.astype(array.dtype.newbyteorder("="))
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(native))
