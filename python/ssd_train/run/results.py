"""What a run writes beside its checkpoints: results.json, metrics.csv, config.yaml."""

from __future__ import annotations

import json
import math
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoint import write_atomic
from ..config import TrainConfig, as_dict, parse_seeds
from ..curves import merged_csv
from ..data import Dataset
from ..errors import BadInput, reading
from ..metrics import accuracy as metrics
from ..pretrained import describe_pretraining
from ..sizes import read_text
from ..trainer import Trainer
from .folder import COMMANDS

MAX_RESULTS = 1 << 27  # bytes of a results.json
MAX_COMMANDS = 1 << 20  # bytes of the commands that worked on a run
SUMMARIZED = ("accuracy", "accuracy_taw", "bwt", "forgetting", "fwt")


def one_run(trainer: Trainer) -> dict[str, Any]:
    """The entry of one finished seed in results.json's `runs`, and what the summary needs of it."""
    progress = trainer.progress
    return {
        "seed": progress.seed,
        "order": trainer.order,
        "tasks": trainer.tasks.classes,
        "accuracy": progress.accuracy,
        "accuracy_taw": progress.accuracy_taw,
        "bwt": metrics.bwt(progress.matrix),
        "forgetting": metrics.forgetting(progress.matrix),
        "fwt": metrics.fwt(progress.matrix, progress.initial or []),
        "accuracy_matrix": progress.matrix,
        "accuracy_matrix_taw": progress.matrix_taw,
        "accuracy_initial": progress.initial,
        "loss_parts": progress.loss_parts,
        "path_length": progress.path_length,
        "rows": progress.rows,
        "seconds": progress.seconds,
        "phases": progress.phases,
        "activity": progress.activity,
        **({"traffic": progress.traffic} if progress.traffic else {}),
    }


def note_command(out: Path, argv: list[str], write: bool = True) -> list[str]:
    """Adds this command to those that worked on the folder, one a line, and returns them, the one that began it first.

    A line repeated, as where a run that ended is asked for again, is noted once. write: the file, not the list alone.
    """
    path, command = out / COMMANDS, shlex.join(["ssd-train", *argv]).replace("\n", " ")
    commands = read_text(path, MAX_COMMANDS).splitlines() if path.exists() else []
    if command not in commands:
        commands.append(command)
        if write:
            write_atomic(path, ("\n".join(commands) + "\n").encode())
    return commands


def summary(config: TrainConfig, data: Dataset, trainers: list[Trainer], commands: list[str]) -> dict[str, Any]:
    """The whole of results.json. commands: those that worked on the run, the one that began it first."""
    runs = [one_run(t) for t in trainers]
    triples = {name: metrics.triple([run[name] for run in runs]) for name in SUMMARIZED}
    return {
        "schema": 1,
        "method": config.method,
        "model": type(trainers[0].model).__name__,
        "data": data.describe(),
        "config": as_dict(config),
        "seeds": parse_seeds(config.seeds),
        **triples,
        "validation_accuracy": triples["accuracy"],
        "kl": config.options.get("kl"),
        "pretraining": describe_pretraining(config),
        "runs": runs,
        "estimator": trainers[0].method.estimator(),
        "environment": environment(config, trainers[0].engine.name, commands, trainers[0].parts.size),
    }


def environment(config: TrainConfig, engine: str, commands: list[str], processes: int = 1) -> dict[str, Any]:
    """Where and how the numbers were made."""
    from ssd_kernels import _backend, _native, _source

    native, _ = _native.cpu_module()
    device = torch.device(config.device)
    return {
        "command": commands[0],
        "resumed_by": commands[1:],
        "commit": _source.commit(),
        "version": __version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cpu": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else config.device,
        "backend": _backend.resolve(config.backend, "gaba_linear", device),
        "engine": engine,
        "simd": native.simd_level(_native.simd_level()) if hasattr(native, "simd_level") else None,
        "threads": torch.get_num_threads(),
    } | ({} if config.parallel is None else {"parallel": config.parallel, "processes": processes})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(out: Path, results: dict[str, Any], trainers: list[Trainer]) -> None:
    """Writes results.json and metrics.csv."""
    write_atomic(out / "metrics.csv", merged_csv([t.curves for t in trainers]).encode())
    write_atomic(out / "results.json", (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def read(folder: Path) -> dict[str, Any]:
    """A run's results.json.

    Raises:
        BadInput: there is none, it is not one, or an entry that reports print is missing or of another kind.
    """
    path = folder / "results.json" if folder.is_dir() else folder
    try:
        text = read_text(path, MAX_RESULTS)
    except BadInput as error:
        raise BadInput(f"{error}; expected the folder of a finished run") from None
    with reading(path, "not JSON"):
        results = json.loads(text)
    if not isinstance(results, dict) or results.get("schema") != 1 or "runs" not in results:
        raise BadInput(f"{path}: expected results of ssd-train with schema 1")
    for name, kind in SHAPE.items():
        _need(_fits(results.get(name), kind), path, name, results.get(name))
    for name in SUMMARIZED:
        triple = results.get(name)
        ok = _fits(triple, TRIPLE) and {"mean", "std"} <= triple.keys()
        numbers = [triple["mean"], triple["std"], *triple["per_seed"]] if ok else []
        _need(ok and all(n is None or _fits(n, float) for n in numbers), path, name, triple)
    for index, run in enumerate(results["runs"]):
        _need(_fits(run, RUN), path, f"runs[{index}]", run)
    return results


TRIPLE = {"per_seed": list}
RUN = {"seed": int, "accuracy_matrix": list}
SHAPE: dict[str, Any] = {
    "method": str,
    "model": str,
    "estimator": str,
    "seeds": list,
    "runs": list,
    "data": {"name": str, "sha256": str, "dim": int, "classes": int},
    "config": {"neurons": int, "k": int, "epochs": int, "data": str},
    "environment": {},
}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of a JSON file is of that kind; a mapping needs the entries of `kind`, of their kinds."""
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_fits(value.get(name), inner) for name, inner in kind.items())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not isinstance(value, bool)


def _need(ok: bool, path: Path, name: str, value: Any) -> None:
    if not ok:
        raise BadInput(f"{path}: its entry {name!r} is {repr(value)[:80]}; the file is damaged or edited")
