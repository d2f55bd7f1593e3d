"""gaba_linear against eager torch, from K neurons active to all of them, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import shapes
import torch

from ssd_kernels import gaba_linear, testing
from ssd_kernels.gaba_linear import reference
from ssd_kernels.testing import Shape

# g: saturated counters, counters of a real run (mean .82, here with some 30 active neurons), and new neurons.
STATES = ("K active", "some active", "all active")


def problem(shape: Shape, state: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x and the weight on the unit sphere's positive part; g of the state."""
    x = torch.nn.functional.normalize(torch.relu(testing.make(shape.b, shape.d, seed=1)))
    weight = torch.nn.functional.normalize(torch.relu(testing.make(shape.r, shape.d, seed=2)))
    match state:
        case "K active":
            return x, weight, torch.ones(shape.r)
        case "some active":
            return x, weight, 1 - 0.06 * testing.make(shape.r, values="uniform", seed=3)
        case _:
            return x, weight, -torch.ones(shape.r)


def eager(x: torch.Tensor, weight: torch.Tensor, k: int, g: torch.Tensor) -> torch.Tensor:
    """The layer as one would write it in torch."""
    a = torch.relu(x @ weight.T)
    threshold = torch.topk(a.detach(), k + 1).values[:, -1:]
    return torch.relu(a - g * threshold)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ("SDMLP_1K", "SDMLP_10K", "SDMLP_100K"))
def bench_gaba_linear(name: str, state: str, compare: Callable, smoke: bool) -> None:
    if smoke and name != "SDMLP_1K":
        pytest.skip("not a small size")
    shape = shapes.SMOKE if smoke else getattr(shapes, name)
    x, weight, g = problem(shape, state)
    rows = gaba_linear(x, weight, shape.k, g, output="rows")
    active = len(rows.values) / shape.b
    weight.requires_grad_()
    grad_h, grad_values = torch.ones(shape.b, shape.r), torch.ones(len(rows.values))

    def gate() -> None:
        few = x[:16]
        gold, _ = reference.gaba_linear(few.double(), weight.detach().double(), g, shape.k)
        low, _ = reference.gaba_linear(few, weight.detach(), g, shape.k)
        testing.assert_accurate(gaba_linear(few, weight.detach(), shape.k, g), gold, low, tol=1e-6)

    def dense() -> torch.Tensor:
        return gaba_linear(x, weight, shape.k, g)

    def sparse(**options: bool) -> torch.Tensor:
        return gaba_linear(x, weight, shape.k, g, output="rows", **options).values

    contenders = {
        "eager forward": lambda: eager(x, weight, shape.k, g),
        "dense forward": dense,
        "rows forward": sparse,
        "eager forward + backward": lambda: torch.autograd.grad(eager(x, weight, shape.k, g), weight, grad_h),
        "dense forward + backward": lambda: torch.autograd.grad(dense(), weight, grad_h),
        "rows forward + backward": lambda: torch.autograd.grad(sparse(), weight, grad_values),
        "rows, sparse_grad": lambda: torch.autograd.grad(sparse(sparse_grad=True), weight, grad_values),
    }
    if active > shape.r / 16:
        del contenders["rows, sparse_grad"]  # nearly every row of the gradient: sparse in name only
    compare(
        f"gaba_linear, {shape}, fp32, {state} ({active:.0f} per sample)",
        contenders,
        baseline="eager forward + backward",
        gate=gate,
        seconds=6,
    )
