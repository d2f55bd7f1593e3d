"""gaba_linear: every contract, on the reference and on every native kernel."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssd_kernels import gaba_linear, testing
from ssd_kernels.gaba_linear import reference
from ssd_kernels.testing import assert_accurate, id_of, make, num_threads, poisoned_empty, same_bits

OPERATION = "gaba_linear"
TRITON_APART = True  # test_triton_gaba_linear.py: tables that fit the interpreter, and no fp64
SHAPES = [shape for shape in testing.SHAPES if shape.k < shape.r]
COEFFICIENTS = ("one", "near_one", "mixed", "zero", "minus_one")


def coefficients(kind, r):
    match kind:
        case "one":
            return torch.ones(r)
        case "near_one":
            return 1 - 0.02 * make(r, values="uniform", dtype=torch.float32)
        case "mixed":
            return 2 * make(r, values="uniform", dtype=torch.float32) - 1
        case "zero":
            return torch.zeros(r)
        case "minus_one":
            return -torch.ones(r)


def inputs(shape, dtype=torch.float32, values="normal", scale=1.0, layout="contiguous"):
    x = make(shape.b, shape.d, values=values, scale=scale, dtype=dtype, layout=layout)
    weight = make(shape.r, shape.d, values=values, dtype=dtype, layout=layout, seed=1)
    return x, weight


def slack(x, weight, gold):
    """Units in the last place of h, and of the scores whose difference h is."""
    if gold.numel() == 0:
        return 0.0
    scores = (x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)).max()
    exact = torch.finfo(reference.accumulation_dtype(x.dtype)).eps
    stored = torch.finfo(x.dtype)
    return float(8 * exact * scores + 4 * stored.eps * gold.abs().max() + 4 * stored.tiny)


def dense_of(rows, r):
    return reference.rows_to_dense(rows.values, rows.indices, rows.offsets, r)


def everything(x, weight, k, g, backend, output="dense", **options):
    """The outputs and both gradients, for one fixed cotangent."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = gaba_linear(x, weight, k, g, output=output, backend=backend, **options)
    values = out if output == "dense" else out.values
    cotangent = make(x.shape[0], weight.shape[0], seed=5, dtype=x.dtype)
    if output == "rows":
        sample = torch.repeat_interleave(torch.arange(x.shape[0]), out.offsets.diff())
        cotangent = cotangent[sample, out.indices.long()]
    parts = (out,) if output == "dense" else tuple(out)
    return (*(part.detach() for part in parts), *torch.autograd.grad(values, (x, weight), cotangent))


@pytest.mark.parametrize("kind", COEFFICIENTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES, ids=id_of)
def test_forward_is_accurate(shape, dtype, kind, backend):
    for values in testing.FINITE_VALUES:
        for scale in testing.SCALES if values == "normal" else (1.0,):
            x, weight = inputs(shape, dtype, values, scale)
            g = coefficients(kind, shape.r)
            if values == "denormal" and dtype == torch.float16:
                continue  # all of it is zero in fp16
            h = gaba_linear(x, weight, shape.k, g, backend=backend)
            gold, _ = reference.gaba_linear(x.double(), weight.double(), g, shape.k)
            low, _ = reference.gaba_linear(x, weight, g, shape.k)
            assert_accurate(h, gold, low, tol=slack(x, weight, gold))


@pytest.mark.parametrize("shape", [shape for shape in testing.SHAPES if shape.k == shape.r], ids=id_of)
def test_as_many_winners_as_neurons_are_refused(shape, backend):
    x, weight = inputs(shape)
    with pytest.raises(ValueError, match=f"k must be from 1 to R - 1 = {shape.r - 1}, got {shape.k}"):
        gaba_linear(x, weight, shape.k, torch.ones(shape.r), backend=backend)


@pytest.mark.parametrize("kind", COEFFICIENTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES, ids=id_of)
def test_backward_is_accurate(shape, dtype, kind, backend):
    x, weight = inputs(shape, dtype)
    h, grad_x, grad_weight = everything(x, weight, shape.k, coefficients(kind, shape.r), backend)
    cotangent = make(shape.b, shape.r, seed=5, dtype=dtype)
    gold = reference.gaba_linear_backward(cotangent.double(), h.double(), x.double(), weight.double())
    low = reference.gaba_linear_backward(cotangent, h, x, weight)
    for kernel, g, l in zip((grad_x, grad_weight), gold, low):
        # In float64 the gold is as rounded as the kernel: sums of up to 1000 terms, in another order.
        exact = 64 * torch.finfo(dtype).eps * float(g.abs().max()) if g.numel() and dtype == torch.float64 else None
        assert_accurate(kernel, g, l, tol=exact)


@pytest.mark.parametrize("kind", COEFFICIENTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES, ids=id_of)
def test_rows_hold_the_dense_result_bitwise(shape, dtype, kind, backend):
    for values in ("normal", "ties", "negative", "equal_rows"):
        x, weight = inputs(shape, dtype, values)
        g = coefficients(kind, shape.r)
        h = gaba_linear(x, weight, shape.k, g, backend=backend)
        rows = gaba_linear(x, weight, shape.k, g, output="rows", backend=backend)
        assert same_bits(dense_of(rows, shape.r), h)
        assert rows.offsets[0] == 0 and rows.offsets[-1] == len(rows.values) and (rows.values > 0).all()
        assert rows.indices.dtype == torch.int32 and rows.offsets.dtype == torch.int64
        for b in range(shape.b):
            assert (rows.indices[rows.offsets[b] : rows.offsets[b + 1]].diff() > 0).all()
        a = torch.relu(x.to(reference.accumulation_dtype(dtype)) @ weight.to(reference.accumulation_dtype(dtype)).T)
        threshold = torch.topk(a, shape.k + 1).values[:, -1].to(dtype)
        torch.testing.assert_close(rows.threshold, threshold)


@pytest.mark.parametrize("kind", ("near_one", "minus_one"))
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_rows_and_sparse_gradients_equal_the_dense_ones(dtype, kind, backend):
    shape = testing.Shape(13, 65, 257, 5)
    x, weight = inputs(shape, dtype)
    g = coefficients(kind, shape.r)
    _, dense_x, dense_weight = everything(x, weight, shape.k, g, backend)
    gold_x, gold_weight = (t.double() for t in (dense_x, dense_weight))
    for output in ("dense", "rows"):
        for sparse_grad in (False, True):
            *_, grad_x, grad_weight = everything(x, weight, shape.k, g, backend, output, sparse_grad=sparse_grad)
            if sparse_grad:
                assert grad_weight.is_sparse and grad_weight.is_coalesced() and grad_weight.sparse_dim() == 1
                rows = grad_weight.indices()[0]
                assert (rows.diff() > 0).all() and len(rows) <= shape.r
                grad_weight = grad_weight.to_dense()
            for kernel, gold in ((grad_x, gold_x), (grad_weight, gold_weight)):
                tol = 16 * torch.finfo(dtype).eps * float(gold.abs().max())
                assert_accurate(kernel, gold, gold, tol=tol)


@pytest.mark.parametrize("kind", ("one", "mixed"))
@pytest.mark.parametrize("values", ("ties", "nan", "inf", "negative_inf", "zeros"))
def test_planted_ties_and_non_finite_values_match_the_reference_bitwise(values, kind, backend):
    for shape in SHAPES:
        x = make(shape.b, shape.d, values=values)
        weight = make(shape.r, shape.d, values="ties", seed=1)
        g = torch.round(4 * coefficients(kind, shape.r)) / 4
        expected, _ = reference.gaba_linear(x, weight, g, shape.k)
        assert same_bits(gaba_linear(x, weight, shape.k, g, backend=backend), expected)
        rows = gaba_linear(x, weight, shape.k, g, output="rows", backend=backend)
        assert same_bits(dense_of(rows, shape.r), expected)


def test_a_late_infinite_or_nan_threshold_is_seen_by_every_neuron(backend):
    """K + 1 late neurons make I infinite or NaN after other panels have passed."""
    for value in (float("inf"), float("nan")):
        weight = make(1500, 64, values="uniform")
        weight[-3:] = value
        x, g = make(20, 64, values="uniform", seed=1), torch.ones(1500)
        g[::7] = 0
        expected, _ = reference.gaba_linear(x, weight, g, 2)
        assert same_bits(gaba_linear(x, weight, 2, g, backend=backend), expected)
        rows = gaba_linear(x, weight, 2, g, output="rows", backend=backend)
        assert same_bits(dense_of(rows, 1500), expected)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_layouts_change_nothing(dtype, layout, backend):
    shape = testing.Shape(7, 33, 101, 10)
    x, weight = inputs(shape, dtype, layout=layout)
    g = coefficients("near_one", shape.r)
    for output in ("dense", "rows"):
        expected = everything(x.contiguous(), weight.contiguous(), shape.k, g, backend, output)
        kept = x.clone(), weight.clone(), g.clone()
        got = everything(x, weight, shape.k, g, backend, output)
        if backend == "cpu":  # torch's own matmul, in the reference, rounds by layout
            assert all(same_bits(a, b) for a, b in zip(got, expected))
        assert_accurate(got[0], expected[0].double(), expected[0])
        assert all(same_bits(a, b) for a, b in zip((x, weight, g), kept))


def test_leading_dimensions_and_expanded_gradients(backend):
    x, weight = make(2, 3, 16), make(40, 16, seed=1)
    x.requires_grad_()
    h = gaba_linear(x, weight, 4, torch.ones(40), backend=backend)
    assert h.shape == (2, 3, 40)
    h.sum().backward()  # an expanded gradient of ones
    expected = (h > 0).float().reshape(6, 40) @ weight
    torch.testing.assert_close(x.grad.reshape(6, 16), expected)
    one = gaba_linear(x[0, 0], weight, 4, torch.ones(40), backend=backend)
    assert one.shape == (40,)
    torch.testing.assert_close(one, h[0, 0])
    assert backend == "reference" or torch.equal(one, h[0, 0])


def test_only_active_neurons_receive_a_gradient_and_only_where_required(backend):
    x, weight = make(5, 16), make(40, 16, seed=1)
    for needs_x, needs_weight in ((True, False), (False, True)):
        a, b = x.clone().requires_grad_(needs_x), weight.clone().requires_grad_(needs_weight)
        h = gaba_linear(a, b, 3, torch.ones(40), backend=backend)
        h.sum().backward()
        assert (a.grad is not None) == needs_x and (b.grad is not None) == needs_weight
        if needs_weight:
            assert torch.equal(b.grad.abs().sum(1) > 0, (h > 0).any(0))
    rows = gaba_linear(x.requires_grad_(), weight, 3, torch.ones(40), output="rows", backend=backend)
    assert rows.values.requires_grad and not rows.threshold.requires_grad and not rows.indices.requires_grad


def test_an_excited_neuron_without_a_positive_score_receives_its_gradient(backend):
    x, weight = torch.tensor([[1.0]]), torch.tensor([[2.0], [-1.0], [0.5]], requires_grad=True)
    h = gaba_linear(x, weight, 1, -torch.ones(3), backend=backend)
    assert h.tolist() == [[2.5, 0.5, 1.0]]
    h.sum().backward()
    assert weight.grad.tolist() == [[1.0], [1.0], [1.0]]


def test_gradcheck_without_inhibition(backend):
    x = make(4, 5, dtype=torch.float64).requires_grad_()
    weight = make(9, 5, dtype=torch.float64, seed=1).requires_grad_()
    g = torch.zeros(9)
    torch.autograd.gradcheck(lambda x, w: gaba_linear(x, w, 2, g, backend=backend), (x, weight))
    torch.autograd.gradcheck(lambda x, w: gaba_linear(x, w, 2, g, output="rows", backend=backend).values, (x, weight))


@pytest.mark.parametrize("output", ("dense", "rows"))
def test_numerical_gradient_with_the_threshold_held_fixed(output, backend):
    shape, g = testing.Shape(3, 4, 9, 2), coefficients("mixed", 9)
    x, weight = (torch.rand_like(t) for t in inputs(shape, torch.float64))  # all scores are positive
    a = x @ weight.T
    threshold = torch.topk(a, shape.k + 1).values[:, -1:]
    cotangent = make(3, 9, seed=5, dtype=torch.float64)

    def fixed(x, weight):
        return (torch.relu(x @ weight.T - g.double() * threshold) * cotangent).sum()

    *_, grad_x, grad_weight = everything(x, weight, shape.k, g, backend, output)
    for which, grad in ((0, grad_x), (1, grad_weight)):
        numerical = torch.zeros_like(grad)
        for i in range(grad.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [x.clone(), weight.clone()]
                moved[which].view(-1)[i] += step
                ends.append(fixed(*moved))
            numerical.view(-1)[i] = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(grad, numerical, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("output", ("dense", "rows"))
def test_double_backward_raises(output, backend):
    x = make(4, 5).requires_grad_()
    out = gaba_linear(x, make(9, 5, seed=1), 2, torch.ones(9), output=output, backend=backend)
    values = out if output == "dense" else out.values
    (grad,) = torch.autograd.grad(values.square().sum(), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="double backward is not"):
        grad.sum().backward()


@pytest.mark.parametrize("kind", ("one", "near_one", "minus_one"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)
def test_threads_repeats_and_poison_change_no_bit(dtype, kind, backend):
    shape = testing.Shape(37, 48, 515, 8)
    x, weight = inputs(shape, dtype)
    g = coefficients(kind, shape.r)
    for output in ("dense", "rows"):
        with num_threads(1):
            expected = everything(x, weight, shape.k, g, backend, output)
        with num_threads(2), poisoned_empty():
            for _ in range(20 if backend == "cpu" else 1):
                got = everything(x, weight, shape.k, g, backend, output)
                if backend == "cpu":
                    assert all(same_bits(a, b) for a, b in zip(got, expected))
        assert all(torch.isfinite(part).all() for part in got)


@given(b=st.sampled_from((0, 1, 2, 3, 17, 66)), d=st.integers(1, 70), r=st.integers(2, 200), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(backend, b, d, r, data):
    shape = testing.Shape(b, d, r, data.draw(st.integers(1, r - 1)))
    x, weight = inputs(shape, torch.float64)
    g = coefficients(data.draw(st.sampled_from(COEFFICIENTS)), r)
    h, grad_x, grad_weight = everything(x, weight, shape.k, g, backend)
    expected, _ = reference.gaba_linear(x, weight, g, shape.k)
    torch.testing.assert_close(h, expected, atol=1e-12, rtol=1e-12)
    rows, *_, rows_x, rows_weight = everything(x, weight, shape.k, g, backend, "rows")
    assert len(rows) == int((h > 0).sum())
    torch.testing.assert_close(rows_x, grad_x, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(rows_weight, grad_weight, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("layout", ("contiguous", "transposed"))
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_opcheck(dtype, layout, backend):
    shape = testing.Shape(5, 7, 33, 4)
    x, weight = (t.requires_grad_() for t in inputs(shape, dtype, layout=layout))
    g = coefficients("near_one", shape.r).double()
    ops = torch.ops.ssd_kernels
    for op in (ops.gaba_linear_dense_fwd.default, ops.gaba_linear_rows_fwd.default):
        torch.library.opcheck(op, (x, weight, g, shape.k, False, backend))
    x, weight = x.detach(), weight.detach()
    h = gaba_linear(x, weight, shape.k, g, backend=backend)
    rows = gaba_linear(x, weight, shape.k, g, output="rows", backend=backend)
    torch.library.opcheck(ops.gaba_linear_dense_bwd.default, (h, h, x, weight, True, True, backend))
    arguments = (rows.values, rows.values, rows.indices, rows.offsets, x, weight, True)
    torch.library.opcheck(ops.gaba_linear_rows_bwd.default, (*arguments, True, backend))
    torch.library.opcheck(ops.gaba_linear_rows_sparse_bwd.default, (*arguments, backend))


def test_compiles_whole_with_a_dynamic_batch(backend):
    weight, g = make(33, 7, seed=1).requires_grad_(), coefficients("near_one", 33)
    torch._dynamo.reset()

    def both(x):
        rows = gaba_linear(x, weight, 4, g, output="rows", backend=backend)
        return gaba_linear(x, weight, 4, g, backend=backend).sum() + rows.values.sum()

    compiled = torch.compile(both, fullgraph=True, dynamic=True)
    for batch in (3, 5, 8):
        x = make(batch, 7)
        torch.testing.assert_close(compiled(x), both(x))
        grads = [torch.autograd.grad(f(x), weight)[0] for f in (compiled, both)]
        torch.testing.assert_close(*grads)


def test_autocast_is_that_of_linear(backend):
    x, weight, g = make(4, 16), make(40, 16, seed=1), 1 - 1e-3 * torch.rand(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = gaba_linear(x, weight, 3, g, backend=backend)
    assert h.dtype == torch.bfloat16
    assert torch.equal(h, gaba_linear(x.bfloat16(), weight.bfloat16(), 3, g, backend=backend))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 0}, "k must be from 1 to R - 1 = 8, got 0"),
        ({"k": 9}, "k must be from 1 to R - 1 = 8, got 9"),
        ({"k": 1.5}, "k must be from 1 to R - 1 = 8, got 1.5"),
        ({"k": True}, "k must be from 1 to R - 1 = 8, got True"),
        ({"x": torch.ones(2, 4).numpy()}, "x must be a Tensor, got ndarray"),
        ({"weight": torch.ones(9, 4).to_sparse()}, "weight must be a dense tensor, got torch.sparse_coo"),
        ({"x": torch.ones(2, 4, dtype=torch.float8_e4m3fn)}, "x must be floating point"),
        ({"x": torch.ones(2, 0), "weight": torch.ones(9, 0)}, "D >= 1"),
        ({"x": torch.ones(2, 5)}, "weight must be"),
        ({"x": torch.ones(2, 4).double()}, "weight must have the dtype of x"),
        ({"x": torch.ones(2, 4, dtype=torch.int64)}, "x must be floating point"),
        ({"g": torch.ones(8)}, "g must be floating point"),
        ({"output": "coo"}, "output must be 'dense' or 'rows', got 'coo'"),
        ({"backend": "fast"}, "there is no such backend"),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(change, message):
    arguments = {"x": torch.ones(2, 4), "weight": torch.ones(9, 4), "k": 2, "g": torch.ones(9)} | change
    with pytest.raises(ValueError, match=message):
        gaba_linear(**arguments)


def test_sparse_gradients_do_not_compile():
    weight = make(9, 4).requires_grad_()
    compiled = torch.compile(lambda x: gaba_linear(x, weight, 2, torch.ones(9), sparse_grad=True), fullgraph=True)
    with pytest.raises(Exception, match="sparse_grad=True cannot be compiled"):
        compiled(make(2, 4))


def test_a_score_of_minus_infinity_is_excited_too(backend):
    """relu(-inf) = 0, so with g < 0 the neuron is active at -g I: in both forms."""
    x, weight, g = torch.ones(2, 3), torch.rand(9, 3), torch.full((9,), -0.5)
    weight[4, 1] = -float("inf")
    dense = gaba_linear(x, weight, 2, g, backend=backend)
    rows = gaba_linear(x, weight, 2, g, output="rows", backend=backend)
    assert (dense[:, 4] > 0).all() and rows.offsets.tolist() == [0, 9, 18]
    assert torch.equal(rows.values.reshape(2, 9), dense)
