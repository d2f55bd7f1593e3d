"""What a run writes beside its checkpoints: results.json, metrics.csv, config.yaml."""

from __future__ import annotations

import csv
import io
import json
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoint import write_atomic
from ..config import TrainConfig, as_dict, parse_seeds
from ..data import Dataset
from ..errors import BadInput
from ..metrics import accuracy as metrics
from ..pretrained import describe_pretraining
from ..records import COLUMNS
from ..trainer import Trainer

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
    }


def summary(config: TrainConfig, data: Dataset, trainers: list[Trainer], argv: list[str]) -> dict[str, Any]:
    """The whole of results.json."""
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
        "kl": config.kl,
        "pretraining": describe_pretraining(config),
        "runs": runs,
        "estimator": trainers[0].method.estimator(),
        "environment": environment(config, trainers[0].engine.name, argv),
    }


def environment(config: TrainConfig, engine: str, argv: list[str]) -> dict[str, Any]:
    """Where and how the numbers were made."""
    from ssd_kernels import _backend, _native, _source

    native, _ = _native.cpu_module()
    device = torch.device(config.device)
    return {
        "command": shlex.join(["ssd-train", *argv]),
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
    }


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
    write_atomic(out / "metrics.csv", metrics_csv(trainers).encode())
    write_atomic(out / "results.json", (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def metrics_csv(trainers: list[Trainer]) -> str:
    """One line per point of the curves; an undefined accuracy is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    tasks = len(trainers[0].tasks)
    writer.writerow(["seed", *COLUMNS, *(f"task_{i}" for i in range(tasks))])
    for trainer in trainers:
        for task, epoch, *values in trainer.history:
            cells = ["" if v != v else repr(v) for v in values]
            writer.writerow([trainer.progress.seed, int(task), int(epoch), *cells])
    return text.getvalue()


def read(folder: Path) -> dict[str, Any]:
    """A run's results.json.

    Raises:
        BadInput: there is none, or it is not one.
    """
    path = folder / "results.json" if folder.is_dir() else folder
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); expected the folder of a finished run") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    if not isinstance(results, dict) or results.get("schema") != 1 or "runs" not in results:
        raise BadInput(f"{path}: expected results of ssd-train with schema 1")
    return results
