"""The engine on a GPU: the step's launches, captured once into a CUDA graph and replayed for a whole epoch.

On CPU tensors, in Triton's interpreter, the same launches run one after another.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import _triton
from ..topk_linear import triton_kernel as topk_kernels
from . import triton_kernel as kernels
from .types import EpochStats, NonFiniteStep, QuadraticPenalty, Settings, Teacher

STEPS_PER_GRAPH = 16
POLL_SECONDS = 0.1  # should_stop and signals are looked at about this often
_INFER_SAMPLES = 512


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << max(count - 1, 0).bit_length()


class _Step:
    """The buffers and launches of one step for one batch size, one set of samples and one teacher."""

    def __init__(
        self,
        trainer: TritonTrainer,
        batch: int,
        x: Tensor,
        y: Tensor | None,
        capacity: int,
        teacher: Teacher | None,
        penalty: QuadraticPenalty | None,
    ) -> None:
        self.t, self.batch, self.x, self.y, self.teacher, self.penalty = trainer, batch, x, y, teacher, penalty
        neurons, inputs = trainer.weight.shape
        classes, device = trainer.output_weight.shape[0], x.device
        self.machine = _triton.machine_of(device)
        self.progress = torch.zeros(2, dtype=torch.int64, device=device)
        self.order = torch.zeros(max(capacity, 1), dtype=torch.int64, device=device)
        self.verdict, self.totals = (torch.zeros(n, dtype=torch.float64, device=device) for n in (2, 7))
        self.samples = torch.zeros(batch, dtype=torch.int64, device=device)
        self.rows, self.h = x.new_zeros(batch, inputs), x.new_zeros(batch, neurons)
        self.threshold = x.new_zeros(batch)
        self.block_r, self.block_d = 16, min(_power(max(inputs, 16)), 128)
        self.block_c = _power(max(classes, 16))
        self.parts_r = max(min(_blocks(neurons, 128), 2 * self.machine.multiprocessors), 1)
        self.shares = x.new_zeros(self.parts_r, batch, classes)
        self.logits, self.grad_logits = (x.new_zeros(batch, classes) for _ in range(2))
        self.losses = torch.zeros(3, batch, dtype=torch.float64, device=device)
        self.block_g = min(self.block_c, 32)  # classes that the gradients and the update take at a time
        self.blocks = _blocks(neurons, self.block_r)
        self.strips = _blocks(inputs, self.block_d) + _blocks(classes, self.block_g)
        self.partial = torch.zeros(7, self.blocks * self.strips, dtype=torch.float64, device=device)
        self.active = torch.zeros(neurons, dtype=torch.int32, device=device)
        if y is not None:  # only a step that trains has gradients: at R = 1 000 000 they are a gigabyte
            self.grad_w, self.grad_v = torch.zeros_like(trainer.weight), torch.zeros_like(trainer.v)
        # The output layer's importance and anchor as (R, C), copied before every epoch.
        self.pulls = () if penalty is None else (torch.zeros_like(trainer.v), torch.zeros_like(trainer.v))
        self.grad_hidden = self.place = None
        if teacher is not None:
            units = len(teacher.units)
            self.grad_hidden = x.new_zeros(batch, units)
            self.place = torch.full((neurons,), -1, dtype=torch.int64, device=device)
            self.place[teacher.units] = torch.arange(units, device=device)

    def forward(self) -> None:
        """h and the logits of `rows`."""
        t, (neurons, inputs), batch = self.t, self.t.weight.shape, self.batch
        classes, k1 = t.output_weight.shape[0], t.settings.k + 1
        precision = _triton.dot_precision(torch.float32)
        winners = topk_kernels.forward(self.rows, t.weight, None, k1, "relu", "none", False)[1]
        tiles = (_blocks(neurons, 128), _blocks(batch, 32))
        _triton.launch(
            kernels._scores_kernel, tiles, self.rows, t.weight, self.h, batch, inputs, neurons,
            BLOCK_B=32, BLOCK_R=128, BLOCK_D=32, PRECISION=precision,
        )  # fmt: skip
        _triton.launch(
            kernels._threshold_kernel, (batch,), self.h, winners, self.threshold, neurons, k1,
            BLOCK=_power(k1), num_warps=1,
        )  # fmt: skip
        switch = t.settings.gaba_switch
        _triton.launch(
            kernels._inhibit_kernel, tiles, self.h, t.counts, self.threshold, batch, neurons,
            *_triton.split_double(switch or 1.0), GABA=switch is not None, BLOCK_B=32, BLOCK_R=128,
        )  # fmt: skip
        share = _blocks(_blocks(neurons, self.parts_r), 64) * 64
        _triton.launch(
            kernels._logits_part_kernel, (_blocks(batch, 32), self.parts_r, _blocks(classes, 64)),
            self.h, t.v, self.shares, batch, neurons, classes, share,
            BLOCK_B=32, BLOCK_R=64, BLOCK_C=min(self.block_c, 64), PRECISION=precision,
        )  # fmt: skip
        _triton.launch(
            kernels._logits_kernel, (_blocks(batch * classes, 256),), self.shares, self.logits, batch * classes,
            self.parts_r, BLOCK=256,
        )  # fmt: skip

    def step(self) -> None:
        """One SGD step on the samples that `progress` points to."""
        t, s, (neurons, inputs), batch = self.t, self.t.settings, self.t.weight.shape, self.batch
        classes, teacher, penalty = t.output_weight.shape[0], self.teacher, self.penalty
        _triton.launch(
            kernels._gather_kernel, (batch,), self.x, self.order, self.progress, self.rows, self.samples, batch, inputs,
            BLOCK_D=self.block_d,
        )  # fmt: skip
        self.forward()
        units = 0 if teacher is None else len(teacher.units)
        parts = (None,) * 5
        if teacher is not None:
            parts = (teacher.logits, teacher.values, teacher.indices, teacher.offsets, teacher.units)
        splits = [n for value in (s.alpha, s.lam, s.temperature) for n in _triton.split_double(value)]
        _triton.launch(
            kernels._loss_kernel, (batch,), self.logits, self.h, self.y, self.samples, self.progress, *parts,
            self.grad_logits, self.grad_hidden, self.losses, batch, classes, neurons, units, *splits,
            TEACHER=teacher is not None, REVERSE=s.kl == "reverse", BLOCK_C=min(self.block_c, 512), BLOCK_S=512,
            BLOCK_T=128,
        )  # fmt: skip
        every_row = penalty is not None or s.momentum > 0
        pulls = (None,) * 4
        if penalty is not None:
            pulls = (penalty.weight_importance, penalty.weight_anchor, *self.pulls)
        _triton.launch(
            kernels._gradient_kernel, (self.blocks, self.strips), self.h, self.rows, t.v, t.weight, self.grad_logits,
            self.grad_hidden, self.place, self.grad_w, self.grad_v, self.active, self.partial, *pulls, batch, inputs,
            neurons, classes, units, self.partial.shape[1], 0.0 if penalty is None else float(penalty.coef),
            TEACHER=teacher is not None, PENALTY=penalty is not None, EVERY_ROW=every_row, BLOCK_B=32,
            BLOCK_R=self.block_r, BLOCK_D=self.block_d, BLOCK_C=self.block_g,
            PRECISION=_triton.dot_precision(torch.float32),
        )  # fmt: skip
        _triton.launch(
            kernels._finish_kernel, (1,), self.partial, self.losses, self.progress, self.verdict, self.totals, batch,
            self.partial.shape[1], self.blocks, self.strips, *_triton.split_double(s.max_grad_norm),
            TEACHER=teacher is not None, BLOCK=1024,
        )  # fmt: skip
        rows = 4
        _triton.launch(
            kernels._update_kernel, (_blocks(neurons, rows),), t.weight, t.v, t.counts, self.grad_w, self.grad_v,
            self.active, *(t.velocities or (None, None)), self.verdict, neurons, inputs, classes, s.lr, s.momentum,
            MOMENTUM=s.momentum > 0, EVERY_ROW=every_row, BLOCK_R=rows,
            BLOCK_D=min(_power(inputs), 512), BLOCK_C=self.block_g,
        )  # fmt: skip


class TritonTrainer:
    """Trains and evaluates as ReferenceTrainer does; the weights stay on the device, V transposed beside them."""

    def __init__(self, weight: Tensor, output_weight: Tensor, counts: Tensor, settings: Settings) -> None:
        if settings.k + 1 > topk_kernels.MOST_WINNERS:
            raise ValueError(f"k={settings.k}: backend='triton' takes 1 to {topk_kernels.MOST_WINNERS - 1}")
        self.weight, self.output_weight, self.counts, self.settings = weight, output_weight, counts, settings
        self.v = output_weight.t().contiguous()
        self.velocities: tuple[Tensor, Tensor] | None = None
        if settings.momentum:
            self.velocities = torch.zeros_like(weight), torch.zeros_like(self.v)
        self._key: tuple = ()
        self._step: _Step | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self.graphs = weight.is_cuda  # whether steps are captured and replayed

    def velocity(self) -> tuple[Tensor, Tensor] | None:
        """The momentum buffers themselves, as (R, D) and (C, R)."""
        return None if self.velocities is None else (self.velocities[0], self.velocities[1].t())

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """The caller's V goes in, and comes back when the work is done."""
        with torch.cuda.device(self.weight.device) if self.weight.is_cuda else contextlib.nullcontext():
            self.v.copy_(self.output_weight.t())
            yield

    def infer(self, x: Tensor, units: Tensor | None = None) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Logits (N, C), frequencies (R,), and the activations of `units` as values, indices, offsets."""
        neurons, device = self.weight.shape[0], x.device
        keep = torch.zeros(neurons, dtype=torch.bool, device=device)
        if units is not None:
            keep[units] = True
        logits, frequencies = x.new_zeros(len(x), self.output_weight.shape[0]), torch.zeros_like(self.counts)
        finite = torch.ones((), dtype=torch.bool, device=device)
        values, indices, lengths = [], [], []
        with self._on_device():
            step = _Step(self, min(len(x), _INFER_SAMPLES) or 1, x, None, 0, None, None)
            for start in range(0, len(x), step.batch):
                chunk = x[start : start + step.batch]
                step.rows.zero_()
                step.rows[: len(chunk)] = chunk
                step.forward()
                h = step.h[: len(chunk)]
                finite &= torch.isfinite(h).all()
                logits[start : start + len(chunk)] = step.logits[: len(chunk)]
                active = h > 0
                frequencies += active.sum(0)
                if units is not None:
                    sample, neuron = (active & keep).nonzero(as_tuple=True)
                    values.append(h[sample, neuron])
                    indices.append(neuron.to(torch.int32))
                    lengths.append(torch.bincount(sample, minlength=len(chunk)))
        if not finite:
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
    ) -> tuple[EpochStats, BaseException | None]:
        batch = max(min(batch_size, len(order)), 1)
        error: BaseException | None = None
        with self._on_device():
            step = self._prepared(x, y, order, batch, teacher, penalty)
            try:
                self._run(step, -(-len(order) // batch), should_stop)
            except BaseException as raised:  # a signal's handler: the steps that were done count
                error = raised
            done, totals = int(step.progress[0]), step.totals.tolist()
            self.output_weight.copy_(self.v.t())
        torch.autograd.graph.increment_version(self.weight)
        torch.autograd.graph.increment_version(self.counts)
        stats = self._stats(totals, done, min(done * batch, len(order)), teacher is not None)
        if totals[int(kernels.BAD)] and done * batch < len(order) and error is None:
            error = NonFiniteStep(kernels.FAILURES[int(totals[int(kernels.BAD)])], done)
        return stats, error

    def _prepared(self, x, y, order, batch, teacher, penalty) -> _Step:
        """The step for these arguments, with its graph where there is a GPU; kept until something else is asked for."""
        tensors = (x, y, self.weight, self.counts)
        # The step holds the teacher and the penalty: nothing else can have their id.
        key = (*(tensor.data_ptr() for tensor in tensors), len(x), batch, id(teacher), id(penalty))
        if self._step is None or key != self._key or len(self._step.order) < len(order):
            self._graph = self._step = None  # the graph before the buffers that it replays into
            step = _Step(self, batch, x, y, len(order), teacher, penalty)
            self._graph = self._captured(step) if self.graphs else None
            self._step, self._key = step, key
        step = self._step
        if penalty is not None:
            for pull, source in zip(step.pulls, (penalty.output_importance, penalty.output_anchor)):
                pull.copy_(source.t())
        step.order[: len(order)] = order
        step.totals.zero_()
        step.progress.copy_(torch.tensor([0, len(order)]))
        return step

    def _captured(self, step: _Step) -> torch.cuda.CUDAGraph:
        """A graph of some steps. The count of samples is still 0: the step that compiles the kernels does nothing.

        The stream is its own: torch's default one belongs to the device that captured first. Calls of other threads,
        an allocation of pinned memory for instance, leave the capture alone.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(STEPS_PER_GRAPH):
                step.step()
        return graph

    def _run(self, step: _Step, steps: int, should_stop: Callable[[], bool] | None) -> None:
        """Queues all steps; waits for the GPU only as often as should_stop is to be asked."""
        if self._graph is None:
            for _ in range(steps):
                if should_stop is not None and should_stop():
                    return
                step.step()
            return
        replays, queued = -(-steps // STEPS_PER_GRAPH), 1
        while replays > 0:
            start = time.perf_counter()
            for _ in range(min(queued, replays)):
                self._graph.replay()
            replays -= queued
            torch.cuda.current_stream().synchronize()
            if should_stop is not None and should_stop():
                return
            seconds = max(time.perf_counter() - start, 1e-6)
            queued = max(1, min(4 * queued, int(queued * POLL_SECONDS / seconds)))

    def _stats(self, totals: list[float], steps: int, seen: int, teacher: bool) -> EpochStats:
        s, samples = self.settings, max(seen, 1)
        ce, hidden, logits, active = (totals[int(i)] / samples for i in (
            kernels.CE, kernels.KD_HIDDEN, kernels.KD_LOGITS, kernels.ACTIVE))  # fmt: skip
        loss = s.alpha * ce + (1 - s.alpha) * (s.lam * hidden + (1 - s.lam) * logits) if teacher else ce
        return EpochStats(
            loss=loss, ce=ce, kd_hidden=hidden, kd_logits=logits, active_per_row=active, steps=steps, scanned=seen,
            grad_norm=totals[int(kernels.NORM)] / max(steps, 1), touched=totals[int(kernels.TOUCHED)] / max(steps, 1),
        )  # fmt: skip
