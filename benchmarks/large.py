"""Three epochs at sizes beyond the benchmarks': time, how rows were found, and the peak memory with what it is made of.

    python benchmarks/large.py --neurons 1000000 --samples 50000
    python benchmarks/large.py --neurons 10000 --samples 1000000

A fresh model with saturated counters, as late in a task, on the samples of `workload.py`: those of all tasks, repeated
with a little noise where more are asked for.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
import workload
from torch import Tensor

from ssd_kernels import SDMLPEngine, normalize_inputs

MIB = 2**20


def samples(count: int) -> tuple[Tensor, Tensor]:
    """Normalised samples and labels; no two samples are equal."""
    x, y, _ = workload.embeddings()
    if count <= len(x):
        return x[:count].contiguous(), y[:count].contiguous()
    generator = torch.Generator().manual_seed(5)
    rows = torch.arange(count) % len(x)
    noisy = x[rows]
    for part in noisy.split(65_536):  # in place: a second copy would be most of the memory
        part += 0.02 * torch.rand(part.shape, generator=generator)
        part.copy_(normalize_inputs(part))
    return noisy, y[rows].contiguous()


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parts(neurons: int, inputs: int, classes: int, count: int, cache_mb: int) -> dict[str, float]:
    """What the engine's memory is made of, in MiB."""
    padded = (classes + 15) // 16 * 16
    return {
        "samples and labels": count * (inputs * 4 + 8) / MIB,
        "W": neurons * inputs * 4 / MIB,
        "V, and V by neuron": neurons * (classes + padded) * 4 / MIB,
        # P at 16 snapshots, places in 16 far lists, P, e, U, g, counters, marks
        "tables of certificates by neuron": neurons * (64 + 64 + 60) / MIB,
        "likely winners": count * (workload.K + 1) * 4 / MIB,
        "records, at most": cache_mb,
        "old places of rows, at most": 256,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--neurons", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cache-mb", type=int, default=1024)
    arguments = parser.parse_args()
    x, y = samples(arguments.samples)
    weight, output, counts = workload.fresh_model(arguments.neurons)
    counts.fill_(10**9)
    engine = SDMLPEngine(weight, output, counts, k=workload.K, gaba_switch=1e6, cache_mb=arguments.cache_mb)
    print(f"before training: peak {peak():.0f} MiB", flush=True)
    generator = torch.Generator().manual_seed(3)
    for epoch in range(arguments.epochs):
        begin = time.perf_counter()
        stats = engine.train_epoch(x, y, torch.randperm(len(x), generator=generator), workload.BATCH)
        seconds = time.perf_counter() - begin
        print(
            f"epoch {epoch + 1}: {seconds:.1f} s, {seconds / stats.steps * 1e3:.2f} ms a step; certified "
            f"{stats.certified}, refreshed {stats.refreshed}, scanned {stats.scanned}; peak {peak():.0f} MiB",
            flush=True,
        )
    for name, mib in parts(arguments.neurons, weight.shape[1], len(output), len(x), arguments.cache_mb).items():
        print(f"{name}: {mib:.0f} MiB")


if __name__ == "__main__":
    main()
