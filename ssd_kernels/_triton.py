"""What the Triton kernels of all operations share: the launch, the machine's figures, ordered keys of scores.

Only the triton_kernel.py files import this, and ops.py imports those inside the branch that runs them: importing
ssd_kernels imports no triton.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import struct
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETER_MULTIPROCESSORS = 3  # few, so that small test shapes are split as large ones are on a GPU


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a shape heuristic may look at.

    Attributes:
        capability: 80, 90, 100 and so on: compute capability times ten.
        multiprocessors: how many programs run side by side, at one per multiprocessor.
    """

    capability: int
    multiprocessors: int


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel launch, as `launch` received it."""

    kernel: object
    grid: tuple[int, ...]
    arguments: tuple
    constants: dict[str, object]
    num_warps: int
    num_stages: int


# Set by `recording` alone: what the offline compiler asks for in place of a GPU.
_recorded: contextvars.ContextVar[tuple[Machine, list[Launch]]] = contextvars.ContextVar("recorded")


@contextlib.contextmanager
def recording(machine: Machine) -> Iterator[list[Launch]]:
    """Inside, launches on meta tensors are listed as they would run on `machine`. Nothing is executed."""
    launches: list[Launch] = []
    token = _recorded.set((machine, launches))
    try:
        yield launches
    finally:
        _recorded.reset(token)


@functools.cache
def _gpu(device: torch.device) -> Machine:
    properties = torch.cuda.get_device_properties(device)
    return Machine(10 * properties.major + properties.minor, properties.multi_processor_count)


def machine_of(device: torch.device) -> Machine:
    """The figures of a GPU; of the recording's machine for meta tensors; small ones for the interpreter."""
    match device.type:
        case "cuda":
            return _gpu(device)
        case "meta":
            return _recorded.get()[0]
        case _:
            return Machine(80, INTERPRETER_MULTIPROCESSORS)


def launch(
    kernel: triton.JITFunction,
    grid: tuple[int, ...],
    *arguments: torch.Tensor | int | float | None,
    num_warps: int = 4,
    num_stages: int = 3,
    **constants: object,
) -> None:
    """Runs a kernel on the device of its first argument, on that device's current stream.

    Args:
        kernel: a @triton.jit function.
        grid: programs along up to three axes; an empty grid launches nothing.
        arguments: the kernel's run-time arguments, in order; the first is a tensor, None is a missing tensor.
        num_warps: warps of one program.
        num_stages: stages of the software pipeline.
        constants: the kernel's tl.constexpr arguments, by name.
    """
    if 0 in grid:
        return
    device = arguments[0].device
    if device.type == "meta":
        _recorded.get()[1].append(Launch(kernel, grid, arguments, constants, num_warps, num_stages))
        return
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, **constants, num_warps=num_warps, num_stages=num_stages)


def check_dtype(op: str, tensor: torch.Tensor) -> None:
    """Refuses what the Triton kernels do not take: fp64 runs on the reference and the CPU kernels."""
    if tensor.dtype not in DTYPES:
        allowed = ", ".join(map(str, DTYPES))
        raise ValueError(f"{op}: backend='triton' has no kernel for {tensor.dtype}: allowed are {allowed}")


def rows_adjacent(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix whose columns are adjacent: itself, or a copy where its layout is another."""
    return matrix if matrix.shape[1] <= 1 or matrix.stride(1) == 1 else matrix.contiguous()


def split_double(value: float) -> tuple[float, float]:
    """Two fp32 numbers whose sum is `value` to 48 bits: what a kernel's arguments, fp32 all, can carry of it."""
    high = struct.unpack("f", struct.pack("f", value))[0]
    return high, value - high


# ---- Device code.
@triton.jit
def ordered_key(score, index):
    """(score, index) as one int64 whose order is that of the winners: larger scores, then lower indices.

    NaN is the largest score, and -0 equals 0. The score can be read back with `key_score`, the index with `key_index`.
    """
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    bits = tl.where(score != score, 0x7FC00000, bits)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def key_score(key):
    """The fp32 score of an ordered key."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_index(key):
    """The int32 index of an ordered key."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)
