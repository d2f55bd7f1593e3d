"""Trains one seed: tasks, epochs, evaluation, checkpoints. What a step does is the engine's and the method's."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .board import open_board
from .checkpoint import CheckpointFolder, write_tensors
from .config import FREE_ON_RESUME, TrainConfig, as_dict, parse_gaba_switch
from .curves import Curves
from .data import Dataset, make_tasks
from .data.tasks import class_order
from .distill import Teacher
from .engines import fused_reason, make_engine
from .errors import BadInput, reading
from .methods import Method, TaskContext
from .methods.find import find_method
from .metrics import accuracy as metrics
from .metrics import structure as analysis
from .model import Network, build_model
from .parallel.pieces import read_shards, write_shards
from .parallel.shards import Shards, Whole
from .pretrained import load_pretrained
from .records import COLUMNS, EpochSums, Interrupted, Progress, check_records
from .validate import model_kind

MAX_HEATMAP_NEURONS = 16_384


def identity(config: TrainConfig, data: Dataset, seed: int) -> dict[str, Any]:
    """What makes two runs the same: a checkpoint of one is the other's only where all of this agrees."""
    fixed = {name: value for name, value in as_dict(config).items() if name not in FREE_ON_RESUME}
    return {"version": __version__, "seed": seed, "data's SHA-256": data.sha256, **fixed}


class Trainer:
    """One seed of a run. `fit` trains from the newest checkpoint in `folder`, or from the start."""

    def __init__(self, config: TrainConfig, data: Dataset, seed: int, folder: Path, *,
                 interrupted: Callable[[], bool] = lambda: False,
                 report: Callable[[Trainer], None] = lambda trainer: None,
                 parts: Whole | None = None) -> None:  # fmt: skip
        self.config, self.data, self.folder = config, data, folder
        self.parts = Whole() if parts is None else parts
        self.writes = self.parts.rank == 0  # the first process alone writes to the folder
        self.interrupted, self.report = interrupted, report
        self.order = class_order(data.classes, config.order, seed)
        self.tasks = make_tasks(data, self.order, config.classes_per_task)
        self.method = find_method(config.method)(config)
        self.stages = self.method.stages(self.tasks)
        self.identity = identity(config, data, seed)
        self.epochs = 0 if "epochs" in self.method.ignores else config.epochs
        self.progress, self.sums = Progress(seed), EpochSums()
        self.epoch_order: Tensor | None = None
        self.evaluated: tuple | None = None
        sharded = self.parts if isinstance(self.parts, Shards) else None
        write = None if sharded is None else functools.partial(write_shards, sharded)
        read = None if sharded is None else functools.partial(read_shards, sharded)
        self.checkpoints = CheckpointFolder(folder / "checkpoint", write, read)
        self.last_save = self.begin = time.monotonic()
        self.begin_cpu = time.process_time()
        self._build(seed)
        self.board = open_board(config.log if self.writes else None, folder)

    def _build(self, seed: int) -> None:
        config, data = self.config, self.data
        dtype = getattr(torch, config.dtype)
        torch.manual_seed(seed)
        switch = parse_gaba_switch(config.gaba_switch)
        if switch == "auto":
            switch = max(0.2 * config.epochs * len(self.stages[0]), 1.0)
        self.model: Network = build_model(
            model_kind(config), dim=data.dim, classes=data.classes, neurons=config.neurons, layers=config.layers,
            k=config.k, gaba_switch=switch, backend=config.backend, dtype=dtype, device=config.device,
            topk=config.topk, shard=self.parts.shard(config.neurons),
        )  # fmt: skip
        if config.pretrained is not None:
            load_pretrained(self.model, config)
        train_x, self.x_test = (self.model.prepare(x.to(device=config.device, dtype=dtype))
                                for x in (data.x_train, data.x_test))  # fmt: skip
        train_y, self.y_test = data.y_train.to(config.device), data.y_test.to(config.device)
        step = max(1, len(self.x_test) // max(config.probe_size, 1))
        self.probe = self.x_test[::step][: config.probe_size].contiguous()
        self.probe_labels = self.y_test[::step][: config.probe_size]
        self.context = TaskContext(
            config, data.dim, data.classes, self.order, self.tasks, self.stages, self.model, train_x, train_y,
            torch.Generator().manual_seed(seed), parts=self.parts,
        )  # fmt: skip
        self.engine = make_engine(self.context, self.method, self.progress)
        if self.parts.group is not None and self.engine.name != "fused":
            why = fused_reason(config, self.model, self.method) or "--engine autograd was asked for"
            raise BadInput(f"--parallel: got {config.parallel!r}, allowed with the fused engine only: {why}")
        own = [name for name in self.method.parts if name not in COLUMNS]
        columns = [*COLUMNS, *(f"task_{i}" for i in range(len(self.tasks))), *own]
        self.curves = Curves(self.folder if self.writes else None, seed, columns, len(self.probe))

    @property
    def history(self) -> list[list[float]]:
        """The points of the curves so far: what `curves.columns` names."""
        return self.curves.rows

    @property
    def snapshots(self) -> list[Tensor]:
        """(R,) int32 per point, how many probe samples activate each neuron."""
        return self.curves.snapshots

    def fit(self) -> None:
        """Trains every stage and leaves model.safetensors and a finished checkpoint.

        Raises:
            Interrupted: stopped by `interrupted`, state saved.
        """
        self.begin, self.begin_cpu = time.monotonic(), time.process_time()
        self._resume()
        if self.progress.initial is None:
            self.curves.write_csv()
            self.progress.initial, _ = self.evaluate()[:2]
        while self.progress.stage < len(self.stages):
            self._run_stage()
        if not self.progress.finished:
            self.progress.finished = True
            self.save_model()
            self.save()
        if self.board is not None:
            self.board.close()

    def _run_stage(self) -> None:
        progress, context = self.progress, self.context
        context.enter(progress.stage)
        if not progress.started:
            self.method.before_task(context)
            progress.started = True
        self.method.prepare(context)
        while progress.epoch < self.epochs:
            self._set_winners(progress.stage, progress.epoch)
            self._run_epoch()
        self._set_winners(progress.stage, self.config.epochs)
        self.method.after_task(context)
        self._end_stage()
        if self.config.keep_models:
            self.save_model(f"model-task-{progress.stage - 1}.safetensors")
        self.save()

    def _set_winners(self, stage: int, epoch: int) -> None:
        """K of an epoch: in the first task it falls linearly from --k-start to --k."""
        config = self.config
        if config.k_start is None or self.model.kind != "sdmlp":
            return
        left = max(1 - epoch / (config.k_epochs or max(config.epochs, 1)), 0.0) if stage == 0 else 0.0
        self.model.k = config.k + round((config.k_start - config.k) * left)

    def _run_epoch(self) -> None:
        progress, begin, self.evaluated = self.progress, time.monotonic(), None
        if self.epoch_order is None:
            self.epoch_order = torch.randperm(len(self.context.x), generator=self.context.generator)
            self.sums = EpochSums()
            self.method.before_epoch(self.context)
        rest = self.epoch_order[progress.position :]
        progress.position += self.engine.train_epoch(rest, self.sums, self.interrupted)
        progress.seconds["train"] += time.monotonic() - begin
        if progress.position < len(self.epoch_order):
            self.save()
            raise Interrupted
        progress.epoch, progress.position, self.epoch_order = progress.epoch + 1, 0, None
        for kind, count in self.sums.rows.items():
            progress.rows[kind] += count
        self.report(self)
        if progress.epoch % self.eval_every == 0 or progress.epoch == self.config.epochs:
            self._log_point()
        pause = self.config.checkpoint_seconds
        if pause is not None and self.parts.first(time.monotonic() - self.last_save >= pause):
            self.save()

    @property
    def eval_every(self) -> int:
        return self.config.eval_every or max(1, self.config.epochs // 5)

    def _log_point(self) -> None:
        """One point of the curves: losses, accuracies, and the probe set's winners."""
        self.evaluated = self.evaluate()
        tag, _, accuracy, accuracy_taw = self.evaluated
        point = {"task": self.progress.stage, "epoch": self.progress.epoch, **self.sums.means()}
        point |= {"accuracy": accuracy, "accuracy_taw": accuracy_taw, "train_accuracy": self._train_accuracy()}
        point |= self._structure()
        point |= {f"task_{i}": accuracy for i, accuracy in enumerate(tag)}
        self.curves.add(point)
        if self.board is not None:
            self.board.add(point, self.progress.stage * self.epochs + self.progress.epoch)

    def _train_accuracy(self) -> float:
        """Accuracy on the stage's own training data, all classes competing; on at most 1024 samples."""
        x, y = self.context.x, self.context.y
        rows = torch.arange(0, len(x), max(1, len(x) // 1024))[:1024]
        return (self.method.predict(self.context, x[rows]).argmax(1) == y[rows]).double().mean().item()

    def _has_structure(self) -> bool:
        """Whether there are neurons that win or lose, and a probe set to see it on."""
        return bool(self.model.counters and len(self.probe)) and self.config.neurons <= MAX_HEATMAP_NEURONS

    def _structure(self) -> dict[str, float | None]:
        """The structural metrics of the first hidden layer on the probe set; keeps its counts for the heatmap."""
        if not self._has_structure():
            return {}
        model = self.parts.whole(self.model)
        teacher = getattr(self.method, "teacher", None)
        frozen = self.parts.whole(teacher.model) if isinstance(teacher, Teacher) else None
        own = type(self.method).activity is not Method.activity
        counts = self.method.activity(self.context, self.probe)[0] if own else None
        if not self.writes:
            return {}  # what all processes take part in is done
        seen = analysis.probe(model, self.probe, self.probe_labels, self.data.classes)
        counts = (seen.counts if counts is None else counts).to("cpu", torch.int32)
        found = {
            "entropy": analysis.activation_entropy(counts, seen.samples),
            "class_entropy": analysis.class_entropy(seen.classes),
            "coverage": (model.counters[0] > 0).double().mean().item(),
            "jaccard": analysis.jaccard(self.snapshots[-1], counts, 10 * self.config.k) if self.snapshots else None,
        }
        if frozen is not None:
            found["cosine"] = analysis.row_cosine(frozen.weights[0], model.weights[0].detach(), teacher.units[0])
        self.snapshots.append(counts)
        return found

    def _end_stage(self) -> None:
        progress = self.progress
        if self.evaluated is None or type(self.method).predict is not Method.predict:
            self.evaluated = self.evaluate()  # else the last point's: nothing has moved since
        tag, taw, progress.accuracy, progress.accuracy_taw = self.evaluated
        empty: list[float | None] = [None] * len(self.tasks)
        while len(progress.matrix) < self._row_of(progress.stage):
            progress.matrix.append(list(empty))
            progress.matrix_taw.append(list(empty))
        progress.matrix.append(tag)
        progress.matrix_taw.append(taw)
        progress.loss_parts.append({"task": progress.stage, **self.sums.means()})
        if self._has_structure():
            model = self.parts.whole(self.model)
            if self.writes:
                progress.path_length.append(analysis.path_length(model, self.probe))
        progress.stage, progress.epoch, progress.started = progress.stage + 1, 0, False
        self.sums = EpochSums()

    def _row_of(self, stage: int) -> int:
        """The row of the accuracy matrix that a stage fills: its own, or the last one when one stage sees all."""
        return stage + len(self.tasks) - len(self.stages)

    def evaluate(self) -> tuple[list, list, float | None, float | None]:
        """TAg and TAw accuracy of every task's test samples, and both over all samples."""
        begin = time.monotonic()
        logits = self.method.predict(self.context, self.x_test)
        pairs = [
            metrics.accuracies(logits[rows], self.y_test[rows], classes)
            for rows, classes in zip(self.tasks.test, self.tasks.classes)
        ]
        tag, taw = [p[0] for p in pairs], [p[1] for p in pairs]
        sizes = [len(rows) for rows in self.tasks.test]
        self.progress.seconds["eval"] += time.monotonic() - begin
        return tag, taw, metrics.weighted(tag, sizes), metrics.weighted(taw, sizes)

    def tensors(self) -> dict[str, Tensor]:
        named = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        named |= {f"method.{k}": v for k, v in self.method.tensors().items()}
        named |= {f"engine.{k}": v for k, v in self.engine.tensors().items()}
        named |= {"generator": self.context.generator.get_state(), "random_state": torch.get_rng_state()}
        named["history"] = torch.tensor(self.history, dtype=torch.float64)
        if self.epoch_order is not None:
            named["epoch_order"] = self.epoch_order
        if self.snapshots:
            named["snapshots"] = torch.stack(self.snapshots)
        return named

    def save(self) -> None:
        """Writes a checkpoint."""
        now, cpu = time.monotonic(), time.process_time()
        seconds = self.progress.seconds
        seconds["total"] += now - self.begin
        seconds["cpu"] = seconds.get("cpu", 0.0) + cpu - self.begin_cpu
        self.begin, self.begin_cpu = now, cpu
        state = {"run": self.identity, "config": as_dict(self.config), "progress": asdict(self.progress),
                 "sums": asdict(self.sums)}  # fmt: skip
        state |= {"columns": self.curves.columns}
        if self.writes:
            self.checkpoints.save(self.tensors(), state)
        elif isinstance(self.parts, Shards):
            write_shards(self.parts, self.folder, self.tensors(), state)
        self.curves.write_arrays()
        self.last_save = time.monotonic()

    def _resume(self) -> None:
        """Takes the newest checkpoint's state, if there is one."""
        found = self.checkpoints.load(self.identity)
        if found is not None:
            with reading(self.checkpoints.folder, "its newest file does not hold the state of this run"):
                self._restore(*found)

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        progress, sums = Progress(**state["progress"]), EpochSums(**state["sums"])
        check_records(progress, sums, seed=self.progress.seed, stages=len(self.stages), tasks=len(self.tasks),
                      epochs=self.epochs)  # fmt: skip
        order = tensors.get("epoch_order", torch.zeros(0, dtype=torch.int64))
        if not torch.equal(order.sort().values, torch.arange(len(order))) or progress.position > len(order):
            raise ValueError(f"its position {progress.position} is none in the order of an epoch")
        if tensors["history"].shape[0] and tensors["history"].shape[1:] != (len(state["columns"]),):
            raise ValueError("its curves have other columns than their names")
        self.model.load_state_dict(under("model."))
        self.method.load_tensors(under("method."), self.context)
        self.engine.load_tensors(under("engine."))
        self.context.generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["random_state"])
        snapshots = tensors.get("snapshots", ())
        self.curves.restore(state["columns"], tensors["history"].tolist(), snapshots)
        self.epoch_order = tensors.get("epoch_order")
        self.progress, self.sums = progress, sums
        self.engine.progress = self.progress

    def save_model(self, name: str = "model.safetensors") -> None:
        """Writes the weights, or what the method predicts with instead; in the metadata all that `eval` needs."""
        state = {"config": as_dict(self.config), "version": __version__, "seed": self.progress.seed,
                 "data": self.data.describe(), "order": self.order,
                 "gaba_switch": getattr(self.model, "gaba_switch", None)}  # fmt: skip
        if isinstance(self.parts, Shards):
            if self.writes:
                self.folder.mkdir(exist_ok=True)
            write_shards(self.parts, self.folder / name, self.model.state_dict(), state)
        elif self.writes:
            self.folder.mkdir(exist_ok=True)
            trained = self.model.state_dict() if self.method.trains_network else self.method.tensors()
            write_tensors(self.folder / name, trained, state)
