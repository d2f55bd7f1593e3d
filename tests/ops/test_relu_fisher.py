"""relu_mlp and relu_fisher_: every contract, on the reference and every native kernel."""

import functools
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssd_kernels import testing
from ssd_kernels.relu_fisher import reference, relu_fisher_, relu_mlp
from ssd_kernels.testing import assert_accurate, id_of, make, num_threads, poisoned_empty, same_bits

OPERATION = "relu_fisher"
DTYPES = (torch.float32, torch.float64)
SHAPES = (*testing.SHAPES, testing.Shape(37, 260, 15, 200), testing.Shape(140, 33, 60, 129))  # K: the classes


constant = functools.cache(make)  # nobody writes to it


@pytest.fixture(autouse=True)
def one_thread():
    """Small problems: beside other work, two threads would spend their time waiting for each other."""
    with num_threads(1):
        yield


def network(b, d, r, c, dtype=torch.float32, values="normal", layout="contiguous", scale=1.0):
    """x, W, its bias, V and its bias, with sums of products of the order of 1."""
    x = make(b, d, values=values, dtype=dtype, layout=layout, scale=scale)
    w = constant(r, d, dtype=dtype, layout=layout, scale=d**-0.5, seed=1)
    v = constant(c, r, dtype=dtype, layout=layout, scale=r**-0.5, seed=2)
    return x, w, constant(r, dtype=dtype, scale=0.1, seed=3), v, constant(c, dtype=dtype, scale=0.1, seed=4)


def state(b, d, r, c, dtype=torch.float32, values="normal", layout="contiguous", scale=1.0):
    """What relu_fisher_ reads: x, h, V, p and labels. h is stored as relu_mlp stores it."""
    x, *_, v, _ = network(b, d, r, c, dtype, values, layout, scale)
    h = torch.relu(constant(r, b, dtype=dtype, seed=5)).T
    p = constant(b, c, seed=6).double().softmax(1).to(dtype)
    return x, h, v, p, torch.randint(c, (b,), generator=torch.Generator().manual_seed(b * r))


def double(tensors):
    return tuple(t.double() if t.is_floating_point() else t for t in tensors)


def zeros(d, r, c, dtype):
    return tuple(torch.zeros(*shape, dtype=dtype) for shape in ((r, d), (r,), (c, r), (c,)))


def added(given, expected, beta, backend):
    """The four sums, onto zeros, for the labels or for their expectation."""
    x, h, v, p, labels = given
    sums = zeros(x.shape[1], h.shape[1], v.shape[0], x.dtype)
    relu_fisher_(sums, x, h, v, p, None if expected else labels, beta, backend=backend)
    return sums


def wanted(given, expected, beta):
    x, h, v, p, labels = given
    return reference.relu_fisher(x, h, v, p, None if expected else labels, beta)


def accurate(out, gold, low):
    """The tolerance rule; in fp64, where the gold one is the reference itself, sums may differ by their rounding."""
    finite = gold[gold.isfinite()].abs()
    exact = out.dtype == torch.float64 and finite.numel() > 0
    assert_accurate(out, gold, low, tol=1e-13 * float(finite.max()) + 1e-300 if exact else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", SHAPES, ids=id_of)
def test_the_case_tables(shape, dtype, backend):
    scale = itertools.cycle(testing.SCALES)
    for values in testing.VALUES:
        given = network(shape.b, shape.d, shape.r, shape.k, dtype, values, scale=next(scale))
        for out, gold, low in zip(
            relu_mlp(*given, backend=backend), reference.relu_mlp(*double(given)), reference.relu_mlp(*given)
        ):
            assert out.dtype == dtype and out.stride() == low.stride()
            accurate(out, gold, low)
        given = state(shape.b, shape.d, shape.r, shape.k, dtype, values, scale=next(scale))
        for expected in (False, True):
            gold, low = wanted(double(given), expected, 0.7), wanted(given, expected, 0.7)
            for out, exact, single in zip(added(given, expected, 0.7, backend), gold, low):
                accurate(out, exact, single)


@pytest.mark.parametrize("expected", (False, True), ids=("labels", "expectation"))
@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
@pytest.mark.parametrize("size", ((1, 3, 5, 2), (40, 12, 30, 5), (9, 40, 70, 33), (130, 20, 50, 3)), ids=str)
def test_it_is_the_loop_over_samples(size, dtype, expected, backend):
    """Autograd, one sample and one label at a time in fp64, within 1e-6."""
    given, beta = network(*size, dtype), 0.7
    parameters = [t.double().requires_grad_() for t in given[1:]]
    labels = torch.randint(size[3], (size[0],), generator=torch.Generator().manual_seed(0))
    loop = [torch.zeros_like(p) for p in parameters]
    for b in range(size[0]):
        w, bias, v, output_bias = parameters
        log_p = (beta * (v @ torch.relu(w @ given[0][b].double() + bias) + output_bias)).log_softmax(0)
        for c, share in enumerate(log_p.detach().exp()):
            if expected or c == labels[b]:
                for total, g in zip(loop, torch.autograd.grad(-log_p[c], parameters, retain_graph=True)):
                    total += (share if expected else 1) * g**2
    h, y = relu_mlp(*given, backend=backend)
    p = (beta * y).softmax(1)
    for out, total in zip(added((given[0], h, given[3], p, labels), expected, beta, backend), loop):
        assert torch.linalg.norm(out - total) <= 1e-6 * torch.linalg.norm(total) and total.abs().sum() > 0


@pytest.mark.parametrize("layout", testing.LAYOUTS)
@pytest.mark.parametrize("size", ((140, 70, 530, 7), (600, 90, 15, 3)), ids=str)  # and fewer tiles than threads
def test_layouts_threads_and_poison_change_nothing(size, layout, backend):
    given, plain = network(*size, layout=layout), [t.contiguous() for t in network(*size, layout=layout)]
    x, h, v, p, labels = state(*size, layout=layout)
    first = None
    for threads in (1,) if backend == "reference" else (1, 2, 3):
        with num_threads(threads), poisoned_empty():
            outputs = [*relu_mlp(*given, backend=backend), *relu_mlp(*plain, backend=backend)]
            for expected in (False, True):
                for hidden in (h, h.contiguous()):
                    outputs += added((x, hidden, v, p, labels), expected, 1.0, backend)
            assert same_bits(outputs[0], outputs[2]) or backend == "reference"  # torch's sums may depend on strides
        first = first or outputs
        if backend != "reference":
            assert all(same_bits(one, other) for one, other in zip(first, outputs))
        assert not any(out.isnan().any() for out in outputs)


def test_it_adds_to_sums_of_any_layout(backend):
    given = state(21, 35, 40, 6)
    for layout in ("contiguous", "transposed", "strided", "unaligned"):
        sums = tuple(make(*t.shape, layout=layout if t.dim() == 2 else "contiguous") for t in zeros(35, 40, 6, None))
        before = [t.clone() for t in sums]
        relu_fisher_(sums, *given, 0.7, backend=backend)
        for out, start, more in zip(sums, before, wanted(given, False, 0.7)):
            torch.testing.assert_close(out, start + more, rtol=1e-5, atol=1e-5)


@given(b=st.integers(0, 70), d=st.integers(1, 70), r=st.integers(1, 70), c=st.integers(1, 40), expected=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(backend, b, d, r, c, expected):
    given = state(b, d, r, c, torch.float64)
    for out, exact in zip(added(given, expected, 1.3, backend), wanted(given, expected, 1.3)):
        torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
def test_opcheck(dtype, backend):
    ops, checks = torch.ops.ssd_kernels, ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.relu_mlp.default, (*network(5, 9, 33, 4, dtype), backend), test_utils=checks)
    given = state(5, 9, 33, 4, dtype)
    for labels in (given[-1], None):
        arguments = (*zeros(9, 33, 4, dtype), *given[:-1], labels, 0.7, backend)
        torch.library.opcheck(ops.relu_fisher_.default, arguments, test_utils=checks)


@pytest.mark.parametrize("bad", (-1, 4))
def test_a_label_out_of_range_is_refused_before_any_change(bad, backend):
    *given, labels = state(3, 5, 6, 4)
    labels[1] = bad
    sums = zeros(5, 6, 4, torch.float32)
    with pytest.raises(IndexError, match=f"labels must be from 0 to C - 1 = 3, got {bad}"):
        relu_fisher_(sums, *given, labels, 1.0, backend=backend)
    assert not any(total.any() for total in sums)


def changed(given, place, tensor):
    return (*given[:place], tensor, *given[place + 1 :])


NETWORK, STATE, SUMS = network(3, 5, 6, 4), state(3, 5, 6, 4), zeros(5, 6, 4, torch.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: relu_mlp(*changed(NETWORK, 0, torch.ones(3))), "x must be a float32 or float64 matrix"),
        (lambda: relu_mlp(*changed(NETWORK, 0, torch.ones(3, 0))), r"x must be .* got torch.float32 \(3, 0\)"),
        (lambda: relu_mlp(*(t.bfloat16() for t in NETWORK)), "x must be .* got torch.bfloat16"),
        (lambda: relu_mlp(*changed(NETWORK, 1, torch.ones(6, 4))), r"weight must be torch.float32 \(6, 5\)"),
        (lambda: relu_mlp(*changed(NETWORK, 2, torch.ones(5))), r"bias must be torch.float32 \(6,\)"),
        (lambda: relu_mlp(*changed(NETWORK, 4, torch.ones(4).double())), r"output_bias must be torch.float32 \(4,\)"),
        (lambda: relu_fisher_(SUMS, *changed(STATE, 1, torch.ones(3, 7)), 1.0), r"hidden must be .* \(3, 6\)"),
        (lambda: relu_fisher_(SUMS, *changed(STATE, 3, torch.ones(2, 4)), 1.0), r"probabilities must be .* \(3, 4\)"),
        (lambda: relu_fisher_(SUMS, *changed(STATE, 4, torch.ones(3)), 1.0), r"labels must be int64 \(B,\) with B = 3"),
        (lambda: relu_fisher_(SUMS[::-1], *STATE, 1.0), r"weight must be torch.float32 \(6, 5\)"),
        (lambda: relu_mlp(*NETWORK, backend="triton"), "backend='triton' cannot run relu_fisher: it has no kernel"),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
