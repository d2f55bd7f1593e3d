"""Every `ssd-train paper` command on digits at a tiny size, resuming what exists, and over processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ssd_train.cli import main as cli
from ssd_train.report import cells
from ssd_train.report.experiments import EXPERIMENTS, coefficients, column_of
from ssd_train.report.paper import varied_by

TINY = ["--epochs", "4", "--neurons", "40", "--set", "batch_size=64", "k=5", "n_distill=20", "probe_size=60"]


def tiny(name):
    """TINY without what the experiment varies itself."""
    varied = varied_by(EXPERIMENTS[name])
    kept = [word for word in TINY if word.partition("=")[0] not in varied]
    return [w for w in kept if w not in ("--neurons", "40")] if "neurons" in varied else kept


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all commands: what one has trained, the next takes over."""
    return tmp_path_factory.mktemp("paper")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command(name, out, capsys):
    argv = ["paper", name, "--data", "digits", "--seeds", "0,1" if name == "table3" else "0", *tiny(name)]
    argv += ["classes_per_task=4"] if name == "tiny-imagenet" else []
    assert cli.main([*argv, "--workers", "0", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / f"{name}.json").read_text())
    assert set(result) == {"title", "cells"} and "epochs 4" in result["title"] and result["cells"]
    for cell in result["cells"]:
        drawn = EXPERIMENTS[name].kind in ("heatmap", "structure", "training")
        assert set(cell) == ({"row", "column", "mean", "std", "n", "paper"} if drawn else set(cells.KEYS))
        assert isinstance(cell["mean"], float) and cell["n"] >= 1
        assert cell["row"] in printed and f"{cell['mean']:.4f}" in printed
    text = (out / f"{name}.md").read_text()
    assert text in printed and "pretraining" in text and "estimator" in text
    figures = {p.suffix for p in out.glob(f"{name}.*")} - {".json", ".md"}
    assert figures == (set() if EXPERIMENTS[name].kind == "table" else {".png", ".pdf"})
    rows = {cell["row"] for cell in result["cells"]}
    assert all(any(cell.row in row for row in rows) for cell in EXPERIMENTS[name].cells)


def test_what_varies_cannot_be_set(out, capsys):
    """Else every row would train the same, under labels that say otherwise."""
    assert cli.main(["paper", "fig3", "--data", "digits", "--seeds", "0", *TINY, "--out", str(out)]) == 2
    assert "--set: got 'n_distill'" in capsys.readouterr().err
    assert varied_by(EXPERIMENTS["fig4"]) == {"alpha", "temperature"} and not varied_by(EXPERIMENTS["fig6"])


def test_finished_runs_are_not_trained_again(out, capsys):
    argv = ["paper", "fig7", "--data", "digits", "--seeds", "0", *TINY, "--workers", "0", "--out", str(out)]
    assert cli.main(argv) == 0
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/results.json")}
    assert cli.main(argv) == 0
    assert stamps and stamps == {p: p.stat().st_mtime_ns for p in out.glob("runs/*/results.json")}


def test_table3_has_the_relative_reduction(out):
    argv = ["paper", "table3", "--data", "digits", "--seeds", "0,1", *TINY, "--workers", "0", "--out", str(out)]
    assert cli.main(argv) == 0
    cells = json.loads((out / "table3.json").read_text())["cells"]
    bwt = {c["row"]: c["mean"] for c in cells if "mean BWT" in c["column"]}
    reduction = next(c["mean"] for c in cells if "reduction" in c["column"])
    assert reduction == pytest.approx(1 - bwt["SSD"] / bwt["SDMLP"])


def test_columns_of_the_paper():
    assert column_of("CIFAR-100 (fine labels)") == "CIFAR-100" and column_of("cifar10_convmixer") == "CIFAR-10"
    assert column_of("mnist") == "MNIST" and column_of("digits") == "digits"
    assert column_of("Tiny-ImageNet-200 at 32 x 32") == "Split Tiny-ImageNet-200"


def test_mnist_has_its_own_coefficients():
    """Those of the SDMLP paper; a row that sets them itself keeps its own."""
    assert coefficients({"method": "l2"}, "MNIST") == {"coef": 10.0} and not coefficients({"method": "l2"}, "CIFAR-10")
    assert coefficients({"method": "si"}, "MNIST") == {"coef": 1500.0, "beta": 0.005}
    assert coefficients({"method": "ssd"}, "MNIST") == {}


# In every process of a command: two runs that have their first checkpoint send the scheduler a Ctrl-C, and go on when
# it has told them to stop, which changes their handler. Nothing waits for a time.
HOOK = """
import os, signal, time
replace, folder = os.replace, os.environ["HOOKED"]

def hooked(source, target, **how):
    replace(source, target, **how)
    if not str(target).endswith("checkpoint/000000.safetensors"):
        return
    for name in ("one", "two"):
        try:
            open(f"{folder}/{name}", "x").close()
            break
        except FileExistsError:
            continue
    if name == "two":
        os.kill(os.getppid(), signal.SIGINT)
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        time.sleep(0.01)

os.replace = hooked
"""


def test_processes_and_ctrl_c(tmp_path):
    """Interrupted in the middle of two runs, the same command goes on and ends as an undisturbed one does."""
    command = [sys.executable, "-m", "ssd_train", "paper", "table3", "--data", "digits", "--seeds", "0", *TINY,
               "checkpoint_seconds=1e9", "--threads", "1", "--workers"]  # fmt: skip
    for name in ("hook", "hooked"):
        (tmp_path / name).mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "hook"), "HOOKED": str(tmp_path / "hooked")}
    out = tmp_path / "out"
    stopped = subprocess.run([*command, "2", "--out", str(out)], capture_output=True, text=True, env=environment)
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    assert stopped.stderr.count("\n") == 1 and "the same command continues" in stopped.stderr
    assert len(list((tmp_path / "hooked").iterdir())) == 2 and not list(out.glob("runs/*/results.json"))
    done = subprocess.run([*command, "2", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    first = json.loads((out / "table3.json").read_text())["cells"]
    again = subprocess.run([*command, "0", "--out", str(tmp_path / "whole")], capture_output=True, text=True)
    assert again.returncode == 0 and json.loads((tmp_path / "whole" / "table3.json").read_text())["cells"] == first


@pytest.mark.parametrize("options, words", [
    (["table9", "--data", "digits"], ["'table9'", "table1"]),
    (["table1", "--seeds", "0"], ["--seeds", "--data"]),
    (["table1", "--data", "digits", "--add", "x"], ["--add", "--data"]),
    (["table1", "--data", "digits", "--orders", "ordinal", "--seeds", "0,1"], ["--orders", "ordinal"]),
    (["table1", "--data", "digits", "--orders", "sorted"], ["sorted"]),
    (["table1", "--results", "nowhere"], ["table1.json"]),
    (["fig3"], ["fig3", "table1"]),
    (["table1", "--data", "nowhere.npz"], ["--data", "nowhere.npz"]),
    (["table1", "--data", "digits", "--set", "speed=1"], ["--set", "speed=1"]),
    (["table1", "--data", "digits", "--neurons", "5"], ["--k", "1 .. 4"]),
    (["table1", "--data", "digits", "--seeds", "x"], ["--seeds"]),
])  # fmt: skip
def test_bad_input(options, words, capsys, tmp_path):
    out = ["--out", str(tmp_path / "out")] if "--data" in options else []
    assert cli.main(["paper", *options, *out]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and not (tmp_path / "out").exists()
    for word in words:
        assert word in captured.err
