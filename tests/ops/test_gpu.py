"""Every operation in Triton on a GPU: against the reference, 100 repeats, CUDA graphs, other streams.

Without a GPU these tests are skipped, and one test runs the same calls in the interpreter, so that they are known to
be right when a GPU comes.
"""

from __future__ import annotations

import os

import pytest
import torch

import ssd_kernels
from ssd_kernels import Rows, TopK, _backend, testing

B, D, R, K, C, N = 33, 40, 300, 7, 10, 50


def _normalised(*shape: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(testing.make(*shape, values="uniform", seed=seed), dim=1)


def _topk(seed: int) -> TopK:
    top = torch.topk(testing.make(B, R, values="uniform", seed=seed), K)
    return TopK(top.values, top.indices.to(torch.int32), top.values[:, -1])


def _rows(seed: int) -> Rows:
    h = torch.relu(testing.make(B, R, values="uniform", seed=seed) - 0.9)
    sample, neuron = h.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (h > 0).sum(1).cumsum(0)])
    return Rows(h[sample, neuron], neuron.to(torch.int32), offsets, torch.zeros(B))


def topk_linear(x, weight, backend):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    values, indices, threshold = ssd_kernels.topk_linear(x, weight, K, inhibition=True, backend=backend)
    return values.detach(), indices, threshold, *torch.autograd.grad(values.square().sum(), (x, weight))


def gaba_linear(x, weight, g, backend):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    h = ssd_kernels.gaba_linear(x, weight, K, g, backend=backend)
    return h.detach(), *torch.autograd.grad(h.square().sum(), (x, weight))


def sparse_linear(values, indices, weight, backend):
    values, weight = values.detach().requires_grad_(), weight.detach().requires_grad_()
    y = ssd_kernels.sparse_linear(TopK(values, indices, values[:, 0]), weight, backend=backend)
    return y.detach(), *torch.autograd.grad(y.square().sum(), (values, weight))


def sparse_update(weight, rows, grad, scale, backend):
    weight = weight.clone()
    moved = ssd_kernels.sparse_update_(weight, rows, grad, lr=0.05, scale=scale, backend=backend)
    return weight, moved


def distill(logits, labels, values, indices, q, t_values, t_indices, t_offsets, units, backend):
    logits, values = logits.detach().requires_grad_(), values.detach().requires_grad_()
    z, t = TopK(values, indices, values[:, 0]), Rows(t_values, t_indices, t_offsets, t_values)
    parts = ssd_kernels.distill_loss(logits, labels, z, q, t, units=units, backend=backend)
    grads = torch.autograd.grad(parts.loss, (logits, values))
    return *(part.detach() for part in parts), *grads


def counts(values, indices, h, n, backend):
    sparse = ssd_kernels.activation_counts(TopK(values, indices, values[:, 0]), R, backend=backend)
    dense = ssd_kernels.activation_counts(h, R, backend=backend)
    return sparse, dense, ssd_kernels.top_n(dense, N, backend=backend)


def cases() -> dict[str, tuple]:
    """Operation, its call, and its tensors on the CPU."""
    x, weight, top, rows = _normalised(B, D, seed=1), _normalised(R, D, seed=2), _topk(3), _rows(4)
    touched = torch.randperm(R, generator=torch.Generator().manual_seed(0))[:N].sort().values
    g = testing.make(R, values="uniform", seed=5) * 2 - 1
    labels = torch.arange(B) % C
    logits, q = testing.make(B, C, seed=6), testing.make(B, C, seed=7)
    active = torch.relu(testing.make(B, R, seed=8))
    return {
        "topk_linear": (topk_linear, (x, weight)),
        "gaba_linear": (gaba_linear, (x, weight, g)),
        "sparse_linear": (sparse_linear, (top.values, top.indices, testing.make(C, R, seed=9))),
        "sparse_update": (sparse_update, (weight, touched, testing.make(N, D, seed=10), torch.tensor(0.5))),
        "distill": (distill, (logits, labels, *top[:2], q, *rows[:3], touched)),
        "activation_counts": (counts, (top.values, top.indices, active, N)),
    }


operations = pytest.mark.parametrize("name", sorted(_backend.TRITON_OPERATIONS & {*cases()}), ids=str)


def on(name: str, device: str):
    call, tensors = cases()[name]
    return call, tuple(t.to(device) if isinstance(t, torch.Tensor) else t for t in tensors)


def assert_close(got: tuple, expected: tuple) -> None:
    for a, b in zip(got, expected, strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-4, atol=1e-5, check_dtype=False)
        else:
            assert torch.equal(a.cpu(), b.cpu())


def assert_same(got: tuple, expected: tuple) -> None:
    assert all(testing.same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.interpreter
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter is not on")
@operations
def test_the_calls_are_right_in_the_interpreter(name):
    call, tensors = on(name, "cpu")
    assert_close(call(*tensors, "triton"), call(*tensors, "reference"))


@pytest.mark.gpu
@operations
def test_it_is_the_reference(name):
    call, tensors = on(name, "cuda")
    expected = call(*on(name, "cpu")[1], "reference")
    assert_close(call(*tensors, "triton"), expected)


@pytest.mark.gpu
@operations
def test_100_repeats_are_bitwise_equal(name):
    call, tensors = on(name, "cuda")
    first = call(*tensors, "triton")
    for _ in range(100):
        assert_same(call(*tensors, "triton"), first)


@pytest.mark.gpu
@operations
def test_on_another_stream(name):
    call, tensors = on(name, "cuda")
    expected = call(*tensors, "triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = call(*tensors, "triton")
    stream.synchronize()
    assert_same(got, expected)


@pytest.mark.gpu
@operations
def test_in_a_cuda_graph(name):
    call, tensors = on(name, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and warms the allocator up
        expected = call(*tensors, "triton")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(*tensors, "triton")
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert_same(got, expected)
