"""Which part of a model a process has: all of it, or with `--parallel neurons` a range of its neurons."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ssd_kernels import Share, neuron_bounds

from ..errors import BadInput
from ..model import Network
from .group import Group

# The axis along which a tensor of a checkpoint is cut by neurons, by the end of its name; others are alike everywhere.
AXES = {"weights.0": 0, "output_weight": 1, "counts0": 0, "counts_before0": 0, "weight_velocity": 0,
        "output_velocity": 1}  # fmt: skip
PIECE = 1 << 22  # bytes of one message of a large tensor, of which a process holds a few copies


def axis_of(name: str) -> int | None:
    """The axis of a named tensor along which neurons lie, None where it is no tensor of neurons."""
    return next((axis for end, axis in AXES.items() if name == end or name.endswith("." + end)), None)


class Whole:
    """This process has the whole model: it is the only one, or they share the samples of each batch.

    Attributes:
        rank, size: which process this is, of how many. group: None where it is the only one.
    """

    def __init__(self, group: Group | None = None) -> None:
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank, group.size)

    def check(self, neurons: int, k: int, batch_size: int) -> None:
        """Refuses more processes than there is work for.

        Raises:
            BadInput: says how many are allowed.
        """
        if self.size > batch_size:
            raise BadInput(f"--parallel: got {self.size} processes for data, allowed are 1 to {batch_size} "
                           f"(a batch has {batch_size} samples)")  # fmt: skip

    def shard(self, neurons: int) -> tuple[int, int] | None:
        """The neurons here, from the first to before the last; None: all."""
        return None

    def share(self, neurons: int) -> Share | None:
        """What the fused engine is told."""
        group = self.group
        return None if group is None else Share(group.gather, group.rank, group.size, "samples", neurons)

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.group is None else self.group.agree(flag)

    def first(self, flag: bool) -> bool:
        """What the first process says."""
        return flag if self.group is None else bool(self.group.first(flag))

    def join(self, name: str, tensor: Tensor) -> Tensor:
        """The whole of a tensor that may be cut by neurons."""
        return tensor

    def own(self, name: str, tensor: Tensor) -> Tensor:
        """The part of a whole tensor that belongs here."""
        return tensor

    def joined(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """`join` of each tensor."""
        return {name: self.join(name, tensor) for name, tensor in named.items()}

    def owned(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """`own` of each tensor."""
        return {name: self.own(name, tensor) for name, tensor in named.items()}

    def whole(self, model: Network) -> Network:
        """The whole model, for what looks at all neurons at once."""
        return model


class Shards(Whole):
    """This process has a range of the neurons. What asks for the whole of something takes its memory for that time."""

    group: Group

    def __init__(self, group: Group, neurons: int) -> None:
        super().__init__(group)
        self.neurons, self.bounds = neurons, neuron_bounds(neurons, group.size)
        self.begin, self.end = self.bounds[group.rank : group.rank + 2]

    def check(self, neurons: int, k: int, batch_size: int) -> None:
        fits = [n for n in range(1, self.size + 1) if _least(neuron_bounds(neurons, n)) > k]
        if self.size not in fits:
            allowed = ", ".join(map(str, fits))
            raise BadInput(f"--parallel: got {self.size} processes for neurons, allowed are {allowed} (each has whole "
                           f"ones of the 16 ranges of {neurons} neurons, and more than K = {k} neurons)")  # fmt: skip

    def shard(self, neurons: int) -> tuple[int, int]:
        return self.begin, self.end

    def share(self, neurons: int) -> Share:
        return Share(self.group.gather, self.rank, self.size, "neurons", self.neurons)

    def join(self, name: str, tensor: Tensor) -> Tensor:
        axis = axis_of(name)
        if axis is None:
            return tensor
        shape = list(tensor.shape)
        shape[axis] = self.neurons
        parts = b"".join(self.pieces(name, tensor, to=None))
        return torch.frombuffer(bytearray(parts), dtype=tensor.dtype).view(shape)

    def own(self, name: str, tensor: Tensor) -> Tensor:
        axis = axis_of(name)
        return tensor if axis is None else tensor.narrow(axis, self.begin, self.end - self.begin).contiguous()

    def pieces(self, name: str, tensor: Tensor, to: int | None = 0) -> Iterator[bytes]:
        """The bytes of a whole tensor in their order, none too long for a message; all processes must iterate.

        Args:
            to: the only process that gets them; None: all do.
        """
        axis, array = axis_of(name), tensor.detach().numpy()
        if axis == 0:
            for rank in range(self.size):
                rows = self.bounds[rank + 1] - self.bounds[rank]
                step = max(1, PIECE // max(1, array.itemsize * int(np.prod(array.shape[1:]))))
                for begin in range(0, rows, step):
                    mine = array[begin : begin + step].tobytes() if rank == self.rank else b""
                    yield self.group.gather(mine, to)[rank]
            return
        for row in array:  # (C, R): a row of the whole is the rows of all processes, one after another
            yield b"".join(self.group.gather(row.tobytes(), to))

    def whole(self, model: Network) -> Network:
        found = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                parameter.data = self.join(name, parameter.data)
            for name, buffer in found.named_buffers():
                buffer.data = self.join(name, buffer.data)
        return found


def _least(bounds: list[int]) -> int:
    return min(b - a for a, b in itertools.pairwise(bounds))
