"""`ssd-train paper X` without data: tables from the committed results, and finished runs added to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..checkpoint import write_atomic
from ..errors import BadInput, bad, say
from ..run import results
from ..sizes import read_text
from . import cells
from .experiments import EXPERIMENTS, column_of

MAX_PAGE = 1 << 24  # bytes of a page that holds tables


def render(names: list[str], folder: Path, runs: list[Path], page: Path | None) -> int:
    """Prints each table of `folder`. Returns the exit code.

    Args:
        runs: folders of finished runs, which become part of the table's file first; each has to fit a row of one of
            the tables. page: a file whose text between `<!-- X -->` and `<!-- /X -->` becomes the table X.

    Raises:
        BadInput: a name of no table, no such file, a run that fits no row, or a page without the markers.
    """
    for name in names:
        if name not in EXPERIMENTS or EXPERIMENTS[name].kind != "table":
            tables = ", ".join(n for n, e in EXPERIMENTS.items() if e.kind == "table")
            raise bad("paper", name, f"without --data: {tables}")
    found = {name: _added(name, folder / f"{name}.json", bool(runs)) for name in names}
    if runs:
        _add(found, [(path, results.read(path)) for path in runs])
    texts = {}
    for name, table in found.items():
        experiment = EXPERIMENTS[name]
        texts[name] = cells.markdown(experiment, table["title"], table["cells"])
        if runs:
            whole = table["cells"] + cells.derived(experiment, table["cells"])
            text = json.dumps({"title": table["title"], "cells": whole}, indent=1) + "\n"
            write_atomic(folder / f"{name}.json", text.encode())
        say(texts[name])
    if page is not None:
        write_atomic(page, _filled(page, read_text(page, MAX_PAGE), texts).encode())
    return 0


def _added(name: str, path: Path, may_be_new: bool) -> dict[str, Any]:
    if may_be_new and not path.exists():
        return {"title": EXPERIMENTS[name].title, "cells": []}
    return cells.read(path)


def _add(tables: dict[str, dict[str, Any]], runs: list[tuple[Path, dict[str, Any]]]) -> None:
    """Puts each run into every row that it fits."""
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    papers: dict[tuple[str, str], dict[str, float]] = {}
    for path, found in runs:
        column, fitted = column_of(found["data"]["name"]), False
        for name in tables:
            for row in EXPERIMENTS[name].cells:
                if cells.fits(row, column, found):
                    fitted = True
                    papers[name, row.row] = row.paper
                    groups.setdefault((name, row.row, column, cells.command_of(found["config"])), []).append(found)
        if not fitted:
            raise BadInput(f"{path}: a run of no row of {', '.join(tables)}: {cells.command_of(found['config'])}")
    for (name, row, column, _), members in groups.items():
        experiment = EXPERIMENTS[name]
        heading, paper = cells.heading(experiment, column), papers[name, row].get(column)
        new = cells.cell(row, heading, paper, experiment.metric, members)
        tables[name]["cells"] = cells.joined(tables[name]["cells"], [new], experiment.metric)


def _filled(page: Path, text: str, tables: dict[str, str]) -> str:
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise BadInput(f"{page}: needs the lines {begin} and {end} once, where the table goes")
        text = text[: text.index(begin) + len(begin)] + f"\n\n{table}\n" + text[text.index(end) :]
    return text
