"""`ssd-train paper X`: trains what X needs, then writes X.md, X.json and, for a figure, X.png and X.pdf."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ssd_kernels import _source

from .. import data as datasets
from ..checkpoint import read_tensors, write_atomic
from ..config import parse_seeds
from ..data.tasks import class_order
from ..errors import bad, say
from ..jobs.job import make_job
from ..jobs.schedule import run_all
from ..methods.find import did_you_mean
from ..options import NO_SETTINGS, config_of, parse, run_parser
from ..pretrained import NEEDED
from ..records import Interrupted
from ..validate import model_kind
from . import cells, figures
from .experiments import EXPERIMENTS, Experiment, coefficients, column_of
from .trained import Trained


def paper(name: str, data: list[str], seeds: str, out: Path, changes: tuple[int | None, int | None, list[str]],
          workers: int, threads: int | None, pretrained: list[str] | None = None,
          orders: list[str] | None = None) -> int:  # fmt: skip
    """Returns the exit code.

    Args:
        data: one data set per column. changes: epochs, neurons and `name=value` settings that replace the paper's in
            every row whose method knows them; the title tells them.
        orders: an order of the tasks for each seed; by default the rows' own.
        pretrained: models of `ssd-train pretrain`; each SDMLP row starts from the one of its size.
    """
    if name not in EXPERIMENTS:
        raise bad("paper", name, ", ".join(EXPERIMENTS))
    if workers < 0:
        raise bad("--workers", workers, "0 or more")
    experiment, numbers = EXPERIMENTS[name], parse_seeds(seeds)
    if orders and len(orders) != len(numbers):
        raise bad("--orders", ",".join(orders), f"one order for each seed of --seeds {seeds}, in the same sequence")
    for order in orders or []:
        class_order(2, order)
    overrides = parse_overrides(experiment, *changes)
    varied = varied_by(experiment)
    if taken := sorted(varied & set(overrides)):
        raise bad(
            "--set", taken[0], f"a setting that {name} does not vary itself; it varies {', '.join(sorted(varied))}"
        )
    columns = {spec: column_of(datasets.load(spec).name) for spec in data}
    plan = []
    for spec, column in columns.items():
        for cell in experiment.cells:
            settings = _settings(name, coefficients(cell.settings, column) | cell.settings, spec, overrides)
            settings |= _pretrained(cell.row, settings, pretrained or [])
            each = [settings | ({"order": orders[i]} if orders else {}) for i in range(len(numbers))]
            jobs = [make_job(own, seed, out / "runs", threads) for own, seed in zip(each, numbers)]
            plan.append((cell, column, jobs))
    try:
        found = run_all([job for _, _, jobs in plan for job in jobs], workers)
    except Interrupted as stop:
        say("ssd-train: interrupted, every run's state is saved; the same command continues", file=sys.stderr)
        return 128 + stop.args[0]
    trained, position = [], 0
    for cell, column, jobs in plan:
        trained.append(Trained(cell.row, column, cell.paper.get(column), jobs, found[position : position + len(jobs)]))
        position += len(jobs)
    title = _title(experiment, overrides, numbers)
    made = _cells(experiment, trained)
    table = experiment.kind == "table"
    text = (cells.markdown(experiment, title, made) if table else _figures(experiment, title, made)) + _settled(trained)
    made += cells.derived(experiment, made)
    write_atomic(out / f"{name}.json", (json.dumps({"title": title, "cells": made}, indent=1) + "\n").encode())
    write_atomic(out / f"{name}.md", text.encode())
    if experiment.kind != "table":
        figures.draw(experiment.kind, title, trained, out / name)
    say(text)
    say(f"written to {out / name}.*")
    return 0


def varied_by(experiment: Experiment) -> set[str]:
    """The settings in which the rows differ. Fewer epochs are allowed everywhere: every row keeps its share."""
    names = {name for cell in experiment.cells for name in cell.settings} - {"epochs"}
    return {name for name in names if len({repr(cell.settings.get(name)) for cell in experiment.cells}) > 1}


def parse_overrides(experiment: Experiment, epochs: int | None, neurons: int | None,
                    assignments: list[str]) -> dict[str, Any]:  # fmt: skip
    """--epochs, --neurons and any `--set name=value`, as settings. Each row takes what its method knows.

    Raises:
        BadInput: not of the form name=value, or a name that no row knows.
    """
    overrides = {k: v for k, v in (("epochs", epochs), ("neurons", neurons)) if v is not None}
    named = {a.partition("=")[0].replace("-", "_"): a.partition("=")[2] for a in assignments}
    rows = dict.fromkeys(cell.settings["method"] for cell in experiment.cells)
    methods = [named["method"]] if "method" in named else list(rows)
    parser = run_parser(methods)
    known = {action.dest for action in parser._actions} - set(NO_SETTINGS)
    for assignment in assignments:
        name, equals, _ = assignment.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in known:
            raise bad("--set", assignment, "name=value with the name of an option of `ssd-train run`, or of a method "
                      f"of a row ({', '.join(methods)}){did_you_mean(name, known)}")  # fmt: skip
        overrides[name] = vars(parse(parser, [f"--{assignment}"], defaults=False))[name]
    return overrides


def _settings(name: str, settings: dict[str, Any], spec: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """A row's settings on one data set, with the overrides, and with curves as dense as the figure needs."""
    merged = settings | {"plots": False} | overrides | {"data": spec}
    if "epochs" in overrides and name == "fig6" and settings["epochs"] == 200:  # its short run keeps its share
        merged["epochs"] = max(1, overrides["epochs"] // 10)
    if name == "fig5":
        merged.setdefault("eval_every", max(1, min(50, merged["epochs"] // 4)))
    if name in ("fig6", "fig7", "fig2"):
        merged.setdefault("eval_every", max(1, merged["epochs"] // 40))
    return merged


def _pretrained(row: str, settings: dict[str, Any], files: list[str]) -> dict[str, Any]:
    """The pretrained model that a row starts from: the one with its neurons, layers and K; none for a ReLU MLP."""
    config = config_of(**settings)
    if not files or model_kind(config) != "sdmlp":
        return {}
    sizes = {}
    for file in files:
        state = read_tensors(Path(file))[1].get("config", {})
        sizes[tuple(state.get(key) for key in NEEDED)] = file
    wanted = tuple(getattr(config, key) for key in NEEDED)
    if wanted not in sizes:
        size = ", ".join(f"{key} {value}" for key, value in zip(NEEDED, wanted))
        raise bad("--pretrained", ", ".join(files), f"files with one of {size}, for the row {row!r}")
    return {"pretrained": sizes[wanted]}


def _title(experiment: Experiment, overrides: dict[str, Any], seeds: list[int]) -> str:
    changed = ", ".join(f"{k} {v}" for k, v in overrides.items())
    return f"{experiment.title} ({len(seeds)} seed{'s' * (len(seeds) > 1)}{'; changed: ' + changed if changed else ''})"


def _cells(experiment: Experiment, trained: list[Trained]) -> list[dict[str, Any]]:
    if experiment.kind in ("heatmap", "structure", "training"):
        return figures.cells(experiment.kind, trained)
    found = []
    for item in trained:
        column = cells.heading(experiment, item.column)
        found.append(cells.cell(item.row, column, item.paper, experiment.metric, item.results))
    return [cell for cell in found if cell["mean"] is not None]


def _figures(experiment: Experiment, title: str, cells: list[dict[str, Any]]) -> str:
    """What a figure shows in numbers: a line per row, a pair of columns per quantity."""
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    lines = [f"# {title}", "", "| |" + "".join(f" {c} | paper |" for c in columns), "|---|" + "---|---|" * len(columns)]
    for row in dict.fromkeys(cell["row"] for cell in cells):
        line = f"| {row} |"
        for column in columns:
            cell = next((c for c in cells if (c["row"], c["column"]) == (row, column)), None)
            line += f" {_number(cell)} | {'' if cell is None or cell['paper'] is None else cell['paper']} |"
        lines.append(line)
    return "\n".join([*lines, "", f"Mean +- standard deviation over seeds. {experiment.note}".rstrip(), ""])


def _settled(trained: list[Trained]) -> str:
    """How each row was trained."""
    lines = [
        "",
        "| row | data | method | model | epochs | order | pretraining | KL | estimator | engine | commit | torch |",
        "|---" * 12 + "|",
    ]
    for item in trained:
        run = item.results[0]
        config, environment = run["config"], run["environment"]
        order = ", ".join(dict.fromkeys(found["config"]["order"] for found in item.results))
        lines.append("| " + " | ".join(map(str, (
            item.row, item.column, run["method"], run["model"], config["epochs"], order,
            _pretraining(run), config.get("kl", "-"), run["estimator"], environment["engine"],
            _source.short(environment["commit"]), environment["torch"],
        ))) + " |")  # fmt: skip
    return "\n".join(lines) + "\n"


def _pretraining(run: dict[str, Any]) -> str:
    found = run.get("pretraining")
    if found is None:
        return "none"
    return f"{found['data']}, {found['epochs']} epochs" + (", GABA reset" if found["gaba_reset"] else "")


def _number(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    spread = "" if cell["std"] is None else f" +- {cell['std']:.4f}"
    return f"{cell['mean']:.4f}{spread}"
