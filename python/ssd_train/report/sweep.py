"""`ssd-train sweep`: any settings varied over a grid, a list of combinations, or at random."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

from ..checkpoint import write_atomic
from ..config import TrainConfig, as_dict, parse_seeds
from ..errors import BadInput, bad, say
from ..jobs.job import make_job
from ..jobs.schedule import run_all
from ..metrics import accuracy as metrics
from ..options import parse, run_parser
from ..records import Interrupted

MODES = ("grid", "list", "random")
SCHEDULERS = ("local", "ray")


def combinations(vary: list[str], mode: str, samples: int, seed: int) -> list[dict[str, Any]]:
    """The settings to try.

    `grid` is every combination; `list` takes the first values of all fields together, then the second ones, and so on;
    `random` draws `samples` combinations: one of the values listed, or of `low..high` uniformly, `log:low..high`
    uniformly in the logarithm.

    Args:
        vary: entries `field=value,value,...` or `field=low..high`.

    Raises:
        BadInput: an entry of another form, or lists of different lengths with `list`.
    """
    if mode not in MODES:
        raise bad("--mode", mode, ", ".join(MODES))
    fields: dict[str, str] = {}
    for entry in vary:
        name, equals, values = entry.partition("=")
        name = name.replace("-", "_")
        if not equals or not values or name not in TrainConfig.__dataclass_fields__:
            raise bad("--vary", entry, "field=value,value,... with the name of an option of `ssd-train run`")
        fields[name] = values
    if mode == "random":
        generator = random.Random(seed)
        return [{name: _draw(name, values, generator) for name, values in fields.items()} for _ in range(samples)]
    listed = {name: [_typed(name, value) for value in values.split(",")] for name, values in fields.items()}
    if mode == "grid":
        return [dict(zip(listed, values)) for values in itertools.product(*listed.values())]
    if len({len(values) for values in listed.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in listed.items())
        raise BadInput(f"--vary: got lists of different lengths ({lengths}), allowed with --mode list are equal ones")
    return [dict(zip(listed, values)) for values in zip(*listed.values())]


def _typed(name: str, value: str) -> Any:
    return vars(parse(run_parser(), [f"--{name}={value.strip()}"], defaults=False))[name]


def _draw(name: str, values: str, generator: random.Random) -> Any:
    kind, colon, ends = values.partition(":")
    logarithmic = bool(colon) and kind == "log"
    low, dots, high = (ends if logarithmic else values).partition("..")
    if not dots:
        return _typed(name, generator.choice(values.split(",")))
    try:
        first, last = float(low), float(high)
        drawn = first * (last / first) ** generator.random() if logarithmic else generator.uniform(first, last)
    except (ValueError, ZeroDivisionError):
        raise bad("--vary", f"{name}={values}", "two numbers, low..high (positive ones with log:)") from None
    whole = TrainConfig.__dataclass_fields__[name].type == "int"
    return _typed(name, str(round(drawn) if whole else drawn))


def sweep(base: TrainConfig, vary: list[str], mode: str, samples: int, sample_seed: int, out: Path, workers: int | None,
          threads: int | None, scheduler: str = "local") -> int:  # fmt: skip
    """Trains every combination with every seed; prints the table, best first. Returns the exit code."""
    if scheduler not in SCHEDULERS:
        raise bad("--scheduler", scheduler, ", ".join(SCHEDULERS))
    if workers is not None and (workers < 0 or (workers == 0 and scheduler == "ray")):
        raise bad("--workers", workers, "0 or more, with --scheduler ray 1 or more")
    if samples < 1:
        raise bad("--samples", samples, "1 or more")
    seeds, tried = parse_seeds(base.seeds), combinations(vary, mode, samples, sample_seed)
    settings = as_dict(base) | {"plots": False}
    plan = [[make_job(settings | changed, seed, out / "runs", threads) for seed in seeds] for changed in tried]
    try:
        found = run_all([job for jobs in plan for job in jobs], workers, scheduler)
    except Interrupted as stop:
        say("ssd-train: interrupted, every run's state is saved; the same command continues", file=sys.stderr)
        return 128 + stop.args[0]
    rows = []
    for i, changed in enumerate(tried):
        runs = found[i * len(seeds) : (i + 1) * len(seeds)]
        row = {name: metrics.triple([run[name]["mean"] for run in runs]) for name in ("accuracy", "bwt")}
        rows.append({"settings": changed, "n": len(runs), **row})
    rows.sort(key=lambda row: -(row["accuracy"]["mean"] or 0))
    text = _markdown(base, list(rows[0]["settings"]), rows)
    document = {"title": f"sweep of {base.method}", "mode": mode, "config": settings, "rows": rows}
    write_atomic(out / "sweep.json", (json.dumps(document, indent=1) + "\n").encode())
    write_atomic(out / "sweep.md", text.encode())
    say(text)
    say(f"written to {out / 'sweep'}.*")
    return 0


def _markdown(base: TrainConfig, fields: list[str], rows: list[dict[str, Any]]) -> str:
    lines = [f"# Sweep of {base.method} on {base.data}, {rows[0]['n']} seeds", ""]
    lines += ["| " + " | ".join([*fields, "accuracy", "BWT"]) + " |", "|---" * (len(fields) + 2) + "|"]
    for row in rows:
        values = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in row["settings"].values()]
        lines.append("| " + " | ".join([*values, _text(row["accuracy"]), _text(row["bwt"])]) + " |")
    return "\n".join(lines) + "\n"


def _text(triple: dict[str, Any]) -> str:
    if triple["mean"] is None:
        return "-"
    return f"{triple['mean']:.4f}" + ("" if triple["std"] is None else f" +- {triple['std']:.4f}")
