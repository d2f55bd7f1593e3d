"""Autotuning on request: with SSD_TRITON_TUNE=1 the first call of a shape times a few schedules and keeps the fastest.

Without it, and while a CUDA graph is captured, kernels run in the schedule of their shape heuristic. Another schedule
may add up a product in another order, so a tuned run need not repeat the bits of another one.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

Schedule = TypeVar("Schedule")

REPEATS = 7
_fastest: dict[Hashable, object] = {}


def requested() -> bool:
    """Whether SSD_TRITON_TUNE asks for it."""
    return os.environ.get("SSD_TRITON_TUNE") == "1"


def fastest(
    key: Hashable, schedules: Sequence[Schedule], run: Callable[[Schedule], object], device: torch.device
) -> Schedule:
    """The fastest of the schedules for `key`, measured at its first call and remembered in this process.

    Args:
        key: what the choice depends on: operation, shape, dtype, device.
        schedules: the heuristic's first. One of the others that cannot be compiled or launched is left out.
        run: launches the kernel.
        device: where it runs.

    Raises:
        Whatever `run` raises with the heuristic's schedule.
    """
    if key not in _fastest:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return schedules[0]  # nothing can be timed now
        times = {schedules[0]: _seconds(lambda: run(schedules[0]), device)}
        for schedule in schedules[1:]:
            try:
                times[schedule] = _seconds(lambda chosen=schedule: run(chosen), device)
            except Exception:  # too much shared memory or too many registers: triton has no common error for them
                continue
        _fastest[key] = min(times, key=times.get)
    return _fastest[key]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of a run, after one that compiles it."""
    run()
    if device.type != "cuda":
        times = []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    events[-1].synchronize()
    return statistics.median(first.elapsed_time(second) for first, second in itertools.pairwise(events)) / 1e3
