"""Files that survive a crash: written whole or not at all, checked when read, never a pickle.

A checkpoint is one .safetensors file: tensors, and in its metadata a JSON document with everything else and a SHA-256
over both. It is written to a temporary file in the same folder, flushed to disk, renamed over, and the folder is
flushed too; the last two checkpoints of a run are kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import BadInput, reading
from .sizes import check_header, check_memory

KEPT = 2
FORMAT = "1"
MAX_HEADER = 1 << 25  # bytes of a file's metadata; the accuracy matrices of 200 tasks take 2 MB


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`: after a crash at any moment it holds the old bytes or the new ones, never a mix.

    What an earlier crash left half-written of the same file is removed.

    Raises:
        OSError: names `path`, which is as it was.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write and read, which replaces `path` at the end: as `write_atomic`, for what is written in pieces."""
    try:
        remove_stale(path.parent, path.name)
        with _temporary(path) as (handle, name):
            with open(handle, "w+b", closefd=False) as file:
                yield file
            os.fsync(handle)
            os.fchmod(handle, 0o644)
            os.replace(name, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, str]]:
    """A new file beside `path`, locked while it is written: the lock goes with the process and tells what is stale."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)  # another process took it for stale before it was locked
    try:
        yield handle, name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        os.close(handle)


def remove_stale(folder: Path, name: str = "*") -> None:
    """Removes what crashes left half-written of the file `name` in `folder`; what a live process writes stays."""
    for path in folder.glob(f".{'*' if name == '*' else glob.escape(name)}.*.tmp"):
        if not path.is_file() or path.is_symlink():
            continue
        with contextlib.suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes tensors and a JSON document to one checked .safetensors file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    document = json.dumps(state, allow_nan=True)
    if len(document) > MAX_HEADER // 4:
        raise BadInput(f"{path}: {len(document)} bytes of metadata, allowed are {MAX_HEADER // 4}; use fewer tasks")
    metadata = {"format": FORMAT, "state": document, "sha256": _digest(tensors, document)}
    write_atomic(path, save(tensors, metadata))


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The JSON document of a file that `write_tensors` wrote, and its tensors' shapes; the tensors are not read.

    Raises:
        BadInput: the file is missing, truncated, or of another kind.
    """
    with reading(path, "cannot be read; it is truncated, damaged or of another kind"):
        check_header(path, MAX_HEADER)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT or "state" not in metadata:
            raise BadInput(f"{path}: not written by ssd-train (its metadata has no format {FORMAT})")
        check_memory(path, path.stat().st_size)
        state = json.loads(metadata["state"])
    if not isinstance(state, dict):
        raise BadInput(f"{path}: its metadata holds no settings")
    return state, shapes


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Raises:
        BadInput: the file is missing, truncated, edited, or of another kind.
    """
    state, _ = read_state(path)
    with reading(path, "cannot be read; it is truncated, damaged or of another kind"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no container)
        if metadata.get("sha256") != _digest(tensors, metadata["state"]):
            raise BadInput(f"{path}: its SHA-256 does not fit its contents; it was damaged or edited")
    return tensors, state


def _digest(tensors: dict[str, Tensor], document: str) -> str:
    digest = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class CheckpointFolder:
    """The checkpoints of one seed: `checkpoint/000012.safetensors`, numbered upwards, the last two kept.

    Every checkpoint says of which run it is (`run` in its document: settings, seed, data, version); only that run goes
    on from it.

    Args:
        write, read: how a file of tensors is written and read; `write_tensors` and `read_tensors` by default.
    """

    def __init__(self, folder: Path, write: Callable[[Path, dict[str, Tensor], dict[str, Any]], None] | None = None,
                 read: Callable[[Path], tuple[dict[str, Tensor], dict[str, Any]]] | None = None) -> None:  # fmt: skip
        self.folder, self._write, self._read = folder, write or write_tensors, read or read_tensors

    def files(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [p for p in self.folder.glob("*.safetensors") if p.stem.isascii() and p.stem.isdigit()]
        return sorted(found, key=lambda p: int(p.stem))

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Writes a new checkpoint, then removes all but the last two and what a crash left half-written.

        Raises:
            OSError: it cannot be written, or the run's folder has gone: it is not made again, only the seed's is.
        """
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(exist_ok=True)
        files = self.files()
        number = int(files[-1].stem) + 1 if files else 0
        path = self.folder / f"{number:06d}.safetensors"
        self._write(path, tensors, state)
        for old in files[: max(0, len(files) + 1 - KEPT)]:
            old.unlink(missing_ok=True)
        remove_stale(self.folder)
        return path

    def check(self, run: dict[str, Any]) -> None:
        """Refuses a newest checkpoint of another run, by its metadata alone.

        Raises:
            BadInput: as `load`.
        """
        if files := self.files():
            _same_run(files[-1], self._advised(read_state)[0], run)

    def load(self, run: dict[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint, or None when there is none yet.

        Args:
            run: what the checkpoint must say of its run; None takes any.

        Raises:
            BadInput: the newest one is damaged, or of another run; the message names the first difference. It is not
                passed over in silence; the message tells how to do so.
        """
        if not self.files():
            return None
        tensors, state = self._advised(self._read)
        if run is not None:
            _same_run(self.files()[-1], state, run)
        return tensors, state

    def _advised(self, read: Callable[[Path], Any]) -> Any:
        """What `read` gives of the newest file; where it is damaged, with advice."""
        files = self.files()
        try:
            return read(files[-1])
        except BadInput as error:
            rest = f"continue from {files[-2].name}" if len(files) > 1 else "start this seed afresh"
            raise BadInput(f"{error}; delete it to {rest}") from None


def _same_run(path: Path, state: dict[str, Any], run: dict[str, Any]) -> None:
    theirs = state.get("run")
    if not isinstance(theirs, dict):
        raise BadInput(f"{path}: no checkpoint of this version (it does not say of which run it is)")
    for name, value in json.loads(json.dumps(run)).items():
        if name not in theirs or theirs[name] != value:
            found = repr(theirs[name]) if name in theirs else "not given"
            raise BadInput(f"{path}: a checkpoint of another run: its {name} is {found}, this run's is {value!r}")
    if extra := sorted(set(theirs) - set(run)):
        raise BadInput(f"{path}: a checkpoint of another run: it has {extra[0]}, which this run has not")
