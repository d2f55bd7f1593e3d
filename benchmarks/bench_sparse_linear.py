"""sparse_linear, activation_counts and top_n against their dense forms."""

from __future__ import annotations

from collections.abc import Callable

import measure
import pytest
import torch
from torch.nn import functional

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

    contenders = {
        "dense forward": lambda: dense @ weight.T,
        "sparse_linear forward": lambda: sparse_linear(active, weight),
        "dense forward + backward": lambda: torch.autograd.grad(dense @ weight.T, (dense, weight), grad),
        "sparse_linear forward + backward": lambda: torch.autograd.grad(
            sparse_linear(active, weight), (active.values, weight), grad
        ),
    }
    entries, number = batch * k, 4
    backward = measure.Work(6.0 * entries * outputs, number * (3.0 * entries * outputs + outputs * neurons))
    work = {"sparse_linear forward + backward": backward}
    if transposed:
        table, values = weight.detach().t().clone().requires_grad_(), active.values
        places = active.indices.long()
        crow, coo = torch.arange(0, entries + 1, k), (batch, neurons)

        def bag(**options: bool) -> torch.Tensor:
            return functional.embedding_bag(places, table, mode="sum", per_sample_weights=values, **options)

        def csr() -> torch.Tensor:
            matrix = torch.sparse_csr_tensor(crow, places.flatten(), values.detach().flatten(), coo)
            return torch.sparse.mm(matrix, table.detach())

        def rows() -> torch.Tensor:
            return sparse_linear(active, table.t(), sparse_grad=True)

        contenders |= {
            "embedding_bag forward": bag,
            "torch.sparse CSR forward": csr,
            "embedding_bag forward + backward": lambda: torch.autograd.grad(bag(), (values, table), grad),
            "embedding_bag forward + backward, sparse": lambda: torch.autograd.grad(bag(sparse=True), table, grad),
            "sparse_linear forward + backward, sparse_grad": lambda: torch.autograd.grad(rows(), (values, table), grad),
        }
        targets = {"sparse_linear forward + backward": ("embedding_bag forward + backward", 2.0)}
    else:
        targets = {}
    compare(
        f"sparse_linear, {name}: B {batch}, C {outputs}, R {neurons}, K {k}, fp32",
        contenders,
        baseline="dense forward + backward",
        gate=gate,
        targets=targets,
        work=work,
        seconds=12,
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
