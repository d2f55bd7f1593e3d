"""`ssd-train sweep`: any settings varied over a grid, a list of combinations, or at random."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ..checkpoint import write_atomic
from ..config import TrainConfig, parse_seeds
from ..errors import BadInput, bad, say
from ..jobs.job import make_job
from ..jobs.schedule import run_all
from ..methods.find import did_you_mean
from ..metrics import accuracy as metrics
from ..options import NO_SETTINGS, parse, run_parser
from ..records import Interrupted

MODES = ("grid", "list", "random")
SCHEDULERS = ("local", "ray")


def varied_methods(vary: list[str]) -> list[str] | None:
    """The methods that a sweep goes over, or None when it keeps one."""
    found = [v for entry in vary for v in entry.partition("=")[2].split(",") if entry.partition("=")[0] == "method"]
    return [name.strip() for name in found] or None


def combinations(vary: list[str], mode: str, samples: int, seed: int,
                 method: str = TrainConfig.method) -> list[dict[str, Any]]:  # fmt: skip
    """The settings to try.

    `grid` is every combination; `list` takes the first values of all fields together, then the second ones, and so on;
    `random` draws `samples` combinations: one of the values listed, or of `low..high` uniformly, `log:low..high`
    uniformly in the logarithm.

    Args:
        vary: entries `field=value,value,...` or `field=low..high`.
        method: the one whose options may be varied, unless the methods are varied themselves.

    Raises:
        BadInput: an entry of another form, or lists of different lengths with `list`.
    """
    if mode not in MODES:
        raise bad("--mode", mode, ", ".join(MODES))
    methods = varied_methods(vary) or [method]
    parser = run_parser(methods)
    known = {action.dest for action in parser._actions} - set(NO_SETTINGS)
    fields: dict[str, str] = {}
    for entry in vary:
        name, equals, values = entry.partition("=")
        name = name.replace("-", "_")
        if not equals or not values or name not in known:
            raise bad("--vary", entry, "field=value,value,... with the name of an option of `ssd-train run --method "
                      f"{', '.join(methods)}`{did_you_mean(name, known)}")  # fmt: skip
        fields[name] = values
    if mode == "random":
        generator = random.Random(seed)
        def drawn() -> dict[str, Any]:
            return {name: _draw(parser, name, values, generator) for name, values in fields.items()}

        return [drawn() for _ in range(samples)]
    listed = {name: [_typed(parser, name, value) for value in values.split(",")] for name, values in fields.items()}
    if mode == "grid":
        return [dict(zip(listed, values)) for values in itertools.product(*listed.values())]
    if len({len(values) for values in listed.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in listed.items())
        raise BadInput(f"--vary: got lists of different lengths ({lengths}), allowed with --mode list are equal ones")
    return [dict(zip(listed, values)) for values in zip(*listed.values())]


def _typed(parser: ArgumentParser, name: str, value: str) -> Any:
    return vars(parse(parser, [f"--{name}={value.strip()}"], defaults=False))[name]


def _draw(parser: ArgumentParser, name: str, values: str, generator: random.Random) -> Any:
    kind, colon, ends = values.partition(":")
    logarithmic = bool(colon) and kind == "log"
    low, dots, high = (ends if logarithmic else values).partition("..")
    if not dots:
        return _typed(parser, name, generator.choice(values.split(",")))
    try:
        first, last = float(low), float(high)
        drawn = first * (last / first) ** generator.random() if logarithmic else generator.uniform(first, last)
    except (ValueError, ZeroDivisionError):
        raise bad("--vary", f"{name}={values}", "two numbers, low..high (positive ones with log:)") from None
    whole = next(a for a in parser._actions if a.dest == name)._typehint is int
    return _typed(parser, name, str(round(drawn) if whole else drawn))


def sweep(base: dict[str, Any], vary: list[str], mode: str, samples: int, sample_seed: int, out: Path,
          workers: int | None, threads: int | None, scheduler: str = "local") -> int:  # fmt: skip
    """Trains every combination with every seed; prints the table, best first. Returns the exit code.

    With a `validation` share the ranking is on held-out training data; the best is then trained on all and tested once.
    """
    if scheduler not in SCHEDULERS:
        raise bad("--scheduler", scheduler, ", ".join(SCHEDULERS))
    if workers is not None and (workers < 0 or (workers == 0 and scheduler == "ray")):
        raise bad("--workers", workers, "0 or more, with --scheduler ray 1 or more")
    if samples < 1:
        raise bad("--samples", samples, "1 or more")
    seeds, tried = parse_seeds(base["seeds"]), combinations(vary, mode, samples, sample_seed, base["method"])
    methods = varied_methods(vary) or []
    settings = {k: v for k, v in base.items() if k not in ("resume", "overwrite")} | {"plots": False}

    def trained(changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A row per combination: its settings, and accuracy and BWT over the seeds."""
        jobs = [make_job(settings | c, seed, out / "runs", threads, methods) for c in changes for seed in seeds]
        found, rows = run_all(jobs, workers, scheduler), []
        for i, changed in enumerate(changes):
            runs = found[i * len(seeds) : (i + 1) * len(seeds)]
            row = {name: metrics.triple([run[name]["mean"] for run in runs]) for name in ("accuracy", "bwt")}
            rows.append({"settings": changed, "n": len(runs), **row})
        return rows

    share = settings["validation"]
    try:
        rows = sorted(trained(tried), key=lambda row: -(row["accuracy"]["mean"] or 0))
        # Ranked on the test set, the first row's accuracy would be chosen by what it is reported on.
        best = trained([rows[0]["settings"] | {"validation": 0.0}])[0] if share else None
    except Interrupted as stop:
        say("ssd-train: interrupted, every run's state is saved; the same command continues", file=sys.stderr)
        return 128 + stop.args[0]
    ranked = f"held-out training data ({share:g} of each class)" if share else "the test set"
    text = _markdown(base, list(rows[0]["settings"]), rows, ranked, best)
    document = {"title": f"sweep of {base['method']}", "mode": mode, "config": settings, "ranked_on": ranked,
                "rows": rows, "best": best}  # fmt: skip
    write_atomic(out / "sweep.json", (json.dumps(document, indent=1) + "\n").encode())
    write_atomic(out / "sweep.md", text.encode())
    say(text)
    say(f"written to {out / 'sweep'}.*")
    return 0


def _markdown(base: dict[str, Any], fields: list[str], rows: list[dict[str, Any]], ranked: str,
              best: dict[str, Any] | None) -> str:  # fmt: skip
    lines = [f"# Sweep of {base['method']} on {base['data']}, {rows[0]['n']} seeds", ""]
    lines += [f"Best first, by the accuracy on {ranked}.", ""]
    lines += ["| " + " | ".join([*fields, "accuracy", "BWT"]) + " |", "|---" * (len(fields) + 2) + "|"]
    for row in rows:
        values = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in row["settings"].values()]
        lines.append("| " + " | ".join([*values, _text(row["accuracy"]), _text(row["bwt"])]) + " |")
    if best is not None:
        found = f"accuracy {_text(best['accuracy'])}, BWT {_text(best['bwt'])}"
        lines += ["", f"The first row, trained on all training data and tested once on the test set: {found}."]
    return "\n".join(lines) + "\n"


def _text(triple: dict[str, Any]) -> str:
    if triple["mean"] is None:
        return "-"
    return f"{triple['mean']:.4f}" + ("" if triple["std"] is None else f" +- {triple['std']:.4f}")
