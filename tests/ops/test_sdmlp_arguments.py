"""What SDMLPEngine refuses, and that it names the argument."""

from __future__ import annotations

import pytest
import torch

from ssd_kernels import QuadraticPenalty, SDMLPEngine, Teacher, normalize_inputs


def model() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight (32, 8), output weight (3, 32) and counts (32,)."""
    weight = torch.nn.functional.normalize(torch.rand(32, 8), dim=1)
    return weight, torch.rand(3, 32), torch.zeros(32, dtype=torch.int64)


def _arguments(**changes):
    weight, output, counts = model()
    arguments = {"weight": weight, "output_weight": output, "counts": counts, "k": 2, "gaba_switch": None}
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, r"k=0: allowed is 1 to R - 1 = 31"),
        ({"k": 32}, r"k=32"),
        ({"gaba_switch": 0.0}, "gaba_switch=0.0"),
        ({"kl": "both"}, "kl='both'"),
        ({"scan": "fast"}, "scan='fast'"),
        ({"threads": 0}, "threads=0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": 1e-50}, "momentum=1e-50: allowed is 0 <= momentum < 1 in float32"),
        ({"momentum": 5e-324}, "momentum=5e-324"),
        ({"momentum": 1 - 1e-12}, "momentum="),
        ({"k": 1.5}, "k=1.5"),
        ({"k": True}, "k=True"),
        ({"lr": float("inf")}, "lr=inf: allowed is a positive number of float32"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": 1e39}, "lr=1e"),
        ({"lr": 1e-50}, "lr=1e-50"),
        ({"lr": 1e38, "max_grad_norm": 10.0}, "a step could be longer"),
        ({"lr": 1e37, "momentum": 0.95}, "a step could be longer"),
        ({"max_grad_norm": 1e-50}, "max_grad_norm=1e-50"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm=nan"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"lam": 1.5}, "lam=1.5"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"threads": 100_000}, "threads=100000: allowed is None or 1 to 1024"),
        ({"threads": 1.0}, "threads=1.0"),
        ({"counts": torch.full((32,), -5)}, "counts must be 0 or more, got -5"),
        ({"output_weight": torch.full((3, 32), float("inf"))}, "output_weight must be finite"),
        ({"weight": torch.zeros(32, 0)}, "D, C >= 1"),
        ({"weight": torch.zeros(32, 8).to_sparse()}, "weight must be a dense tensor"),
        ({"counts": torch.zeros(31, dtype=torch.int64)}, "counts must be"),
        (
            {"counts": torch.zeros(32, dtype=torch.int64, device="meta")},
            "counts must be on cpu, as weight is",
        ),
        ({"weight": torch.full((32, 8), -1.0)}, "weight must not be negative"),
        ({"weight": torch.ones(32, 8)}, "norm 1"),
        ({"weight": torch.ones(32, 8, dtype=torch.float64)}, "float32"),
        ({"backend": "cuda"}, "cuda"),
    ],
)
def test_bad_arguments(changes, message) -> None:
    arguments = _arguments(**changes)
    tensors = [arguments.pop(name) for name in ("weight", "output_weight", "counts")]
    with pytest.raises(ValueError, match=message):
        SDMLPEngine(*tensors, **arguments)


def test_bad_epochs() -> None:
    x, y = normalize_inputs(torch.rand(64, 8)).contiguous(), torch.arange(64) % 3
    order = torch.arange(64)
    engine = SDMLPEngine(*model(), k=2, gaba_switch=None)
    teacher = engine.make_teacher(x[:32].contiguous(), torch.arange(4))
    for bad, message in (
        ((x * 2, y, order), "unit norm"),
        ((x.double(), y, order), "float32"),
        ((x.to("meta"), y, order), "x must be on cpu, as weight is, got meta"),
        ((x, y.to("meta"), order), "y must be on cpu"),
        ((x, y + 1, order), r"y must be in \[0, 3\)"),
        ((x, y, order + 1), r"order must be in \[0, 64\)"),
        ((x, y, order, 0), "batch_size=0"),
        ((x, y, order, 8, teacher), "teacher was made for 32"),
        ((torch.full_like(x, float("nan")), y, order), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.train_epoch(*bad)


def _teacher_fields(samples: int = 6) -> dict[str, torch.Tensor]:
    """A good teacher of the model's 3 classes and 32 neurons: one activation per sample on the units 1, 3, 5."""
    return {
        "logits": torch.zeros(samples, 3),
        "units": torch.tensor([1, 3, 5]),
        "values": torch.ones(samples),
        "indices": torch.tensor([1, 3, 5] * (samples // 3), dtype=torch.int32),
        "offsets": torch.arange(samples + 1),
    }


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("logits", torch.zeros(6, 2), ValueError, r"teacher.logits must be \(6, 3\), got \(6, 2\)"),
        ("logits", torch.zeros(5, 3), ValueError, "teacher was made for 5 samples, x has 6"),
        ("logits", torch.zeros(6, 3, dtype=torch.float64), ValueError, "teacher.logits must be torch.float32"),
        ("logits", torch.full((6, 3), NAN), ValueError, "teacher.logits must be finite"),
        ("logits", torch.zeros(6, 3, device="meta"), ValueError, "teacher.logits must be on cpu"),
        ("values", torch.ones(6, dtype=torch.float64), ValueError, "teacher.values must be torch.float32"),
        ("values", torch.full((6,), NAN), ValueError, "teacher.values must be finite"),
        ("values", torch.ones(6, device="meta"), ValueError, "values of teacher must be on cpu, got meta"),
        ("values", torch.ones(5), ValueError, r"indices of teacher must be int32 \(5,\)"),
        ("units", torch.tensor([1, 3, 3]), ValueError, "teacher.units must be distinct, ascending"),
        ("units", torch.tensor([-1, 3, 5]), ValueError, r"in \[0, 32\)"),
        ("units", torch.tensor([1, 3, 32]), ValueError, r"in \[0, 32\)"),
        ("units", torch.tensor([1, 3, 5], dtype=torch.int32), ValueError, "teacher.units must be int64"),
        ("units", torch.tensor([1, 3]), ValueError, "teacher.indices must be among teacher.units"),
        ("indices", torch.tensor([1, 3, 5, 1, 3, 5]), ValueError, "indices of teacher must be int32"),
        ("indices", torch.tensor([1, 3, 5, 1, 3, 32], dtype=torch.int32), IndexError, "from 0 to R - 1 = 31, got 32"),
        ("indices", torch.tensor([-1, 3, 5, 1, 3, 5], dtype=torch.int32), IndexError, "got -1"),
        ("offsets", torch.tensor([0, 1, 2, 3, 4, 5]), ValueError, "teacher must hold B = 6 samples"),
        ("offsets", torch.tensor([0, 1, 2, 3, 4, 5, 10**8]), ValueError, "end with nnz = 6, got 100000000"),
        ("offsets", torch.tensor([-3, 1, 2, 3, 4, 5, 6]), ValueError, "begin with 0, ascend"),
        ("offsets", torch.tensor([0, 1, 2, 3, 2, 5, 6]), ValueError, "got 2"),
        ("offsets", torch.tensor([0, 2, 2, 2, 2, 2, 6]), ValueError, "ascend within a sample, each once; 1 does not"),
        ("offsets", torch.arange(7, dtype=torch.int32), ValueError, "offsets .B . 1,. int64"),
        ("offsets", torch.arange(7.0), ValueError, "int64"),
    ],
)
def test_bad_teachers(name, value, error, message) -> None:
    """A Teacher built by hand: nothing of it is believed, and nothing is trained."""
    engine = SDMLPEngine(*model(), k=2, gaba_switch=None)
    x, y, order = normalize_inputs(torch.rand(6, 8)).contiguous(), torch.arange(6) % 3, torch.arange(6)
    engine.train_epoch(x, y, order, teacher=Teacher(**_teacher_fields()))
    before = engine.state_dict()
    with pytest.raises(error, match=message):
        engine.train_epoch(x, y, order, teacher=Teacher(**(_teacher_fields() | {name: value})))
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.state_dict().items())


def test_a_teacher_that_changes_is_looked_at_and_used_again() -> None:
    x, y, order = normalize_inputs(torch.rand(6, 8)).contiguous(), torch.arange(6) % 3, torch.arange(6)
    engine = SDMLPEngine(*model(), k=2, gaba_switch=None)
    fields = _teacher_fields()
    teacher = Teacher(**fields)
    first = engine.train_epoch(x, y, order, teacher=teacher).kd_logits
    fields["logits"][:, 1] = 9
    assert abs(engine.train_epoch(x, y, order, teacher=teacher).kd_logits - first) > 0.1
    fields["offsets"][3] = 7
    with pytest.raises(ValueError, match="offsets of teacher"):
        engine.train_epoch(x, y, order, teacher=teacher)


@pytest.mark.parametrize("part", ["weight_importance", "weight_anchor", "output_importance", "output_anchor"])
@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_penalties_that_are_not_finite(part, bad) -> None:
    weight, output, counts = model()
    engine = SDMLPEngine(weight, output, counts, k=2, gaba_switch=None)
    x, y, order = normalize_inputs(torch.rand(6, 8)).contiguous(), torch.arange(6) % 3, torch.arange(6)
    parts = {name: torch.zeros_like(weight if name.startswith("weight") else output) for name in (
        "weight_importance", "weight_anchor", "output_importance", "output_anchor")}  # fmt: skip
    penalty = QuadraticPenalty(**parts, coef=1.0)
    engine.train_epoch(x, y, order, penalty=penalty)
    before = weight.clone()
    parts[part][0, 0] = bad
    with pytest.raises(ValueError, match=f"penalty.{part} must be finite"):
        engine.train_epoch(x, y, order, penalty=penalty)
    for coef in (NAN, float("inf"), 1e39, 2e38, -1.0):
        with pytest.raises(ValueError, match=r"penalty.coef=.*: allowed is 0 or more, finite in float32"):
            engine.train_epoch(x, y, order, penalty=QuadraticPenalty(**parts, coef=coef))
    assert torch.equal(weight, before)


def test_bad_states_change_nothing() -> None:
    engine = SDMLPEngine(*model(), k=2, gaba_switch=None, momentum=0.9)
    good = engine.state_dict()
    for name, tensor, message in (
        ("counts", good["counts"] - 1, "counts must be 0 or more, got -1"),
        ("counts", good["counts"].float(), "counts must be torch.int64"),
        ("weight", good["weight"] * 2, "norm 1"),
        ("weight", good["weight"] * NAN, "not be negative or NaN"),
        ("output_weight", good["output_weight"] - 10, "not be negative"),
        ("weight_velocity", good["weight"] * NAN, "weight_velocity must be finite"),
        ("output_velocity", good["output_weight"] * float("inf"), "output_velocity must be finite"),
        ("output_velocity", good["output_weight"][:2], "has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.load_state_dict(good | {name: tensor})
        assert all(torch.equal(tensor, good[name]) for name, tensor in engine.state_dict().items())


def test_a_batch_is_never_larger_than_the_order() -> None:
    """A batch size beyond the samples takes the memory of the samples."""
    x, y = normalize_inputs(torch.rand(6, 8)).contiguous(), torch.arange(6) % 3
    engine = SDMLPEngine(*model(), k=2, gaba_switch=None)
    assert engine.train_epoch(x, y, torch.arange(6), 10**12).steps == 1
