"""benchmarks/gpu_suite.py without a GPU: budgets, records, JSON after every section; and what it says then."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

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


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def suite():
    return load("gpu_suite")


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


@pytest.mark.interpreter
def test_the_sanitizers_part_runs_in_the_interpreter(tmp_path):
    pytest.importorskip("triton")
    records = tmp_path / "records"
    command = [sys.executable, "-P", str(SCRIPT.with_name("gpu_bench.py")), "small", "--records", str(records),
               "--seconds", "100"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    found = [json.loads(line) for line in records.read_text().splitlines()]
    status = {record["contender"]: record["status"] for record in found}
    assert status.pop("sdmlp_trainer, graph replay") == "not run: no GPU"
    assert "sdmlp_trainer, launches" in status and len(status) > 6 and set(status.values()) == {"right"}


class OnTheCpu(TorchFunctionMode):
    """Tensors that are asked for on a GPU are made on the CPU."""

    def __torch_function__(self, function, classes, arguments=(), kwargs=None):
        if function is torch.Tensor.cuda:
            return arguments[0]
        kwargs = {**(kwargs or {}), **({"device": "cpu"} if (kwargs or {}).get("device") == "cuda" else {})}
        return function(*arguments, **kwargs)


@contextlib.contextmanager
def pretended_gpu(refuse_capture: bool):
    """Inside, what the benchmarks ask of torch.cuda is answered; a capture runs its block, and a replay is nothing."""
    events = types.SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 0.5)
    stream = mock.Mock()

    @contextlib.contextmanager
    def capture(graph, stream):
        yield
        if refuse_capture:
            raise RuntimeError("operation not permitted when stream is capturing\nin detail")

    answers = {
        "Event": lambda enable_timing: events, "Stream": lambda: stream, "current_stream": lambda: stream,
        "set_stream": lambda stream: None, "stream": lambda stream: contextlib.nullcontext(), "graph": capture,
        "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: None), "synchronize": lambda: None,
        "get_device_name": lambda: "NVIDIA H200",
    }  # fmt: skip
    with mock.patch.multiple(torch.cuda, **answers), OnTheCpu():
        yield


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.parametrize("part", ("layer", "training", "engine"))
def test_the_benchmarks_run_in_the_interpreter(part, tmp_path, monkeypatch):
    """Tiny shapes: every line of the benchmarks, so that a GPU finds no slip of the pen in them."""
    pytest.importorskip("triton")
    bench = load("gpu_bench")
    for name, value in (("LAYERS", ((3, 20, 70, 4),)), ("TRAINING", (60, 20, 3, 4, 5, 9)), ("TOUCHED", (7,)),
                        ("ENGINES", (40,))):  # fmt: skip
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench.peers, "compiled_layer", lambda: bench.peers.eager_layer)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    data = tmp_path / "data.safetensors"
    from safetensors.torch import save_file

    save_file({"x_train": torch.rand(9, 20), "y_train": torch.arange(9) % 3}, data)
    with pretended_gpu(refuse_capture=part == "layer"):
        getattr(bench, part)(bench.Recorder(tmp_path / "records", 900.0 if part == "layer" else 9.0), str(data))
    records = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    assert [record for record in records if "error" in record] == []
    counts = {"layer": 2 * (3 + 2), "training": 2 * 5, "engine": 2}  # contenders
    assert len(records) >= counts[part] and all(record["median_us"] > 0 for record in records)
    if part == "layer":
        assert {record["how"] for record in records} == {"no graph: operation not permitted when stream is capturing"}
        assert all(record["percent_of_bound"] > 0 for record in records if "forward," in record["title"])
