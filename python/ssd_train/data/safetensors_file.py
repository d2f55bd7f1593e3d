"""Embeddings or images in one .safetensors file with the keys x_train, y_train, x_test, y_test."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from ..errors import BadInput, reading
from ..sizes import check_header
from .dataset import KEYS, Dataset, build, check_layout, file_sha256

MAX_HEADER = 1 << 20
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8")


def load(path: Path) -> Dataset:
    """Reads the file; its metadata may name the data set (`name`)."""
    with reading(path, "not a whole .safetensors file; it is truncated or of another kind"):
        check_header(path, MAX_HEADER)
        with safe_open(path, framework="pt") as file:
            found = list(file.keys())
            if missing := [key for key in KEYS if key not in found]:
                names = ", ".join(sorted(found))[:200] or "no keys"
                raise BadInput(f"{path}: missing {', '.join(missing)}; expected {', '.join(KEYS)}, found {names}")
            slices = {key: file.get_slice(key) for key in KEYS}
            for key, part in slices.items():
                if part.get_dtype() not in DTYPES:
                    raise BadInput(f"{path}: {key} has dtype {part.get_dtype()}; expected one of {', '.join(DTYPES)}")
            check_layout({key: tuple(part.get_shape()) for key, part in slices.items()}, str(path))
            arrays = {key: file.get_tensor(key) for key in KEYS}
            name = (file.metadata() or {}).get("name", path.stem)
    return build(name, file_sha256(path), arrays, str(path))
