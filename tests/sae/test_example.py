"""The example's short run: both models trained alike, dead neurons revived, curves written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples/topk_autoencoder/train.py"


def test_a_short_run(tmp_path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    size = "--neurons 512 --k 4 --steps 60 --batch-size 64 --dead-after 640"
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out"), *size.split()]
    environment = {name: value for name, value in os.environ.items() if name != "SSD_DATA_DIR"}
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    curves = json.loads((tmp_path / "out/curves.json").read_text())["curves"]
    ours, eager = curves["ssd_kernels"], curves["eager"]
    assert ours["loss"] == pytest.approx(eager["loss"], rel=1e-3)
    assert ours["dead"] == pytest.approx(eager["dead"], abs=0.01)
    assert max(ours["dead"]) > 0.1 and max(ours["l0"]) <= 4 and ours["loss"][-1] < 0.75 * ours["loss"][0]
    assert (tmp_path / "out/curves.png").stat().st_size > 10_000
