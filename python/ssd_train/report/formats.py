"""The rows of `ssd-train report` as text: table, markdown, json, csv, latex, or one self-contained HTML page."""

from __future__ import annotations

import csv
import html
import io
import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import printable
from ..plots import methods_over_tasks, svg_of

FORMATS = ("table", "markdown", "json", "csv", "latex", "html")
# What was found comes first: a narrow page shows it without scrolling.
HEADER = {"run": "run", "method": "method", "accuracy": "accuracy", "accuracy_taw": "task known", "bwt": "BWT",
          "forgetting": "forgetting", "fwt": "FWT", "seeds": "seeds", "data": "data", "model": "model", "neurons": "R",
          "k": "K", "epochs": "epochs", "kl": "KL", "estimator": "estimator"}  # fmt: skip
NOTE = "Mean +- standard deviation over seeds."
PAIRED = "Difference to {}, seed by seed: mean +- standard error."
STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  color: #222 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap }
td.words { white-space: normal; min-width: 14rem }
td.number { text-align: right; font-variant-numeric: tabular-nums }
th { border-bottom: 2px solid #888 } caption { text-align: left; color: #555; padding: .3rem 0 }
svg { max-width: 100%; height: auto }"""


def render(kind: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """The rows in the format `kind`.

    Args:
        rows: what `compare` collects. runs: their results.json, for the figure in the HTML page.
    """
    if kind == "json":
        return json.dumps(rows, indent=1)
    cells = [[printable(_text(row[name])) for name in HEADER] for row in rows]
    paired = [_paired(row) for row in rows[1:] if row.get("difference")]
    note = PAIRED.format(printable(rows[0]["run"]))
    match kind:
        case "markdown":
            text = _markdown(list(HEADER.values()), cells)
            return text + (f"\n\n{note}\n\n{_markdown(DIFFERENCES, paired)}" if paired else "")
        case "csv":
            return _csv(rows)
        case "latex":
            text = _latex(list(HEADER.values()), cells)
            return text + (f"\n\n% {note}\n{_latex(DIFFERENCES, paired)}" if paired else "")
        case "html":
            return _html(rows, cells, paired, note, runs)
    return _table(list(HEADER.values()), cells) + (f"\n{note}\n{_table(DIFFERENCES, paired)}" if paired else "")


DIFFERENCES = ["run", "accuracy", "BWT", "seeds"]


def _paired(row: dict[str, Any]) -> list[str]:
    found = row["difference"]
    shown = [_signed(found[name]) for name in ("accuracy", "bwt")]
    return [printable(row["run"]), *shown, str(len(found["seeds"]))]


def _signed(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    return f"{value['mean']:+.4f}" + ("" if value["se"] is None else f" +- {value['se']:.4f}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        if value["mean"] is None:
            return "-"
        return f"{value['mean']:.4f}" + ("" if value["std"] is None else f" +- {value['std']:.4f}")
    return "-" if value is None else str(value)


def _table(header: list[str], cells: list[list[str]]) -> str:
    table, text = Table(*header), io.StringIO()
    for line in cells:
        table.add_row(*map(escape, line))
    width = None if Console().is_terminal else 200
    Console(file=text, width=width or Console().width).print(table)
    return text.getvalue().rstrip("\n")


def _markdown(header: list[str], cells: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in cells])


def _csv(rows: list[dict[str, Any]]) -> str:
    """Numbers in full: mean, standard deviation of each metric, and the paired differences."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    plain = [name for name in HEADER if not isinstance(rows[0][name], dict)]
    metrics = [name for name in HEADER if name not in plain]
    parts = [(name, part) for name in metrics for part in ("mean", "std")]
    pairs = [(name, part) for name in ("accuracy", "bwt") for part in ("mean", "se")]
    titles = [f"{name}_{part}" for name, part in parts] + [f"{name}_difference_{part}" for name, part in pairs]
    writer.writerow([*plain, *titles])
    for row in rows:
        found = row.get("difference")
        values = [row[name][part] for name, part in parts]
        values += [found[name][part] if found else None for name, part in pairs]
        writer.writerow(["" if v is None else v for v in [*(row[name] for name in plain), *values]])
    return text.getvalue().rstrip("\n")


def _latex(header: list[str], cells: list[list[str]]) -> str:
    """A tabular with booktabs' rules."""
    special = {c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}

    def safe(text: str) -> str:
        return "".join(special.get(c, c) for c in text).replace("+-", r"$\pm$")

    lines = [r"\begin{tabular}{" + "l" * len(header) + "}", r"\toprule", " & ".join(map(safe, header)) + r" \\",
             r"\midrule"]  # fmt: skip
    lines += [" & ".join(map(safe, line)) + r" \\" for line in cells]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _html(rows: list[dict[str, Any]], cells: list[list[str]], paired: list[list[str]], note: str,
          runs: list[dict[str, Any]]) -> str:  # fmt: skip
    """One page that needs no other file: the figure is part of it."""
    data = ", ".join(dict.fromkeys(printable(row["data"]) for row in rows))
    parts = [f"<h1>{len(rows)} run{'s' * (len(rows) > 1)} on {html.escape(data)}</h1>",
             _html_table(list(HEADER.values()), cells, NOTE)]  # fmt: skip
    if paired:
        parts.append(_html_table(DIFFERENCES, paired, note))
    parts.append(svg_of(lambda path: methods_over_tasks(runs, path)))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>ssd-train report</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>'


def _html_table(header: list[str], cells: list[list[str]], note: str) -> str:
    def cell(text: str) -> str:
        number = all(c in "+-.0123456789 " for c in text)
        kind = " class=number" if number else " class=words" if len(text) > 30 else ""
        return f"<td{kind}>{html.escape(text)}</td>"

    top = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = "\n".join("<tr>" + "".join(map(cell, line)) + "</tr>" for line in cells)
    return f"<table><caption>{html.escape(note)}</caption>\n<tr>{top}</tr>\n{lines}\n</table>"
