"""States that the step benchmark starts from: a model at the end of a task 0, and the samples of the task after it.

    python benchmarks/states.py [--neurons 1000 10000 100000]

"tuned" is the one that the engine was written on (workload.py). The others come from runs of ssd-train up to the end of
the first task: CIFAR-10 with another seed and switch, and CIFAR-100 with ten classes a task. A number of the engine
counts only if it holds on all three. They are kept in a folder that SSD_BENCH_CACHE names, by default
~/.cache/ssd-kernels/states, and never committed; the second and third need SSD_DATA_DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import tempfile
from pathlib import Path

import torch
import workload
from torch import Tensor

EPOCHS = 20  # of task 0
NAMES = ("tuned", "cifar10-other", "cifar100")
# Data, options of ssd-train, classes of a task, seed.
RUNS = {
    "cifar10-other": ("cifar10_convmixer.safetensors", {"order": "seed", "gaba_switch": 90_000.0}, 2, 7),
    "cifar100": ("cifar100_convmixer.safetensors", {"order": "ordinal", "gaba_switch": "auto"}, 10, 3),
}


@dataclasses.dataclass
class State:
    """A model at the end of task 0, and tasks 0 and 1: samples that have been through normalize_inputs, and labels."""

    weight: Tensor
    output: Tensor
    counts: Tensor
    switch: float
    tasks: list[tuple[Tensor, Tensor]]

    def model(self, saturated: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Copies to train; with every counter beyond the switch where that is wanted."""
        counts = torch.full_like(self.counts, int(self.switch) + 1) if saturated else self.counts.clone()
        return self.weight.clone(), self.output.clone(), counts


class _EndOfTask(Exception):
    """Leaves a run at the end of its first task."""


def _run(name: str, neurons: int) -> State:
    """Trains task 0 as `ssd-train run` does."""
    from ssd_train import data
    from ssd_train.config import TrainConfig
    from ssd_train.trainer import Trainer

    folder = os.environ.get("SSD_DATA_DIR")
    if not folder:
        raise SystemExit(f"state {name}: SSD_DATA_DIR does not name the embeddings")
    file, options, classes, seed = RUNS[name]
    config = TrainConfig(
        data=str(Path(folder) / file), method="ssd", neurons=neurons, k=workload.K, epochs=EPOCHS, engine="fused",
        classes_per_task=classes, eval_every=EPOCHS, plots=False, **options,
    )  # fmt: skip

    def leave(trainer: Trainer) -> None:
        raise _EndOfTask

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(config, data.load(config.data), seed, Path(scratch))
        trainer.method.after_task = leave
        with contextlib.suppress(_EndOfTask):
            trainer.fit()
    model, stages = trainer.model, trainer.stages
    x, y = trainer.context.train_x, trainer.context.train_y
    tasks = [(x[rows].contiguous(), y[rows].contiguous()) for rows in stages[:2]]
    return State(
        model.weights[0].detach().clone(), model.output_weight.detach().clone(), model.counts[0].clone(),
        float(model.gaba_switch), tasks,
    )  # fmt: skip


def load(name: str, neurons: int, limit: int | None = None) -> State:
    """A state, from the cache or made now. limit: only so many samples of each task, for a smoke run."""
    if name == "tuned":
        weight, output, counts, switch = workload.after_task0(neurons, saturated=False, limit=limit)
        return State(weight, output, counts, switch, [workload.task(index, limit) for index in (0, 1)])
    cache = Path(os.environ.get("SSD_BENCH_CACHE") or Path.home() / ".cache" / "ssd-kernels" / "states")
    path = cache / f"{name}-{neurons}-{EPOCHS}.pt"
    if path.exists():
        state = State(**torch.load(path, weights_only=True))
    else:
        state = _run(name, neurons)
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        torch.save({field.name: getattr(state, field.name) for field in dataclasses.fields(state)}, part)
        part.rename(path)
    if limit is not None:
        state.tasks = [(x[:limit].contiguous(), y[:limit].contiguous()) for x, y in state.tasks]
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--neurons", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    for neurons in parser.parse_args().neurons:
        for name in NAMES:
            state = load(name, neurons)
            g = (state.counts.double() * 2 / state.switch - 1).clamp(-1, 1)
            saturated = float((g >= 1).double().mean())
            print(
                f"{name}, R = {neurons}: {len(state.tasks[1][0])} samples of task 1, {len(state.output)} "
                f"classes; switch {state.switch:g}, {saturated:.1%} saturated, mean g {float(g.mean()):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
