"""Embeddings or images in one .safetensors file with the keys x_train, y_train, x_test, y_test."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import BadInput
from .dataset import KEYS, Dataset, build, file_sha256


def load(path: Path) -> Dataset:
    """Reads the file; its metadata may name the data set (`name`)."""
    try:
        with safe_open(path, framework="pt") as file:
            missing = [key for key in KEYS if key not in file.keys()]  # noqa: SIM118 (no container)
            if missing:
                found = ", ".join(sorted(file.keys())) or "no keys"
                raise BadInput(f"{path}: missing {', '.join(missing)}; expected {', '.join(KEYS)}, found {found}")
            arrays = {key: file.get_tensor(key) for key in KEYS}
            name = (file.metadata() or {}).get("name", path.stem)
    except SafetensorError as error:
        raise BadInput(f"{path}: not a whole .safetensors file ({error}); it is truncated or of another kind") from None
    return build(name, file_sha256(path), arrays, str(path))
