"""sparse_linear, activation_counts and top_n against their dense forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ssd_kernels import TopK, activation_counts, sparse_linear, testing, top_n


def activations(batch: int, neurons: int, k: int) -> tuple[TopK, torch.Tensor]:
    """K of the neurons per sample, sparse and dense."""
    scores = torch.rand(batch, neurons, generator=torch.Generator().manual_seed(0))
    indices = scores.topk(k).indices.sort(1).values
    values = testing.make(batch, k, values="uniform", seed=1)
    dense = torch.zeros(batch, neurons).scatter(1, indices, values)
    return TopK(values, indices.int(), values[:, -1]), dense


# The SDMLP's output layer; a sparse autoencoder's decoder, stored (C, R) as nn.Linear or (R, C) as most of them do.
SIZES = {
    "SDMLP output": (128, 10, 10_000, 10, False),
    "SAE decoder (R, C)": (512, 768, 32_768, 32, True),
    "SAE decoder (C, R)": (512, 768, 32_768, 32, False),
}


@pytest.mark.parametrize("name", SIZES)
def bench_sparse_linear(name: str, compare: Callable, smoke: bool) -> None:
    batch, outputs, neurons, k, transposed = SIZES[name]
    if smoke:
        batch, outputs, neurons, k = 32, 10, 1000, 10
    active, dense = activations(batch, neurons, k)
    weight = testing.make(outputs, neurons, seed=2, layout="transposed" if transposed else "contiguous")
    weight.requires_grad_()
    active = active._replace(values=active.values.requires_grad_())
    dense.requires_grad_()
    grad = torch.ones(batch, outputs)

    def gate() -> None:
        gold = dense.detach().double() @ weight.detach().double().T
        testing.assert_accurate(sparse_linear(active, weight).detach(), gold, (dense @ weight.T).detach())

    compare(
        f"sparse_linear, {name}: B {batch}, C {outputs}, R {neurons}, K {k}, fp32",
        {
            "dense forward": lambda: dense @ weight.T,
            "sparse_linear forward": lambda: sparse_linear(active, weight),
            "dense forward + backward": lambda: torch.autograd.grad(dense @ weight.T, (dense, weight), grad),
            "sparse_linear forward + backward": lambda: torch.autograd.grad(
                sparse_linear(active, weight), (active.values, weight), grad
            ),
        },
        baseline="dense forward + backward",
        gate=gate,
        seconds=6,
    )


def bench_activation_counts(compare: Callable, smoke: bool) -> None:
    batch, neurons, k = (32, 1000, 10) if smoke else (1024, 10_000, 10)
    active, dense = activations(batch, neurons, k)
    expected = (dense > 0).sum(0)

    def gate() -> None:
        assert torch.equal(activation_counts(active, neurons), expected)
        assert torch.equal(activation_counts(dense, neurons), expected)
        assert torch.equal(top_n(expected, 100), torch.sort(expected, descending=True, stable=True).indices[:100])

    compare(
        f"activation_counts, B {batch}, R {neurons}, K {k}; top_n, n 1000",
        {
            "(h > 0).sum(0)": lambda: (dense > 0).sum(0),
            "activation_counts, dense": lambda: activation_counts(dense, neurons),
            "activation_counts, TopK": lambda: activation_counts(active, neurons),
            "stable sort": lambda: torch.sort(expected, descending=True, stable=True).indices[:1000],
            "top_n": lambda: top_n(expected, min(1000, neurons)),
        },
        baseline="(h > 0).sum(0)",
        gate=gate,
        seconds=4,
    )
