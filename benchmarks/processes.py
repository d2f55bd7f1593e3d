"""How a step of the fused engine scales over processes: measured on this machine, and what that says of more.

    python benchmarks/processes.py --neurons 100000 1000000 --processes 1 2 3 --out processes.json

Every process has one thread. Each line is the median over the epochs after the first one, of Top-K training (g = 1) on
samples that are seen again in every epoch; the processes talk through gloo on the loopback, as `ssd-train run
--parallel` does. The last columns compute a step from the one-process phases and the cost of an exchange:

    by samples  T(P) = (select + scan + refresh + forward) / P + (backward + update) + E (a + (P - 1) bytes / P b)
    by neurons  T(P) = (select + scan + refresh + backward + update) / P + forward + E (a + (P - 1) bytes b)

with E exchanges a step, their latency a and seconds per byte b (`--latency`, `--bandwidth`; by default those measured
here), bytes what one process of two sends.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from ssd_train.parallel.group import Group

from ssd_kernels import SDMLPEngine, Share, normalize_inputs

BATCH, INPUTS, CLASSES, K = 128, 256, 10, 10
SHARED = {"samples": ("select", "scan", "refresh", "forward"),
          "neurons": ("select", "scan", "refresh", "backward", "update")}  # fmt: skip
PHASES = ("select", "scan", "refresh", "forward", "backward", "update")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(group: Group | None, by: str, neurons: int, samples: int, epochs: int) -> dict[str, Any]:
    """Seconds, phases and traffic per step: medians over the epochs after the first."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = normalize_inputs(torch.rand(samples, INPUTS, generator=generator).pow_(4))
    y = torch.randint(CLASSES, (samples,), generator=generator)
    share = None if group is None else Share(group.gather, group.rank, group.size, by, neurons)
    here = neurons
    if share is not None and by == "neurons":
        here = share.bounds[share.rank + 1] - share.bounds[share.rank]
    weight = normalize_inputs(torch.rand(here, INPUTS).pow_(4))
    output = torch.rand(CLASSES, here) / here**0.5
    engine = SDMLPEngine(weight, output, torch.zeros(here, dtype=torch.int64), k=K, gaba_switch=None, threads=1,
                         backend="cpu", share=share)  # fmt: skip
    rows = []
    for _ in range(epochs):
        order = torch.randperm(samples, generator=generator)
        begin = time.perf_counter()
        stats = engine.train_epoch(x, y, order, BATCH)
        row = {"step": (time.perf_counter() - begin) / stats.steps, "certified": stats.certified / samples}
        row |= {phase: stats.seconds[phase] / stats.steps for phase in PHASES}
        row |= {name: getattr(stats, name) / stats.steps
                for name in ("exchanges", "sent", "received", "exchange_seconds")}  # fmt: skip
        rows.append(row)
    return {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}


def exchange_cost(group: Group) -> dict[str, float]:
    """Latency of a gather, and seconds per byte that one process receives of another."""
    medians = {}
    for size in (64, 1 << 20):
        seconds = []
        for _ in range(30):
            begin = time.perf_counter()
            group.gather(b"x" * size)
            seconds.append(time.perf_counter() - begin)
        medians[size] = statistics.median(seconds[10:])
    return {"latency": medians[64], "per_byte": (medians[1 << 20] - medians[64]) / (1 << 20) / (group.size - 1)}


def process(rank: int, size: int, port: int, work: list[Any], pipe: Connection) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    group = Group(120.0) if size > 1 else None
    found = train(group, *work)
    if group is not None:
        found["cost"] = exchange_cost(group)
    pipe.send(found)


def measure(size: int, *work: Any) -> dict[str, Any]:
    """What the first of `size` processes found."""
    fork, port, pipes, started = multiprocessing.get_context("fork"), free_port(), [], []
    for rank in range(size):
        ours, theirs = fork.Pipe()
        pipes.append(ours)
        started.append(fork.Process(target=process, args=(rank, size, port, list(work), theirs)))
        started[-1].start()
    found = [pipe.recv() for pipe in pipes]
    for one in started:
        one.join()
    return found[0]


def computed(by: str, size: int, one: dict[str, Any], two: dict[str, Any], latency: float, per_byte: float) -> float:
    """Seconds of a step over `size` processes, by the model of this file's beginning."""
    shared = sum(one[phase] for phase in SHARED[by])
    rest = one["step"] - shared
    sent = two["sent"] * 2 / size if by == "samples" else two["sent"]
    return shared / size + rest + two["exchanges"] * latency + (size - 1) * sent * per_byte


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps over processes.")
    parser.add_argument("--neurons", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--by", nargs="+", default=["samples", "neurons"])
    parser.add_argument("--samples", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--beyond", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--latency", type=float, help="seconds of an exchange; by default measured")
    parser.add_argument("--bandwidth", type=float, help="bytes per second into a process; by default measured")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    records = []
    for neurons in o.neurons:
        one = measure(1, "samples", neurons, o.samples, o.epochs)
        records.append({"neurons": neurons, "by": None, "processes": 1, **one})
        phases = ", ".join(f"{phase} {1e3 * one[phase]:.2f}" for phase in PHASES)
        print(f"R {neurons}: 1 process {1e3 * one['step']:.2f} ms a step ({phases}), certified {one['certified']:.1%}")
        for by in o.by:
            found = {size: measure(size, by, neurons, o.samples, o.epochs) for size in o.processes if size > 1}
            two = found[2]
            latency = o.latency or two["cost"]["latency"]
            per_byte = 1 / o.bandwidth if o.bandwidth else two["cost"]["per_byte"]
            for size, row in found.items():
                model = computed(by, size, one, two, latency, per_byte)
                records.append({"neurons": neurons, "by": by, "processes": size, **row, "computed": model})
                print(f"  by {by}, {size} processes: {1e3 * row['step']:.2f} ms (computed {1e3 * model:.2f}), "
                      f"{1e3 * row['exchange_seconds']:.2f} ms in {row['exchanges']:.1f} exchanges, "
                      f"{row['sent']:.0f} bytes sent to each other, {row['received']:.0f} received, "
                      f"certified {row['certified']:.1%}")  # fmt: skip
            for size in o.beyond:
                model = computed(by, size, one, two, latency, per_byte)
                records.append({"neurons": neurons, "by": by, "processes": size, "computed": model})
                print(f"  by {by}, {size} processes: computed {1e3 * model:.2f} ms")
            print(f"  latency {1e6 * latency:.0f} us, {1e-9 / max(per_byte, 1e-15):.2f} GB/s")
    if o.out is not None:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                   "load": os.getloadavg(), "torch": torch.__version__}  # fmt: skip
        o.out.write_text(json.dumps({"machine": machine, "settings": vars(o) | {"out": None}, "records": records}))


if __name__ == "__main__":
    main()
