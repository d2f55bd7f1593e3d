"""`ssd-train run`: every seed of a run, its files and what is printed."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ssd_kernels import _native

from .. import __version__, plots
from .. import data as datasets
from ..checkpoint import CheckpointFolder, write_atomic
from ..config import FREE_ON_RESUME, TrainConfig, as_dict, dump, parse_seeds, read_config
from ..data import Dataset
from ..engines import fused_reason
from ..errors import BadInput, bad, say
from ..methods.find import find_method, method_names
from ..options import mention_idle
from ..parallel.group import Group, start, together
from ..parallel.shards import Shards, Whole
from ..pretrained import read_pretrained
from ..records import COLUMNS, Interrupted, Progress
from ..sizes import cores
from ..trainer import Trainer, identity
from ..validate import check, check_size
from . import results
from .folder import Claim, Claimed, StopSignals, claimed
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
        group = start(config.parallel, config.parallel_timeout)
        first = group is None or group.rank == 0
        try:
            summary, _ = execute(config, argv, stop, quiet=not first, group=group)
        except Interrupted:
            again = f"ssd-train run --resume --out {config.out}"
            if first:
                say(f"ssd-train: interrupted, state saved; continue with: {again}", file=sys.stderr)
            return 128 + (stop.received or signal.SIGTERM)  # another process may have been the one that was asked
        except BadInput:
            if first:
                raise
            return 2  # all processes have met it; the first one says so
        if group is not None:
            group.close()
    if first:
        print_summary(summary)
        say(f"written to {config.out}")
        mention_idle(argv, config)
    return 0


def execute(config: TrainConfig, argv: list[str], stop: Callable[[], bool], quiet: bool = False,
            data: Dataset | None = None, progress: Callable[[Progress], None] | None = None,
            group: Group | None = None) -> tuple[dict[str, Any], list[Trainer]]:  # fmt: skip
    """Trains every seed and writes the run's folder. Returns what results.json holds, and each seed's trainer.

    Args:
        data: the data set, in place of the one that the config names. progress: called after every epoch.
        group: the processes that train one model together; all call this, and the first one alone writes.

    Raises:
        BadInput: something given cannot be used; nothing was changed.
        Interrupted: a signal came; the state is saved.
        LostProcess: another process of the group ended, or does not answer.
    """
    if group is None and config.parallel is not None:
        raise bad("--parallel", config.parallel, "null but for `ssd-train run` under torchrun")
    found: list[Dataset] = [] if data is None else [data]
    with together(group, lambda: facts(config, found[0])):
        check(config)
        data = datasets.load(config.data) if data is None else data
        if config.validation:
            data = data.held_out(config.validation)
        found[:] = [data]
        datasets.make_tasks(data, datasets.tasks.class_order(data.classes, config.order), config.classes_per_task)
        parts = parts_of(config, group)
        check_size(config, data.dim, data.classes, parts.size if config.parallel == "neurons" else 1)
        if config.pretrained is not None:
            read_pretrained(config, data.dim)
        _set_threads(config, data)
    with contextlib.ExitStack() as stack:
        with together(group):
            claim = stack.enter_context(_claim(config, parts))
            out = claim.out
            _same_settings(config, out)
            for seed in parse_seeds(config.seeds):
                CheckpointFolder(out / f"seed-{seed}" / "checkpoint").check(identity(config, data, seed))
            if parts.rank == 0:
                write_atomic(out / "config.yaml", dump(config).encode())
            commands = results.note_command(out, argv, write=parts.rank == 0)
        with together(group, lambda: {"--out": _stamp(out)}):
            pass  # now the folder is there, and the same one everywhere
        trainers = _train(config, data, claim, stop, quiet, progress, parts)
        summary = results.summary(config, data, trainers, commands)
        if group is not None:
            peaks = group.gather(str(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
            summary["environment"]["peak_memory"] = [int(peak) for peak in peaks]
        if parts.rank == 0:
            claim.check()
            results.write(out, summary, trainers)
            if config.plots:
                draw(summary, trainers, out / "plots")
            claim.check()
    return summary, trainers


def _claim(config: TrainConfig, parts: Whole) -> contextlib.AbstractContextManager[Claim]:
    """The claim on the output folder, which the first process makes for all."""
    if parts.group is not None and not config.resume:
        config.out = parts.group.first(config.out)  # a name with the time in it differs between processes
    if parts.rank > 0:
        return contextlib.nullcontext(Claimed(Path(config.out)))
    return claimed(Path(config.out), resume=config.resume, overwrite=config.overwrite)


def _stamp(out: Path) -> str:
    """What the settings' file in the folder holds: processes that see another folder see another file, or none."""
    path = out / "config.yaml"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else "no config.yaml"


def facts(config: TrainConfig, data: Dataset) -> dict[str, Any]:
    """What all processes of a run must have alike, for their sums to have the same bits."""
    native, _ = _native.cpu_module()
    settings = {name: value for name, value in as_dict(config).items() if name != "out"}
    return {
        "ssd-train's version": __version__,
        "torch's version": torch.__version__,
        "instruction set": native.simd_level(_native.simd_level()) if hasattr(native, "simd_level") else "none",
        "--data's SHA-256": data.sha256,
        "threads": torch.get_num_threads(),
        **{f"--{name.replace('_', '-')}": value for name, value in settings.items()},
        "--parallel": config.parallel,
    }


def parts_of(config: TrainConfig, group: Group | None) -> Whole:
    """Which part of the model this process trains.

    Raises:
        BadInput: the method cannot be trained so, or there are more processes than there is work for.
    """
    if group is None:
        return Whole()
    if config.parallel == "data":
        parts = Whole(group)
    else:
        if not find_method(config.method).by_neurons:
            able = ", ".join(name for name in method_names() if find_method(name).by_neurons)
            raise bad("--method", config.method, f"one of {able} with --parallel neurons")
        if config.pretrained is not None:
            raise bad("--pretrained", config.pretrained, "null with --parallel neurons")
        if config.layers > 1:
            raise bad("--layers", config.layers, "1 with --parallel neurons")
        parts = Shards(group, config.neurons)
    parts.check(config.neurons, config.k, config.batch_size)
    return parts


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
           progress_of: Callable[[Progress], None] | None, parts: Whole) -> list[Trainer]:  # fmt: skip
    """Every seed's trainer, trained. Seeds side by side are trained by other processes; here they are read."""
    seeds = parse_seeds(config.seeds)
    jobs = jobs_of(config, data, len(seeds)) if parts.group is None else 1
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
            trainer = Trainer(config, data, seed, claim.out / f"seed-{seed}", interrupted=stop, report=report,
                              parts=parts)  # fmt: skip
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
    if "peak_memory" in summary["environment"]:
        _print_processes(summary)
    tasks = len(runs[0]["accuracy_matrix"])
    if tasks > 20:
        return
    say("  accuracy on task (column) after task (row)" + (", mean over seeds" if len(runs) > 1 else ""))
    for t in range(tasks):
        cells = [[run["accuracy_matrix"][t][i] for run in runs] for i in range(t + 1)]
        shown = ["   -  " if None in c else f"{sum(c) / len(c):6.3f}" for c in cells]
        say(f"    {t:2d} " + " ".join(shown))


def _print_processes(summary: dict[str, Any]) -> None:
    """What the processes exchanged in a step, how long it took, and their memory."""
    env, runs = summary["environment"], summary["runs"]

    def total(name: str) -> float:
        return sum(run["traffic"].get(name, 0) for run in runs)

    steps = max(total("steps"), 1)
    seconds = sum(entry["seconds"] for run in runs for entry in run["activity"].values())
    shared = "samples" if env["parallel"] == "data" else "neurons"
    say(f"  {'processes':22s}{env['processes']}, sharing the {shared}")
    say(f"  {'a step':22s}{1e3 * seconds / steps:.2f} ms, {1e3 * total('exchange_seconds') / steps:.2f} ms of it in "
        f"{total('exchanges') / steps:.1f} exchanges; {total('sent') / steps:.0f} bytes to each other process, "
        f"{total('received') / steps:.0f} from all")  # fmt: skip
    say(f"  {'peak memory, GB':22s}{', '.join(f'{peak / 1e9:.2f}' for peak in env['peak_memory'])}")
