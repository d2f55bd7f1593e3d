"""benchmarks/gpu_suite.py without a GPU: budgets, records, JSON after every section; and what it says then."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_suite.py"

STUB = """
import json, sys, time
path, seconds, what = sys.argv[1], float(sys.argv[2]), sys.argv[3]
with open(path, "a") as file:
    print(json.dumps({"seconds": seconds}), file=file, flush=True)
    if what == "hang":
        print('{"half": ', end="", file=file, flush=True)
        time.sleep(60)
print("said", what)
sys.exit(what == "fail")
"""


@pytest.fixture(scope="module")
def suite():
    spec = importlib.util.spec_from_file_location("gpu_suite", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_suite"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def stub(suite, what: str, seconds: float, missing: str = ""):
    return suite.Section(
        what, seconds, lambda records, budget: [sys.executable, "-c", STUB, str(records), str(budget), what], missing
    )


def test_sections_have_budgets_and_the_json_is_written_after_each(suite, tmp_path, monkeypatch):
    out, seen = tmp_path / "out.json", []
    write = suite.write
    monkeypatch.setattr(suite, "write", lambda path, content: (write(path, content), seen.append(path.read_text())))
    parts = [
        stub(suite, "pass", 30),
        stub(suite, "fail", 30),
        stub(suite, "hang", 1.5),
        stub(suite, "absent", 9, "none"),
    ]
    result = suite.run_sections(parts, out, {"device": "stub"}, total=100)
    assert [json.loads(text)["sections"][-1]["name"] for text in seen] == ["pass", "fail", "hang", "absent"]
    assert json.loads(out.read_text()) == result and result["environment"] == {"device": "stub"}
    passed, failed, hung, absent = result["sections"]
    assert (
        passed["status"] == "passed" and passed["records"] == [{"seconds": 30}] and "said pass" in passed["output_tail"]
    )
    assert failed["status"] == "failed" and failed["exit"] == 1
    assert hung["status"] == "out of time" and hung["records"] == [{"seconds": 1.5}] and hung["seconds"] < 30
    assert absent["status"] == "not run" and absent["reason"] == "none"
    assert not list(tmp_path.glob("*.new"))


def test_a_section_gets_no_more_than_is_left(suite, tmp_path):
    parts = [stub(suite, "hang", 30), stub(suite, "pass", 30)]
    result = suite.run_sections(parts, tmp_path / "out.json", {}, total=2)
    assert result["sections"][0]["budget"] <= 2 and result["sections"][1]["reason"] == "no time was left"


def test_the_suite_fits_into_eight_minutes(suite):
    parts = suite.sections("data.safetensors")
    assert sum(part.seconds for part in parts) <= suite.TOTAL_SECONDS == 480
    for part in parts:
        command = part.command(Path("records"), 7.0)
        script = next((word for word in command if word.endswith("gpu_bench.py")), None)
        assert script is None or (Path(script).exists() and command[-2:] == ["--data", "data.safetensors"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_sentence():
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == "gpu_suite needs a CUDA device, and torch sees none.\n"


def test_the_sanitizers_part_runs_in_the_interpreter(tmp_path):
    pytest.importorskip("triton")
    records = tmp_path / "records"
    command = [sys.executable, "-P", str(SCRIPT.with_name("gpu_bench.py")), "small", "--records", str(records),
               "--seconds", "100"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert found and all(record["status"] == "right" for record in found)
