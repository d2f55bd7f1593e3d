"""How the Triton kernels of topk_linear cut a shape into programs: the shape heuristics, and what tuning compares."""

from __future__ import annotations

import dataclasses

import torch
import triton

from .. import _triton


@dataclasses.dataclass(frozen=True)
class Scan:
    """The schedule of a scan: tile sizes, how many parts the neurons are cut into, and the room for survivors."""

    block_b: int
    block_r: int
    block_d: int
    one_step: bool
    tiles: int
    parts: int
    capacity: int
    groups: int
    num_warps: int
    num_stages: int


def scan_config(
    batch: int, inputs: int, neurons: int, k1: int, dtype: torch.dtype, machine: _triton.Machine, *,
    most: int | None = None, waves: int = 1,
) -> Scan:  # fmt: skip
    """The shape heuristic. A list of survivors holds one whole tile beside K + 1 keys, so a tile always fits.

    Args:
        most: samples of a block at most. waves: programs per multiprocessor, one after the other.
    """
    wide = dtype == torch.float32
    hopper = machine.capability >= 90
    most = most or (32 if wide and not hopper else 64)
    block_b = min(most, max(16, triton.next_power_of_2(batch)))
    block_r = 128
    block_d = max(16, triton.next_power_of_2(inputs))
    one_step = block_d <= (64 if wide else 256 if hopper else 128)
    if not one_step:
        block_d = 32 if wide else 64
    tiles = triton.cdiv(neurons, block_r)
    parts = max(1, min(tiles, waves * machine.multiprocessors // max(1, triton.cdiv(batch, block_b))))
    per_part = triton.cdiv(tiles, parts)
    # Column maxima cost registers: with many winners, exact pruning alone raises the limit.
    groups = 32 if k1 <= 21 else 64 if k1 <= 42 and machine.capability < 90 else 1
    return Scan(
        block_b, block_r, block_d, one_step, per_part, triton.cdiv(tiles, per_part),
        triton.next_power_of_2(max(7 * k1, k1 + block_r)),
        groups,
        8, 2 if one_step else 3,
    )  # fmt: skip


def scan_configs(
    batch: int, inputs: int, neurons: int, k1: int, dtype: torch.dtype, machine: _triton.Machine
) -> list[Scan]:
    """What tuning compares: the heuristic's choice, other depths of the pipeline, smaller blocks, more programs."""
    shape = batch, inputs, neurons, k1, dtype, machine
    first = scan_config(*shape)
    half = scan_config(*shape, most=max(16, first.block_b // 2))
    return list(dict.fromkeys([
        first, dataclasses.replace(first, num_stages=first.num_stages + 1), dataclasses.replace(first, num_warps=4),
        scan_config(*shape, waves=2), scan_config(*shape, waves=4), half, dataclasses.replace(half, num_warps=4),
        dataclasses.replace(half, num_stages=half.num_stages + 1),
    ]))  # fmt: skip


def row_blocks(rows: int, columns: int, machine: _triton.Machine) -> tuple[int, int]:
    """Rows and columns that a program which walks along rows has at a time."""
    block_n = min(512, triton.next_power_of_2(columns))
    return min(max(1, machine.keys // 2 // block_n), triton.next_power_of_2(max(rows, 1))), block_n


def merge_block(batch: int, width: int, machine: _triton.Machine) -> int:
    """How many samples one program of the merge takes."""
    return max(1, min(machine.keys // width, triton.next_power_of_2(max(batch, 1))))
