"""The engine in CUDA C++: four launches a step, captured once into a CUDA graph and replayed for a whole epoch.

Trainings of the same sizes can share the launches, one beside the other: `train_together`. None of it has been run on a
GPU yet; in the tests the same launches run thread by thread over the emulator of the C++ tests.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from .. import _cuda_calls, _native
from .teacher import softened
from .types import EpochStats, NonFiniteStep, QuadraticPenalty, Settings, Teacher, gaba_coefficients

STEPS_PER_GRAPH = 16
POLL_SECONDS = 0.1  # should_stop and signals are looked at about this often
_INFER_SAMPLES = 512
# The places of csrc/include/ssd/sdmlp_engine_cuda.h.
POSITION, COUNT, STEPS, GO, FAILURE, FAILED_SAMPLE = range(6)
CE, KD_HIDDEN, KD_LOGITS, ACTIVE, NORM, TOUCHED, SCALE, SPEED = range(8)
FAILURES = ("", "score", "cross-entropy", "hidden distillation", "logit distillation",
            "learning rate times the gradient", "norm of the gradient")  # fmt: skip
Result = tuple[EpochStats, BaseException | None]


@dataclass(frozen=True, eq=False)
class Epoch:
    """What one training is given for an epoch; shapes as SDMLPEngine.train_epoch has them."""

    x: Tensor
    y: Tensor
    order: Tensor
    teacher: Teacher | None = None
    penalty: QuadraticPenalty | None = None


def _module() -> ModuleType:
    module, reason = _native.cuda_module()
    if module is None:
        raise ValueError(f"the CUDA module is not loaded ({reason})")
    return module


class _Buffers:
    """A training's device memory for batches of one size."""

    def __init__(self, trainer: CudaTrainer, batch: int, samples: int, capacity: int, gradients: bool) -> None:
        (neurons, inputs), classes = trainer.weight.shape, trainer.output_weight.shape[0]
        device = trainer.weight.device
        words = -(-neurons // 32)
        self.batch, self.samples, self.capacity = batch, samples, capacity

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        blocks = _module().sdmlp_blocks(neurons=neurons, device=_cuda_calls.stream_of(device)[0])
        # The kernels' 32-bit flags are int32 here: torch has little for unsigned numbers, and does nothing to these.
        self.fields = {
            "order": zeros(max(capacity, 1), dtype=torch.int64),
            "numbers": zeros(6, dtype=torch.int64),
            "totals": zeros(8, dtype=torch.float64),
            "flags": torch.tensor([1, 0, 0, -1], dtype=torch.int32, device=device),
            "likely": torch.full((samples, trainer.settings.k + 1), -1, dtype=torch.int32, device=device),
            "floors": zeros(batch),
            "ready": zeros(batch, dtype=torch.int32),
            "candidates": zeros(batch, words, dtype=torch.int32),
            "active_words": zeros(batch, words, dtype=torch.int32),
            "before": zeros(batch, words, dtype=torch.int32),
            "list_index": zeros(batch, neurons, dtype=torch.int32),
            "list_h": zeros(batch, neurons),
            "list_dh": zeros(batch, neurons),
            "list_count": zeros(batch, dtype=torch.int32),
            "logits": zeros(batch, classes),
            "logits_grad": zeros(batch, classes),
            "losses": zeros(3, batch, dtype=torch.float64),
            "active": zeros(neurons, dtype=torch.int32),
            "partial": zeros(3, blocks, dtype=torch.float64),
        }
        if gradients:  # only a step that trains has them: at R = 1 000 000 they are a gigabyte
            self.fields |= {"weight_grad": zeros(neurons, inputs), "output_grad": zeros(neurons, classes)}

    def begin(self, order: Tensor, speed: float) -> None:
        fields = self.fields
        fields["order"][: len(order)] = order
        fields["numbers"].copy_(torch.tensor([0, len(order), 0, 0, 0, -1]))
        fields["totals"].copy_(torch.tensor([0.0] * SPEED + [speed], dtype=torch.float64))


class CudaTrainer:
    """Trains and evaluates as ReferenceTrainer does; the weights stay on the device, V transposed beside them."""

    def __init__(self, weight: Tensor, output_weight: Tensor, counts: Tensor, settings: Settings) -> None:
        self.weight, self.output_weight, self.counts, self.settings = weight, output_weight, counts, settings
        self.v = output_weight.t().contiguous()
        self.gaba = gaba_coefficients(counts, settings.gaba_switch).float()
        self.velocities: tuple[Tensor, Tensor] | None = None
        if settings.momentum:
            self.velocities = torch.zeros_like(weight), torch.zeros_like(self.v)
        self.graphs = weight.is_cuda  # whether steps are captured and replayed
        self._buffers: _Buffers | None = None
        self._x: Tensor | None = None
        self._softened: tuple[Teacher, tuple[int, ...], dict[str, Tensor]] | None = None
        self._launches: _Launches | None = None

    def velocity(self) -> tuple[Tensor, Tensor] | None:
        """The momentum buffers themselves, as (R, D) and (C, R)."""
        return None if self.velocities is None else (self.velocities[0], self.velocities[1].t())

    def refresh(self) -> dict[str, Tensor]:
        """The model's tensors by their names in the record, after copying what the caller may have changed."""
        self.v.copy_(self.output_weight.t())
        self.gaba.copy_(gaba_coefficients(self.counts, self.settings.gaba_switch))
        model = {"weight": self.weight, "output": self.v, "counts": self.counts, "gaba": self.gaba}
        if self.velocities is not None:
            weight, output = self.velocities
            moving = (weight != 0).any(1) | (output != 0).any(1)
            model |= {"weight_velocity": weight, "output_velocity": output, "in_motion": moving.to(torch.uint8)}
        return model

    def speed(self) -> float:
        """A bound of the norm of both velocities together."""
        if self.velocities is None:
            return 0.0
        return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in self.velocities) ** 0.5

    def buffers(self, batch: int, x: Tensor, capacity: int) -> _Buffers:
        """Memory for such calls, kept until another size is asked for."""
        kept = self._buffers
        if kept is not None and (kept.batch, kept.samples) == (batch, len(x)) and kept.capacity >= capacity:
            if x is not self._x:  # hints for other samples cost time, no more
                kept.fields["likely"].fill_(-1)
                self._x = x
            return kept
        self._buffers = None  # freed before the next ones are taken
        self._buffers = _Buffers(self, batch, len(x), capacity, gradients=True)
        self._x = x
        return self._buffers

    def attached(self, epoch: Epoch) -> dict[str, Tensor | float | int]:
        """The teacher's and the penalty's tensors by their names in the record."""
        fields: dict[str, Tensor | float | int] = {}
        teacher, penalty = epoch.teacher, epoch.penalty
        if teacher is not None:
            parts = (teacher.logits, teacher.units, teacher.values, teacher.indices, teacher.offsets)
            versions = tuple(tensor._version for tensor in parts)
            if self._softened is None or self._softened[0] is not teacher or self._softened[1] != versions:
                s = self.settings
                # On the CPU: sums there have one order, and it is once a task.
                on_cpu = replace(teacher, logits=parts[0].cpu(), units=parts[1].cpu(), values=parts[2].cpu(),
                                 indices=parts[3].cpu(), offsets=parts[4].cpu())  # fmt: skip
                soft = softened(on_cpu, s.temperature, s.kl == "reverse", len(self.weight))
                moved = {name: tensor.to(self.weight.device) for name, tensor in soft.items()}
                self._softened = teacher, versions, moved
            fields |= self._softened[2] | {"units": len(teacher.units)}
        if penalty is not None:
            fields["weight_importance"] = penalty.weight_importance.contiguous()
            fields["weight_anchor"] = penalty.weight_anchor.contiguous()
            fields["output_importance"] = penalty.output_importance.t().contiguous()
            fields["output_anchor"] = penalty.output_anchor.t().contiguous()
            pulled = (penalty.weight_importance != 0).any(1) | (penalty.output_importance != 0).any(0)
            fields["pulled"] = (pulled & (penalty.coef != 0)).to(torch.uint8)
            fields["coef"] = float(penalty.coef)
        return fields

    def launches(self, seeds: int) -> _Launches:
        """Launches for this many trainings, kept until another number is asked for."""
        if self._launches is None or self._launches.seeds != seeds:
            self._launches = _Launches(self, seeds)
        return self._launches

    def infer(self, x: Tensor, units: Tensor | None = None) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Logits (N, C), frequencies (R,), and the activations of `units` as values, indices, offsets."""
        device, batch = x.device, max(min(len(x), _INFER_SAMPLES), 1)
        keep = torch.zeros(len(self.weight), dtype=torch.bool, device=device)
        if units is not None:
            keep[units] = True
        logits, frequencies = x.new_empty(len(x), self.output_weight.shape[0]), torch.zeros_like(self.counts)
        values, indices, lengths = [], [], []
        with _on(self.weight):
            buffers = _Buffers(self, batch, len(x), len(x), gradients=False)
            buffers.begin(torch.arange(len(x), device=device), 0.0)
            run = _Launches(self, 1)
            run.load([{**self.refresh(), "x": x, "frequencies": frequencies, **buffers.fields}])
            for start in range(0, len(x), batch):
                run.step(batch, train=False)
                n = min(batch, len(x) - start)
                logits[start : start + n] = buffers.fields["logits"][:n]
                if units is None:
                    continue
                held = torch.arange(keep.numel(), device=device) < buffers.fields["list_count"][:n, None]
                neurons = buffers.fields["list_index"][:n]
                held &= keep[neurons.long()]
                values.append(buffers.fields["list_h"][:n][held])
                indices.append(neurons[held])
                lengths.append(held.sum(1))
            failed = int(buffers.fields["numbers"][FAILURE])
        if failed:
            raise FloatingPointError("a score is not finite")
        offsets = torch.zeros(len(x) + 1, dtype=torch.int64, device=device)
        if lengths:
            torch.cumsum(torch.cat(lengths), 0, out=offsets[1:])
        empty = x.new_zeros(0), torch.zeros(0, dtype=torch.int32, device=device)
        sparse = (torch.cat(values), torch.cat(indices)) if values else empty
        return logits, frequencies, (*sparse, offsets)

    def train(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        batch_size: int,
        teacher: Teacher | None,
        penalty: QuadraticPenalty | None,
        should_stop: Callable[[], bool] | None,
    ) -> Result:
        return train_together([self], [Epoch(x, y, order, teacher, penalty)], batch_size, should_stop)[0]


class _Launches:
    """The records of some trainings on the device, and the launches that work on them."""

    def __init__(self, trainer: CudaTrainer, seeds: int) -> None:
        self.weight, self.settings, self.seeds = trainer.weight, trainer.settings, seeds
        self.classes = len(trainer.output_weight)
        self.bytes = len(_module().sdmlp_seed({}))
        self.records = torch.zeros(seeds * self.bytes, dtype=torch.uint8, device=trainer.weight.device)
        self.aligned = True
        self._kept: list[dict[str, Tensor | float | int]] = []
        self._graph: tuple[int, bool, torch.cuda.CUDAGraph] | None = None

    def load(self, fields: Sequence[dict[str, Tensor | float | int]]) -> None:
        """Writes the records; keeps alive every tensor whose address they hold."""
        self._kept = list(fields)
        plain = [{name: f.data_ptr() if isinstance(f, Tensor) else f for name, f in one.items()} for one in self._kept]
        raw = b"".join(_module().sdmlp_seed(one) for one in plain)
        self.records.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
        self.aligned = all(int(one[name]) % 16 == 0 for one in plain for name in ("x", "weight"))

    def step(self, batch: int, train: bool = True) -> None:
        s, (neurons, inputs) = self.settings, self.weight.shape
        _cuda_calls.call(
            "sdmlp_step", self.weight.device, train=train, neurons=neurons, inputs=inputs, classes=self.classes, k=s.k,
            batch=batch, gaba_switch=0.0 if s.gaba_switch is None else float(s.gaba_switch), lr=s.lr,
            momentum=s.momentum, max_grad_norm=s.max_grad_norm, alpha=s.alpha, lam=s.lam, temperature=s.temperature,
            reverse_kl=s.kl == "reverse", aligned=self.aligned, seeds=self.records, count=self.seeds,
        )  # fmt: skip

    def graph(self, batch: int) -> torch.cuda.CUDAGraph:
        """A graph of some steps. It holds the place of the records, not what they hold: other tensors need no other.

        No training may have samples left: the step that loads the kernels does nothing then. The stream is its own:
        torch's default one belongs to the device that captured first. Calls of other threads leave the capture alone.
        """
        if self._graph is None or self._graph[:2] != (batch, self.aligned):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.step(batch)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for _ in range(STEPS_PER_GRAPH):
                    self.step(batch)
            self._graph = batch, self.aligned, graph
        return self._graph[2]


@contextlib.contextmanager
def _on(weight: Tensor) -> Iterator[None]:
    with torch.cuda.device(weight.device) if weight.is_cuda else contextlib.nullcontext():
        yield


def train_together(
    trainers: Sequence[CudaTrainer],
    epochs: Sequence[Epoch],
    batch: int,
    should_stop: Callable[[], bool] | None = None,
) -> list[Result]:
    """An epoch of each training, all in the same launches; each is bit by bit what it is alone.

    Args:
        trainers: of one device, one shape and the same settings.
        epochs: one for each; their lengths may differ.
        batch: B.
        should_stop: asked between steps; True ends the call for all of them.

    Returns:
        The statistics of each, and the exception that ended it early.

    Raises:
        ValueError: trainings that do not fit together, or a batch that the kernels do not take.
    """
    first = trainers[0]
    alike = {(t.weight.shape, t.output_weight.shape, t.weight.device, t.settings) for t in trainers}
    if len(alike) > 1 or len(trainers) != len(epochs):
        raise ValueError("trainings side by side must have one device, shape and settings, and an epoch each")
    batch = max(min(batch, max(len(epoch.order) for epoch in epochs)), 1)
    if batch > (most := _module().MOST_SDMLP_BATCH):
        raise ValueError(f"batch_size={batch}: backend='cuda' takes 1 to {most}")
    stopped: BaseException | None = None
    with _on(first.weight):
        memory = [t.buffers(batch, e.x, len(e.order)) for t, e in zip(trainers, epochs)]
        records: list[dict[str, Tensor | float | int]] = []
        for trainer, epoch, buffers in zip(trainers, epochs, memory):
            records.append(
                {**trainer.refresh(), "x": epoch.x, "y": epoch.y, **trainer.attached(epoch), **buffers.fields}
            )
        run = first.launches(len(trainers))
        run.load(records)
        for buffers in memory:
            buffers.fields["numbers"].zero_()  # no samples left, also where the last call was ended early
        graph = run.graph(batch) if first.graphs else None
        for trainer, epoch, buffers in zip(trainers, epochs, memory):
            buffers.begin(epoch.order, trainer.speed())
        try:
            _steps(run, graph, batch, -(-max(len(epoch.order) for epoch in epochs) // batch), should_stop)
        except BaseException as raised:  # a signal's handler: the steps that were done count
            stopped = raised
        results = [_result(*one, batch, stopped) for one in zip(trainers, epochs, memory)]
        for trainer in trainers:
            trainer.output_weight.copy_(trainer.v.t())
            for tensor in (trainer.weight, trainer.counts):
                torch.autograd.graph.increment_version(tensor)
    return results


def _steps(
    run: _Launches,
    graph: torch.cuda.CUDAGraph | None,
    batch: int,
    steps: int,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Queues all steps; waits for the GPU only as often as should_stop is to be asked."""
    if graph is None:
        for _ in range(steps):
            if should_stop is not None and should_stop():
                return
            run.step(batch)
        return
    replays, queued = -(-steps // STEPS_PER_GRAPH), 1
    while replays > 0:
        start = time.perf_counter()
        for _ in range(min(queued, replays)):
            graph.replay()
        replays -= queued
        torch.cuda.current_stream().synchronize()
        if should_stop is not None and should_stop():
            return
        seconds = max(time.perf_counter() - start, 1e-6)
        queued = max(1, min(4 * queued, int(queued * POLL_SECONDS / seconds)))


def _result(trainer: CudaTrainer, epoch: Epoch, buffers: _Buffers, batch: int, stopped: BaseException | None) -> Result:
    """A training's statistics and why it ended, from what the kernels left."""
    numbers, totals = buffers.fields["numbers"].tolist(), buffers.fields["totals"].tolist()
    s, steps, seen = trainer.settings, numbers[STEPS], numbers[POSITION]
    ce, hidden, logits, active = (totals[i] / max(seen, 1) for i in (CE, KD_HIDDEN, KD_LOGITS, ACTIVE))
    distilled = s.alpha * ce + (1 - s.alpha) * (s.lam * hidden + (1 - s.lam) * logits)
    stats = EpochStats(
        loss=ce if epoch.teacher is None else distilled, ce=ce, kd_hidden=hidden, kd_logits=logits,
        active_per_row=active, steps=steps, scanned=seen, grad_norm=totals[NORM] / max(steps, 1),
        touched=totals[TOUCHED] / max(steps, 1),
    )  # fmt: skip
    if stopped is None and numbers[FAILURE]:
        sample = numbers[FAILED_SAMPLE]
        return stats, NonFiniteStep(FAILURES[numbers[FAILURE]], steps, sample if sample >= 0 else None)
    return stats, stopped
