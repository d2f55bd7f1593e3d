"""The benchmarks' records: a planted slowdown fails a comparison, and the report draws its page. No clock is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CONFTEST = f"""
import importlib.util, os, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
spec = importlib.util.spec_from_file_location("bench_conftest", {str(BENCHMARKS / "conftest.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
globals().update({{name: value for name, value in vars(module).items() if name.startswith("pytest_")}})
compare, smoke = module.compare, module.smoke
factor = float(os.environ["FACTOR"])
module.measure.samples = lambda contenders, **options: {{
    name: [(0.01 + 0.001 * i) * (factor if name == "ours" else 1.0) for i in range(5)] for name in contenders
}}
module.measure.peaks = lambda: (1e9, 1e9)
"""
BENCH = """
import measure
def test_one(compare):
    contenders = {"theirs": lambda: None, "ours": lambda: None}
    compare("a group", contenders, baseline="theirs", gate=lambda: None, work={"ours": measure.Work(1e6, 1e6)})
"""


def run(folder: Path, factor: float, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py",
               f"--benchmark-storage=file://{folder}/saved", "--benchmark-autosave", *options]  # fmt: skip
    environment = {**os.environ, "FACTOR": str(factor)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_a_planted_slowdown_fails_and_the_report_shows_it(tmp_path) -> None:
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(BENCH)
    first = run(tmp_path, 1.0)
    assert first.returncode == 0 and "speed vs theirs" in first.stdout, first.stdout + first.stderr
    (saved,) = (tmp_path / "saved").rglob("*.json")
    records = {record["name"]: record for record in json.loads(saved.read_text())["benchmarks"]}
    info = records["test_one:ours"]["extra_info"]
    assert info["ratio"] == 1.0 and info["flops"] == 1e6 and info["share_of_bound"] == pytest.approx(1e-3 / 0.012)
    assert info["threads"] and info["torch"] and info["command"]
    fail = ("--benchmark-compare", "--benchmark-compare-fail=median:50%")
    slower = run(tmp_path, 2.0, *fail)
    assert slower.returncode != 0 and "Performance has regressed" in slower.stdout + slower.stderr
    assert "test_one:ours" in slower.stdout + slower.stderr

    pytest.importorskip("matplotlib")
    command = [sys.executable, str(BENCHMARKS / "report.py"), str(tmp_path / "saved")]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}  # the suite runs without a script's folder on its path
    drawn = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert drawn.returncode == 0, drawn.stderr
    page = (tmp_path / "saved/report/index.html").read_text()
    assert "<h2>a group</h2>" in page and "<td>2.00</td>" in page and (tmp_path / "saved/report/a-group.png").exists()
