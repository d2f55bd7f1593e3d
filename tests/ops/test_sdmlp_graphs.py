"""The engine's capture and replay without a GPU: a graph that lists the launches, and runs them when it is replayed.

While a graph is captured nothing runs, and torch may be asked for memory and views alone: whatever else the step did on
the host would happen once instead of in every replay, or wait for the GPU, which ends a real capture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssd_kernels import QuadraticPenalty, SDMLPEngine, normalize_inputs

pytest.importorskip("triton")
from ssd_kernels import _triton
from ssd_kernels.sdmlp_trainer import triton_trainer

pytestmark = pytest.mark.interpreter
ALLOWED = {"empty", "new_empty", "empty_like", "empty_strided", "detach", "view", "_unsafe_view", "as_strided", "slice",
           "select", "unsqueeze", "squeeze", "t", "transpose", "alias"}  # fmt: skip


class Graph:
    def __init__(self) -> None:
        self.launches: list[tuple] = []

    def replay(self) -> None:
        for arguments, options in self.launches:
            LAUNCH(*arguments, **options)


LAUNCH = _triton.launch


class Stream:
    def __init__(self, device: object = None) -> None:
        self.waited: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)

    def synchronize(self) -> None:
        pass


class OnlyMemory(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name in ALLOWED, f"{name} in a capture"
        return function(*arguments, **(kwargs or {}))


@contextlib.contextmanager
def fake_cuda() -> Iterator[list[Graph]]:
    """Inside, torch.cuda captures on the CPU. Yields the graphs that were captured."""
    graphs, streams = [], [Stream()]

    @contextlib.contextmanager
    def use(stream):
        streams.append(stream)
        yield
        streams.pop()

    @contextlib.contextmanager
    def capture(graph, stream=None, **options):
        assert streams[0] in stream.waited and stream in streams[0].waited, "warm-up and capture must be ordered"
        graphs.append(graph)
        record = mock.patch.object(_triton, "launch", lambda *a, **k: graph.launches.append((a, k)))
        with use(stream), record, OnlyMemory():
            yield

    with mock.patch.multiple(torch.cuda, Stream=Stream, CUDAGraph=Graph, stream=use, graph=capture,
                             current_stream=lambda: streams[-1]):  # fmt: skip
        yield graphs


def problem() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    x = normalize_inputs(torch.rand(5, 9, generator=generator)).contiguous()
    weight = torch.nn.functional.normalize(torch.rand(30, 9, generator=generator), dim=1)
    output = torch.rand(3, 30, generator=generator) / 30**0.5
    return x, torch.arange(5) % 3, (weight, output, torch.zeros(30, dtype=torch.int64))


def train(backend: str, graphs: bool) -> tuple[SDMLPEngine, list, list]:
    """Two epochs with a teacher and two with a penalty that changes in place between them."""
    x, y, parts = problem()
    engine = SDMLPEngine(*parts, k=3, gaba_switch=30.0, backend=backend)
    teacher = engine.make_teacher(x, torch.arange(0, 30, 3))
    w, v = engine.weight, engine.output_weight
    penalty = QuadraticPenalty(torch.ones_like(w), w.clone(), torch.ones_like(v), v.clone(), 0.2)
    stats = []
    with fake_cuda() as captured:
        if backend == "triton":
            engine._trainer.graphs = graphs
        for order in (torch.arange(5), torch.arange(5).flip(0)):
            stats.append(engine.train_epoch(x, y, order.contiguous(), 2, teacher=teacher))
        for factor in (1.0, 5.0):
            penalty.output_importance.mul_(factor)
            stats.append(engine.train_epoch(x, y, torch.arange(2), 2, penalty=penalty))
    return engine, stats, captured


@pytest.fixture(scope="module")
def launched() -> tuple[SDMLPEngine, list, list]:
    return train("triton", False)


def test_replays_are_the_launches_bitwise(launched, monkeypatch) -> None:
    monkeypatch.setattr(triton_trainer, "STEPS_PER_GRAPH", 2)  # the last replay of an epoch goes beyond its end
    (first, stats, graphs), (plain, plain_stats, none) = train("triton", True), launched
    assert len(graphs) == 2 and none == []  # one capture for the teacher's epochs, one for the penalty's
    for part in ("weight", "output_weight", "counts"):
        assert torch.equal(getattr(first, part), getattr(plain, part))
    assert [s.steps for s in stats] == [3, 3, 1, 1]
    for ours, theirs in zip(stats, plain_stats):
        assert {**vars(ours), "seconds": None} == {**vars(theirs), "seconds": None}


def test_a_penalty_that_changed_in_place_counts_in_the_next_epoch(launched) -> None:
    (engine, _, _), (gold, _, _) = launched, train("reference", False)
    for part in ("weight", "output_weight"):
        torch.testing.assert_close(getattr(engine, part), getattr(gold, part), atol=1e-6, rtol=1e-5)


def test_a_host_operation_in_a_capture_is_found(monkeypatch) -> None:
    """The test of the test: a step that asks for a number, or writes a tensor, is refused."""
    step = triton_trainer._Step.step
    for wrong, name in ((lambda s: s.progress[0].item(), "_local_scalar_dense"), (lambda s: s.h.zero_(), "zero_")):
        monkeypatch.setattr(triton_trainer._Step, "step", lambda self, wrong=wrong: (step(self), wrong(self)))
        with pytest.raises(AssertionError, match=f"{name} in a capture"):
            train("triton", True)
