"""Pretraining on other data, and runs that start from it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from ssd_train import data
from ssd_train.cli import main as cli
from ssd_train.options import config_of
from ssd_train.trainer import Trainer

SIZE = ["--neurons", "80", "--k", "5", "--epochs", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A model pretrained on 64 values and 7 classes that have nothing to do with digits."""
    root = tmp_path_factory.mktemp("pretraining")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(210, 64, generator=generator), torch.arange(210) % 7
    save_file(
        {"x_train": x, "y_train": y, "x_test": x[:70].clone(), "y_test": y[:70].clone()}, root / "other.safetensors"
    )
    argv = ["pretrain", "--data", str(root / "other.safetensors"), *SIZE, "--out", str(root / "run")]
    assert cli.main(argv) == 0
    return root / "run" / "seed-0" / "model.safetensors"


def test_pretraining_is_joint_with_momentum(pretrained):
    results = json.loads((pretrained.parents[1] / "results.json").read_text())
    config = results["config"]
    assert (config["method"], config["model"], config["momentum"], config["lr"]) == ("joint", "sdmlp", 0.9, 0.03)
    assert config["gaba_switch"] == pytest.approx(0.4 * 210) and results["environment"]["engine"] == "fused"


@pytest.mark.parametrize("reset", [False, True])
def test_a_run_takes_addresses_and_counters(reset, pretrained, tmp_path):
    config = config_of(data="digits", method="sdmlp", neurons=80, k=5, epochs=2, pretrained=str(pretrained),
                         gaba_reset=reset)  # fmt: skip
    trainer, saved = Trainer(config, data.load("digits"), 0, tmp_path), load_file(pretrained)
    assert torch.equal(trainer.model.weights[0], saved["weights.0"])
    assert trainer.model.output_weight.shape == (10, 80)
    counted = 0 if reset else int(saved["counts0"].sum())
    assert int(trainer.model.counts[0].sum()) == counted and int(saved["counts0"].sum()) > 0
    own = 0.2 * 2 * len(trainer.stages[0])
    assert trainer.model.gaba_switch == pytest.approx(own if reset else 0.4 * 210)


def test_results_name_the_pretraining_and_resume_keeps_it(pretrained, tmp_path):
    out = tmp_path / "run"
    argv = ["run", "--data", "digits", "--method", "ssd", *SIZE, "--pretrained", str(pretrained), "--out", str(out)]
    assert cli.main(argv) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["pretraining"]["data"] == "other" and results["pretraining"]["epochs"] == 2
    assert cli.main([*argv, "--resume"]) == 0
    assert cli.main(["eval", str(out)]) == 0


@pytest.mark.parametrize("options, words", [
    (["--neurons", "81"], ["neurons 80", "--neurons 81"]),
    (["--k", "6"], ["k 5", "--k 6"]),
    (["--method", "ewc", "--model", "relu"], ["--pretrained", "ReLU"]),
    (["--pretrained", "nowhere.safetensors"], ["--pretrained", "nowhere"]),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options, words, pretrained, capsys, tmp_path):
    argv = ["run", "--data", "digits", *SIZE, "--pretrained", str(pretrained), "--out", str(tmp_path / "run"), *options]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words) and not (tmp_path / "run").exists()


def test_a_table_takes_the_model_of_each_rows_size(pretrained, tmp_path, capsys):
    """SDMLP rows start from it and say so, ReLU rows do not; a row without a model of its size is an error."""
    argv = ["paper", "table1", "--data", "digits", "--seeds", "0", "--epochs", "2", "--neurons", "80", "--workers", "0",
            "--pretrained", str(pretrained), "--out", str(tmp_path), "--set", "probe_size=0"]  # fmt: skip
    assert cli.main(argv) == 2
    message = capsys.readouterr().err
    assert "--pretrained" in message and "k 10" in message and "SDMLP, K 10" in message
    assert cli.main([*argv, "k=5"]) == 0
    lines = [line for line in (tmp_path / "table1.md").read_text().splitlines() if "| seed |" in line]
    told = {line.split(" | ")[0].strip("| "): "other, 2 epochs" in line for line in lines}
    assert told == {"SDMLP, K 10": True, "SI (ReLU MLP)": False, "EWC (ReLU MLP)": False, "SSD, K 10": True,
                    "SSD+EWC, K 10": True}  # fmt: skip
