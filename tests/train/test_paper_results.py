"""`ssd-train paper` without data: tables from committed results, runs that are added to them, pages that hold them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from ssd_train.cli import main as cli
from ssd_train.report import cells
from ssd_train.report.experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "results" / "paper").glob("*.json"))
SHORT = ["--data", "digits", "--neurons", "1000", "--epochs", "1", "--batch-size", "128", "--lr", "0.05", "--recipe",
         "split-cifar10-1k", "--plots", "false", "--threads", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one epoch at the settings of table 2's rows: SDMLP and SSD, in two orders each."""
    root = tmp_path_factory.mktemp("runs")
    for method, extra in (("sdmlp", []), ("ssd", ["--n-distill", "1000"])):
        for seed, order in enumerate(("ordinal", "numpy:3")):
            out = ["--order", order, "--seeds", str(seed), "--out", str(root / f"{method}-{seed}")]
            assert cli.main(["run", *SHORT, "--method", method, *extra, *out]) == 0
    return root


def add(folder, *paths, name="table2"):
    return cli.main(["paper", name, "--results", str(folder), "--add", *map(str, paths)])


def test_runs_become_cells(runs, tmp_path, capsys):
    assert add(tmp_path, *sorted(runs.iterdir())) == 0
    table = cells.read(tmp_path / "table2.json")
    assert [cell["row"] for cell in table["cells"]] == ["SDMLP, K 10", "SSD, K 10"]
    for cell, method in zip(table["cells"], ("sdmlp", "ssd"), strict=True):
        found = [json.loads((runs / f"{method}-{i}" / "results.json").read_text()) for i in range(2)]
        accuracies = [results["accuracy"]["mean"] for results in found]
        assert cell["mean"] == pytest.approx(sum(accuracies) / 2) and cell["n"] == 2
        assert cell["std"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / math.sqrt(2))
        assert cell["epochs"] == 1 and cell["column"] == "digits" and cell["paper"] is None
        assert [(run["order"], run["seed"]) for run in cell["runs"]] == [("ordinal", 0), ("numpy:3", 1)]
        assert cell["cpu_minutes"] == pytest.approx(sum(r["runs"][0]["seconds"]["cpu"] for r in found) / 60, abs=0.006)
    printed = capsys.readouterr().out
    a, b = ([run["accuracy"] for run in cell["runs"]] for cell in table["cells"])
    mean, error = (b[0] - a[0] + b[1] - a[1]) / 2, abs(b[0] - a[0] - b[1] + a[1]) / 2
    assert f"| SSD, K 10 - SDMLP, K 10 | 2 | {mean:+.4f} +- {error:.4f} |" in printed


def test_the_command_of_a_cell_repeats_its_run(runs, tmp_path):
    """With ORDER, SEED and the folder filled in, it trains the same numbers."""
    assert add(tmp_path, runs / "ssd-1") == 0
    (cell,) = cells.read(tmp_path / "table2.json")["cells"]
    words = cell["command"].replace("ORDER", "numpy:3").replace("SEED", "1").split()
    assert words[:2] == ["ssd-train", "run"]
    assert cli.main([*words[1:], "--plots", "false", "--out", str(tmp_path / "again")]) == 0
    again, first = (json.loads((p / "results.json").read_text()) for p in (tmp_path / "again", runs / "ssd-1"))
    assert again["runs"][0]["accuracy_matrix"] == first["runs"][0]["accuracy_matrix"]


def test_added_one_by_one_is_added_at_once(runs, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    for folder in (whole, pieces):
        folder.mkdir()
    assert add(whole, *sorted(runs.iterdir())) == 0
    for path in sorted(runs.iterdir()):
        assert add(pieces, path) == 0
    assert add(pieces, runs / "ssd-1") == 0  # a run that is there already is replaced
    one, other = (cells.read(folder / "table2.json")["cells"] for folder in (whole, pieces))
    assert [c | {"cpu_minutes": None} for c in one] == [c | {"cpu_minutes": None} for c in other]
    assert other[1]["cpu_minutes"] is None and other[0]["cpu_minutes"] == pytest.approx(one[0]["cpu_minutes"], abs=0.02)


def test_table3_adds_backward_transfer(runs, tmp_path, capsys):
    """Its rows have 10 000 neurons: runs with 1000 are none of them."""
    assert add(tmp_path, runs / "ssd-0", name="table3") == 2
    assert "a run of no row of table3" in capsys.readouterr().err and not (tmp_path / "table3.json").exists()


def test_a_setting_that_differs_fits_no_row(runs, tmp_path, capsys):
    out = tmp_path / "other"
    argv = ["run", *SHORT, "--method", "ssd", "--n-distill", "1000", "--alpha", "0.6", "--out", str(out)]
    assert cli.main(argv) == 0
    assert add(tmp_path, out) == 2
    assert "--alpha 0.6" in capsys.readouterr().err


def test_the_studies_take_runs_of_their_length_only(runs, tmp_path, capsys):
    assert add(tmp_path, runs / "ssd-0", name="studies") == 2
    assert "no row of studies" in capsys.readouterr().err


def test_a_page_gets_the_tables(runs, tmp_path, capsys):
    assert add(tmp_path, runs / "ssd-0") == 0
    capsys.readouterr()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table2 -->\nold\n<!-- /table2 -->\nafter\n")
    argv = ["paper", "table2", "--results", str(tmp_path), "--into", str(page)]
    assert cli.main(argv) == 0
    table = capsys.readouterr().out
    assert page.read_text() == f"before\n<!-- table2 -->\n\n{table}<!-- /table2 -->\nafter\n"
    text = page.read_text()
    assert cli.main(argv) == 0 and page.read_text() == text
    page.write_text("no markers")
    capsys.readouterr()
    assert cli.main(argv) == 2 and "<!-- table2 -->" in capsys.readouterr().err


@pytest.mark.parametrize("change, words", [
    (lambda table: table["cells"][0].pop("epochs"), "needs row"),
    (lambda table: table["cells"][0].update(command=3), "as text"),
    (lambda table: table["cells"][0].update(paper=math.nan), "a number that is none"),
    (lambda table: table["cells"][0]["runs"][0].pop("order"), "a run without order"),
    (lambda table: table["cells"][0]["runs"][0].update(accuracy="0.5"), "a run without order"),
    (lambda table: table.update(cells={}), "title and cells"),
])  # fmt: skip
def test_a_damaged_file_is_one_line(change, words, runs, tmp_path, capsys):
    assert add(tmp_path, runs / "ssd-0") == 0
    table = json.loads((tmp_path / "table2.json").read_text())
    change(table)
    (tmp_path / "table2.json").write_text(json.dumps(table))
    capsys.readouterr()
    assert cli.main(["paper", "table2", "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "table2.json" in error and words in error


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_whole_and_the_page_holds_their_tables(path):
    """PAPER.md is made by `ssd-train paper X --into python/ssd_train/PAPER.md`."""
    table, experiment = cells.read(path), EXPERIMENTS[path.stem]
    for cell in table["cells"]:
        assert cells.summed(cell, experiment.metric) == cell and cell["row"] in {row.row for row in experiment.cells}
        assert len({(run["order"], run["seed"]) for run in cell["runs"]}) == cell["n"]
    page = (ROOT / "python" / "ssd_train" / "PAPER.md").read_text()
    shown = page.partition(f"<!-- {path.stem} -->")[2].partition(f"<!-- /{path.stem} -->")[0]
    assert shown.strip() == cells.markdown(experiment, table["title"], table["cells"]).strip()
