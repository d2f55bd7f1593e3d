"""SDMLPEngine(backend="cuda") over the emulator: its Python side and its launchers. Compiles the kernels: --runslow.

That steps are the CPU engine's, bit by bit, is tested in tests/cpp/cuda/test_sdmlp_engine.cpp.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch

from ssd_kernels import NonFiniteStep, QuadraticPenalty, SDMLPEngine, _cuda_calls, normalize_inputs, top_n
from ssd_kernels.sdmlp_trainer import cuda as cuda_engine

FIELDS = ("loss", "ce", "kd_logits", "kd_hidden", "grad_norm", "active_per_row", "touched", "steps", "scanned")
VARIANTS = {
    "switch": {"gaba_switch": 40.0},  # inside the first task: all active, then some, then K
    "no-gaba": {"gaba_switch": None},
    "reverse-kl-clipped": {"gaba_switch": 40.0, "kl": "reverse", "lam": 0.7, "temperature": 2.0, "max_grad_norm": 0.05},
    "penalty-momentum": {"gaba_switch": 40.0, "momentum": 0.9, "lr": 0.01},
}


def samples(seed: int, count: int = 21) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(3, 20, generator=generator)
    y = torch.randint(3, (count,), generator=generator)
    return normalize_inputs(centres[y] + 0.3 * torch.randn(count, 20, generator=generator)).contiguous(), y


def model(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.functional.normalize(torch.rand(70, 20, generator=generator), dim=1)
    return weight, torch.rand(3, 70, generator=generator) / 8, torch.zeros(70, dtype=torch.int64)


def train(backend: str, dtype: torch.dtype, **options):
    """Two tasks with a teacher in the second, and a penalty where there is momentum."""
    weight, output, counts = model()
    engine = SDMLPEngine(weight.to(dtype), output.to(dtype), counts, k=4, backend=backend, **options)
    log, teacher, penalty, order = [], None, None, torch.Generator().manual_seed(0)
    for seed in (1, 2):
        x, y = samples(seed)
        x = x.to(dtype)
        if seed == 2:
            teacher = engine.make_teacher(x, top_n(engine.frequencies(samples(1)[0].to(dtype)), 30))
            if "momentum" in options:
                w, v = engine.weight, engine.output_weight
                penalty = QuadraticPenalty(torch.ones_like(w), w.clone(), torch.full_like(v, 0.5), v.clone(), 0.3)
        for _ in range(2):
            log.append(engine.train_epoch(x, y, torch.randperm(21, generator=order), 8, teacher, penalty))
    return engine, log


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_that_of_the_reference(on_emulator, name):
    gold, gold_log = train("reference", torch.float64, **VARIANTS[name])
    low, low_log = train("reference", torch.float32, **VARIANTS[name])
    engine, log = train("cuda", torch.float32, **VARIANTS[name])
    for part in ("weight", "output_weight"):
        exact = getattr(gold, part)
        error = (getattr(engine, part).double() - exact).norm()
        assert error <= 2 * (getattr(low, part).double() - exact).norm() + 1e-6 * exact.norm(), part
    assert (engine.counts - gold.counts).abs().sum() <= 2 * (low.counts - gold.counts).abs().sum() + 2
    for ours, theirs, single in zip(log, gold_log, low_log, strict=True):
        for field in FIELDS:
            exact = getattr(theirs, field)
            slack = 2 * abs(getattr(single, field) - exact) + 1e-4 * abs(exact) + 1e-9
            assert abs(getattr(ours, field) - exact) <= slack, field
    if name == "switch":
        assert log[0].active_per_row > log[-1].active_per_row


@pytest.mark.slow
@pytest.mark.parametrize("name", ("switch", "penalty-momentum"))
def test_training_is_that_of_the_cpu_engine(on_emulator, name, monkeypatch):
    monkeypatch.setenv("SSD_SIMD", "generic")  # every machine has it; another order of sums
    engine, log = train("cuda", torch.float32, **VARIANTS[name])
    other, other_log = train("cpu", torch.float32, **VARIANTS[name])
    torch.testing.assert_close(engine.weight, other.weight, atol=2e-6, rtol=0)
    torch.testing.assert_close(engine.output_weight, other.output_weight, atol=2e-6, rtol=0)
    assert torch.equal(engine.counts, other.counts)
    assert [stats.steps for stats in log] == [stats.steps for stats in other_log]


@pytest.mark.slow
def test_trainings_side_by_side_are_each_alone(on_emulator):
    def trainers():
        engines = [SDMLPEngine(*model(seed), k=4, gaba_switch=40.0, backend="cuda") for seed in (3, 4, 5)]
        epochs = [cuda_engine.Epoch(*samples(seed), torch.arange(n)) for seed, n in ((1, 21), (1, 9), (2, 0))]
        return engines, epochs

    alone, epochs = trainers()
    stats = [e._trainer.train(epoch.x, epoch.y, epoch.order, 8, None, None, None)[0] for e, epoch in zip(alone, epochs)]
    together, epochs = trainers()
    results = cuda_engine.train_together([e._trainer for e in together], epochs, 8)
    assert [r[0].steps for r in results] == [3, 2, 0]
    for one, both, own, (shared, error) in zip(alone, together, stats, results):
        assert error is None and own == shared
        for part in ("weight", "output_weight", "counts"):
            assert torch.equal(getattr(one, part), getattr(both, part))
    with pytest.raises(ValueError, match="one device, shape and settings"):
        other = SDMLPEngine(*model(), k=5, gaba_switch=None, backend="cuda")
        cuda_engine.train_together([alone[0]._trainer, other._trainer], epochs[:2], 8)


@pytest.mark.slow
def test_a_stop_and_a_bad_score_end_at_a_step_boundary(on_emulator):
    x, y = samples(1)
    engine = SDMLPEngine(*model(), k=4, gaba_switch=None, backend="cuda")
    asked: list[int] = []
    order = torch.arange(21).repeat(4)
    stats = engine.train_epoch(x, y, order, 8, should_stop=lambda: asked.append(1) or len(asked) > 2)
    assert stats.steps == 2
    engine.weight[3, 2] = float("nan")
    before = engine.output_weight.clone()
    with pytest.raises(NonFiniteStep, match="the score of sample 0 is not finite in step 0"):
        engine.train_epoch(x, y, torch.arange(21), 8)
    assert engine.last_stats is not None and engine.last_stats.steps == 0
    assert torch.equal(engine.output_weight, before)
    with pytest.raises(FloatingPointError):
        engine.logits(x)


@pytest.mark.slow
def test_a_state_goes_on_where_it_was(on_emulator):
    x, y = samples(1)
    options = {"k": 4, "gaba_switch": 40.0, "momentum": 0.9, "backend": "cuda"}
    first, second = SDMLPEngine(*model(), **options), SDMLPEngine(*model(4), **options)
    first.train_epoch(x, y, torch.arange(21), 8)
    second.load_state_dict(first.state_dict())
    for engine in (first, second):
        engine.train_epoch(x, y, torch.arange(21), 8)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.slow
def test_tensors_that_begin_anywhere(on_emulator):
    def shifted(tensor):
        return torch.empty(tensor.numel() + 1)[1:].view_as(tensor).copy_(tensor)

    x, y = samples(1)
    results = []
    for place in (lambda tensor: tensor, shifted):
        weight, output, counts = model()
        engine = SDMLPEngine(place(weight), output, counts, k=4, gaba_switch=40.0, backend="cuda")
        engine.train_epoch(place(x), y, torch.arange(21), 8)
        results.append(engine)
    assert torch.equal(results[0].weight, results[1].weight)


@pytest.mark.slow
def test_a_batch_beyond_the_most_is_refused(on_emulator):
    x, y = samples(1)
    engine = SDMLPEngine(*model(), k=4, gaba_switch=None, backend="cuda")
    with pytest.raises(ValueError, match="batch_size=5000: backend='cuda' takes 1 to 4096"):
        engine.train_epoch(x, y, torch.zeros(5000, dtype=torch.int64), 5000)


CALL = _cuda_calls.call


class Graph:
    """Lists the launches of a capture, and runs them when it is replayed."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def replay(self) -> None:
        for arguments, options in self.calls:
            CALL(*arguments, **options)


@contextlib.contextmanager
def captures():
    """Inside, torch.cuda captures on the CPU. Yields the graphs."""
    graphs = []

    @contextlib.contextmanager
    def capture(graph, **options):
        graphs.append(graph)
        with mock.patch.object(_cuda_calls, "call", lambda *a, **k: graph.calls.append((a, k))):
            yield

    replaced = {"Stream": mock.MagicMock, "CUDAGraph": Graph, "graph": capture, "current_stream": mock.MagicMock(),
                "stream": lambda stream: contextlib.nullcontext()}  # fmt: skip
    with mock.patch.multiple(torch.cuda, **replaced):
        yield graphs


@pytest.mark.slow
def test_replays_are_the_launches(on_emulator, monkeypatch):
    """One graph for epochs with other samples, a teacher or a penalty; none of it left over from a call ended early."""
    monkeypatch.setattr(cuda_engine, "STEPS_PER_GRAPH", 2)  # the last replay of an epoch goes beyond its end
    results = []
    for graphs in (False, True):
        engine = SDMLPEngine(*model(), k=4, gaba_switch=40.0, backend="cuda")
        (x, y), (other, labels) = samples(1, 9), samples(2, 9)
        teacher = engine.make_teacher(other, torch.arange(0, 70, 3))
        w, v = engine.weight, engine.output_weight
        penalty = QuadraticPenalty(torch.ones_like(w), w.clone(), torch.ones_like(v), v.clone(), 0.2)
        first, order = engine.state_dict(), torch.arange(9)
        engine._trainer.graphs = graphs
        with captures() as captured:
            engine.train_epoch(x, y, order, 3, should_stop=lambda: True)  # before a step, or after a replay
            engine.load_state_dict(first)
            engine._trainer._launches = None
            stats = [engine.train_epoch(x, y, order, 3), engine.train_epoch(other, labels, order, 3, teacher)]
            stats.append(engine.train_epoch(other, labels, order, 3, penalty=penalty))
        assert len(captured) == (2 if graphs else 0)
        results.append((engine.state_dict(), stats))
    assert results[0][1] == results[1][1]
    for name, tensor in results[0][0].items():
        assert torch.equal(tensor, results[1][0][name]), name
