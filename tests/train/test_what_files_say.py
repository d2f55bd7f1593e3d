"""A run's files say what was done: the command that began it, and the numbers that its method predicts with."""

from __future__ import annotations

import json

import pytest
from ssd_train.checkpoint import read_tensors
from ssd_train.cli import main as cli

SIZES = ["run", "--data", "digits", "--neurons", "40", "--classes-per-task", "5", "--plots", "false"]
TINY = [*SIZES, "--k", "5", "--epochs", "1"]


def environment(folder):
    return json.loads((folder / "results.json").read_text())["environment"]


def test_a_resumed_run_names_the_command_that_began_it(tmp_path):
    begun = [*TINY, "--out", str(tmp_path), "--seeds", "0"]
    assert cli.main(begun) == 0
    first = environment(tmp_path)
    assert first["command"] == "ssd-train " + " ".join(begun) and first["resumed_by"] == []
    resume = ["run", "--resume", "--out", str(tmp_path)]
    more = [*resume, "--seeds", "0,1"]
    for argv in (resume, resume, more):
        assert cli.main(argv) == 0
    found = environment(tmp_path)
    assert found["command"] == first["command"]
    assert found["resumed_by"] == ["ssd-train " + " ".join(argv) for argv in (resume, more)]
    assert cli.main([*begun, "--overwrite"]) == 0
    assert environment(tmp_path)["command"].endswith("--overwrite") and not environment(tmp_path)["resumed_by"]


def test_a_damaged_list_of_commands_is_one_line(tmp_path, capsys):
    assert cli.main([*TINY, "--out", str(tmp_path)]) == 0
    (tmp_path / "commands.txt").write_bytes(b"\xff\xfe")
    capsys.readouterr()
    assert cli.main(["run", "--resume", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "commands.txt" in error


@pytest.mark.parametrize(
    "method, names", [("flymodel", {"projection", "weights"}), ("ncm", {"counts", "sums", "gram"})]
)
def test_a_method_that_trains_no_network_saves_none(tmp_path, capsys, method, names):
    """Its file holds what it predicts with, and no network as it was drawn."""
    assert cli.main([*(SIZES if method == "flymodel" else SIZES[:3] + SIZES[5:]), "--method", method,
                     "--keep-models", "--out", str(tmp_path)]) == 0  # fmt: skip
    for name in ("model", "model-task-0"):
        tensors, state = read_tensors(tmp_path / "seed-0" / f"{name}.safetensors")
        assert tensors.keys() == names and all(tensor.abs().sum() > 0 for tensor in tensors.values())
        assert state["config"]["method"] == method
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["model"] is None and row["epochs"] is None and row["k"] is None
    assert (row["neurons"] is None) == (method == "ncm")
    assert cli.main(["eval", str(tmp_path)]) == 2
    assert f"{method} predicts with more than its network" in capsys.readouterr().err


def test_an_option_that_the_network_has_no_use_for_is_mentioned(tmp_path, capsys):
    """Where a comparison of methods shares one command line, that is no error."""
    assert cli.main([*TINY, "--gaba-switch", "none", "--method", "ewc", "--out", str(tmp_path / "relu")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"ssd-train: {name} does nothing here: ewc trains a ReLUMLP" for name in ("--k", "--gaba-switch")
    ]
    assert cli.main([*TINY, "--method", "ewc", "--model", "sdmlp", "--out", str(tmp_path / "sdmlp")]) == 0
    assert not capsys.readouterr().err
