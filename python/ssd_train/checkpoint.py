"""Files that survive a crash: written whole or not at all, checked when read, never a pickle.

A checkpoint is one .safetensors file: tensors, and in its metadata a JSON document with everything else and a SHA-256
over both. It is written to a temporary file in the same folder, flushed to disk, renamed over, and the folder is
flushed too; the last two checkpoints of a run are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import BadInput

KEPT = 2
FORMAT = "1"


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`: after a crash at any moment it holds the old bytes or the new ones, never a mix."""
    with _temporary(path) as (handle, name):
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, str]]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        yield handle, name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def write_tensors(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes tensors and a JSON document to one checked .safetensors file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    document = json.dumps(state, allow_nan=True)
    metadata = {"format": FORMAT, "state": document, "sha256": _digest(tensors, document)}
    write_atomic(path, save(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Raises:
        BadInput: the file is missing, truncated, edited, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no container)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: cannot be read ({reason}); it is truncated, damaged or of another kind") from None
    if metadata.get("format") != FORMAT or "state" not in metadata:
        raise BadInput(f"{path}: not written by ssd-train (its metadata has no format {FORMAT})")
    if metadata.get("sha256") != _digest(tensors, metadata["state"]):
        raise BadInput(f"{path}: its SHA-256 does not fit its contents; it was damaged or edited")
    return tensors, json.loads(metadata["state"])


def _digest(tensors: dict[str, Tensor], document: str) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class CheckpointFolder:
    """The checkpoints of one seed: `checkpoint/000012.safetensors`, numbered upwards, the last two kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("*.safetensors") if p.stem.isdigit())

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Writes a new checkpoint, then removes all but the last two and what a crash left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self.files()
        number = int(files[-1].stem) + 1 if files else 0
        path = self.folder / f"{number:06d}.safetensors"
        write_tensors(path, tensors, state)
        for old in [*files[: max(0, len(files) + 1 - KEPT)], *self.folder.glob(".*.tmp")]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint, or None when there is none yet.

        Raises:
            BadInput: the newest one is damaged. It is not passed over in silence; the message tells how to do so.
        """
        files = self.files()
        if not files:
            return None
        try:
            return read_tensors(files[-1])
        except BadInput as error:
            rest = f"continue from {files[-2].name}" if len(files) > 1 else "start this seed afresh"
            raise BadInput(f"{error}; delete it to {rest}") from None
