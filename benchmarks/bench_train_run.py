"""A whole run of `ssd-train`, 5 tasks x 100 epochs, against the eager step times it would be made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import measure
import pytest
import torch
import workload
from bench_train_step import PAUSE, eager, exact_gate
from eager_step import EagerSDMLP, EagerTrainer

NEURONS, EPOCHS, TASKS = 10_000, 100, 5


def bench_train_step_whole_run(compare: Callable, smoke: bool, tmp_path: Path) -> None:
    """Every phase, refreshes, evaluation, analysis and checkpoints included; eager's time holds its steps alone."""
    if smoke:
        pytest.skip("not a small size")
    if not os.environ.get("SSD_DATA_DIR"):
        pytest.skip("SSD_DATA_DIR is not set")
    *model, switch = workload.after_task0(NEURONS, saturated=False)
    first = EagerTrainer(EagerSDMLP(*model, workload.K, switch), None, None)
    x, y = (part[: workload.BATCH] for part in workload.task(0))
    later, _ = eager(NEURONS, saturated=False)
    table = compare(
        f"SSD, {TASKS} tasks x {EPOCHS} epochs, R = {NEURONS}, K = {workload.K}: one run",
        {"first task": lambda: first.step(x, y), "later tasks": later},
        baseline="first task",
        gate=exact_gate(1_000),
        rounds=20,
        pause=PAUSE,
    )
    steps = EPOCHS * -(-len(workload.task(0)[0]) // workload.BATCH)
    step = {name: timing.median for name, timing in table.timings.items()}
    extrapolated = steps * (step["first task"] + (TASKS - 1) * step["later tasks"])
    table.notes.append(
        f"eager, ms a step: first task {step['first task'] * 1e3:.1f}, later tasks {step['later tasks'] * 1e3:.1f}"
    )

    data = Path(os.environ["SSD_DATA_DIR"]) / "cifar10_convmixer.safetensors"
    options = f"--method ssd --neurons {NEURONS} --k {workload.K} --epochs {EPOCHS} --seeds 0".split()
    command = ["run", "--data", str(data), *options, "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    program = "import sys; from ssd_train.cli.main import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", program, *command, "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    run = json.loads((tmp_path / "results.json").read_text())["runs"][0]
    seconds = run["seconds"]
    table.timings = {
        "eager, extrapolated": measure.timing([extrapolated] * 2),
        "ssd-train run": measure.timing([seconds["total"]] * 2),
        "its training": measure.timing([seconds["train"]] * 2),
    }
    table.baseline = "eager, extrapolated"
    table.targets = {"ssd-train run": (table.baseline, 20.0)}
    for kind, part in run["activity"].items():
        each = part["seconds"] / part["steps"] * 1e3
        table.notes.append(f"{kind}: {part['steps']:.0f} steps, {part['seconds']:.1f} s, {each:.2f} ms a step")
    phases = ", ".join(f"{phase} {value:.1f} s" for phase, value in run["phases"].items() if value >= 0.05)
    table.notes.append(f"evaluation {seconds['eval']:.1f} s; phases: {phases}")
