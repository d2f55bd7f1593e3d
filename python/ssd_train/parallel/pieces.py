"""Checked .safetensors files of tensors that no process holds whole: written and read in pieces.

The file is that of `checkpoint.write_tensors`, which reads it too: one complete file, whatever number of processes
wrote it. The first process writes; reading, every process takes its own part from the file, which all must see.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import FORMAT, read_state, replacing
from ..errors import BadInput, reading
from .shards import PIECE, Shards, axis_of

TYPES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}
DTYPES = {name: dtype for dtype, name in TYPES.items()}
NO_DIGEST = "0" * 64  # its place in the header, until the bytes are known


def write_shards(parts: Shards, path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes the whole tensors and a JSON document, atomically; every process calls it with its own parts."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    if parts.rank > 0:
        for name in names:
            if axis_of(name) is not None:
                for _ in parts.pieces(name, tensors[name]):
                    pass
        return
    document, entries, at = json.dumps(state, allow_nan=True), {}, 0
    for name in names:
        shape = list(tensors[name].shape)
        axis = axis_of(name)
        if axis is not None:
            shape[axis] = parts.neurons
        size = math.prod(shape) * tensors[name].element_size()
        entries[name] = {"dtype": TYPES[tensors[name].dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    metadata = {"format": FORMAT, "state": document, "sha256": NO_DIGEST}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            if axis_of(name) is None:
                file.write(tensors[name].numpy().tobytes())
                continue
            for piece in parts.pieces(name, tensors[name]):
                file.write(piece)
        file.flush()
        digest = _digest(file, 8 + len(header), entries, document)
        file.seek(8 + header.index(NO_DIGEST.encode()))
        file.write(digest.encode())


def _digest(file: BinaryIO, start: int, entries: dict[str, Any], document: str) -> str:
    """What `checkpoint` computes of tensors in memory, from the file."""
    digest = hashlib.sha256(document.encode())
    for name in sorted(entries):
        entry = entries[name]
        digest.update(f"\n{name} {DTYPES[entry['dtype']]} {tuple(entry['shape'])}\n".encode())
        for piece in _read(file, start, entry["data_offsets"]):
            digest.update(piece)
    return digest.hexdigest()


def _read(file: BinaryIO, start: int, offsets: list[int]) -> Iterator[bytes]:
    begin, end = offsets
    file.seek(start + begin)
    for at in range(begin, end, PIECE):
        piece = file.read(min(PIECE, end - at))
        if len(piece) < min(PIECE, end - at):
            raise BadInput("it ends too early")
        yield piece


def read_shards(parts: Shards, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The own parts of what `write_shards` or `checkpoint.write_tensors` wrote; the first process checks its digest.

    Raises:
        BadInput: the file is missing, truncated, edited, or of another kind.
    """
    with parts.group.together():
        state, _ = read_state(path)
        with reading(path, "cannot be read; it is truncated, damaged or of another kind"), open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
            metadata = entries.pop("__metadata__")
            if parts.rank == 0 and _digest(file, 8 + length, entries, metadata["state"]) != metadata["sha256"]:
                raise BadInput(f"{path}: its SHA-256 does not fit its contents; it was damaged or edited")
            tensors = {name: _own_part(parts, path, 8 + length, name, entry) for name, entry in entries.items()}
    return tensors, state


def _own_part(parts: Shards, path: Path, start: int, name: str, entry: dict[str, Any]) -> Tensor:
    dtype, shape, axis = DTYPES[entry["dtype"]], tuple(entry["shape"]), axis_of(name)
    if axis is not None and shape[axis] != parts.neurons:
        raise BadInput(f"{path}: {name} is of {shape[axis]} neurons, this run has {parts.neurons}")
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    whole = np.memmap(path, dtype=kind, mode="r", offset=start + entry["data_offsets"][0], shape=shape or (1,))
    if axis is None:
        return torch.from_numpy(np.array(whole)).view(shape)
    mine = (slice(None),) * axis + (slice(parts.begin, parts.end),)
    return torch.from_numpy(np.array(whole[mine]))
