"""sparse_linear: every contract, on the reference and on every native kernel."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssd_kernels import Rows, TopK, sparse_linear, testing
from ssd_kernels.sparse_linear import reference
from ssd_kernels.testing import assert_accurate, id_of, make, num_threads, poisoned_empty, same_bits

OPERATION = "sparse_linear"
TRITON_APART = True  # test_triton_sparse_linear.py: tables that fit the interpreter, and no fp64
CLASSES = 13


def activations(shape, kind="topk", dtype=torch.float32, values="normal", layout="contiguous", scale=1.0):
    """Top-K activations of a shape, or rows that own 0 to K of the entries."""
    generator = torch.Generator().manual_seed(testing.seed_of(shape, kind))
    indices = torch.rand(shape.b, shape.r, generator=generator).argsort(1)[:, : shape.k].to(torch.int32)
    entries = make(shape.b, shape.k, values=values, dtype=dtype, layout=layout, scale=scale)
    if kind == "topk":
        return TopK(entries, testing.lay_out(indices, layout) if layout == "transposed" else indices, entries.sum(-1))
    counts = torch.randint(0, shape.k + 1, (shape.b,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    keep = torch.arange(shape.k) < counts[:, None]
    indices = torch.where(keep, indices, 2**30).sort(1).values
    return Rows(testing.lay_out(entries[keep], layout), indices[keep], offsets, entries.sum(-1))


def outputs(active, weight, backend):
    """The result and both gradients, for one fixed cotangent."""
    active = active._replace(values=active.values.detach().requires_grad_())
    weight = weight.detach().requires_grad_()
    y = sparse_linear(active, weight, backend=backend)
    return (y.detach(), *torch.autograd.grad(y, (active.values, weight), make(*y.shape, seed=5, dtype=y.dtype)))


@pytest.mark.parametrize("kind", ("topk", "rows"))
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_forward_and_backward_are_accurate(shape, dtype, kind, backend):
    for values in ("normal", "ties", "zeros", "denormal"):
        for transposed in (False, True):
            active = activations(shape, kind, dtype, values)
            weight = make(CLASSES, shape.r, dtype=dtype, layout="transposed" if transposed else "contiguous", seed=1)
            offsets = active.offsets if kind == "rows" else None
            got = outputs(active, weight, backend)
            assert got[2].stride() == weight.stride()
            gold = reference.sparse_linear(active.values.double(), active.indices, offsets, weight.double())
            low = reference.sparse_linear(active.values, active.indices, offsets, weight)
            assert_accurate(got[0], gold, low)
            grad = make(*gold.shape, seed=5, dtype=dtype)
            golds = reference.sparse_linear_backward(
                grad.double(), active.values.double(), active.indices, offsets, weight.double()
            )
            lows = reference.sparse_linear_backward(grad, active.values, active.indices, offsets, weight)
            for kernel, gold, low in zip(got[1:], golds, lows):
                assert_accurate(kernel, gold, low)


@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_every_kind_of_value_and_scale(shape, backend):
    for values in testing.VALUES:
        for scale in testing.SCALES:
            active = activations(shape, "rows", values=values, scale=scale)
            weight = make(CLASSES, shape.r, seed=1)
            gold = reference.sparse_linear(active.values.double(), active.indices, active.offsets, weight.double())
            low = reference.sparse_linear(active.values, active.indices, active.offsets, weight)
            assert_accurate(sparse_linear(active, weight, backend=backend), gold, low)


@pytest.mark.parametrize("kind", ("topk", "rows"))
def test_it_is_the_dense_product(kind, backend):
    shape = testing.Shape(13, 1, 57, 5)
    active = activations(shape, kind, torch.float64)
    weight = make(CLASSES, shape.r, dtype=torch.float64, seed=1)
    offsets = active.offsets if kind == "rows" else torch.arange(14) * 5
    dense = torch.zeros(13, 57, dtype=torch.float64)
    for b in range(13):
        entries = slice(int(offsets[b]), int(offsets[b + 1]))
        dense[b, active.indices.flatten()[entries].long()] = active.values.flatten()[entries]
    torch.testing.assert_close(sparse_linear(active, weight, backend=backend), dense @ weight.T)


@pytest.mark.parametrize("values", ("nan", "inf"))
def test_non_finite_values_pass_through(values, backend):
    active = activations(testing.Shape(50, 1, 57, 5), "rows", values=values)
    weight = make(CLASSES, 57, values="ties", seed=1)
    expected = reference.sparse_linear(*active[:3], weight)
    assert same_bits(sparse_linear(active, weight, backend=backend), expected)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("kind", ("topk", "rows"))
def test_layouts_change_nothing(kind, layout, backend):
    shape = testing.Shape(7, 1, 101, 10)
    if kind == "rows" and layout == "expanded":
        layout = "strided"  # one value for every entry is not an activation
    active = activations(shape, kind, layout=layout)
    weight = make(CLASSES, 101, layout=layout, seed=1)
    plain = type(active)(*(part.contiguous() for part in active))
    expected = outputs(plain, weight.contiguous(), backend)
    got = outputs(active, weight, backend)
    for a, b in zip(got, expected):
        assert_accurate(a, b.double(), b)
    again = outputs(active, weight, backend)
    assert all(same_bits(a, b) for a, b in zip(got, again))


def test_leading_dimensions_and_expanded_gradients(backend):
    active = activations(testing.Shape(6, 1, 40, 4))
    shaped = TopK(active.values.reshape(2, 3, 4).requires_grad_(), active.indices.reshape(2, 3, 4), active.threshold)
    weight = make(CLASSES, 40, seed=1)
    y = sparse_linear(shaped, weight, backend=backend)
    assert y.shape == (2, 3, CLASSES)
    assert torch.equal(y.reshape(6, CLASSES), sparse_linear(active, weight, backend=backend))
    y.sum().backward()
    expected = weight.sum(0)[shaped.indices.long()]
    torch.testing.assert_close(shaped.values.grad, expected)


@pytest.mark.parametrize("kind", ("topk", "rows"))
def test_gradcheck(kind, backend):
    active = activations(testing.Shape(4, 1, 9, 3), kind, torch.float64)
    values, weight = active.values.requires_grad_(), make(5, 9, dtype=torch.float64, seed=1).requires_grad_()
    torch.autograd.gradcheck(
        lambda v, w: sparse_linear(active._replace(values=v), w, backend=backend), (values, weight)
    )


def test_double_backward_raises(backend):
    active, weight = activations(testing.Shape(4, 1, 9, 3)), make(5, 9, seed=1).requires_grad_()
    y = sparse_linear(active, weight, backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="double backward is not"):
        grad.sum().backward()


@pytest.mark.parametrize("needs", ((True, False), (False, True)))
def test_gradients_only_where_required(needs, backend):
    active, weight = activations(testing.Shape(4, 1, 9, 3)), make(5, 9, seed=1).requires_grad_(needs[1])
    active.values.requires_grad_(needs[0])
    sparse_linear(active, weight, backend=backend).sum().backward()
    assert (active.values.grad is not None, weight.grad is not None) == needs


@pytest.mark.parametrize("kind", ("topk", "rows"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=id_of)
def test_threads_repeats_and_poison_change_no_bit(dtype, kind, backend):
    shape = testing.Shape(129, 1, 200, 8)
    active, weight = activations(shape, kind, dtype), make(CLASSES, 200, dtype=dtype, seed=1)
    with num_threads(1):
        expected = outputs(active, weight, backend)
    with num_threads(2), poisoned_empty():
        for _ in range(100 if backend == "cpu" else 1):
            assert all(same_bits(a, b) for a, b in zip(outputs(active, weight, backend), expected))


@given(b=st.sampled_from((0, 1, 2, 3, 65)), c=st.integers(1, 40), r=st.integers(1, 90), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(backend, b, c, r, data):
    shape = testing.Shape(b, 1, r, data.draw(st.integers(1, r)))
    for kind in ("topk", "rows"):
        active, weight = activations(shape, kind, torch.float64), make(c, r, dtype=torch.float64, seed=1)
        offsets = active.offsets if kind == "rows" else None
        y, grad_values, grad_weight = outputs(active, weight, backend)
        torch.testing.assert_close(y, reference.sparse_linear(active.values, active.indices, offsets, weight))
        grad = make(b, c, seed=5, dtype=torch.float64)
        expected = reference.sparse_linear_backward(grad, active.values, active.indices, offsets, weight)
        torch.testing.assert_close((grad_values, grad_weight), expected)


@pytest.mark.parametrize("kind", ("topk", "rows"))
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_opcheck(dtype, kind, backend):
    active = activations(testing.Shape(5, 1, 33, 4), kind, dtype)
    offsets = active.offsets if kind == "rows" else None
    weight = make(CLASSES, 33, dtype=dtype, seed=1).requires_grad_()
    values = active.values.requires_grad_()
    op = torch.ops.ssd_kernels.sparse_linear_fwd.default
    torch.library.opcheck(op, (values, active.indices, offsets, weight, backend))
    grad = make(5, CLASSES, dtype=dtype)
    torch.library.opcheck(
        torch.ops.ssd_kernels.sparse_linear_bwd.default,
        (grad, values.detach(), active.indices, offsets, weight.detach(), True, True, backend),
    )


def test_compiles_whole_with_a_dynamic_batch(backend):
    weight = make(CLASSES, 33, seed=1).requires_grad_()
    torch._dynamo.reset()

    def loss(values, indices):
        return sparse_linear(TopK(values, indices, values[:, 0]), weight, backend=backend).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for batch in (3, 5, 8):
        active = activations(testing.Shape(batch, 1, 33, 4))
        arguments = (active.values, active.indices)
        torch.testing.assert_close(compiled(*arguments), loss(*arguments))
        torch.testing.assert_close(*(torch.autograd.grad(f(*arguments), weight)[0] for f in (compiled, loss)))


def test_autocast_is_that_of_linear(backend):
    active, weight = activations(testing.Shape(4, 1, 40, 3)), make(CLASSES, 40, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse_linear(active, weight, backend=backend)
    low = active._replace(values=active.values.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y, sparse_linear(low, weight.bfloat16(), backend=backend))


@pytest.mark.parametrize("bad", (-1, 9))
def test_an_index_out_of_range_is_refused(bad, backend):
    active, weight = activations(testing.Shape(4, 1, 9, 3)), make(5, 9)
    active.indices[2, 1] = bad
    with pytest.raises(IndexError, match=f"indices must be from 0 to R - 1 = 8, got {bad}"):
        sparse_linear(active, weight, backend=backend)


@pytest.mark.parametrize("offsets", ([0, 2], [0, 3, 2, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 9]))
def test_offsets_that_do_not_fit_are_refused(offsets, backend):
    active = Rows(torch.ones(5), torch.arange(5, dtype=torch.int32), torch.tensor(offsets), torch.zeros(4))
    with pytest.raises(ValueError, match="offsets must ascend from 0 to nnz = 5"):
        sparse_linear(active, make(5, 9), backend=backend)


@pytest.mark.parametrize(
    "values, indices, weight, message",
    [
        (torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.ones(4, 9), "indices of .* must be int32"),
        (torch.ones(2, 3), torch.zeros(2, 2, dtype=torch.int32), torch.ones(4, 9), "indices of .* must be int32"),
        (torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int32), torch.ones(9), "weight must be floating point"),
        (
            torch.ones(2, 3),
            torch.zeros(2, 3, dtype=torch.int32),
            torch.ones(4, 9).double(),
            "values must have the dtype",
        ),
        (torch.ones(2, 0), torch.zeros(2, 0, dtype=torch.int32), torch.ones(4, 9), "K >= 1"),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(values, indices, weight, message):
    with pytest.raises(ValueError, match=message):
        sparse_linear(TopK(values, indices, values.sum(-1)), weight)


def test_dense_activations_are_refused():
    with pytest.raises(ValueError, match=r"activations must be TopK, Rows or torch\.topk.s result, got Tensor"):
        sparse_linear(torch.ones(2, 9), torch.ones(4, 9))


def test_what_torch_topk_gives() -> None:
    scores, weight = make(5, 30, seed=1).requires_grad_(), make(7, 30, seed=2).requires_grad_()
    dense = torch.zeros(5, 30).scatter(-1, scores.topk(4).indices, scores.topk(4).values)
    results = [sparse_linear(scores.topk(4), weight), dense @ weight.T]
    grads = [torch.autograd.grad(y.square().sum(), (scores, weight)) for y in results]
    torch.testing.assert_close(*results)
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ("topk", "rows"))
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_sparse_gradients_are_the_rows_of_the_dense_ones(dtype, kind, backend):
    shape = testing.Shape(13, 65, 257, 5)
    active = activations(shape, kind, dtype)
    active.values.view(-1)[::7] = 0  # adds nothing: its neuron has no row for it
    table = make(shape.r, CLASSES, dtype=dtype, seed=1).requires_grad_()
    values = active.values.detach().requires_grad_()
    found = []
    for sparse_grad in (False, True):
        table.grad = values.grad = None
        y = sparse_linear(active._replace(values=values), table.t(), sparse_grad=sparse_grad, backend=backend)
        y.backward(make(*y.shape, seed=5, dtype=dtype))
        found.append((y.detach(), values.grad, table.grad))
    (y, grad_values, dense), (sparse_y, sparse_values, sparse) = found
    assert same_bits(y, sparse_y) and same_bits(grad_values, sparse_values)
    assert sparse.is_sparse and sparse.is_coalesced() and sparse.sparse_dim() == 1
    rows = sparse.indices()[0]
    touched = active.indices[active.values != 0].unique().long()
    assert torch.equal(rows, touched)
    tol = 16 * torch.finfo(dtype).eps * float(dense.abs().max())
    assert_accurate(sparse.to_dense(), dense.double(), dense, tol=tol)


def test_sparse_gradients_train_and_are_refused_by_name(backend):
    table = make(30, 4, seed=1).requires_grad_()
    active = TopK(torch.ones(2, 3), torch.tensor([[1, 2, 3], [3, 4, 5]], dtype=torch.int32), torch.zeros(2))
    before = table.detach().clone()
    optimizer = torch.optim.SparseAdam([table], lr=0.1)
    sparse_linear(active, table.mT, sparse_grad=True, backend=backend).sum().backward()
    optimizer.step()
    assert (table != before).any(1).nonzero().flatten().tolist() == [1, 2, 3, 4, 5]
    with torch.no_grad():
        assert sparse_linear(active, make(4, 30), sparse_grad=True, backend=backend).shape == (2, 4)
    with pytest.raises(ValueError, match=r"weight must be the transpose .* of an \(R, C\) tensor"):
        sparse_linear(active, make(4, 30).requires_grad_(), sparse_grad=True, backend=backend)
    with pytest.raises(NotImplementedError, match=r"sparse_grad=True: torch\.func: allowed is"):
        torch.func.grad(lambda t: sparse_linear(active, t.mT, sparse_grad=True, backend=backend).sum())(table)
    compiled = torch.compile(lambda: sparse_linear(active, table.mT, sparse_grad=True), fullgraph=True)
    with pytest.raises(Exception, match="sparse_grad=True cannot be compiled"):
        compiled()


def test_opcheck_of_the_table(backend):
    active = activations(testing.Shape(5, 7, 33, 4))
    values, table = active.values.requires_grad_(), make(33, 6, seed=1).requires_grad_()
    ops = torch.ops.ssd_kernels
    torch.library.opcheck(ops.sparse_linear_table_fwd.default, (values, active.indices, None, table, backend),
                          test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))  # fmt: skip
    arguments = (make(5, 6), values.detach(), active.indices, None, table.detach(), True, backend)
    torch.library.opcheck(ops.sparse_linear_table_bwd.default, arguments)
