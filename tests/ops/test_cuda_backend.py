"""backend="cuda" as callers meet it. Without a GPU: what it says; and, with --runslow, every operation through its
Python side and its launchers, compiled by the C++ compiler over the emulator of tests/cpp/cuda."""

from __future__ import annotations

import pytest
import torch

import ssd_kernels
from ssd_kernels import Rows, TopK, _backend

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_device_it_says_so_in_one_sentence():
    for op in sorted(_backend.CUDA_OPERATIONS):
        assert _backend.missing_reason("cuda", op, torch.device("cuda")) == "torch sees no CUDA device"
    with pytest.raises(ValueError, match=r"^backend='cuda' cannot run topk_linear: it takes CUDA tensors"):
        ssd_kernels.topk_linear(torch.ones(1, 4), torch.ones(3, 4), 1, backend="cuda")


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    a, b = (t.to_dense() if t.is_sparse else t for t in (a, b))
    assert a.dtype == b.dtype
    bound = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(a.dtype, 0)
    torch.testing.assert_close(a, b, rtol=bound, atol=bound, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("k", "options"),
    [
        (5, {}),
        (3, {"normalize": "both", "inhibition": True}),
        (4, {"normalize": "input", "activation": "none", "sparse_grad": True}),
        (130, {"activation": "none"}),
        (4, {"rows": torch.arange(0, 150, 3), "groups": 1}),
    ],
)
def test_topk_linear(on_emulator, dtype, k, options):
    results = []
    for backend in ("cuda", "reference"):
        x, weight = (numbers(*size, seed=size[0], dtype=dtype).requires_grad_() for size in ((6, 24), (150, 24)))
        bias = numbers(150, seed=3, dtype=dtype).requires_grad_()
        found = ssd_kernels.topk_linear(x, weight, k, bias, backend=backend, **options)
        cotangent = numbers(*found.values.shape, seed=9, dtype=dtype)
        results.append((*found, *torch.autograd.grad(found.values, (x, weight, bias), cotangent)))
    (values, indices, *rest), (gold_values, gold_indices, *gold_rest) = results
    # Scores nearer than their rounding may change places; these random ones are not.
    assert torch.equal(indices, gold_indices)
    for part, gold in zip((values, *rest), (gold_values, *gold_rest)):
        close(part.detach(), gold.detach())


@pytest.mark.slow
def test_scores_of_scaled_neurons_are_those_of_the_reference(on_emulator):
    x, weight, bias, scale = (
        numbers(5, 24),
        numbers(60, 24, seed=1),
        numbers(60, seed=2),
        numbers(60, seed=3).abs() + 0.1,
    )
    found = ssd_kernels.topk_linear(x, weight, 6, bias, scale=scale, backend="cuda")
    for part, gold in zip(found, ssd_kernels.topk_linear(x, weight, 6, bias, scale=scale, backend="reference")):
        close(part, gold)
    with pytest.raises(ValueError, match="takes 'relu' and 'none'"):
        ssd_kernels.topk_linear(x, weight, 6, activation="abs", backend="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("sparse_grad", (False, True))
@pytest.mark.parametrize("output", ("dense", "rows"))
def test_gaba_linear(on_emulator, dtype, output, sparse_grad):
    results = []
    g = torch.linspace(-1, 1, 90, dtype=torch.float64)
    for backend in ("cuda", "reference"):
        x, weight = (numbers(*size, seed=size[0], dtype=dtype).abs().requires_grad_() for size in ((5, 16), (90, 16)))
        h = ssd_kernels.gaba_linear(x, weight, 4, g, output=output, backend=backend, sparse_grad=sparse_grad)
        values = h if output == "dense" else h.values
        parts = [values] if output == "dense" else [values, h.indices, h.offsets, h.threshold]
        results.append((*parts, *torch.autograd.grad(values, (x, weight), numbers(*values.shape, seed=4, dtype=dtype))))
    for part, gold in zip(*results):
        close(part.detach(), gold.detach())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("kind", ("topk", "rows"))
@pytest.mark.parametrize("adjacent", ("rows", "columns"))
def test_sparse_linear(on_emulator, dtype, kind, adjacent):
    indices = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(i))[:6] for i in range(7)]).int()
    results = []
    for backend in ("cuda", "reference"):
        values = numbers(7, 6, seed=1, dtype=dtype)
        if kind == "topk":
            active = TopK(values.requires_grad_(), indices, values[:, 0])
        else:
            offsets = torch.tensor([0, 6, 6, 20, 21, 30, 36, 42])
            active = Rows(values.reshape(-1).requires_grad_(), indices.reshape(-1), offsets, values[:, 0])
        weight = numbers(40, 11, seed=2, dtype=dtype).t() if adjacent == "columns" else numbers(11, 40, dtype=dtype)
        weight.requires_grad_()
        y = ssd_kernels.sparse_linear(active, weight, backend=backend)
        cotangent = numbers(*y.shape, seed=3, dtype=dtype)
        results.append((y, *torch.autograd.grad(y, (active.values, weight), cotangent)))
    for part, gold in zip(*results):
        close(part.detach(), gold.detach())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparse_update(on_emulator, dtype):
    rows, results = torch.tensor([0, 3, 4, 17]), []
    for backend in ("cuda", "reference"):
        weight = numbers(20, 37, seed=1, dtype=dtype).abs()
        movement = ssd_kernels.sparse_update_(
            weight, rows, numbers(4, 37, seed=2, dtype=dtype), lr=0.05, scale=0.5, max_norm=1.0, backend=backend
        )
        results.append((weight, movement))
    close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-2, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts(on_emulator, dtype):
    values = numbers(30, 70, dtype=dtype)
    dense = ssd_kernels.activation_counts(values, 70, backend="cuda")
    assert torch.equal(dense, ssd_kernels.activation_counts(values, 70, backend="reference"))
    active = TopK(values[:, :5].contiguous(), values.argsort(1)[:, :5].int(), values[:, 0])
    counts = ssd_kernels.activation_counts(active, 70, backend="cuda")
    assert torch.equal(counts, ssd_kernels.activation_counts(active, 70, backend="reference"))
    for n in (1, 20, 70):
        assert torch.equal(
            ssd_kernels.top_n(counts, n, backend="cuda"), ssd_kernels.top_n(counts, n, backend="reference")
        )
