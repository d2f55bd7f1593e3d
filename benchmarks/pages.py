"""A page of pytest-benchmark's saved runs: for each group a table and a plot, and how commits compare."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Run(NamedTuple):
    """One saved run: its commit, when, and its records by group and contender."""

    label: str
    time: str
    groups: dict[str, dict[str, dict[str, Any]]]


def runs(folder: Path) -> list[Run]:
    """The runs that --benchmark-autosave or --benchmark-json have left in a folder, oldest first.

    Raises:
        ValueError: there is none.
    """
    found = []
    for file in sorted(folder.rglob("*.json")):
        content = json.loads(file.read_text())
        if "benchmarks" not in content:
            continue
        commit = content.get("commit_info", {})
        label = str(commit.get("id", "unknown"))[:7] + ("+" if commit.get("dirty") else "")
        groups: dict[str, dict[str, dict[str, Any]]] = {}
        for record in content["benchmarks"]:
            groups.setdefault(record["group"] or "other", {})[record["name"]] = record
        found.append(Run(label, content.get("datetime", ""), groups))
    if not found:
        raise ValueError(f"{folder}: it holds no run of pytest-benchmark: run `pytest benchmarks --benchmark-autosave`")
    return sorted(found, key=lambda run: run.time)


def write(folder: Path, out: Path) -> Path:
    """Writes index.html with a table and a plot per group into `out`."""
    saved = runs(folder)
    out.mkdir(parents=True, exist_ok=True)
    titles = list(dict.fromkeys(title for run in saved for title in run.groups))
    parts = [_summary(saved)]
    for title in titles:
        picture = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".png"
        _plot(title, saved, out / picture)
        parts.append(f"<h2>{html.escape(title)}</h2>\n{_group(title, saved)}\n<img src='{picture}' alt=''>")
    page = out / "index.html"
    page.write_text(
        "<!doctype html><meta charset='utf-8'><title>Benchmarks</title>\n"
        "<style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 10px;text-align:right}"
        "td:first-child{text-align:left}</style>\n<h1>Benchmarks</h1>\n" + "\n".join(parts) + "\n"
    )
    return page


def _table(rows: Iterable[Iterable[str]]) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _summary(saved: list[Run]) -> str:
    """Where each run was made."""
    rows = [["run", "time", "processor", "threads", "torch", "contenders"]]
    for run in saved:
        records = [record for group in run.groups.values() for record in group.values()]
        info = records[0]["extra_info"] if records else {}
        rows.append([run.label, run.time[:19], *(str(info.get(k, "")) for k in ("cpu", "threads", "torch")),
                     str(len(records))])  # fmt: skip
    return _table(rows)


def _contenders(title: str, saved: list[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in saved for name in run.groups.get(title, {})))


def _label(name: str) -> str:
    """What stands behind the test's name."""
    return name.rpartition(":")[2]


def _group(title: str, saved: list[Run]) -> str:
    """Medians by contender and commit; of the last one the ratio to the first, to the baseline, and to the bound."""
    names = _contenders(title, saved)
    rows = [["contender, median ms", *(run.label for run in saved), "last / first", "speed vs baseline",
             "share of bound"]]  # fmt: skip
    for name in names:
        records = [run.groups.get(title, {}).get(name) for run in saved]
        medians = [None if record is None else record["stats"]["median"] for record in records]
        present = [median for median in medians if median is not None]
        info = next(record for record in reversed(records) if record is not None)["extra_info"]
        share = info.get("share_of_bound")
        rows.append([
            _label(name), *("" if median is None else f"{median * 1e3:.3f}" for median in medians),
            f"{present[-1] / present[0]:.2f}" if len(present) > 1 else "",
            f"{info['ratio']:.2f}x" if "ratio" in info else "", "" if share is None else f"{share:.0%}",
        ])  # fmt: skip
    return _table(rows)


def _plot(title: str, saved: list[Run], file: Path) -> None:
    """Medians with quartiles: a group of bars per contender, a bar per commit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = _contenders(title, saved)
    figure, axis = pyplot.subplots(figsize=(9, 1 + 0.3 * len(names) * len(saved)), constrained_layout=True)
    height = 0.8 / len(saved)
    for place, run in enumerate(saved):
        for row, name in enumerate(names):
            record = run.groups.get(title, {}).get(name)
            if record is None:
                continue
            stats = record["stats"]
            spread = [[(stats["median"] - stats["q1"]) * 1e3], [(stats["q3"] - stats["median"]) * 1e3]]
            axis.barh(row + place * height, stats["median"] * 1e3, height, xerr=spread, color=f"C{place}",
                      label=run.label if row == 0 else None)  # fmt: skip
    axis.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], [_label(name) for name in names])
    axis.invert_yaxis()
    axis.set(xlabel="ms, median and quartiles", title=title)
    axis.legend()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
