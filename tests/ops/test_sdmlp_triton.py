"""SDMLPEngine(backend="triton") against the dense specification: on a GPU by graph replay, without one interpreted."""

from __future__ import annotations

import pytest
import torch

from ssd_kernels import QuadraticPenalty, SDMLPEngine, _backend, normalize_inputs, top_n

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreter
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
FIELDS = ("loss", "ce", "kd_logits", "grad_norm", "active_per_row", "touched", "steps", "scanned")
VARIANTS = {
    "switch": {"gaba_switch": 40.0},  # inside the first task: all active, then some, then K
    "no-gaba": {"gaba_switch": None},
    "reverse-kl-clipped": {"gaba_switch": 40.0, "kl": "reverse", "lam": 0.7, "temperature": 2.0, "max_grad_norm": 0.05},
    "penalty-momentum": {"gaba_switch": 40.0, "momentum": 0.9, "lr": 0.01},
}


def clusters(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(3, 20, generator=generator)
    y = torch.randint(3, (samples,), generator=generator)
    x = centres[y] + 0.3 * torch.randn(samples, 20, generator=generator)
    return normalize_inputs(x).contiguous(), y


def model(neurons: int = 70) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.nn.functional.normalize(torch.rand(neurons, 20, generator=generator), dim=1)
    output = torch.rand(3, neurons, generator=generator) / neurons**0.5
    return weight, output, torch.zeros(neurons, dtype=torch.int64)


def train(backend: str, device: str, dtype: torch.dtype, epochs: int = 2, **options):
    """Two tasks with a teacher in the second; the engine and its statistics."""
    weight, output, counts = model()
    parts = (t.to(device, dtype) for t in (weight, output))
    engine = SDMLPEngine(*parts, counts.to(device), k=4, backend=backend, **options)
    tasks = [tuple(t.to(device) for t in clusters(21, seed)) for seed in (1, 2)]
    log, teacher, penalty = [], None, None
    order = torch.Generator().manual_seed(0)
    for index, (x, y) in enumerate(tasks):
        x = x.to(dtype)
        for _ in range(epochs):
            shuffled = torch.randperm(len(x), generator=order).to(device)
            log.append(engine.train_epoch(x, y, shuffled, 8, teacher=teacher, penalty=penalty))
        if index == 0:
            units = top_n(engine.frequencies(x), 30)
            teacher = engine.make_teacher(tasks[1][0].to(dtype), units)
            if "momentum" in options:
                w, v = engine.weight, engine.output_weight
                penalty = QuadraticPenalty(torch.ones_like(w), w.clone(), torch.full_like(v, 0.5), v.clone(), 0.3)
    return engine, log


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("switch", "penalty-momentum") else pytest.mark.slow) for n in VARIANTS]
)
def test_training_is_that_of_the_reference(name, device):
    gold, gold_log = train("reference", "cpu", torch.float64, **VARIANTS[name])
    low, low_log = train("reference", "cpu", torch.float32, **VARIANTS[name])
    engine, log = train("triton", device, torch.float32, **VARIANTS[name])
    for part in ("weight", "output_weight"):
        exact = getattr(gold, part)
        error = (getattr(engine, part).double().cpu() - exact).norm()
        assert error <= 2 * (getattr(low, part).double() - exact).norm() + 1e-5 * exact.norm(), part
    assert (engine.counts.cpu() - gold.counts).abs().sum() <= 2 * (low.counts - gold.counts).abs().sum() + 2
    for ours, theirs, single in zip(log, gold_log, low_log, strict=True):
        for field in FIELDS:
            exact = getattr(theirs, field)
            slack = 2 * abs(getattr(single, field) - exact) + 1e-4 * abs(exact) + 1e-7
            assert abs(getattr(ours, field) - exact) <= slack, field
        assert abs(ours.kd_hidden - theirs.kd_hidden) <= 1e-3 * theirs.kd_hidden + 1e-9
    if name == "switch":
        assert gold_log[0].active_per_row > gold_log[-1].active_per_row
    if "momentum" in VARIANTS[name]:
        assert engine.state_dict()["output_velocity"].shape == engine.output_weight.shape


@pytest.mark.parametrize("device", DEVICES)
def test_one_step_with_a_teacher_is_that_of_the_reference(device):
    x, y = clusters(8, 5)
    engines = []
    for backend, where in (("reference", "cpu"), ("triton", device)):
        engine = SDMLPEngine(*(t.to(where) for t in model()), k=4, gaba_switch=None, backend=backend)
        teacher = engine.make_teacher(x.to(where), torch.arange(0, 70, 2, device=where))
        engine.weight.copy_(engine.weight.roll(1, 0))  # a student that is not its teacher
        engine.train_epoch(x.to(where), y.to(where), torch.arange(8, device=where), 8, teacher=teacher)
        engines.append(engine)
    for part in ("weight", "output_weight", "counts"):
        torch.testing.assert_close(getattr(engines[1], part).cpu(), getattr(engines[0], part), atol=1e-6, rtol=1e-5)
    ours, theirs = engines[1].last_stats, engines[0].last_stats
    assert theirs.kd_hidden > 0 and abs(ours.kd_hidden - theirs.kd_hidden) < 1e-5 * theirs.kd_hidden


@pytest.mark.parametrize("device", DEVICES)
def test_more_classes_than_a_program_takes_at_a_time(device):
    x, _ = clusters(8, 5)
    weight, _, counts = model(20)
    output = torch.rand(70, 20, generator=torch.Generator().manual_seed(4)) / 8
    engines = []
    for backend, where in (("reference", "cpu"), ("triton", device)):
        parts = (t.clone().to(where) for t in (weight, output, counts))
        engine = SDMLPEngine(*parts, k=4, gaba_switch=40.0, backend=backend)
        engine.train_epoch(x.to(where), torch.arange(8, device=where) * 9, torch.arange(8, device=where), 8)
        engines.append(engine)
    for part in ("weight", "output_weight", "counts"):
        torch.testing.assert_close(getattr(engines[1], part).cpu(), getattr(engines[0], part), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_stop_and_a_bad_score_end_at_a_step_boundary(device):
    x, y = (t.to(device) for t in clusters(21, 1))
    order = torch.arange(21, device=device)
    engine = SDMLPEngine(*(t.to(device) for t in model()), k=4, gaba_switch=None, backend="triton")
    asked = []
    stats = engine.train_epoch(x, y, order.repeat(40), 8, should_stop=lambda: asked.append(1) or len(asked) > 2)
    assert 0 < stats.steps <= 105 and (stats.steps == 2 or device == "cuda")
    engine.weight[3, 2] = float("nan")
    before = engine.output_weight.clone()
    with pytest.raises(FloatingPointError, match="not finite in step 0"):
        engine.train_epoch(x, y, order, 8)
    assert engine.last_stats.steps == 0 and torch.equal(engine.output_weight, before)


@pytest.mark.gpu
def test_repeats_are_bitwise_equal():
    first, _ = train("triton", "cuda", torch.float32, epochs=4, gaba_switch=40.0)
    for _ in range(20):
        engine, _ = train("triton", "cuda", torch.float32, epochs=4, gaba_switch=40.0)
        for part in ("weight", "output_weight", "counts"):
            assert torch.equal(getattr(engine, part), getattr(first, part))


def test_without_gpu_and_interpreter_it_fails_with_one_clear_sentence(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"^backend='triton' cannot run sdmlp_trainer: it takes CUDA tensors; [^.]*$"):
        SDMLPEngine(*model(), k=4, gaba_switch=None, backend="triton")
    assert "sdmlp_trainer" in _backend.TRITON_OPERATIONS
