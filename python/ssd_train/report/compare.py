"""`ssd-train report`: finished runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import printable, say
from ..run import results

METRICS = {"accuracy": "accuracy", "accuracy_taw": "task known", "bwt": "BWT", "forgetting": "forgetting", "fwt": "FWT"}


def compare(folders: list[Path], kind: str) -> int:
    """Prints one line per run: what was trained, and each metric as mean +- standard deviation over its seeds."""
    rows = [_row(folder, results.read(folder)) for folder in folders]
    if kind == "json":
        say(json.dumps(rows, indent=1))
        return 0
    header = ["run", "data", "method", "model", "R", "K", "epochs", "KL", "estimator", "seeds", *METRICS.values()]
    cells = [[printable(_text(row[key])) for key in row] for row in rows]
    if kind == "markdown":
        say("| " + " | ".join(header) + " |")
        say("|" + "---|" * len(header))
        for line in cells:
            say("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |")
        return 0
    table = Table(*header)
    for line in cells:
        table.add_row(*map(escape, line))
    Console(width=None if Console().is_terminal else 200).print(table)
    return 0


def _row(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    config = run["config"]
    row = {"run": folder.name, "data": run["data"]["name"], "method": run["method"], "model": run["model"]}
    row |= {"neurons": config["neurons"], "k": config["k"] if run["model"] == "SDMLP" else None}
    row |= {"epochs": config["epochs"], "kl": config.get("kl") if "ssd" in run["method"] else None}
    row |= {"estimator": run["estimator"], "seeds": len(run["seeds"])}
    return row | {key: run[key] for key in METRICS}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        if value["mean"] is None:
            return "-"
        return f"{value['mean']:.4f}" + ("" if value["std"] is None else f" +- {value['std']:.4f}")
    return "-" if value is None else str(value)
