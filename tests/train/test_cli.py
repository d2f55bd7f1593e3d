"""The command line: every bad input is one line and exit code 2, nothing is destroyed, results have their schema."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import save_file
from ssd_train import options
from ssd_train.cli import main as cli
from ssd_train.config import TrainConfig, parse_seeds, recipe_names
from ssd_train.errors import BadInput

SIZES = ["--data", "digits", "--neurons", "50", "--k", "5", "--epochs", "1"]
TINY = [*SIZES, "--n-distill", "20"]


def arrays():
    generator = torch.Generator().manual_seed(0)
    return {
        "x_train": torch.rand(60, 8, generator=generator),
        "y_train": torch.arange(60) % 4,
        "x_test": torch.rand(20, 8, generator=generator),
        "y_test": torch.arange(20) % 4,
    }


def write(path, **changes):
    tensors = {k: v for k, v in (arrays() | changes).items() if v is not None}
    if path.suffix == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in tensors.items()})
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def nan_at(row):
    x = arrays()["x_train"]
    x[row, 3] = float("nan")
    return x


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two seeds."""
    out = tmp_path_factory.mktemp("runs") / "ssd"
    assert cli.main(["run", *TINY, "--seeds", "0-1", "--out", str(out), "--eval-every", "1"]) == 0
    return out


OPTIONS = [
    (["--k", "50"], ["--k", "50", "1 .. 49"]),
    (["--k", "0"], ["--k", "0", "1 .. 49"]),
    (["--neurons", "0"], ["--neurons", "0"]),
    (["--epochs", "-1"], ["--epochs", "-1", "0 or more"]),
    (["--epochs", "1.5"], ["--epochs", "1.5", "int"]),
    (["--epochs", "many"], ["--epochs", "many", "int"]),
    (["--method", "magic"], ["--method", "magic", "finetune", "ssd"]),
    (["--model", "relu"], ["--model", "relu", "sdmlp"]),
    (["--model", "cnn"], ["--model", "cnn"]),
    (["--layers", "0"], ["--layers", "0"]),
    (["--batch-size", "0"], ["--batch-size", "0"]),
    (["--lr", "0"], ["--lr", "0"]),
    (["--lr", "nan"], ["--lr", "nan"]),
    (["--momentum", "1"], ["--momentum", "1"]),
    (["--alpha", "1.5"], ["--alpha", "1.5", "0 .. 1"]),
    (["--lam", "-0.1"], ["--lam", "-0.1", "0 .. 1"]),
    (["--temperature", "0"], ["--temperature", "0"]),
    (["--n-distill", "0"], ["--n-distill", "0"]),
    (["--kl", "sideways"], ["--kl", "sideways", "forward"]),
    (["--gaba-switch", "never"], ["--gaba-switch", "never", "auto"]),
    (["--gaba-switch", "0"], ["--gaba-switch", "0", "auto"]),
    (["--order", "shuffled"], ["--order", "shuffled", "ordinal"]),
    (["--classes-per-task", "0"], ["--classes-per-task", "0"]),
    (["--classes-per-task", "11"], ["--classes-per-task", "11", "1 .. 10"]),
    (["--seeds", "4-0"], ["--seeds", "4-0"]),
    (["--seeds", "a"], ["--seeds", "'a'"]),
    (["--device", "tpu"], ["--device", "tpu", "cpu"]),
    (["--device", "cuda:99"], ["--device", "cuda:99"]),
    (["--backend", "metal"], ["--backend", "metal", "reference"]),
    (["--engine", "warp"], ["--engine", "warp", "autograd"]),
    (["--threads", "0"], ["--threads", "0"]),
    (["--recipe", "cake"], ["--recipe", "cake", "digits"]),
    (["--config", "nowhere.yaml"], ["--config", "nowhere.yaml", "existing"]),
    (["--data", "nowhere.npz"], ["--data", "nowhere.npz", "existing"]),
    (["--data", "digits.txt"], ["--data", "digits.txt", ".safetensors"]),
    (["--resume"], ["--resume", "--out"]),
    (["--learning-rate", "1"], ["--learning-rate"]),
]


def refused(capsys, argv, words):
    """Runs it, expects exit code 2 and one line with all the words; returns the line."""
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("ssd-train: error: ")
    for word in words:
        assert word in captured.err, captured.err
    return captured.err


@pytest.mark.parametrize("options, words", OPTIONS, ids=lambda v: "_".join(v)[:40])
def test_bad_options(options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["run", *TINY, *options], words)
    assert list(tmp_path.iterdir()) == []


FILES = [
    ("missing key", {"y_test": None}, ["missing y_test"]),
    ("label too large", {"y_test": torch.full((20,), 7)}, ["y_test", "7", "0 .. 3"]),
    ("stray label", {"y_train": torch.where(torch.arange(60) == 5, 90, torch.arange(60) % 4)}, ["90", "class 4"]),
    ("negative label", {"y_train": torch.arange(60) % 4 - 1}, ["y_train", "-1"]),
    ("float labels", {"y_train": (torch.arange(60) % 4).float()}, ["y_train", "integers"]),
    ("NaN", {"x_train": nan_at(17)}, ["x_train", "NaN", "row 17"]),
    ("infinity", {"x_test": torch.full((20, 8), float("inf"))}, ["x_test", "infinity"]),
    ("lengths differ", {"y_train": torch.arange(59) % 4}, ["60 rows", "59 labels"]),
    ("widths differ", {"x_test": torch.rand(20, 9)}, ["8 and 9"]),
    ("no samples", {"x_train": torch.zeros(0, 8), "y_train": torch.zeros(0, dtype=torch.int64)}, ["x_train", "(0, 8)"]),
    ("one dimension", {"x_train": torch.zeros(60)}, ["x_train", "(60,)"]),
    ("one class", {"y_train": torch.zeros(60, dtype=torch.int64)}, ["one class"]),
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("name, changes, words", FILES, ids=[f[0].replace(" ", "_") for f in FILES])
def test_bad_files(name, changes, words, suffix, capsys, tmp_path):
    path = write(tmp_path / f"data{suffix}", **changes)
    if name == "one class":
        words = ["y_"]  # the test labels are out of range as well
    out = tmp_path / "out"
    line = refused(capsys, ["run", "--data", str(path), "--epochs", "1", "--out", str(out)], words)
    assert str(path) in line
    assert not out.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("keep", [0, 7, 100, 900])
def test_truncated_files(suffix, keep, capsys, tmp_path):
    path = write(tmp_path / f"data{suffix}")
    path.write_bytes(path.read_bytes()[:keep])
    refused(
        capsys,
        ["run", "--data", str(path), "--epochs", "1", "--out", str(tmp_path / "out")],
        [str(path), "not a whole"],
    )


def test_npz_is_never_unpickled(capsys, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **{k: v.numpy() for k, v in arrays().items()} | {"y_test": np.array([print] * 20, dtype=object)})
    refused(capsys, ["run", "--data", str(path), "--out", str(tmp_path / "out")], [str(path), "pickle"])


def test_out_is_protected(finished, capsys, tmp_path):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    refused(capsys, ["run", *TINY, "--out", str(finished)], ["--out", "--resume", "--overwrite"])
    refused(capsys, ["run", *TINY, "--out", str(finished), "--resume", "--lr", "0.1"], ["--lr", "0.1", "0.05"])
    refused(capsys, ["run", *TINY, "--out", str(finished), "--overwrite", "--k", "50"], ["--k"])
    with FileLock(finished / ".lock"):
        for how in ([], ["--resume"], ["--overwrite"]):
            refused(capsys, ["run", *TINY, "--out", str(finished), *how], ["--out", "live run"])
    file = tmp_path / "file"
    file.write_text("mine")
    refused(capsys, ["run", *TINY, "--out", str(file)], ["--out", "file"])
    refused(capsys, ["run", *TINY, "--out", str(tmp_path), "--overwrite"], ["--out", "'file'"])
    assert file.read_text() == "mine"
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}


def test_overwrite_and_resume(capsys, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["run", *TINY, "--out", str(out), "--resume"]) == 0, "an empty folder starts afresh"
    first = capsys.readouterr().out
    stamp = (out / "seed-0" / "model.safetensors").stat().st_mtime_ns
    assert cli.main(["run", "--out", str(out), "--resume", "true"]) == 0, "a finished run prints its result"
    assert capsys.readouterr().out == first
    assert (out / "seed-0" / "model.safetensors").stat().st_mtime_ns == stamp
    assert cli.main(["run", "--out", str(out), "--resume", "--seeds", "0,1"]) == 0, "only the new seed is trained"
    assert (out / "seed-0" / "model.safetensors").stat().st_mtime_ns == stamp
    assert json.loads((out / "results.json").read_text())["seeds"] == [0, 1]
    assert cli.main(["run", *SIZES, "--out", str(out), "--overwrite", "--method", "sdmlp"]) == 0
    assert json.loads((out / "results.json").read_text())["method"] == "sdmlp"
    assert not (out / "seed-1").exists()


def check_numbers(value, path="results"):
    """Every float is finite: undefined entries are null."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_numbers(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            check_numbers(item, path)
    elif isinstance(value, float):
        assert np.isfinite(value), path


def test_results_schema(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["schema"] == 1 and results["method"] == "ssd" and results["seeds"] == [0, 1]
    assert set(results["data"]) == {"name", "sha256", "n_train", "n_test", "dim", "classes"}
    assert re.fullmatch("[0-9a-f]{64}", results["data"]["sha256"])
    for key in ("accuracy", "accuracy_taw", "bwt", "forgetting", "fwt"):
        triple = results[key]
        assert set(triple) == {"mean", "std", "per_seed"} and len(triple["per_seed"]) == 2
        assert triple["mean"] == pytest.approx(np.mean(triple["per_seed"]))
        assert triple["std"] == pytest.approx(np.std(triple["per_seed"], ddof=1))
    for run, seed in zip(results["runs"], (0, 1), strict=True):
        assert run["seed"] == seed and run["order"] == list(range(10))
        for name in ("accuracy_matrix", "accuracy_matrix_taw"):
            assert np.array(run[name], dtype=float).shape == (5, 5)
        assert set(run["rows"]) == {"certified", "refreshed", "scanned"}
        assert set(run["seconds"]) == {"train", "eval", "total", "cpu"}
        assert [part["task"] for part in run["loss_parts"]] == [0, 1, 2, 3, 4]
        assert len(run["path_length"]) == 5 and all(length >= 1 for length in run["path_length"])
        assert run["loss_parts"][0]["kd_logits"] == 0 < run["loss_parts"][1]["kd_logits"]
    assert set(results["environment"]) == {"command", "resumed_by", "commit", "version", "torch", "triton", "python",
                                           "cpu", "device", "backend", "engine", "simd", "threads"}  # fmt: skip
    assert results["estimator"] and results["config"]["kl"] == "forward"
    check_numbers(results)
    # The matrix and the accuracy tell the same story: 360 test samples, weighted by task.
    with open(finished / "metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["accuracy"]) == pytest.approx(results["runs"][1]["accuracy"], abs=0)
    assert [float(last[f"task_{i}"]) for i in range(5)] == results["runs"][1]["accuracy_matrix"][-1]
    assert {p.name for p in (finished / "plots").iterdir()} == {"accuracy_matrix.png", "task_curves.png", "neurons.png"}


def test_config_yaml_repeats_the_run(finished, tmp_path):
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    assert settings["neurons"] == 50
    config = options.parse_run(["--config", str(finished / "config.yaml"), "--k", "7"])
    assert (config.neurons, config.k) == (50, 7)


def test_recipe_then_config_then_options(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 7\nk: 3\nrecipe: digits\n")
    config = options.parse_run(["--config", str(tmp_path / "mine.yaml"), "--k=4", "--batch_size", "8"])
    assert (config.data, config.epochs, config.k, config.batch_size) == ("digits", 7, 4, 8)
    assert config.options["n_distill"] == 200
    assert options.parse_run(["--data", "digits"]).options["n_distill"] == 200, "--data digits selects the recipe"


@pytest.mark.parametrize("value, seeds", [("0", [0]), (3, [3]), ("0,1,2", [0, 1, 2]), ("0-4", [0, 1, 2, 3, 4]),
                                          ([1, 2], [1, 2]), ("0-2,1,7", [0, 1, 2, 7])])  # fmt: skip
def test_seeds(value, seeds):
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize("value", ["", "-1", "1-", "2-1", "x", "1,,2", "0.5", [-1], "4294967296"])
def test_bad_seeds(value):
    with pytest.raises(BadInput, match="--seeds"):
        parse_seeds(value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_parses(name):
    config = options.parse_run(["--recipe", name])
    assert config.recipe == name and config.epochs >= 1


def test_help_lists_every_option_in_kebab_case(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in [*TrainConfig.__dataclass_fields__, "n_distill"]:
        if name == "options":
            continue
        assert f"--{name.replace('_', '-')}" in text
    for argv, code in ((["--help"], 0), ([], 2)):
        assert cli.main(argv) == code
        assert "report" in capsys.readouterr().out
    assert cli.main(["bake"]) == 2 and "'bake'" in capsys.readouterr().err


def test_print_config_is_yaml_of_the_run(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--recipe", "digits", "--k", "3", "--print_config"])
    assert stop.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["k"] == 3 and settings["n_distill"] == 200


def test_report_and_eval(finished, capsys, tmp_path):
    results = json.loads((finished / "results.json").read_text())
    for kind in ("table", "markdown"):
        assert cli.main(["report", str(finished), "--format", kind]) == 0
        assert f"{results['accuracy']['mean']:.4f} +- {results['accuracy']['std']:.4f}" in capsys.readouterr().out
    assert cli.main(["report", str(finished), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["accuracy"] == results["accuracy"]
    assert cli.main(["eval", str(finished)]) == 0
    text = capsys.readouterr().out
    for value in results["accuracy"]["per_seed"]:
        assert f"accuracy {value:.4f}" in text
    model = finished / "seed-0" / "model.safetensors"
    assert cli.main(["eval", str(model), "--data", "digits"]) == 0
    assert capsys.readouterr().out.count("accuracy") == 1
    refused(capsys, ["eval", str(model), "--data", str(write(tmp_path / "other.npz"))], ["--data", "8 values"])
    refused(capsys, ["eval", str(tmp_path)], [str(tmp_path), "finished run"])
    refused(capsys, ["report", str(tmp_path)], ["results.json"])
    (tmp_path / "results.json").write_text("{}")
    refused(capsys, ["report", str(tmp_path)], ["schema 1"])
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(model.read_bytes()[:-9])
    refused(capsys, ["eval", str(broken)], [str(broken), "truncated"])


def test_quiet_when_not_a_terminal(tmp_path):
    """Nothing on stderr, the result on stdout; and the module runs from any folder."""
    argv = [sys.executable, "-m", "ssd_train", "run", *TINY, "--out", "run", "--threads", "1"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and done.stderr == ""
    assert "accuracy" in done.stdout and "BWT" in done.stdout and re.search(r"^ +4( +\d\.\d{3}){5}$", done.stdout, re.M)


def test_diverging_loss_is_one_line(capsys, tmp_path):
    argv = ["run", *SIZES, "--method", "finetune", "--lr", "1e30", "--max-grad-norm", "null", "--engine", "autograd"]
    refused(capsys, [*argv, "--out", str(tmp_path / "run")], ["cross-entropy", "--lr"])


@pytest.mark.parametrize(
    "method, model", [("finetune", "relu"), ("joint", "relu"), ("joint", "sdmlp"), ("sdmlp", "sdmlp")]
)
def test_every_method_runs(method, model, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["run", *SIZES, "--method", method, "--model", model, "--out", str(out), "--layers", "2"]) == 0
    results = json.loads((out / "results.json").read_text())
    check_numbers(results)
    if method == "joint":
        assert results["bwt"]["mean"] is None and results["runs"][0]["accuracy_matrix"][0] == [None] * 5
        assert None not in results["runs"][0]["accuracy_matrix"][4]


def test_zero_epochs_measures_the_random_model(tmp_path):
    out = tmp_path / "run"
    assert cli.main(["run", *TINY, "--epochs", "0", "--out", str(out)]) == 0
    run = json.loads((out / "results.json").read_text())["runs"][0]
    assert run["accuracy_matrix"][0] == run["accuracy_initial"]


@pytest.mark.skipif("SSD_DATA_DIR" not in os.environ, reason="SSD_DATA_DIR is not set: no embeddings at hand")
def test_cifar10_embeddings(tmp_path):
    path = os.path.join(os.environ["SSD_DATA_DIR"], "cifar10_convmixer.safetensors")
    argv = ["run", "--method", "ssd", "--data", path, "--neurons", "1000", "--k", "10", "--epochs", "1", "--seeds", "0"]
    assert cli.main([*argv, "--out", str(tmp_path / "run"), "--eval-every", "1"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["name"] == "CIFAR-10" and results["data"]["n_train"] == 50_000
