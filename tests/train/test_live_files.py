"""What stands in the run's folder while it trains: curves, models of each task, seeds side by side."""

from __future__ import annotations

import csv
import importlib.util
import json

import numpy as np
import pytest
import torch
from ssd_train import data, load_model
from ssd_train.checkpoint import CheckpointFolder
from ssd_train.cli.main import main as command
from ssd_train.options import config_of
from ssd_train.records import Interrupted
from ssd_train.trainer import Trainer

SMALL = {"data": "digits", "neurons": 40, "k": 5, "epochs": 3, "classes_per_task": 5, "eval_every": 1, "n_distill": 20}
WORDS = [word for name, value in SMALL.items() for word in ("--" + name.replace("_", "-"), str(value))]


def lines(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_metrics_grow_by_a_line_per_point_and_a_resume_cuts_them(tmp_path):
    config, digits = config_of(method="ssd", **SMALL | {"checkpoint_seconds": None}), data.load("digits")
    found = []

    class Stop(Exception):
        pass

    def watch(trainer):  # before the epoch's own point
        found.append(len(lines(tmp_path / "metrics.csv")))
        if len(found) == 6:
            raise Stop

    with pytest.raises(Stop):
        Trainer(config, digits, 0, tmp_path, report=watch).fit()
    assert found == [0, 1, 2, 3, 4, 5] and len(lines(tmp_path / "metrics.csv")) == 5
    # The checkpoint is from the end of task 0, with 3 points; curves.npz is as old, metrics.csv is ahead.
    assert len(CheckpointFolder(tmp_path / "checkpoint").load()[0]["history"]) == 3
    again = Trainer(config, digits, 0, tmp_path, interrupted=lambda: True)
    with pytest.raises(Interrupted):
        again.fit()
    assert len(lines(tmp_path / "metrics.csv")) == 3 == len(np.load(tmp_path / "curves.npz")["points"])
    whole = Trainer(config, digits, 0, tmp_path)
    whole.fit()
    stored = np.load(tmp_path / "curves.npz")
    assert list(stored["columns"]) == whole.curves.columns and stored["snapshots"].shape == (6, 40)
    for row, point in zip(lines(tmp_path / "metrics.csv"), stored["points"], strict=True):
        for name, value in zip(whole.curves.columns, point):
            assert (row[name] == "" and np.isnan(value)) or float(row[name]) == value


def test_models_of_each_task_are_kept(tmp_path):
    out = tmp_path / "run"
    assert command(["run", *WORDS, "--keep-models", "--out", str(out)]) == 0
    first, last, whole = (load_model(out / "seed-0" / f"model{name}.safetensors")
                          for name in ("-task-0", "-task-1", ""))  # fmt: skip
    assert torch.equal(last.output_weight, whole.output_weight)
    digits = data.load("digits")
    for task, model in enumerate((first, last)):
        matrix = json.loads((out / "results.json").read_text())["runs"][0]["accuracy_matrix"]
        rows = digits.y_test < 5
        known = (model(digits.x_test[rows]).logits.argmax(1) == digits.y_test[rows]).double().mean().item()
        assert known == pytest.approx(matrix[task][0])


@pytest.mark.parametrize("method", [["--method", "ssd"], ["--method", "ewc", "--model", "relu"]], ids=["ssd", "relu"])
def test_seeds_side_by_side_are_the_same_bits(method, tmp_path):
    words = [w for w in WORDS if method[1] == "ssd" or w not in ("--n-distill", "20")]
    for jobs in ("1", "3"):
        argv = ["run", *words, *method, "--seeds", "0-2", "--plots", "false", "--jobs", jobs]
        assert command([*argv, "--out", str(tmp_path / jobs)]) == 0
    one, three = (json.loads((tmp_path / jobs / "results.json").read_text()) for jobs in ("1", "3"))
    for name in ("accuracy", "bwt", "fwt"):
        assert one[name] == three[name]
    assert (tmp_path / "1" / "metrics.csv").read_text() == (tmp_path / "3" / "metrics.csv").read_text()
    for seed in range(3):
        a, b = (load_model(tmp_path / jobs / f"seed-{seed}" / "model.safetensors") for jobs in ("1", "3"))
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert command(["run", "--resume", "--out", str(tmp_path / "3"), "--seeds", "0-3", "--jobs", "2"]) == 0


def test_a_seed_that_fails_is_one_line(tmp_path, capsys):
    argv = ["run", *WORDS, "--lr", "1e30", "--max-grad-norm", "null", "--seeds", "0,1", "--jobs", "2"]
    assert command([*argv, "--out", str(tmp_path / "run")]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "not finite" in text and "--lr" in text


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_has_the_points(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command(["run", *WORDS, "--log", "tensorboard", "--plots", "false", "--out", str(tmp_path / "run")]) == 0
    seed = tmp_path / "run" / "seed-0"
    events = EventAccumulator(str(seed / "tensorboard")).Reload()
    accuracies = [(e.step, pytest.approx(e.value)) for e in events.Scalars("accuracy")]
    assert accuracies == [(i + 1, float(row["accuracy"])) for i, row in enumerate(lines(seed / "metrics.csv"))]
