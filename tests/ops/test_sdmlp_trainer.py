"""SDMLPEngine: against the dense fp64 specification, and bitwise against itself without certificates or threads."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ssd_kernels
from ssd_kernels import QuadraticPenalty, SDMLPEngine, normalize_inputs, testing

STAT_FIELDS = ("loss", "ce", "kd_hidden", "kd_logits", "grad_norm", "active_per_row", "touched", "steps")


def clusters(samples: int, dim: int, classes: int, seed: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised samples around one centre per class, as embeddings are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(classes, dim, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (samples,), generator=generator)
    x = centres[y] + 0.3 * torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    return normalize_inputs(x.to(dtype)).contiguous(), y


def model(neurons: int, dim: int, classes: int, seed: int = 0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(neurons, dim, generator=generator, dtype=torch.float64).clamp_(min=0)
    weight /= torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(1e-12)
    output = (torch.randn(classes, neurons, generator=generator, dtype=torch.float64) / neurons**0.5).clamp_(min=0)
    return weight.to(dtype).contiguous(), output.to(dtype).contiguous(), torch.zeros(neurons, dtype=torch.int64)


def train(
    tasks,
    *,
    neurons=200,
    k=5,
    epochs=6,
    batch_size=32,
    seed=0,
    dtype=torch.float32,
    penalty_coef=None,
    units=40,
    **kwargs,
):
    """Trains task after task as SSD does; the model and every statistic."""
    dim, classes = tasks[0][0].shape[1], 1 + max(int(y.max()) for _, y in tasks)
    weight, output, counts = model(neurons, dim, classes, dtype=dtype)
    engine = SDMLPEngine(weight, output, counts, k=k, **kwargs)
    order = torch.Generator().manual_seed(seed)
    teacher = penalty = None
    log = []
    for index, (x, y) in enumerate(tasks):
        x = x.to(dtype)
        for _ in range(epochs):
            stats = engine.train_epoch(
                x, y, torch.randperm(len(x), generator=order), batch_size, teacher=teacher, penalty=penalty
            )
            log.append(stats)
        if index + 1 < len(tasks):
            chosen = ssd_kernels.top_n(engine.frequencies(x), units)
            teacher = engine.make_teacher(tasks[index + 1][0].to(dtype), chosen)
            if penalty_coef is not None:
                importance = torch.rand(weight.shape, generator=torch.Generator().manual_seed(7)).to(dtype)
                importance[::3] = 0
                penalty = QuadraticPenalty(
                    importance,
                    weight.clone(),
                    torch.rand(output.shape, generator=torch.Generator().manual_seed(8)).to(dtype),
                    output.clone(),
                    penalty_coef,
                )
    return engine, log


def assert_same_bits(one, other) -> None:
    (a, log_a), (b, log_b) = one, other
    for name in ("weight", "output_weight", "counts"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for step, (left, right) in enumerate(zip(log_a, log_b, strict=True)):
        for name in STAT_FIELDS:
            assert getattr(left, name) == getattr(right, name), (step, name)


@pytest.fixture(autouse=True)
def one_torch_thread():
    """The dense specification's small matrices gain nothing from threads; the engine is told its own number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def dense(name: str, dtype: torch.dtype):
    """A variant trained by the dense specification."""
    return train(TASKS, dtype=dtype, backend="reference", **VARIANTS[name])


TASKS = [clusters(300, 24, 3, seed) for seed in (1, 2, 3)]
VARIANTS = {
    "switch": {"gaba_switch": 600.0},
    "no-gaba": {"gaba_switch": None},
    "k-1": {"gaba_switch": 600.0, "k": 1},
    "reverse-kl": {"gaba_switch": 600.0, "kl": "reverse", "alpha": 0.3, "lam": 0.7, "temperature": 2.0},
    "momentum": {"gaba_switch": 600.0, "momentum": 0.9, "lr": 0.03},
    "penalty": {"gaba_switch": 600.0, "penalty_coef": 0.5},
    "penalty-momentum": {"gaba_switch": 600.0, "penalty_coef": 0.5, "momentum": 0.9, "lr": 0.01},
    "clipped": {"gaba_switch": 600.0, "max_grad_norm": 0.02},
    "odd-sizes": {"gaba_switch": 600.0, "neurons": 131, "batch_size": 37},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_agrees_with_the_dense_specification(name: str) -> None:
    options = VARIANTS[name]
    gold, gold_log = dense(name, torch.float64)
    low, low_log = dense(name, torch.float32)
    engine, log = train(TASKS, backend="cpu", **options)
    for attribute in ("weight", "output_weight"):
        exact = getattr(gold, attribute)
        error = (getattr(engine, attribute).double() - exact).norm()
        allowed = 2 * (getattr(low, attribute).double() - exact).norm() + 1e-6 * exact.norm()
        assert error <= allowed, f"{attribute}: {error:.3e} > {allowed:.3e}"
    assert (engine.counts - gold.counts).abs().sum() <= 2 * (low.counts - gold.counts).abs().sum() + 4
    for ours, theirs, single in zip(log, gold_log, low_log, strict=True):
        for field in ("loss", "ce", "kd_logits", "grad_norm", "active_per_row", "touched"):
            exact = getattr(theirs, field)
            assert (
                abs(getattr(ours, field) - exact) <= 2 * abs(getattr(single, field) - exact) + 1e-4 * abs(exact) + 1e-7
            )
        assert abs(ours.kd_hidden - theirs.kd_hidden) <= 1e-3 * theirs.kd_hidden + 1e-9


@pytest.mark.parametrize("name", VARIANTS)
def test_certificates_and_threads_leave_every_bit(name: str) -> None:
    options = VARIANTS[name]
    gold = train(TASKS, scan="exhaustive", threads=1, **options)
    assert gold[1][-1].certified == 0
    for scan, threads in (("exhaustive", 2), ("auto", 1), ("auto", 2), ("auto", 3)):
        assert_same_bits(gold, train(TASKS, scan=scan, threads=threads, **options))


def test_certificates_are_used() -> None:
    _, log = train(TASKS, neurons=800, epochs=12, gaba_switch=600.0)
    late = log[-4:]
    assert sum(stats.certified for stats in late) > 0.8 * sum(stats.certified + stats.scanned for stats in late)


@pytest.mark.parametrize(
    ("dim", "neurons", "classes", "switch", "lr", "spread", "batch"),
    [
        (32, 1000, 4, 20_000.0, 0.05, 0.3, 32),  # long after the switch rows move to and fro
        (32, 1000, 4, 20_000.0, 0.2, 0.3, 32),  # fast neurons take the places of others among the movers
        (64, 2000, 8, 20_000.0, 0.5, 0.6, 16),
    ],
)
def test_certificates_hold_over_long_runs(dim, neurons, classes, switch, lr, spread, batch) -> None:
    """Wrong bounds show late: these runs fail when distances of past eras are halved or leaving movers forgotten."""
    samples, epochs, results = 400, 300, []
    for scan in ("auto", "exhaustive"):
        generator = torch.Generator().manual_seed(0 if dim == 32 else 2)
        centres = torch.rand(2 * classes, dim, generator=generator)
        y = torch.randint(classes, (samples,), generator=generator)
        x = centres[2 * y + torch.randint(2, (samples,), generator=generator)]
        x = normalize_inputs(x + spread * torch.randn(samples, dim, generator=generator))
        weight = torch.rand(neurons, dim, generator=generator)
        weight /= torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        output = torch.rand(classes, neurons, generator=generator) * 0.05
        counts = torch.zeros(neurons, dtype=torch.int64)
        engine = SDMLPEngine(weight, output, counts, k=5, gaba_switch=switch, lr=lr, scan=scan)
        certified = sum(
            engine.train_epoch(x, y, torch.randperm(samples, generator=generator), batch).certified
            for _ in range(epochs)
        )
        results.append((weight, output, counts, certified))
    for certificate, scan in zip(results[0][:3], results[1][:3], strict=True):
        assert torch.equal(certificate, scan)
    assert results[0][3] > 0.7 * samples * epochs  # certificates were at work


@pytest.mark.parametrize("level", testing.simd_levels())
def test_every_simd_level_agrees(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (gold, _), (low, _) = dense("switch", torch.float64), dense("switch", torch.float32)
    monkeypatch.setenv("SSD_SIMD", level)
    one = train(TASKS, scan="exhaustive", threads=1, gaba_switch=600.0)
    assert_same_bits(one, train(TASKS, scan="auto", threads=2, gaba_switch=600.0))
    error = (one[0].weight.double() - gold.weight).norm()
    assert error <= 2 * (low.weight.double() - gold.weight).norm() + 1e-6 * gold.weight.norm()


WIDE = [clusters(400, 45, 3, seed) for seed in (4, 5)]


@pytest.mark.parametrize("switch", [None, 800.0])
def test_bf16_preselection_leaves_every_bit(switch: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [level for level in testing.simd_levels() if level.startswith("avx512")]
    if "avx512bf16" not in levels:
        pytest.skip("this processor has no AVX-512 BF16")
    results = []
    for level in levels:
        monkeypatch.setenv("SSD_SIMD", level)
        for scan in ("exhaustive", "auto"):
            results.append(train(WIDE, neurons=900, k=7, batch_size=70, gaba_switch=switch, scan=scan, threads=2))
    for other in results[1:]:
        assert_same_bits(results[0], other)


@settings(max_examples=25, deadline=None)
@given(
    neurons=st.integers(2, 90),
    dim=st.integers(1, 40),
    classes=st.integers(2, 20),
    samples=st.integers(1, 70),
    batch=st.integers(1, 80),
    k=st.integers(1, 12),
    switch=st.sampled_from([None, 20.0, 300.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape(neurons, dim, classes, samples, batch, k, switch, seed) -> None:
    k = min(k, neurons - 1)
    x, y = clusters(samples, dim, classes, seed, torch.float32)
    order = torch.randint(samples, (2 * samples + 1,), generator=torch.Generator().manual_seed(seed))
    results = []
    for scan, threads in (("exhaustive", 1), ("auto", 2)):
        weight, output, counts = model(neurons, dim, classes, seed)
        engine = SDMLPEngine(weight, output, counts, k=k, gaba_switch=switch, scan=scan, threads=threads)
        teacher = engine.make_teacher(x, torch.arange(0, neurons, 2))
        log = [engine.train_epoch(x, y, order, batch, teacher=teacher) for _ in range(4)]
        results.append((engine, log))
    assert_same_bits(*results)
    assert (results[0][0].weight >= 0).all() and torch.isfinite(results[0][0].output_weight).all()


def test_repeats_and_partial_orders_are_taken_as_given() -> None:
    x, y = clusters(50, 12, 3, 5, torch.float32)
    order = torch.tensor([3, 3, 3, 7, 7, 49, 0] * 9)
    results = []
    for scan in ("exhaustive", "auto"):
        engine = SDMLPEngine(*model(64, 12, 3), k=3, gaba_switch=None, scan=scan, threads=2)
        results.append((engine, [engine.train_epoch(x, y, order, 16) for _ in range(5)]))
    assert_same_bits(*results)
    assert results[0][1][0].steps == 4


def test_the_callers_tensors_are_current_and_outside_changes_are_seen() -> None:
    x, y = clusters(200, 16, 3, 1, torch.float32)
    order = torch.arange(200)
    engines = []
    for scan in ("exhaustive", "auto"):
        weight, output, counts = model(300, 16, 3)
        engine = SDMLPEngine(weight, output, counts, k=4, gaba_switch=None, scan=scan, threads=1)
        for _ in range(6):
            engine.train_epoch(x, y, order)
        # A fresh engine of the same tensors knows no more than they hold.
        other = SDMLPEngine(weight, output, counts, k=4, gaba_switch=None)
        assert torch.equal(engine.logits(x), other.logits(x))
        weight.copy_(weight.flip(0))
        counts.zero_()
        engine.train_epoch(x, y, order)
        engines.append((engine, []))
    assert_same_bits(*engines)


def test_samples_changed_in_place_are_seen() -> None:
    y = clusters(200, 16, 3, 1)[1]
    engines = []
    for scan in ("exhaustive", "auto"):
        x = clusters(200, 16, 3, 1, torch.float32)[0]
        engine = SDMLPEngine(*model(300, 16, 3), k=4, gaba_switch=None, scan=scan, threads=1)
        for _ in range(6):
            engine.train_epoch(x, y, torch.arange(200))
        x.copy_(x.flip(0))
        log = [engine.train_epoch(x, y, torch.arange(200))]
        engines.append((engine, log))
    assert_same_bits(*engines)


def test_a_small_cache_scans_the_rest() -> None:
    options = {"neurons": 800, "epochs": 8, "gaba_switch": 600.0, "threads": 1}
    gold = train(TASKS, scan="exhaustive", **options)
    assert_same_bits(gold, train(TASKS, cache_mb=0, **options))
    x = TASKS[0][0].float().repeat(40, 1)
    y = TASKS[0][1].repeat(40)
    results = []
    for scan in ("exhaustive", "auto"):
        engine = SDMLPEngine(*model(600, 24, 3), k=5, gaba_switch=None, scan=scan, threads=2, cache_mb=4)
        results.append((engine, [engine.train_epoch(x, y, torch.arange(len(x))) for _ in range(3)]))
    assert_same_bits(*results)
    assert results[1][1][-1].scanned > 0


def test_state_dict_continues_bitwise() -> None:
    x, y = clusters(200, 16, 3, 1, torch.float32)
    order = torch.arange(200)

    def engine() -> SDMLPEngine:
        return SDMLPEngine(*model(300, 16, 3), k=4, gaba_switch=2000.0, momentum=0.5, threads=1)

    one = engine()
    for _ in range(4):
        one.train_epoch(x, y, order)
    two = engine()
    two.load_state_dict(one.state_dict())
    logs = [[e.train_epoch(x, y, order) for _ in range(3)] for e in (one, two)]
    assert_same_bits((one, logs[0]), (two, logs[1]))
    with pytest.raises(ValueError, match="keys"):
        two.load_state_dict({"weight": two.weight})


def test_logits_and_frequencies_count_nothing() -> None:
    x, y = clusters(100, 16, 3, 1, torch.float32)
    engine = SDMLPEngine(*model(120, 16, 3), k=4, gaba_switch=500.0)
    reference = SDMLPEngine(*model(120, 16, 3), k=4, gaba_switch=500.0, backend="reference")
    engine.train_epoch(x, y, torch.arange(100))
    reference.train_epoch(x, y, torch.arange(100))
    before = engine.counts.clone()
    torch.testing.assert_close(engine.logits(x), reference.logits(x))
    assert torch.equal(engine.frequencies(x), reference.frequencies(x))
    assert torch.equal(engine.counts, before)
    ours, theirs = (e.make_teacher(x, torch.arange(0, 120, 3)) for e in (engine, reference))
    assert torch.equal(ours.offsets, theirs.offsets) and torch.equal(ours.indices, theirs.indices)
    torch.testing.assert_close(ours.values, theirs.values)


def test_an_interrupt_stops_at_a_step_boundary() -> None:
    x, y = clusters(4000, 64, 3, 1, torch.float32)
    order = torch.arange(4000).repeat(2000)
    engine = SDMLPEngine(*model(2000, 64, 3), k=4, gaba_switch=None)
    asked = []
    stats = engine.train_epoch(x, y, order, should_stop=lambda: asked.append(1) or len(asked) >= 3)
    assert 0 < stats.steps < len(order) / 128
    # What a signal's handler raises ends the call in the same way.
    asked.clear()

    def raise_at_the_third() -> bool:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        engine.train_epoch(x, y, order, should_stop=raise_at_the_third)
    steps = engine.last_stats.steps
    assert 0 < steps < len(order) / 128
    again = SDMLPEngine(*model(2000, 64, 3), k=4, gaba_switch=None)
    again.train_epoch(x, y, order[: 128 * stats.steps])
    again.train_epoch(x, y, order[: 128 * steps])
    assert torch.equal(engine.weight, again.weight)


def test_a_score_that_is_not_finite_is_an_error() -> None:
    x, y = clusters(64, 8, 3, 1, torch.float32)
    weight, output, counts = model(32, 8, 3)
    engine = SDMLPEngine(weight, output, counts, k=2, gaba_switch=None)
    weight[3, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.train_epoch(x, y, torch.arange(64))
    assert engine.last_stats.steps == 0


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("switch", [None, 1e9], ids=["winners", "all active"])
@pytest.mark.parametrize("lr", [1e-25, 1e25])
def test_rows_whose_squares_leave_float32_get_norm_one(lr: float, switch: float | None, backend: str) -> None:
    """Only a row that the clamp empties may end as zeros, whatever the size of the step."""
    x, y = clusters(64, 24, 3, 1, torch.float32)
    rows = []
    for dtype, name in ((torch.float64, "reference"), (torch.float32, backend)):
        weight, output, counts = model(40, 24, 3, dtype=dtype)
        engine = SDMLPEngine(weight, output, counts, k=4, gaba_switch=switch, lr=lr, backend=name)
        engine.train_epoch(x.to(dtype), y, torch.arange(64), batch_size=64)
        rows.append(weight.double())
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-4, atol=1e-5)
    assert (torch.linalg.vector_norm(rows[1], dim=1) > 0.999).sum() > 0


@pytest.mark.skipif("SSD_DATA_DIR" not in os.environ, reason="SSD_DATA_DIR is not set: no embeddings here")
def test_embeddings_certify_bitwise() -> None:
    from safetensors.torch import load_file

    data = load_file(Path(os.environ["SSD_DATA_DIR"]) / "cifar10_convmixer.safetensors")
    x, y = normalize_inputs(data["x_train"].float()), data["y_train"].long()
    tasks = []
    for task in range(2):
        mask = (y // 2) == task
        tasks.append((x[mask][:2000].contiguous(), y[mask][:2000].contiguous()))
    options = {"neurons": 4000, "k": 10, "epochs": 6, "batch_size": 128, "gaba_switch": 2000.0, "units": 400}
    gold = train(tasks, scan="exhaustive", **options)
    auto = train(tasks, scan="auto", **options)
    assert_same_bits(gold, auto)
    assert sum(stats.certified for stats in auto[1]) > 0
