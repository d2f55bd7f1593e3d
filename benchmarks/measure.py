"""Timing: contenders interleaved (A B A B) in one process, medians and quartiles, the environment beside them."""

from __future__ import annotations

import dataclasses
import functools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import ssd_kernels
from ssd_kernels import _native


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds: the median of all rounds, the quartiles around it, and the mean."""

    median: float
    low: float
    high: float
    rounds: int
    mean: float | None = None  # unknown in older results


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 20.0,
    rounds: int = 60,
    warmup: int = 3,
    steps: Mapping[str, int] | None = None,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """The timings of `samples`."""
    times = samples(contenders, seconds=seconds, rounds=rounds, warmup=warmup, steps=steps, pause=pause)
    return {name: timing(seconds) for name, seconds in times.items()}


def samples(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 20.0,
    rounds: int = 60,
    warmup: int = 3,
    steps: Mapping[str, int] | None = None,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Every contender's seconds, once per round, in turn, until `rounds` or about `seconds` are over (5 at least).

    A contender named in `steps` does that many steps a call: its time is that of one. `pause` seconds of rest come
    before every call: torch's OpenMP threads spin on after a parallel region, and would be charged to the next one.
    """
    for _ in range(warmup):
        for run in contenders.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= 5 and time.perf_counter() > end:
            break
        for name, run in contenders.items():
            if pause:  # sleep(0) would hand the core, and its caches, to whoever waits for it
                time.sleep(pause)
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / (steps or {}).get(name, 1))
    return times


def timing(samples: list[float]) -> Timing:
    """Median, quartiles and mean of some seconds."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, len(samples), statistics.fmean(samples))


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call computes and moves at least: multiplications and additions, and bytes read and written."""

    flops: float
    bytes: float


@functools.cache
def peaks() -> tuple[float, float]:
    """Operations and bytes per second that torch reaches here: an fp32 product and a copy, the best of 5."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    source, target = torch.zeros(1 << 24), torch.empty(1 << 24)
    best = []
    for call in (lambda: a @ b, lambda: target.copy_(source)):
        call()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        best.append(min(seconds))
    return 2 * 1024**3 / best[0], 8 * source.numel() / best[1]


def bound(work: Work) -> float:
    """Seconds that the work takes at least, at fp32 peak and memory speed. bf16 preselection can be below it."""
    flops, rate = peaks()
    return max(work.flops / flops, work.bytes / rate)


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, object]:
    """What a figure depends on: versions, commit, processor, SIMD level, threads."""
    here = Path(__file__).resolve().parent
    module, _ = _native.cpu_module()
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _run("git", "-C", str(here), "rev-parse", "--short", "HEAD"),
        "changed_files": len(_run("git", "-C", str(here), "status", "--porcelain", "-uno").splitlines()),
        "ssd_kernels": ssd_kernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "simd": module.simd_level(_native.simd_level()) if module else "none",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
