"""A method that is no part of the package, wherever a name can stand: with a loss part and an option of its own."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from ssd_train.checkpoint import read_tensors
from ssd_train.cli import main as cli
from ssd_train.errors import BadInput
from ssd_train.methods import METHODS, Method
from ssd_train.methods.find import find_method
from ssd_train.options import parse_run

METHOD = '''
from dataclasses import dataclass

import torch.nn.functional as F

from ssd_train import Loss, Method, option


@dataclass
class Options:
    pull: float = option(0.5, "weight of the pull to the weights after the previous task")

    def __post_init__(self):
        if self.pull < 0:
            raise ValueError(f"pull: got {self.pull}, allowed is 0 or more")


class Anchored(Method):
    """Cross entropy plus pull |V - V'|^2, V' the output weights after the previous task."""

    parts, Options, touches_all_rows = ("ce", "drift"), Options, True
    anchor = None

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        drift = loss.total.new_zeros(()) if self.anchor is None else (model.output_weight - self.anchor).square().sum()
        return Loss(loss.total + self.options.pull * drift, loss.parts | {"drift": drift.detach()}, loss.output)

    def after_task(self, context):
        self.anchor = context.model.output_weight.detach().clone()

    def tensors(self):
        return {} if self.anchor is None else {"anchor": self.anchor}

    def load_tensors(self, tensors, context):
        self.anchor = tensors.get("anchor")
'''
NAME = "outside_method:Anchored"
SIZES = ["--data", "digits", "--neurons", "40", "--k", "5", "--epochs", "2", "--classes-per-task", "5"]
RUN = ["run", *SIZES, "--method", NAME, "--eval-every", "1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the method's module, as the current one."""
    (tmp_path / "outside_method.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("outside_method", None)


def refused(capsys, argv, *words):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    for word in words:
        assert word in captured.err, captured.err


def columns(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_run_resume_report_and_eval(here, capsys):
    assert cli.main([*RUN, "--pull", "0.25", "--out", "run"]) == 0
    results = json.loads((here / "run" / "results.json").read_text())
    assert results["method"] == NAME and results["config"]["pull"] == 0.25 and "alpha" not in results["config"]
    assert yaml.safe_load((here / "run" / "config.yaml").read_text())["pull"] == 0.25
    parts = results["runs"][0]["loss_parts"]
    assert parts[0]["drift"] == 0 < parts[1]["drift"]
    assert parts[1]["loss"] == pytest.approx(parts[1]["ce"] + 0.25 * parts[1]["drift"], rel=1e-5)
    rows = columns(here / "run" / "seed-0" / "metrics.csv")
    assert len(rows) == 4 and float(rows[0]["drift"]) == 0 < float(rows[-1]["drift"])
    assert columns(here / "run" / "metrics.csv") == rows
    assert cli.main(["run", "--resume", "--out", "run"]) == 0
    assert cli.main(["report", "run", "--format", "json"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", "run"]) == 0
    assert f"{results['accuracy']['mean']:.4f}" in capsys.readouterr().out
    _, state = read_tensors(here / "run" / "seed-0" / "model.safetensors")
    assert state["config"]["method"] == NAME and state["config"]["pull"] == 0.25
    refused(capsys, ["run", "--resume", "--out", "run", "--pull", "0.3"], "--pull", "0.25")


def test_it_goes_on_in_the_middle(here, monkeypatch):
    """Stopped after each epoch by a signal's stand-in and resumed: the weights of a run that was not."""
    from ssd_train import data
    from ssd_train.options import config_of
    from ssd_train.records import Interrupted
    from ssd_train.trainer import Trainer

    digits = data.load("digits")
    config = config_of(data="digits", method=NAME, neurons=40, k=5, epochs=2, classes_per_task=5, pull=0.25)
    whole = Trainer(config, digits, 0, here / "whole")
    whole.fit()
    stops, calls = 0, 0
    while True:
        def now_and_then():
            nonlocal calls
            calls += 1
            return calls % 5 == 0

        part = Trainer(config, digits, 0, here / "parts", interrupted=now_and_then)
        try:
            part.fit()
            break
        except Interrupted:
            stops += 1
    assert stops >= 3 and all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), part.model.parameters()))
    assert part.curves.csv() == whole.curves.csv() == (here / "parts" / "metrics.csv").read_text()


def test_sweep_over_it_and_a_method_of_the_package(here, capsys):
    """In processes of their own; each row takes what its method knows, and what no row knows is refused."""
    argv = ["sweep", *SIZES, "--vary", f"method={NAME},ssd", "--pull", "0.1", "--n-distill", "20"]
    assert cli.main([*argv, "--workers", "2", "--out", "sweep"]) == 0
    rows = json.loads((here / "sweep" / "sweep.json").read_text())["rows"]
    assert sorted(row["settings"]["method"] for row in rows) == [NAME, "ssd"]
    saved = [yaml.safe_load(p.read_text()) for p in (here / "sweep" / "runs").glob("*/config.yaml")]
    assert {s["method"]: s.get("pull") for s in saved} == {NAME: 0.1, "ssd": None}
    capsys.readouterr()
    refused(capsys, [*argv, "--online", "0.5", "--out", "b"], "--online", "ewc")
    refused(capsys, ["sweep", *SIZES, "--vary", "pull=1,2", "--out", "c"], "--vary", "pull")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray (pip install '.[ray]')")
def test_on_a_local_ray(here):
    argv = ["sweep", *SIZES, "--vary", "pull=0.1,0.2", "--method", NAME, "--scheduler", "ray", "--out", "ray"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-m", "ssd_train", *argv], cwd=here, env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads((here / "ray" / "sweep.json").read_text())["rows"]) == 2


def test_errors_are_one_line(here, capsys):
    refused(capsys, ["run", *SIZES, "--method", "sds", "--out", "a"], "--method", "'sds'", "did you mean ssd?")
    refused(capsys, ["run", *SIZES, "--method", "nowhere:Method", "--out", "a"], "'nowhere:Method'", "imported")
    refused(capsys, ["run", *SIZES, "--method", "outside_method:Options", "--out", "a"], "subclass of ssd_train.Method")
    refused(capsys, [*RUN, "--alpha", "0.5", "--out", "a"], "--alpha", NAME, "ssd, ssd+ewc")
    refused(capsys, [*RUN, "--pull", "-1", "--out", "a"], "pull: got -1.0, allowed is 0 or more")
    refused(capsys, [*RUN, "--pull", "much", "--out", "a"], "--pull: got 'much', allowed is float")
    refused(capsys, [*RUN, "--pul", "1", "--out", "a"], "--pul", "did you mean --pull?")
    refused(capsys, ["run", *SIZES, "--metod", "ssd", "--out", "a"], "--metod", "did you mean --method?")
    refused(capsys, ["run", "--dat", "digits", "--out", "a"], "--dat:", "did you mean --data?")
    refused(capsys, ["report", "--form", "json", "x"], "--form:", "did you mean --format?")
    refused(capsys, ["run", *SIZES[:-4], "--method", "flymodel", "--out", "a"], "--k", "flymodel")
    assert not (here / "a").exists()


def test_eval_without_the_method_is_one_line(here, capsys, monkeypatch):
    assert cli.main([*RUN, "--out", "run"]) == 0
    (here / "outside_method.py").unlink()
    sys.modules.pop("outside_method")
    capsys.readouterr()
    refused(capsys, ["eval", "run"], "model.safetensors", NAME)


def test_recipes_and_files_reach_the_methods_that_know_them(here, capsys):
    """What was not typed and the method does not know is left out; what no method knows is a mistake."""
    assert parse_run(["--data", "digits", "--method", "sdmlp"]).options == {}
    (here / "mine.yaml").write_text("data: digits\nalpha: 0.4\n")
    assert parse_run(["--config", "mine.yaml"]).options["alpha"] == 0.4
    (here / "mine.yaml").write_text("data: digits\nalpha: 0.4\npull: 0.3\n")
    assert parse_run(["--config", "mine.yaml", "--method", NAME]).options == {"pull": 0.3}
    (here / "mine.yaml").write_text("alhpa: 0.4\n")
    refused(capsys, ["run", "--config", "mine.yaml", "--data", "digits"], "alhpa", "did you mean alpha?")


def test_method_help(here, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--method-help", NAME])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--pull float, default 0.5: weight of the pull" in text and "parts of the loss: ce, drift" in text
    for name in METHODS:
        with pytest.raises(SystemExit):
            cli.main(["run", "--method-help", name])
        assert name in capsys.readouterr().out


def test_entry_points(here, monkeypatch):
    """A name that an installed package registers."""
    folder = here / "anchored-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: anchored\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[ssd_train.methods]\nanchored = outside_method:Anchored\nssd = x:Y\n")
    monkeypatch.syspath_prepend(str(here))
    assert find_method("anchored").__name__ == "Anchored" and find_method("ssd") is METHODS["ssd"]
    assert "--pull" not in parse_run(["--data", "digits", "--method", "anchored"]).options
    with pytest.raises(BadInput, match=r"sdmlp.*anchored"):
        find_method("anchord")


def test_an_option_may_not_be_called_as_a_general_setting():
    from dataclasses import dataclass

    @dataclass
    class Clash:
        epochs: int = 1

    with pytest.raises(TypeError, match="'epochs' is the name of a general setting"):
        type("Clashing", (Method,), {"Options": Clash})


def test_a_loss_of_its_own_is_not_fused():
    """The native engine would train the base's loss."""
    own = type("Own", (METHODS["ssd"],), {"loss": lambda self, model, batch: None})
    assert METHODS["ssd"].fused and not own.fused
    assert not own(parse_run(["--data", "digits"])).fused
