"""Importance of weights (EWC): the per-sample Fisher against the loop over samples, and a step's cost over tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from ssd_train.importance import Quadratic, fisher
from ssd_train.model import SDMLP, ReLUMLP

from ssd_kernels import normalize_inputs, testing

INPUTS, CLASSES = 256, 10


def _model(kind: str, neurons: int) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "relu":
        return ReLUMLP(INPUTS, CLASSES, neurons)
    return SDMLP(INPUTS, CLASSES, neurons, 10, gaba_switch=None)


@pytest.mark.parametrize("neurons", (1000, 10_000))
@pytest.mark.parametrize("estimator", ("sample-true", "exact"))
@pytest.mark.parametrize("kind", ("relu", "sdmlp"))
def bench_fisher(kind: str, estimator: str, neurons: int, compare: Callable, smoke: bool) -> None:
    neurons, samples = (100, 32) if smoke else (neurons, 512 if estimator == "sample-true" else 64)
    model = _model(kind, neurons)
    x = normalize_inputs(testing.make(samples, INPUTS, values="uniform"))
    y = torch.randint(CLASSES, (samples,), generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())

    def terms(model: torch.nn.Module, x: torch.Tensor, i: int) -> list[tuple[float, torch.Tensor]]:
        """Weight and loss of each label of one sample."""
        log_p = model(x[i : i + 1], normalized=True).logits.log_softmax(1)[0]
        if estimator == "sample-true":
            return [(1.0, -log_p[y[i]])]
        return [(p, -log_p[c]) for c, p in enumerate(log_p.detach().exp().tolist())]

    def plain() -> list[torch.Tensor]:
        """The loop as it is usually written: backward, then p.grad squared and added."""
        total = [torch.zeros_like(p) for p in parameters]
        for i in range(samples):
            for weight, loss in terms(model, x, i):
                model.zero_grad()
                loss.backward(retain_graph=estimator == "exact")
                for sum_, p in zip(total, parameters):
                    sum_ += weight * p.grad.pow(2)
        return [sum_ / samples for sum_ in total]

    def lean(model: torch.nn.Module = model, x: torch.Tensor = x) -> list[torch.Tensor]:
        """The same with one pass over each gradient."""
        parameters = list(model.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        for i in range(samples):
            for weight, loss in terms(model, x, i):
                gradients = torch.autograd.grad(loss, parameters, retain_graph=estimator == "exact")
                for sum_, g in zip(total, gradients):
                    sum_.addcmul_(g, g, value=weight / samples)
        return total

    def products() -> list[torch.Tensor]:
        return list(fisher(model, x, y, estimator, 1.0).values())

    def gate() -> None:
        """The loop in fp64 within 1e-6; in fp32 both are off by some 1e-6 (an SDMLP's h is a difference)."""
        double, x64 = copy.deepcopy(model).double(), x.double()
        exact = fisher(double, x64, y, estimator, 1.0).values()
        loop64 = lean(double, x64)
        for single, loop, wanted, in64 in zip(products(), lean(), exact, loop64):
            assert torch.linalg.norm(in64 - wanted) <= 1e-6 * torch.linalg.norm(wanted)
            assert torch.linalg.norm(single - wanted) <= 1e-5 * torch.linalg.norm(wanted)
            assert torch.linalg.norm(loop - wanted) <= 1e-5 * torch.linalg.norm(wanted)

    compare(
        f"per-sample Fisher, {kind}, estimator {estimator}, N {samples}, D {INPUTS}, R {neurons}, C {CLASSES}, fp32",
        {"plain loop over samples": plain, "lean loop over samples": lean, "matrix products": products},
        baseline="plain loop over samples",
        gate=gate,
        targets={"matrix products": ("plain loop over samples", 50.0)},
        seconds=4,
        rounds=20,
        warmup=1,
    )


def bench_ewc_step(compare: Callable, smoke: bool) -> None:
    """Loss, gradient and SGD step of EWC in task 2 and in task 50, and with one stored term per task instead."""
    neurons, batch = (100, 32) if smoke else (1000, 128)
    x = normalize_inputs(testing.make(batch, INPUTS, values="uniform"))
    y = torch.randint(CLASSES, (batch,), generator=torch.Generator().manual_seed(1))
    generator, values = torch.Generator().manual_seed(2), []

    def contender(tasks: int, merged: bool) -> Callable[[], None]:
        model, quadratic, terms = _model("relu", neurons), Quadratic(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        for _ in range(tasks - 1):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01 * torch.randn(p.shape, generator=generator))
            importance = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
            quadratic.add(model, importance)
            terms.append([(f, p.detach().clone()) for f, p in zip(importance.values(), model.parameters())])

        def separate() -> torch.Tensor:
            return sum((f * (p - a).square()).sum() for term in terms for p, (f, a) in zip(model.parameters(), term))

        def penalty() -> torch.Tensor:
            return quadratic.value(model) if merged else separate()

        def step() -> None:
            optimizer.zero_grad()
            (F.cross_entropy(model(x).logits, y) + penalty()).backward()
            optimizer.step()

        values.append((quadratic.value(model).item(), separate().item()))
        return step

    contenders = {
        "task 2, merged": contender(2, True),
        "task 50, merged": contender(50, True),
        "task 50, a term per task": contender(50, False),
    }

    def gate() -> None:
        for value, wanted in values:
            assert abs(value - wanted) <= 1e-4 * abs(wanted)

    compare(
        f"EWC step, ReLU MLP, B {batch}, D {INPUTS}, R {neurons}, C {CLASSES}, fp32",
        contenders,
        baseline="task 50, a term per task",
        gate=gate,
        seconds=8,
        rounds=200,
    )
