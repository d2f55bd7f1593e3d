"""What SDMLPEngine refuses, and that it names the argument."""

from __future__ import annotations

import pytest
import torch

from ssd_kernels import SDMLPEngine, normalize_inputs


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
