"""The cells of the paper's tables: made of finished runs, kept in X.json files, joined, and printed."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ssd_kernels import _source

from ..config import FREE_ON_RESUME, TrainConfig, as_dict, recipe_settings
from ..errors import BadInput, reading
from ..metrics import accuracy as metrics
from ..options import config_of, defaults_of
from ..sizes import read_text
from .experiments import FULL_LENGTH, Cell, Experiment, coefficients

MAX_CELLS = 1 << 24  # bytes of an X.json
KEYS = ("row", "column", "mean", "std", "n", "paper", "epochs", "command", "cpu_minutes", "runs")
RUN_KEYS = {"order": str, "seed": int, "accuracy": (int, float), "bwt": (int, float, type(None)),
            "commit": (str, type(None))}  # fmt: skip
# What a run may differ in and still be one of a cell: where and how it ran, and what the cell states beside its row.
BESIDE = FREE_ON_RESUME | {"data", "epochs", "order", "eval_every", "probe_size", "device", "backend", "engine"}


def cell(row: str, column: str, paper: float | None, metric: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cell of finished runs of the same settings.

    Args:
        found: their results.json, of one or more seeds each. metric: `accuracy` or `bwt`; what the mean is of.
    """
    runs, minutes = [], []
    for results in found:
        for run in results["runs"]:
            order = results["config"]["order"]
            runs.append({"order": f"seed:{run['seed']}" if order == "seed" else order, "seed": run["seed"],
                         "accuracy": run["accuracy"], "bwt": run["bwt"],
                         "commit": _source.short(results["environment"]["commit"])})  # fmt: skip
            minutes.append(run["seconds"].get("cpu"))
    made = {"row": row, "column": column, "paper": paper, "epochs": found[0]["config"]["epochs"]}
    made |= {"command": command_of(found[0]["config"]), "runs": runs}
    return summed(made | {"cpu_minutes": None if None in minutes else round(sum(minutes) / 60, 2)}, metric)


def heading(experiment: Experiment, column: str) -> str:
    """A column's name, which tells the quantity unless that is accuracy."""
    return column if experiment.metric == "accuracy" else f"{column}, mean {experiment.metric.upper()}"


def summed(cell: dict[str, Any], metric: str) -> dict[str, Any]:
    """The cell with mean, std and n of its runs, its keys in order."""
    triple = metrics.triple([run[metric] for run in cell["runs"]])
    values = cell | {"mean": triple["mean"], "std": triple["std"], "n": len(cell["runs"])}
    return {key: values[key] for key in KEYS}


def command_of(config: dict[str, Any]) -> str:
    """The `ssd-train run` that trains a cell: what differs from the defaults, with ORDER and SEED left open."""
    standard = as_dict(TrainConfig(method=config["method"]))
    standard |= defaults_of(config["method"], {})
    if config["data"] == "digits":  # which brings its recipe along
        standard |= recipe_settings("digits")
    words = ["ssd-train", "run", "--data", Path(config["data"]).name, "--method", config["method"]]
    left_out = FREE_ON_RESUME | {"data", "method", "order", "probe_size", "eval_every"}
    for name, value in config.items():
        if name not in left_out and (name == "epochs" or value != standard.get(name)):
            text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            words += ["--" + name.replace("_", "-"), Path(text).name if name == "pretrained" else text]
    return shlex.join([*words, "--order", "ORDER", "--seeds", "SEED"])


def fits(row: Cell, column: str, results: dict[str, Any]) -> bool:
    """Whether a finished run is one of the row's: the same settings, and its length where the row is not the paper's.

    A row of the paper's full length takes runs of any length, since their cell states it.
    """
    wanted = as_dict(config_of(**coefficients(row.settings, column) | row.settings))
    wanted |= defaults_of(wanted["method"], wanted)
    run = results["config"]
    if row.settings["epochs"] != FULL_LENGTH and run["epochs"] != row.settings["epochs"]:
        return False
    names = (wanted.keys() | run.keys()) - BESIDE
    return all(run.get(name) == wanted.get(name) for name in names)


def joined(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Old and new cells. The same row, column, length and command are one cell; a run of the same order and seed
    is replaced by the newer, and the cost is then unknown unless all runs are new."""

    def key(cell: dict[str, Any]) -> tuple[Any, ...]:
        return cell["row"], cell["column"], cell["epochs"], cell["command"]

    found = {key(cell): cell for cell in old}
    for cell in new:
        before = found.get(key(cell))
        if before is not None:
            mine = {(run["order"], run["seed"]) for run in cell["runs"]}
            kept = [run for run in before["runs"] if (run["order"], run["seed"]) not in mine]
            if kept:
                whole = len(kept) == len(before["runs"]) and None not in (before["cpu_minutes"], cell["cpu_minutes"])
                minutes = before["cpu_minutes"] + cell["cpu_minutes"] if whole else None
                cell = summed(cell | {"runs": kept + cell["runs"], "cpu_minutes": minutes}, metric)
        found[key(cell)] = cell
    return list(found.values())


def read(path: Path) -> dict[str, Any]:
    """A file of cells, without those that are computed from others.

    Raises:
        BadInput: no such file, no JSON, or an entry that is missing or of another kind.
    """
    text = read_text(path, MAX_CELLS)
    with reading(path, "not JSON"):
        table = json.loads(text)
    cells = table.get("cells") if isinstance(table, dict) else None
    if not isinstance(cells, list) or not isinstance(table.get("title"), str):
        raise BadInput(f"{path}: expected the title and cells of a table of `ssd-train paper`")
    for index, cell in enumerate(cells):
        if problem := _problem(cell):
            raise BadInput(f"{path}: its cell {index} {problem}")
    return table | {"cells": [cell for cell in cells if cell["runs"]]}


def _problem(cell: Any) -> str | None:
    """What is wrong with a cell of a file, or None."""
    if not isinstance(cell, dict) or set(KEYS) - cell.keys():
        return f"needs {', '.join(KEYS)}"
    if not all(isinstance(cell[name], str) for name in ("row", "column", "command")):
        return "needs row, column and command as text"
    if not isinstance(cell["runs"], list) or type(cell["epochs"]) is not int:
        return "needs its runs, and epochs as a number"
    numbers = [cell["paper"], cell["cpu_minutes"]]
    for run in cell["runs"]:
        if not isinstance(run, dict) or not all(isinstance(run.get(k), kind) for k, kind in RUN_KEYS.items()):
            return f"has a run without {', '.join(RUN_KEYS)}"
        numbers += [run["accuracy"], run["bwt"]]
    if any(n is not None and (type(n) not in (int, float) or not math.isfinite(n)) for n in numbers):
        return "has a number that is none"
    return None


def derived(experiment: Experiment, cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Table 3's second column: how much less SSD forgets, relative to SDMLP."""
    found = []
    if experiment.metric != "bwt":
        return found
    for column, epochs in dict.fromkeys((cell["column"], cell["epochs"]) for cell in cells):
        rows = {c["row"]: c for c in cells if (c["column"], c["epochs"]) == (column, epochs)}
        if {"SDMLP", "SSD"} <= rows.keys() and rows["SDMLP"]["mean"] and rows["SSD"]["mean"] is not None:
            ssd = rows["SSD"]
            found.append(ssd | {
                "column": column.replace("mean BWT", "forgetting reduction"), "std": None, "runs": [],
                "mean": 1 - ssd["mean"] / rows["SDMLP"]["mean"], "paper": None if ssd["paper"] is None else 0.325,
            })  # fmt: skip
    return found


def markdown(experiment: Experiment, title: str, cells: Sequence[dict[str, Any]]) -> str:
    """The table: a line per cell in the rows' order, what is computed from them, and the paired differences."""
    place = {cell.row: i for i, cell in enumerate(experiment.cells)}
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    ordered = sorted(cells, key=lambda c: (columns.index(c["column"]), c["epochs"], place.get(c["row"], 99)))
    header = ["data", "epochs", "row", "n", "accuracy", "BWT", "paper", "difference", "CPU min"]
    lines = [f"**{title}**", "", *_rows(header, map(_line, ordered)), ""]
    lines += [f"{c['row']}, {c['column']}: {c['mean']:.4f} (paper: {c['paper']})" for c in derived(experiment, ordered)]
    lines += ["n: orders of the tasks. Mean +- standard deviation over them; CPU minutes of one run."]
    if pairs := differences(experiment, ordered):
        lines += ["", "Paired over orders: mean +- standard error.", ""]
        lines += _rows(["data", "epochs", "difference", "orders", "accuracy", "BWT"], pairs)
    if experiment.note:
        lines += ["", experiment.note]
    return "\n".join(lines) + "\n"


def _rows(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    text = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return text + ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _line(cell: dict[str, Any]) -> list[Any]:
    paper, mean = cell["paper"], cell["mean"]
    minutes = "-" if cell["cpu_minutes"] is None else f"{cell['cpu_minutes'] / cell['n']:.1f}"
    gap = "-" if None in (paper, mean) else f"{mean - paper:+.3f}"
    return [cell["column"], cell["epochs"], cell["row"], cell["n"], _spread(cell["runs"], "accuracy"),
            _spread(cell["runs"], "bwt"), "-" if paper is None else f"{paper:g}", gap, minutes]  # fmt: skip


def differences(experiment: Experiment, cells: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Per column, length and pair of the experiment with a common order: the mean difference and its error."""
    found = []
    for column, epochs in dict.fromkeys((cell["column"], cell["epochs"]) for cell in cells):
        same = {c["row"]: c for c in cells if (c["column"], c["epochs"]) == (column, epochs)}
        for one, other in experiment.pairs:
            if one in same and other in same:
                accuracy, bwt = (paired(same[one]["runs"], same[other]["runs"], name) for name in ("accuracy", "bwt"))
                if accuracy:
                    shown = [_signed(values) for values in (accuracy, bwt)]
                    found.append([column, epochs, f"{one} - {other}", len(accuracy), *shown])
    return found


def paired(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """The differences over the orders and seeds that both have."""
    other = {(run["order"], run["seed"]): run[metric] for run in theirs}
    both = [(run[metric], other.get((run["order"], run["seed"]))) for run in ours]
    return [a - b for a, b in both if a is not None and b is not None]


def _spread(runs: Sequence[dict[str, Any]], metric: str) -> str:
    triple = metrics.triple([run[metric] for run in runs])
    if triple["mean"] is None:
        return "-"
    return f"{triple['mean']:.4f}" + ("" if triple["std"] is None else f" +- {triple['std']:.4f}")


def _signed(values: Sequence[float]) -> str:
    triple = metrics.triple(values)
    if triple["mean"] is None:
        return "-"
    error = "" if triple["std"] is None else f" +- {triple['std'] / math.sqrt(len(values)):.4f}"
    return f"{triple['mean']:+.4f}{error}"
