"""Sweeps on a local Ray, against the same with local processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ssd_train.checkpoint import read_tensors
from ssd_train.cli.main import main

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray (pip install '.[ray]')")
OPTIONS = ["--data", "digits", "--neurons", "60", "--k", "5", "--n-distill", "30", "--classes-per-task", "5"]


def command(out: Path, *options: str) -> list[str]:
    return ["sweep", *OPTIONS, *options, "--out", str(out)]


def start(out: Path, folder: Path, *options: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen([sys.executable, "-m", "ssd_train", *command(out, *options)], cwd=folder,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def rows(out: Path) -> list[dict]:
    return json.loads((out / "sweep.json").read_text())["rows"]


@needs_ray
def test_ray_gives_what_local_processes_give(tmp_path):
    """The same command, a relative output folder, and the error of a run that cannot be."""
    options = ["--epochs", "2", "--vary", "lr=0.05,0.1", "method=ssd,finetune", "--seeds", "0,1"]
    process = start(Path("ray"), tmp_path, *options, "--scheduler", "ray", "--workers", "2")
    assert process.wait(120) == 0, process.stdout.read()
    assert main(command(tmp_path / "local", *options, "--workers", "0", "--threads", "1")) == 0
    assert rows(tmp_path / "ray") == rows(tmp_path / "local") and len(rows(tmp_path / "ray")) == 4
    (tmp_path / "junk").write_text("no model")
    failing = start(Path("bad"), tmp_path, "--vary", "lr=0.1", "--pretrained", "junk", "--scheduler", "ray")
    text, _ = failing.communicate(timeout=120)
    assert failing.returncode == 2 and "junk: not a whole .safetensors file" in text.strip().splitlines()[-1]


@needs_ray
def test_an_interrupted_sweep_on_ray_goes_on(tmp_path):
    options = ["--epochs", "800", "--vary", "lr=0.05,0.1", "--scheduler", "ray"]
    process, runs = start(tmp_path / "ray", tmp_path, *options), tmp_path / "ray" / "runs"
    end = time.monotonic() + 90
    while time.monotonic() < end and len(list(runs.glob("*/seed-0/metrics.csv"))) < 2:  # both are training
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command continues" in text
    newest = {path.parent: path for path in sorted(runs.glob("*/seed-0/checkpoint/*.safetensors"))}
    states = [read_tensors(path)[1]["progress"] for path in newest.values()]
    assert len(states) == 2 and not any(s["finished"] for s in states)
    # A checkpoint comes after a task or a minute, so one inside a task is what the interrupt saved.
    assert any(s["epoch"] + s["position"] > 0 for s in states)
    process = start(tmp_path / "ray", tmp_path, *options)
    assert process.wait(200) == 0, process.stdout.read()
    assert len(rows(tmp_path / "ray")) == 2


def test_bad_schedulers_are_refused(tmp_path, capsys, monkeypatch):
    assert main(command(tmp_path / "a", "--vary", "lr=0.1", "--scheduler", "slurm")) == 2
    assert "--scheduler: got 'slurm', allowed is local, ray" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command(tmp_path / "b", "--vary", "lr=0.1", "--scheduler", "ray")) == 2
    assert "ssd-kernels[ray]" in capsys.readouterr().err
