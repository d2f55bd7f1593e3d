"""What the Triton kernels of all operations share: the launch, the machine's figures, ordered keys of scores.

Only the triton_*.py files import this, and ops.py imports those inside the branch that runs them: importing
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

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])  # tested: 3.6 and 3.9
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_REGISTERS = 255  # of one thread, on any GPU
INTERPRETER_MULTIPROCESSORS = 3  # few, so that small test shapes are split as large ones are on a GPU


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a shape heuristic may look at.

    Attributes:
        capability: 80, 90, 100 and so on: compute capability times ten.
        multiprocessors: how many programs run side by side, at one per multiprocessor.
        keys: how many int64 one program should hold at most; the interpreter is fastest with few, large programs.
    """

    capability: int
    multiprocessors: int
    keys: int = 4096


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel launch, as `launch` received it."""

    kernel: object
    grid: tuple[int, ...]
    arguments: tuple
    constants: dict[str, object]
    num_warps: int
    num_stages: int
    registers: int | None
    fusion: bool


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
            return Machine(80, INTERPRETER_MULTIPROCESSORS, 2**20)


def launch(
    kernel: triton.JITFunction,
    grid: tuple[int, ...],
    *arguments: torch.Tensor | int | float | None,
    num_warps: int = 4,
    num_stages: int = 3,
    registers: int | None = None,
    fusion: bool = True,
    **constants: object,
) -> None:
    """Runs a kernel on the device of its first argument, on that device's current stream.

    Args:
        kernel: a @triton.jit function.
        grid: programs along up to three axes; an empty grid launches nothing.
        arguments: the kernel's run-time arguments, in order; the first is a tensor, None is a missing tensor.
        num_warps: warps of one program.
        num_stages: stages of the software pipeline.
        registers: the most that a thread may take. Without it the assembler aims at an occupancy of its own, and spills
            a word or two rather than miss it.
        fusion: whether a product and a sum may become one fused operation: the compiler's choice, kernel by kernel.
        constants: the kernel's tl.constexpr arguments, by name.
    """
    if 0 in grid:
        return
    device = arguments[0].device
    if device.type == "meta":
        _recorded.get()[1].append(Launch(kernel, grid, arguments, constants, num_warps, num_stages, registers, fusion))
        return
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        options = {"num_warps": num_warps, "num_stages": num_stages, "maxnreg": registers}
        options["enable_fp_fusion"] = fusion
        kernel[grid](*arguments, **constants, **options)


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


@triton.jit
def wide(value):
    """fp64 of any float."""
    return value if value.dtype == tl.float64 else value.to(tl.float32).to(tl.float64)


@triton.jit
def narrow(value, ptr):
    """An fp64 number in the dtype that `ptr` points to; the 16-bit ones by way of fp32."""
    return value if ptr.dtype.element_ty == tl.float64 else value.to(tl.float32).to(ptr.dtype.element_ty)


@triton.jit
def whole(high, low):
    """The fp64 number that `split_double` took apart."""
    return tl.full([], high, tl.float64) + tl.full([], low, tl.float64)


def row_stride(matrix: torch.Tensor) -> int:
    """The distance of its rows in elements."""
    return matrix.stride(0) if matrix.shape[0] > 1 else matrix.shape[1]


def place_dtype(rows: int, *matrices: torch.Tensor) -> tl.dtype:
    """The type of places within `rows` rows of these: 32 bits, which take half the registers, where they suffice."""
    return tl.int32 if all(rows * row_stride(matrix) < 2**31 for matrix in matrices) else tl.int64


def dot_precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: products of 16-bit numbers are exact in fp32; fp32 is split into three TF32 products."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def dot_dtype(tensor: torch.Tensor) -> tl.dtype:
    """What tl.dot takes: the storage type, but fp32 for bf16 in the interpreter, whose tl.dot reads it as integers."""
    if tensor.dtype == torch.float32 or (tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu"):
        return tl.float32
    return tl.bfloat16 if tensor.dtype == torch.bfloat16 else tl.float16


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


@triton.jit
def smallest_of_largest(key, count, wanted):
    """The smallest of the `wanted` largest keys of each row, or of all its keys where `count` is not more.

    Args:
        key: (P, N) int64, unique in each row; unused slots hold the smallest int64.
        count: (P,) int32, the used slots of each row.
        wanted: a number.

    Halves the interval between the row's extremes until exactly `wanted` keys reach its lower end: at most 64 passes.
    """
    used = key != -(2**63)
    low = tl.min(tl.where(used, key, 0x7FFFFFFFFFFFFFFF), axis=1)
    high = tl.max(key, axis=1) + 1
    searching = count > wanted
    passes = tl.full([], 0, tl.int32)
    while (tl.max(searching.to(tl.int32), axis=0) > 0) & (passes < 64):  # keys that are not unique end here too
        passes += 1
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        reached = tl.sum((key >= middle[:, None]).to(tl.int32), axis=1)
        low = tl.where(searching & (reached >= wanted), middle, low)
        high = tl.where(searching & (reached < wanted), middle, high)
        searching = searching & (reached != wanted)
    return low


# ---- Sums over sparse pairs (sample, neuron): no float atomics, one program owns one sum, its order is fixed.
@triton.jit
def _gather_sum_kernel(
    value_ptr, index_ptr, offset_ptr, mask_ptr, scale_ptr, m_ptr, out_ptr, batch, per_sample, width,
    stride_row, stride_column, stride_out, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[b, :] = sum over the pairs of sample b of value * scale[neuron] * m[neuron, :], for BLOCK_B samples.

    BLOCK_P pairs of each sample are read at a time.
    """
    sample = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (sample < batch)[:, None] & (column < width)[None, :]
    at, end = sample * per_sample, (sample + 1) * per_sample
    if offset_ptr is not None:
        at = tl.load(offset_ptr + sample, mask=sample < batch, other=0)
        end = tl.load(offset_ptr + sample + 1, mask=sample < batch, other=0)
    end = tl.where(sample < batch, end, at)
    total = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    for _ in range(0, tl.max(end - at, axis=0), BLOCK_P):
        pair = at[:, None] + tl.arange(0, BLOCK_P)[None, :]
        used = pair < end[:, None]
        if mask_ptr is not None:
            used = used & ~(tl.load(mask_ptr + pair, mask=used, other=0.0).to(tl.float32) <= 0)
        neuron = tl.load(index_ptr + pair, mask=used, other=0).to(tl.int64)
        value = tl.load(value_ptr + pair, mask=used, other=0.0).to(tl.float32)
        if scale_ptr is not None:
            value *= tl.load(scale_ptr + neuron, mask=used, other=0.0)
        m_at = m_ptr + neuron[:, :, None] * stride_row + column.to(tl.int64)[None, None, :] * stride_column
        m = tl.load(m_at, mask=used[:, :, None] & (column < width)[None, None, :], other=0.0).to(tl.float32)
        total += tl.sum(value[:, :, None] * m, axis=1)
        at += BLOCK_P
    out_at = out_ptr + sample[:, None] * stride_out + column[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _segment_sum_kernel(
    key_ptr, order_ptr, value_ptr, sample_ptr, scale_ptr, m_ptr, place_ptr, out_ptr, pairs, neurons, per_sample, width,
    stride_m, stride_row, stride_column, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[neuron, :] = sum over the neuron's pairs of value * scale[sample] * m[sample, :]; m is 1 where it is None.

    Pairs are sorted by neuron, samples ascending. A program looks at BLOCK_G pairs, and sums, BLOCK_P pairs at a time,
    the segments that begin with one of them. Pairs with neuron = `neurons` belong to nobody.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    neuron = tl.load(key_ptr + first, mask=first < pairs, other=neurons)
    before = tl.load(key_ptr + first - 1, mask=(first > 0) & (first < pairs), other=-1)
    head = (neuron != before) & (neuron < neurons)
    if tl.max(head.to(tl.int32), axis=0) > 0:
        row = neuron.to(tl.int64)
        if place_ptr is not None:
            row = tl.load(place_ptr + first, mask=head, other=0).to(tl.int64)
        for begin in range(0, width, BLOCK_N):
            column = begin + tl.arange(0, BLOCK_N)
            total = tl.zeros((BLOCK_G, BLOCK_N), tl.float32)
            at = first
            going = head
            while tl.max(going.to(tl.int32), axis=0) > 0:
                place = at[:, None] + tl.arange(0, BLOCK_P)[None, :]
                mine = going[:, None] & (place < pairs)
                mine = mine & (tl.load(key_ptr + place, mask=mine, other=-1) == neuron[:, None])
                pair = tl.load(order_ptr + place, mask=mine, other=0)
                value = tl.load(value_ptr + pair, mask=mine, other=0.0).to(tl.float32)
                sample = pair // per_sample
                if sample_ptr is not None:
                    sample = tl.load(sample_ptr + pair, mask=mine, other=0)
                if scale_ptr is not None:
                    value *= tl.load(scale_ptr + sample, mask=mine, other=0.0)
                term = tl.broadcast_to(value[:, :, None], (BLOCK_G, BLOCK_P, BLOCK_N))
                if m_ptr is not None:
                    inside = mine[:, :, None] & (column < width)[None, None, :]
                    m_at = m_ptr + sample[:, :, None] * stride_m + column[None, None, :]
                    term = term * tl.load(m_at, mask=inside, other=0.0).to(tl.float32)
                total += tl.sum(term, axis=1)
                going = going & (tl.sum(mine.to(tl.int32), axis=1) == BLOCK_P)  # the segment may go on
                at += BLOCK_P
            out_at = out_ptr + row[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column
            tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=head[:, None] & (column < width)[None, :])


def sum_blocks(many: int, width: int, machine: Machine) -> tuple[int, int, int]:
    """Sums, pairs and columns that a program of the two kernels above has at a time: one sum of 8 pairs on a GPU."""
    block_n = min(512, triton.next_power_of_2(width))
    block_p = 8 if block_n > 32 else 32
    room = max(1, machine.keys // (block_p * block_n))
    return min(room, triton.next_power_of_2(max(many, 1))), block_p, block_n


@dataclasses.dataclass(frozen=True)
class Segments:
    """Pairs sorted by neuron, stable: samples ascend within each.

    Attributes:
        keys: (P,) int32, the neurons, ascending; `neurons` stands for pairs that are left out, at the end.
        order: (P,) int64, which pair each is.
        neurons: R.
    """

    keys: torch.Tensor
    order: torch.Tensor
    neurons: int

    @classmethod
    def of(cls, indices: torch.Tensor, neurons: int, inactive: torch.Tensor | None = None) -> Segments:
        """Sorts the pairs by index (P,) int32; those marked `inactive` belong to no neuron."""
        indices = indices.reshape(-1)
        if inactive is not None:
            indices = torch.where(inactive.reshape(-1), neurons, indices)
        keys, order = torch.sort(indices.to(torch.int32), stable=True)
        return cls(keys, order, neurons)

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The neurons that have pairs, (U,) int64 ascending, and which of them each pair is of. Waits for the GPU."""
        heads = self.keys < self.neurons
        heads[1:] &= self.keys[1:] != self.keys[:-1]
        return self.keys[heads].long(), torch.cumsum(heads, 0) - 1


def gather_sum(
    values: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor | None, matrix: torch.Tensor, out: torch.Tensor,
    *, mask: torch.Tensor | None = None, scale: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """out[b, :] = sum over the pairs of sample b of value * scale[index] * matrix[index, :], in their order.

    Args:
        values, indices: (B, K) where offsets is None, else (nnz,); contiguous.
        offsets: (B + 1,) int64 or None.
        matrix: (R, N), any strides.
        out: (B, N), contiguous.
        mask: as values; pairs where it is <= 0 are left out.
        scale: (R,) fp32 or None.
    """
    batch, width = out.shape
    block_b, block_p, block_n = sum_blocks(batch, width, machine_of(out.device))
    launch(
        _gather_sum_kernel, (triton.cdiv(batch, block_b), triton.cdiv(width, block_n)), values, indices, offsets, mask,
        scale, matrix, out, batch, values.shape[-1] if offsets is None else 0, width, matrix.stride(0),
        matrix.stride(1), row_stride(out), BLOCK_B=block_b, BLOCK_P=block_p, BLOCK_N=block_n, registers=MOST_REGISTERS,
    )  # fmt: skip


def segment_sum(
    segments: Segments, values: torch.Tensor, samples: torch.Tensor | None, matrix: torch.Tensor | None,
    out: torch.Tensor, *, place: torch.Tensor | None = None, scale: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """out[neuron, :] = sum over the neuron's pairs of value * scale[sample] * matrix[sample, :], samples ascending.

    Args:
        segments: of the pairs; neurons without one are not written.
        values: (B, K) or (nnz,), contiguous.
        samples: (nnz,) int64, the sample of each pair, or None where each has K of them.
        matrix: (B, N), adjacent columns, or None for a column of ones.
        out: (R, N) or, with `place`, (U, N); any strides.
        place: (P,), the row of each pair's neuron in `out`, from Segments.rows.
        scale: (B,) fp32 or None.
    """
    pairs, width = values.numel(), out.shape[1]
    block_g, block_p, block_n = sum_blocks(pairs, width, machine_of(out.device))
    launch(
        _segment_sum_kernel, (triton.cdiv(pairs, block_g),), segments.keys, segments.order, values, samples, scale,
        matrix, place, out, pairs, segments.neurons, 1 if samples is not None else values.shape[-1], width,
        0 if matrix is None else row_stride(matrix), out.stride(0), out.stride(1),
        BLOCK_G=block_g, BLOCK_P=block_p, BLOCK_N=block_n, registers=MOST_REGISTERS,
    )  # fmt: skip
