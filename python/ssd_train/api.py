"""The Python interface: train in one call, load a model. What `ssd-train run` does, without a command line."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import GENERAL, TrainConfig, from_dict
from .data import Dataset
from .errors import BadInput, bad
from .methods import Method
from .methods.find import did_you_mean, find_method, option_names
from .model import Network
from .records import Progress
from .run import evaluate
from .run.runner import execute


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run has found.

    Attributes:
        accuracy_matrix: (seeds, T, T) float64: accuracy on task i (last) after task t, NaN where it is undefined.
        metrics: `accuracy`, `accuracy_taw`, `bwt`, `forgetting`, `fwt`, each with mean, std and per_seed.
        curves: per seed the columns of metrics.csv, (points,) float64 each.
        models: per seed the trained network; one as it was drawn where the method trains none.
        summary: the whole of results.json.
    """

    accuracy_matrix: np.ndarray
    metrics: dict[str, dict[str, Any]]
    curves: list[dict[str, np.ndarray]]
    models: list[Network]
    summary: dict[str, Any]
    _folder: Path
    _temporary: tempfile.TemporaryDirectory[str] | None = dataclasses.field(default=None, repr=False)

    def save(self, folder: str | Path) -> Path:
        """Writes the run as `ssd-train run --out` does: for `report`, `eval`, and `run --resume` with more seeds.

        Raises:
            BadInput: the folder is there already and not empty.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise bad("folder", str(folder), "a new or empty folder")
        shutil.copytree(self._folder, target, ignore=shutil.ignore_patterns(".lock", "*.tmp"), dirs_exist_ok=True)
        return target


def train(config: TrainConfig | Mapping[str, Any], data: Dataset | None = None,
          progress: Callable[[Progress], None] | None = None) -> Result:  # fmt: skip
    """Trains a method on a sequence of tasks, every seed.

    Args:
        config: the settings of `ssd-train run`, as a TrainConfig or as a flat mapping; those of the method's own stand
            among them or under `options`. `method` may be a subclass of `Method`. Without `out` nothing is kept on
            disk; `Result.save` writes it. Seeds are trained one after another unless `jobs` says otherwise.
        data: the data set, in place of the one that `config` names.
        progress: called after every epoch with where the run stands.

    Returns:
        Metrics, curves and models. Bitwise what the command gives with the same settings and threads.

    Raises:
        BadInput: a setting that does not exist or is out of range, or data that cannot be used.
    """
    config = _config(config)
    if data is not None:
        config.data = data.name
    config.jobs = config.jobs or 1
    if config.jobs > 1 and (data is not None or config.method.startswith("__main__:")):
        raise bad("jobs", config.jobs, "1 with data or a method that only this process has")
    temporary = tempfile.TemporaryDirectory(prefix="ssd-train-") if config.out is None else None
    if temporary is not None:
        config.out = str(Path(temporary.name) / "run")
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            summary, trainers = execute(config, ["run"], lambda: False, quiet=True, data=data, progress=progress)
    finally:
        torch.set_num_threads(threads)
    nan = float("nan")
    matrix = [[[nan if a is None else a for a in row] for row in run["accuracy_matrix"]] for run in summary["runs"]]
    curves = [t.curves.arrays() for t in trainers]
    metrics = {name: summary[name] for name in ("accuracy", "accuracy_taw", "bwt", "forgetting", "fwt")}
    models = [t.model for t in trainers]
    assert config.out is not None
    return Result(np.array(matrix, dtype=np.float64), metrics, curves, models, summary, Path(config.out), temporary)


def load_model(path: str | Path, device: str = "cpu") -> Network:
    """The network in a model.safetensors. `model(x).logits` are its outputs for raw inputs x: (N, D).

    Raises:
        BadInput: the file is damaged or no model, or its method is not installed.
    """
    return evaluate.load_model(Path(path), device)[0]


def _config(given: TrainConfig | Mapping[str, Any]) -> TrainConfig:
    """A config of its own from what the caller gave, with the method as a name."""
    if isinstance(given, TrainConfig):
        return dataclasses.replace(given, method=_name(given.method), options=dict(given.options))
    settings = dict(given)
    if "method" in settings:
        settings["method"] = _name(settings["method"])
    config = from_dict(settings)
    own = option_names(find_method(config.method))
    for name in config.options:
        if name not in own:
            hint = did_you_mean(name, [*GENERAL, *own])
            raise BadInput(f"{name}: no setting of a run with the method {config.method}{hint}")
    return config


def _name(method: str | type[Method]) -> str:
    return f"{method.__module__}:{method.__qualname__}" if isinstance(method, type) else method
