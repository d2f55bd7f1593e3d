"""`ssd-train run`: every seed of a run, its files and what is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import data as datasets
from .. import plots
from ..checkpoint import CheckpointFolder, write_atomic
from ..config import FREE_ON_RESUME, TrainConfig, as_dict, dump, parse_seeds, read_config
from ..data import Dataset
from ..engines import fused_reason
from ..errors import BadInput, say
from ..methods.find import find_method
from ..pretrained import read_pretrained
from ..records import COLUMNS, Interrupted, Progress
from ..sizes import cores
from ..trainer import Trainer, identity
from ..validate import check, check_size
from . import results
from .folder import Claim, StopSignals, claimed
from .side_by_side import train_seeds

SMALL_WORK = 8_000_000  # multiply-adds of a layer's scores for one batch, below which one thread is fastest
SIDE_BY_SIDE = 64_000_000  # up to which seeds side by side beat threads

LABELS = {
    "accuracy": "accuracy",
    "accuracy_taw": "accuracy, task known",
    "bwt": "BWT",
    "forgetting": "forgetting",
    "fwt": "FWT",
}


def run(config: TrainConfig, argv: list[str]) -> int:
    """Trains, writes and prints. Returns the exit code: 0, or 130 / 143 when interrupted.

    Raises:
        BadInput: something given cannot be used; nothing was changed.
    """
    with StopSignals() as stop:
        try:
            summary, _ = execute(config, argv, stop)
        except Interrupted:
            again = f"ssd-train run --resume --out {config.out}"
            say(f"ssd-train: interrupted, state saved; continue with: {again}", file=sys.stderr)
            return 128 + stop.received
    print_summary(summary)
    say(f"written to {config.out}")
    return 0


def execute(config: TrainConfig, argv: list[str], stop: Callable[[], bool], quiet: bool = False,
            data: Dataset | None = None,
            progress: Callable[[Progress], None] | None = None) -> tuple[dict[str, Any], list[Trainer]]:  # fmt: skip
    """Trains every seed and writes the run's folder. Returns what results.json holds, and each seed's trainer.

    Args:
        data: the data set, in place of the one that the config names. progress: called after every epoch.

    Raises:
        BadInput: something given cannot be used; nothing was changed.
        Interrupted: a signal came; the state is saved.
    """
    check(config)
    data = datasets.load(config.data) if data is None else data
    if config.validation:
        data = data.held_out(config.validation)
    datasets.make_tasks(data, datasets.tasks.class_order(data.classes, config.order), config.classes_per_task)
    check_size(config, data.dim, data.classes)
    if config.pretrained is not None:
        read_pretrained(config, data.dim)
    _set_threads(config, data)
    with claimed(Path(config.out), resume=config.resume, overwrite=config.overwrite) as claim:
        out = claim.out
        _same_settings(config, out)
        for seed in parse_seeds(config.seeds):
            CheckpointFolder(out / f"seed-{seed}" / "checkpoint").check(identity(config, data, seed))
        write_atomic(out / "config.yaml", dump(config).encode())
        trainers = _train(config, data, claim, stop, quiet, progress)
        summary = results.summary(config, data, trainers, argv)
        claim.check()
        results.write(out, summary, trainers)
        if config.plots:
            draw(summary, trainers, out / "plots")
        claim.check()
    return summary, trainers


def work_of(config: TrainConfig, data: Dataset) -> int:
    """Multiply-adds of a layer's scores for one batch."""
    return config.batch_size * config.neurons * max(data.dim, config.neurons if config.layers > 1 else 0)


def _set_threads(config: TrainConfig, data: Dataset) -> None:
    """The threads asked for; one where a step is so small that a second would cost more than it brings.

    Several seeds of a step up to SIDE_BY_SIDE have one thread each at any `--jobs`, so that the bits are the same.
    """
    several = len(parse_seeds(config.seeds)) > 1
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif work_of(config, data) <= (SIDE_BY_SIDE if several else SMALL_WORK):
        torch.set_num_threads(1)


def jobs_of(config: TrainConfig, data: Dataset, seeds: int) -> int:
    """How many seeds are trained at a time."""
    if config.jobs is not None:
        return min(config.jobs, seeds)
    small = work_of(config, data) <= SIDE_BY_SIDE and torch.device(config.device).type == "cpu"
    return min(seeds, max(1, cores() // (config.threads or 1))) if small else 1


def _same_settings(config: TrainConfig, out: Path) -> None:
    """A resumed run must compute what the saved one does."""
    path = out / "config.yaml"
    if not (config.resume and path.exists()):
        return
    saved, now = read_config(path), as_dict(config)
    for name in now:
        if name not in FREE_ON_RESUME and name in saved and saved[name] != now[name]:
            option = "--" + name.replace("_", "-")
            allowed = f"{saved[name]!r}, as the run in {out} was started"
            raise BadInput(f"{option}: got {now[name]!r}, allowed is {allowed}")


def _train(config: TrainConfig, data: Dataset, claim: Claim, stop: Callable[[], bool], quiet: bool,
           progress_of: Callable[[Progress], None] | None) -> list[Trainer]:  # fmt: skip
    """Every seed's trainer, trained. Seeds side by side are trained by other processes; here they are read."""
    seeds = parse_seeds(config.seeds)
    jobs = jobs_of(config, data, len(seeds))
    if jobs > 1:
        claim.check()
        train_seeds(config, seeds, claim, jobs, stop, quiet)
    with tqdm(unit="epoch", disable=quiet or not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def report(trainer: Trainer) -> None:
            claim.check()
            progress = trainer.progress
            done = progress.stage * config.epochs + progress.epoch
            bar.total = len(seeds) * len(trainer.stages) * config.epochs
            bar.n = seeds.index(progress.seed) * len(trainer.stages) * config.epochs + done
            bar.set_description(f"seed {progress.seed}, task {progress.stage}", refresh=False)
            accuracy = trainer.history[-1][COLUMNS.index("accuracy")] if trainer.history else float("nan")
            bar.set_postfix(loss=f"{trainer.sums.means()['loss']:.4f}", acc=f"{accuracy:.3f}", refresh=False)
            bar.update(0)
            if progress_of is not None:
                progress_of(progress)

        trainers = []
        for seed in seeds:
            claim.check()
            trainer = Trainer(config, data, seed, claim.out / f"seed-{seed}", interrupted=stop, report=report)
            if config.engine != trainer.engine.name and not trainers and not quiet:
                reason = fused_reason(config, trainer.model, trainer.method)
                bar.write(f"engine: {trainer.engine.name} (the fused engine does not apply: {reason})", file=sys.stdout)
            trainer.fit()
            trainers.append(trainer)
    return trainers


def draw(summary: dict[str, Any], trainers: list[Trainer], folder: Path) -> None:
    """The run's figures, as PNG."""
    folder.mkdir(exist_ok=True)
    plots.accuracy_matrix(summary, folder / "accuracy_matrix.png")
    if trainers[0].history:
        plots.task_curves(summary, [t.history for t in trainers], folder / "task_curves.png")
    if trainers[0].snapshots:
        snapshots = np.stack([s.numpy() for s in trainers[0].snapshots])
        plots.neuron_heatmap(summary, snapshots, trainers[0].history, len(trainers[0].probe), folder / "neurons.png")


def certified_share(runs: list[dict[str, Any]]) -> float:
    """The share of the samples trained on whose winners the fused engine proved without scoring every neuron."""
    seen = sum(run["rows"]["certified"] + run["rows"]["scanned"] for run in runs)
    return sum(run["rows"]["certified"] for run in runs) / max(seen, 1)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def print_summary(summary: dict[str, Any]) -> None:
    """Accuracy, BWT and the accuracy matrix, as the README shows them."""
    config, data = summary["config"], summary["data"]
    unused = find_method(summary["method"]).ignores
    sizes = [summary["model"]] if "epochs" not in unused else []
    sizes += [f"R {config['neurons']}"] if "neurons" not in unused else []
    sizes += [f"K {config['k']}"] if summary["model"] == "SDMLP" and "k" not in unused else []
    sizes += [f"{config['epochs']} epochs per task"] if "epochs" not in unused else ["one pass"]
    seeds = ", ".join(map(str, summary["seeds"]))
    say(f"{summary['method']} on {data['name']}: {', '.join(sizes)}, seeds {seeds}")
    for key, label in LABELS.items():
        triple = summary[key]
        spread = "" if triple["std"] is None else f" +- {triple['std']:.4f}"
        say(f"  {label:22s}{number(triple['mean'])}{spread}")
    runs = summary["runs"]
    if summary["environment"]["engine"] == "fused":
        say(f"  {'rows certified':22s}{certified_share(runs):.1%}")
    tasks = len(runs[0]["accuracy_matrix"])
    if tasks > 20:
        return
    say("  accuracy on task (column) after task (row)" + (", mean over seeds" if len(runs) > 1 else ""))
    for t in range(tasks):
        cells = [[run["accuracy_matrix"][t][i] for run in runs] for i in range(t + 1)]
        shown = ["   -  " if None in c else f"{sum(c) / len(c):6.3f}" for c in cells]
        say(f"    {t:2d} " + " ".join(shown))
