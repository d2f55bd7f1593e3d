"""The engine's certificates against its exhaustive form on random configurations: every bit must agree.

    python tests/stress_engine.py [--count 400] [--seed 0] [--levels generic avx2 ...] [--seconds S]

Each configuration is trained twice, with scan="auto" and scan="exhaustive", through several tasks, and compared after
every epoch: weights, counters and statistics. What it is made of is printed where it fails; `--only N` runs it again.
By default all instruction sets of the processor are run, `count` configurations each.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

from ssd_kernels import QuadraticPenalty, SDMLPEngine, normalize_inputs, testing, top_n

STATISTICS = ("loss", "ce", "kd_hidden", "kd_logits", "grad_norm", "active_per_row", "touched", "steps")
WORK = 2.5e8  # scores times inputs that one exhaustive training may compute: larger layers get fewer rows


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One random training."""

    number: int
    neurons: int
    inputs: int
    k: int
    classes: int
    samples: int
    epochs: int  # of each task
    batch: int
    switch: float | None  # in units of what a task's samples and epochs can count
    lr: float
    momentum: float
    norm: float
    teacher: bool
    reverse: bool
    penalty: bool
    cache_mb: int
    spread: float  # of the samples around their class's centre
    levels: int  # quantisation of the inputs; 0: none
    duplicates: bool  # samples that are equal, and samples that stand in the order twice
    change: str  # what changes from outside between calls: "", "samples" (another tensor) or "in place"
    reload: bool  # state_dict and load_state_dict midway
    threads: int


def configuration(number: int) -> Configuration:
    """The configuration of a number: the same everywhere."""
    random = np.random.default_rng(number)

    def log(low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    neurons, inputs = int(log(20, 3001)), int(log(3, 301))
    rows = WORK / (neurons * inputs)
    samples = int(min(log(30, 400), max(30, rows / 8)))
    return Configuration(
        number=number,
        neurons=neurons,
        inputs=inputs,
        k=int(min(log(1, 65), neurons - 1, 64)),
        classes=int(random.integers(2, 7)),
        samples=samples,
        epochs=int(np.clip(rows / samples / 3, 2, 14)),
        batch=int(log(1, 65)),
        switch=None if random.random() < 0.25 else log(0.02, 3),
        lr=log(1e-3, 0.5),
        momentum=float(random.choice([0, 0, 0.5, 0.9])),
        norm=float(random.choice([1.0, 0.05, 1e3])),
        teacher=bool(random.random() < 0.6),
        reverse=bool(random.random() < 0.4),
        penalty=bool(random.random() < 0.25),
        cache_mb=int(random.choice([1024, 1024, 1, 0])),
        spread=log(0.01, 1),
        levels=int(random.choice([0, 0, 2, 4, 16])),
        duplicates=bool(random.random() < 0.3),
        change=str(random.choice(["", "", "samples", "in place"])),
        reload=bool(random.random() < 0.3),
        threads=int(random.integers(1, 4)),
    )


def task(config: Configuration, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and labels of one task: clusters, quantised or repeated as the configuration wants."""
    generator = torch.Generator().manual_seed(1000 * config.number + index)
    centres = torch.rand(config.classes, config.inputs, generator=generator)
    y = torch.randint(config.classes, (config.samples,), generator=generator)
    x = centres[y] + config.spread * torch.randn(config.samples, config.inputs, generator=generator)
    if config.levels:
        x = (x * config.levels).round() / config.levels
    if config.duplicates:
        x[1::3] = x[0]
    return normalize_inputs(x).contiguous(), y


def model(config: Configuration) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projected random weights; counters at 0. Quantised configurations have equal rows."""
    generator = torch.Generator().manual_seed(config.number)
    weight = torch.randn(config.neurons, config.inputs, generator=generator).clamp_(min=0)
    if config.levels:
        weight[::5] = weight[0].clone()
    weight /= torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(1e-12)
    output = (torch.randn(config.classes, config.neurons, generator=generator) / config.neurons**0.5).clamp_(min=0)
    return weight.contiguous(), output.contiguous(), torch.zeros(config.neurons, dtype=torch.int64)


def build(config: Configuration, scan: str) -> SDMLPEngine:
    switch = None
    if config.switch is not None:
        switch = max(1.0, config.switch * config.samples * config.epochs)
    return SDMLPEngine(
        *model(config),
        k=config.k,
        gaba_switch=switch,
        lr=config.lr,
        momentum=config.momentum,
        max_grad_norm=config.norm,
        kl="reverse" if config.reverse else "forward",
        scan=scan,
        threads=config.threads,
        cache_mb=config.cache_mb,
        temperature=2.0,
    )


def training(config: Configuration, scan: str) -> Iterator[tuple[dict, dict, tuple[int, int, int]]]:
    """Trains two tasks; yields after every epoch the state, the statistics, and how the rows were found."""
    engine = build(config, scan)
    order = torch.Generator().manual_seed(config.number)
    teacher = penalty = None
    for index in range(2):
        x, y = task(config, index)
        if index and config.teacher:
            units = top_n(engine.frequencies(task(config, 0)[0]), max(1, config.neurons // 3))
            teacher = engine.make_teacher(x, units)
        if index and config.penalty:
            generator = torch.Generator().manual_seed(config.number + 1)
            importance = [torch.rand(part.shape, generator=generator) for part in (engine.weight, engine.output_weight)]
            importance[0][::3] = 0
            penalty = QuadraticPenalty(
                importance[0], engine.weight.clone(), importance[1], engine.output_weight.clone(), 0.3
            )
        for epoch in range(config.epochs):
            if epoch == config.epochs // 2 and not index:
                if config.change == "in place":
                    x.mul_(torch.rand(config.inputs, generator=order) + 0.5)
                    x /= torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
                elif config.change == "samples":
                    x = x.flip(0).contiguous()
                if config.reload:
                    state = engine.state_dict()
                    engine = build(config, scan)
                    engine.load_state_dict(state)
            positions = torch.randperm(config.samples, generator=order)
            if config.duplicates:
                positions[::4] = positions[0].clone()
            stats = engine.train_epoch(x, y, positions, config.batch, teacher=teacher, penalty=penalty)
            found = (stats.certified, stats.refreshed, stats.scanned)
            yield engine.state_dict(), {name: getattr(stats, name) for name in STATISTICS}, found


def check(config: Configuration) -> tuple[int, int]:
    """Compares both forms; the rows that had a certificate, and all rows. AssertionError where a bit differs."""
    certified = rows = 0
    both = zip(training(config, "auto"), training(config, "exhaustive"), strict=True)
    for epoch, ((state, stats, found), (other, other_stats, _)) in enumerate(both):
        assert stats == other_stats, f"epoch {epoch}: {stats} is not {other_stats}\n{config}"
        for name, value in state.items():
            assert torch.equal(value, other[name]), f"epoch {epoch}: {name} differs\n{config}"
        certified += found[0]
        rows += found[0] + found[2]
    return certified, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--count", type=int, default=400, help="configurations per instruction set")
    parser.add_argument("--seed", type=int, default=0, help="the first configuration's number")
    parser.add_argument("--only", type=int, help="this configuration alone")
    parser.add_argument("--levels", nargs="+", default=testing.simd_levels(), help="instruction sets")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = range(arguments.seed, arguments.seed + arguments.count)
    if arguments.only is not None:
        numbers = range(arguments.only, arguments.only + 1)
    begin, failed = time.monotonic(), 0
    for level in arguments.levels:
        os.environ["SSD_SIMD"] = level
        done = certified = rows = refused = 0
        for number in numbers:
            if time.monotonic() - begin > arguments.seconds:
                break
            try:
                counts = check(configuration(number))
            except AssertionError as error:
                failed += 1
                print(f"{level}: configuration {number} FAILS: {error}", flush=True)
                continue
            except ssd_error() as error:
                refused += 1
                print(f"{level}: configuration {number} stopped: {error}", flush=True)
                continue
            done += 1
            certified, rows = certified + counts[0], rows + counts[1]
        print(
            f"{level}: {done} configurations agree bit for bit, {refused} stopped by a number that is not finite; "
            f"{certified} of {rows} rows certified ({time.monotonic() - begin:.0f} s)",
            flush=True,
        )
    return 1 if failed else 0


def ssd_error() -> type[Exception]:
    from ssd_kernels import NonFiniteStep

    return NonFiniteStep


if __name__ == "__main__":
    sys.exit(main())
