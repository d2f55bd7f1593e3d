"""`ssd-train report`: finished runs side by side, and paired differences over their seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import BadInput, bad, say
from ..methods import Method
from ..methods.find import find_method
from ..plots import methods_over_tasks
from ..run import results
from .formats import FORMATS, render

METRICS = ("accuracy", "accuracy_taw", "bwt", "forgetting", "fwt")
PLOTS = (".png", ".pdf", ".svg")


def compare(folders: list[Path], kind: str, plot: Path | None = None) -> int:
    """Prints one line per run: what was trained, and each metric as mean +- standard deviation over its seeds.

    Runs of the same data, order and seeds as the first one are compared with it seed by seed.

    Args:
        kind: one of `formats.FORMATS`. plot: a figure of accuracy over tasks and of BWT, .png, .pdf or .svg.
    """
    if kind not in FORMATS:
        raise bad("--format", kind, ", ".join(FORMATS))
    if plot is not None and plot.suffix not in PLOTS:
        raise bad("--plot", str(plot), f"a file that ends with {', '.join(PLOTS)}")
    runs = [results.read(folder) for folder in folders]
    rows = [_row(folder, run) for folder, run in zip(folders, runs)]
    for row, run in zip(rows[1:], runs[1:]):
        row["difference"] = difference(run, runs[0])
    if plot is not None:
        methods_over_tasks(runs, plot)
    say(render(kind, rows, runs))
    return 0


def difference(run: dict[str, Any], first: dict[str, Any]) -> dict[str, Any] | None:
    """Accuracy and BWT minus the first run's, over the seeds that both have: mean, standard error, number of seeds.

    None where the two were not trained on the same tasks. A standard error needs two seeds.
    """
    ours, theirs = ({r["seed"]: r for r in found["runs"]} for found in (run, first))
    seeds = [s for s in ours if s in theirs and ours[s].get("order") == theirs[s].get("order")]
    if run["data"]["sha256"] != first["data"]["sha256"] or not seeds:
        return None
    found: dict[str, Any] = {"seeds": seeds}
    for name in ("accuracy", "bwt"):
        pairs = [(ours[s].get(name), theirs[s].get(name)) for s in seeds]
        values = [a - b for a, b in pairs if a is not None and b is not None]
        mean = sum(values) / len(values) if values else None
        error = None
        if mean is not None and len(values) > 1:
            variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
            error = math.sqrt(variance / len(values))
        found[name] = {"mean": mean, "se": error, "n": len(values)}
    return found


def _row(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    config = run["config"]
    try:
        method = find_method(run["method"])
    except BadInput:  # from outside, and not installed here
        method = Method
    row = {"run": folder.name, "data": run["data"]["name"], "method": run["method"]}
    row |= {"model": run["model"] if method.trains_network else None}
    row |= {name: None if name in method.ignores else config[name] for name in ("neurons", "epochs")}
    row |= {"k": config["k"] if run["model"] == "SDMLP" else None}
    row |= {"kl": config.get("kl") if "ssd" in run["method"] else None}
    row |= {"estimator": run["estimator"], "seeds": len(run["seeds"])}
    return row | {key: run[key] for key in METRICS}
