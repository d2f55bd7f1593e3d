"""Seeds side by side (`ssd-train run --jobs N`) against one after another: throughput, and that nothing else differs.

    SSD_DATA_DIR=... python benchmarks/side_by_side.py [--epochs 40] [--seeds 0-3] [--jobs N] [--method sdmlp]

Both commands are whole runs of the recipe split-cifar10-1k on the CIFAR-10 embeddings, process starts included. Weights
and results.json (without times and commands) must be the same, else the script fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ssd_train.checkpoint import read_tensors
from ssd_train.sizes import cores


def run(options: list[str], out: Path, jobs: int) -> float:
    """Seconds of one command."""
    begin = time.perf_counter()
    command = [sys.executable, "-P", "-m", "ssd_train", "run", *options, "--jobs", str(jobs), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def found(out: Path) -> tuple[dict, list[dict]]:
    """results.json without what may differ, and every seed's weights."""
    results = json.loads((out / "results.json").read_text())
    del results["environment"]
    for name in ("jobs", "out"):
        del results["config"][name]
    for entry in results["runs"]:
        for name in ("seconds", "phases"):
            entry.pop(name, None)
        entry["activity"] = {kind: found["steps"] for kind, found in entry["activity"].items()}
    models = sorted(out.glob("seed-*/model.safetensors"))
    return results, [{name: t.numpy().tobytes() for name, t in read_tensors(m)[0].items()} for m in models]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", default="0-3")
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--method", default="sdmlp")
    given = parser.parse_args()
    data = Path(os.environ["SSD_DATA_DIR"]) / "cifar10_convmixer.safetensors"
    options = ["--recipe", "split-cifar10-1k", "--data", str(data), "--method", given.method, "--seeds", given.seeds,
               "--epochs", str(given.epochs), "--plots", "false"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder) / "one", Path(folder) / "many"
        times = run(options, one, 1), run(options, many, given.jobs)
        same = found(one) == found(many)
        inside = [sum(r["seconds"]["train"] for r in json.loads((out / "results.json").read_text())["runs"])
                  for out in (one, many)]  # fmt: skip
    print(f"{given.method}, {given.epochs} epochs, seeds {given.seeds}: one after another {times[0]:.1f} s, "
          f"{given.jobs} side by side {times[1]:.1f} s: {times[0] / times[1]:.2f} x; training alone, over the seeds, "
          f"{inside[0]:.1f} and {inside[1]:.1f} s; same results: {same}")  # fmt: skip
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
