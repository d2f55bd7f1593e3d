"""The one rule for numbers that are not finite: the step is not taken, nothing has changed, the message names what."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ssd_kernels import NonFiniteStep, QuadraticPenalty, SDMLPEngine, normalize_inputs

NEURONS, CLASSES, DIM, SAMPLES, BATCH = 160, 3, 12, 64, 16
LEVELS = ("", "generic")
# The forms of a step: all neurons active, many (kept as tiles), few (kept as lists), and those with momentum.
FORMS = {
    "all-active": {"gaba_switch": 1e9},
    "tiles": {"gaba_switch": 1e9, "momentum": 0.5},
    "lists": {"gaba_switch": None},
    "certificates": {"gaba_switch": None, "scan": "auto", "epochs": 4},
    "momentum": {"gaba_switch": None, "momentum": 0.9},
}


def make(seed: int = 0, *, epochs: int = 1, scan: str = "exhaustive", backend: str = "auto", **options):
    """An engine after some epochs, its samples, labels and order."""
    random = torch.Generator().manual_seed(seed)
    x = normalize_inputs(torch.rand(SAMPLES, DIM, generator=random)).contiguous()
    y = torch.randint(CLASSES, (SAMPLES,), generator=random)
    weight = normalize_inputs(torch.rand(NEURONS, DIM, generator=random)).contiguous()
    output = torch.rand(CLASSES, NEURONS, generator=random) / NEURONS
    counts = torch.zeros(NEURONS, dtype=torch.int64)
    engine = SDMLPEngine(weight, output, counts, k=60, scan=scan, backend=backend, temperature=2.0, **options)
    order = torch.arange(SAMPLES)
    for _ in range(epochs):
        engine.train_epoch(x, y, order, BATCH)
    return engine, x, y, order


def refuse(engine, x, y, order, what: str, steps: int = 0, **attached) -> NonFiniteStep:
    """Trains, and finds the step refused and every tensor as it was."""
    before = engine.state_dict()
    message = f"the {what}.* is not finite in step {steps}; that step was not taken"
    with pytest.raises(NonFiniteStep, match=message) as info:
        engine.train_epoch(x, y, order, BATCH, **attached)
    assert engine.last_stats.steps == steps
    for name, tensor in engine.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    return info.value


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMS)
def test_a_loss_that_overflows_ends_before_the_step(form, level, threads, monkeypatch) -> None:
    monkeypatch.setenv("SSD_SIMD", level)
    engine, *data = make(threads=threads, **FORMS[form])
    engine.output_weight.fill_(3e38)
    error = refuse(engine, *data, "cross-entropy of sample 0")
    assert (error.what, error.step, error.sample, error.neuron) == ("cross-entropy", 0, 0, None)


def test_the_sample_and_the_step_are_named() -> None:
    """One sample alone has its scores in the last input, where half of the neurons have outputs that overflow."""
    engine, x, y, order = make(epochs=0, gaba_switch=None)
    half = NEURONS // 2
    weight = normalize_inputs(engine.weight[:half, :-1])
    engine.weight.zero_()[:half, :-1] = weight
    engine.weight[half:, -1] = torch.linspace(0.1, 1, half)
    engine.weight[half:, 0] = (1 - engine.weight[half:, -1] ** 2).sqrt()
    engine.output_weight[:, half:] = 3e38
    x[:, [0, -1]] = 0
    x[37, -1] = 1
    x = normalize_inputs(x).contiguous()
    with pytest.raises(NonFiniteStep) as info:
        engine.train_epoch(x, y, order, BATCH)
    assert (info.value.what, info.value.sample, info.value.step) == ("cross-entropy", 37, 2)
    assert engine.last_stats.steps == 2 and torch.isfinite(engine.weight).all()


@pytest.mark.parametrize("form", ["tiles", "lists", "momentum"])
def test_a_penalty_that_overflows_ends_before_the_step(form) -> None:
    engine, *data = make(**FORMS[form])
    tensors = [torch.zeros_like(t) for t in (engine.weight, engine.weight, engine.output_weight, engine.output_weight)]
    tensors[0][5] = 1e30
    penalty = QuadraticPenalty(*tensors, coef=1e10)
    error = refuse(engine, *data, "gradient of ", penalty=penalty)
    assert error.neuron == 5


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_overflow_of_the_distillation_names_it(backend) -> None:
    engine, x, y, order = make(gaba_switch=None, backend=backend)
    teacher = engine.make_teacher(x, torch.arange(20))
    large = dataclasses.replace(teacher, logits=teacher.logits * 0 + torch.tensor([0.0, 1e38, -3e38]))
    engine.settings = dataclasses.replace(engine.settings, temperature=1e-305)
    again = SDMLPEngine(engine.weight, engine.output_weight, engine.counts,
                        **(dataclasses.asdict(engine.settings) | {"backend": backend}))  # fmt: skip
    refuse(again, x, y, order, "logit distillation of sample 0" if backend == "auto" else "loss", teacher=large)


@pytest.mark.parametrize("kl", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1e-3, 1e-10])
def test_small_temperatures_stay_finite(kl, temperature) -> None:
    """exp(h / T) overflows, its softmax does not: the engine follows the specification."""
    runs = []
    for backend in ("auto", "reference"):
        engine, x, y, order = make(gaba_switch=None, backend=backend, kl=kl)
        options = dataclasses.asdict(engine.settings) | {"temperature": temperature, "backend": backend}
        teacher = engine.make_teacher(x, torch.arange(60))
        engine.weight.copy_(engine.weight.roll(1, 0))
        student = SDMLPEngine(engine.weight, engine.output_weight, engine.counts, **options)
        stats = student.train_epoch(x, y, order[:BATCH], BATCH, teacher=teacher)
        runs.append((stats, student))
    (ours, one), (theirs, other) = runs
    for name in ("ce", "kd_hidden", "kd_logits"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-3, abs=1e-12), name
    torch.testing.assert_close(one.weight, other.weight, atol=1e-4, rtol=1e-3)


def test_an_update_beyond_float32_is_refused() -> None:
    engine, *data = make(gaba_switch=None, epochs=0, max_grad_norm=float("inf"), lr=1e38)
    engine.output_weight.mul_(1e6)
    error = refuse(engine, *data, "learning rate times the gradient")
    assert error.sample is None and error.neuron is None


def test_without_clipping_the_step_is_the_gradient() -> None:
    one, *_ = make(gaba_switch=None, epochs=2, max_grad_norm=float("inf"))
    other, *_ = make(gaba_switch=None, epochs=2, max_grad_norm=1e6)
    assert torch.equal(one.weight, other.weight)


def test_the_specification_has_the_same_rule() -> None:
    engine, *data = make(backend="reference", gaba_switch=None)
    engine.output_weight.fill_(3e38)
    refuse(engine, *data, "loss")


@pytest.mark.interpreter
def test_triton_has_the_same_rule() -> None:
    engine, x, y, order = make(backend="triton", gaba_switch=None, epochs=0)
    engine.output_weight.fill_(3e38)
    refuse(engine, x[:BATCH].contiguous(), y[:BATCH].contiguous(), order[:BATCH].contiguous(), "loss")


def test_the_error_says_where() -> None:
    assert str(NonFiniteStep("score", 3, sample=7)).startswith("the score of sample 7 is not finite in step 3")
    assert "of neuron 2" in str(NonFiniteStep("gradient of the penalty", 0, neuron=2))
    assert isinstance(NonFiniteStep("loss", 0), FloatingPointError)
