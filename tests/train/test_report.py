"""`ssd-train report`: formats, paired differences, the plot."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from ssd_train.cli.main import main as command

SIZES = ["--data", "digits", "--neurons", "40", "--k", "5", "--epochs", "2", "--classes-per-task", "5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: the first two on the same tasks and seeds, the third on another seed."""
    root = tmp_path_factory.mktemp("runs")
    for name, method, seeds in (("a", "sdmlp", "0,1,2"), ("b", "finetune", "0,1,2"), ("c", "sdmlp", "7")):
        argv = ["run", *SIZES, "--method", method, "--seeds", seeds, "--jobs", "1", "--plots", "false"]
        assert command([*argv, "--out", str(root / name)]) == 0
    return [str(root / name) for name in "abc"]


def printed(capsys, *argv):
    capsys.readouterr()
    assert command(["report", *argv]) == 0
    return capsys.readouterr().out


def test_differences_are_paired_by_seed(runs, capsys):
    rows = json.loads(printed(capsys, *runs, "--format", "json"))
    a, b = (json.loads(Path(run, "results.json").read_text())["accuracy"]["per_seed"] for run in runs[:2])
    values = [y - x for x, y in zip(a, b)]
    found = rows[1]["difference"]
    assert found["seeds"] == [0, 1, 2] and found["accuracy"]["mean"] == pytest.approx(statistics.mean(values))
    assert found["accuracy"]["se"] == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert "difference" not in rows[0] and rows[2]["difference"] is None, "no seed in common"


def test_formats(runs, capsys):
    rows = json.loads(printed(capsys, *runs, "--format", "json"))
    accuracy = f"{rows[0]['accuracy']['mean']:.4f} +- {rows[0]['accuracy']['std']:.4f}"
    for kind in ("table", "markdown", "html"):
        text = printed(capsys, *runs, "--format", kind)
        assert accuracy in text and "seed by seed" in text and "finetune" in text
    table = list(csv.DictReader(io.StringIO(printed(capsys, *runs, "--format", "csv"))))
    assert float(table[0]["accuracy_mean"]) == rows[0]["accuracy"]["mean"] and table[2]["bwt_difference_mean"] == ""
    assert float(table[1]["accuracy_difference_se"]) == rows[1]["difference"]["accuracy"]["se"]
    text = printed(capsys, *runs, "--format", "latex")
    assert text.count(r"\begin{tabular}") == 2 == text.count(r"\end{tabular}") and r"$\pm$" in text


def test_the_page_needs_no_other_file(runs, capsys):
    text = printed(capsys, *runs, "--format", "html")
    assert text.startswith("<!DOCTYPE html>") and text.count("<svg") == 1 and text.rstrip().endswith("</html>")
    assert not any(word in text for word in ("<script", "<link", "src=", "@import"))


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_plot(suffix, runs, capsys, tmp_path):
    printed(capsys, *runs, "--plot", str(tmp_path / f"figure{suffix}"))
    assert (tmp_path / f"figure{suffix}").stat().st_size > 2000


def test_bad_formats_are_one_line(runs, capsys, tmp_path):
    for argv, word in ((["--format", "word"], "latex"), (["--plot", str(tmp_path / "x.gif")], ".svg")):
        assert command(["report", *runs, *argv]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and word in text
