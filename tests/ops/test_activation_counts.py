"""activation_counts and top_n: every contract, on the reference, every native kernel and Triton."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssd_kernels import Rows, TopK, activation_counts, testing, top_n
from ssd_kernels.testing import id_of, make, num_threads, poisoned_empty

OPERATION = "activation_counts"


def counted(h):
    return sum(((row > 0).long() for row in h), torch.zeros(h.shape[-1], dtype=torch.int64))


def forms(h, k):
    """The same activations dense, as Rows, and (where every sample has at most k) as TopK."""
    sample, neuron = (h != 0).nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (h != 0).sum(1).cumsum(0)])
    yield h
    yield Rows(h[sample, neuron], neuron.to(torch.int32), offsets, torch.zeros(len(h), dtype=h.dtype))
    top = torch.topk(h, k)
    if bool(((h > 0).sum(1) <= k).all()):
        yield TopK(top.values, top.indices.to(torch.int32), top.values[:, -1])


@pytest.mark.parametrize("values", testing.VALUES)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_counts_are_exact(shape, dtype, values, backend, whole_table):
    scales = testing.SCALES if whole_table else testing.SCALES[len(values) % 3 :][:1]
    for scale in scales:
        h = make(shape.b, shape.r, values=values, dtype=dtype, scale=scale)
        for active in forms(h, shape.r):
            counts = activation_counts(active, shape.r, backend=backend)
            assert counts.dtype == torch.int64 and torch.equal(counts, counted(h))


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_layouts_threads_and_poison_change_nothing(layout, backend):
    h = make(70, 101, layout=layout)
    kept = h.clone()
    for threads in (1, 2):
        with num_threads(threads), poisoned_empty():
            for active in forms(h, 101):
                assert torch.equal(activation_counts(active, 101, backend=backend), counted(h))
    assert torch.equal(h, kept)


def test_leading_dimensions(backend):
    h = make(2, 3, 17)
    assert torch.equal(activation_counts(h, 17, backend=backend), counted(h.reshape(6, 17)))
    assert torch.equal(activation_counts(h[0, 0], 17, backend=backend), (h[0, 0] > 0).long())


@given(b=st.integers(0, 20), r=st.integers(1, 90))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(backend, b, r):
    h = make(b, r)
    for active in forms(h, r):
        assert torch.equal(activation_counts(active, r, backend=backend), counted(h))


@given(counts=st.lists(st.integers(0, 5) | st.integers(0, 2**62), min_size=1, max_size=80), data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_top_n_is_a_stable_sort(backend, counts, data):
    n = data.draw(st.integers(0, len(counts)))
    expected = sorted(range(len(counts)), key=lambda j: (-counts[j], j))[:n]
    assert top_n(torch.tensor(counts), n, backend=backend).tolist() == expected


def test_top_n_of_strided_and_large_counts(backend):
    neurons = 2500 if backend == "triton" else 20000
    counts = torch.randint(0, 30, (neurons, 2), generator=torch.Generator().manual_seed(0))
    expected = torch.sort(counts[:, 0], descending=True, stable=True).indices
    for n in (1, 1000, neurons - 1, neurons):
        assert torch.equal(top_n(counts[:, 0], n, backend=backend), expected[:n])


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_opcheck(dtype, backend):
    h = make(5, 33, dtype=dtype)
    rows = list(forms(h, 33))[1]
    ops = torch.ops.ssd_kernels
    torch.library.opcheck(ops.activation_counts.default, (h, None, 33, backend))
    torch.library.opcheck(ops.activation_counts.default, (rows.values, rows.indices, 33, backend))
    torch.library.opcheck(ops.top_n.default, (counted(h), 7, backend))


def test_compiles_whole_with_a_dynamic_batch(backend):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda h: top_n(activation_counts(h, 33, backend=backend), 5, backend=backend), fullgraph=True, dynamic=True
    )
    for batch in (3, 5, 8):
        h = make(batch, 33)
        assert torch.equal(compiled(h), torch.sort(counted(h), descending=True, stable=True).indices[:5])


def test_activations_that_require_a_gradient_are_counted(backend):
    assert not activation_counts(make(3, 9).requires_grad_(), 9, backend=backend).requires_grad


@pytest.mark.parametrize("bad", (-1, 9))
def test_an_index_out_of_range_is_refused(bad, backend):
    top = TopK(torch.ones(1, 2), torch.tensor([[0, bad]], dtype=torch.int32), torch.zeros(1))
    with pytest.raises(IndexError, match=f"indices (of activations )?must be from 0 to R - 1 = 8, got {bad}"):
        activation_counts(top, 9, backend=backend)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: activation_counts(torch.ones(2, 9), 8), "with R = 8"),
        (lambda: activation_counts(torch.ones(2, 9), 0), "neurons must be at least 1 and below 2..31, got 0"),
        (lambda: activation_counts(torch.ones(2, 9, dtype=torch.int64), 9), "activations must be floating point"),
        (lambda: activation_counts(torch.ones(2, 9), True), "neurons must be at least 1 and below 2..31, got True"),
        (lambda: activation_counts(torch.ones(2, 9), 9.0), "neurons must be at least 1 and below 2..31, got 9.0"),
        (lambda: activation_counts([1.0], 9), "activations must be a Tensor, got list"),
        (
            lambda: activation_counts(
                TopK(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int32, device="meta"), torch.ones(2)), 9
            ),
            "indices of activations must be on cpu, got meta",
        ),
        (lambda: top_n(torch.arange(9), 2.5), "n must be from 0 to R = 9, got 2.5"),
        (lambda: top_n(torch.ones(9), 2), "counts must be int64"),
        (lambda: top_n(torch.arange(9), 10), "n must be from 0 to R = 9, got 10"),
        (lambda: top_n(torch.arange(9), -1), "n must be from 0 to R = 9, got -1"),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
