"""sparse_update_: every contract, on the reference, every native kernel and Triton."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssd_kernels import sparse_update_, testing
from ssd_kernels.sparse_update import reference
from ssd_kernels.testing import assert_accurate, id_of, make, num_threads, poisoned_empty, same_bits

OPERATION = "sparse_update"
SIZES = ((1, 1, 1), (9, 1, 4), (5, 2500, 2), (33, 7, 33), (70, 31, 12), (300, 65, 111), (1000, 256, 200))


def problem(r, d, m, dtype=torch.float32, values="normal", layout="contiguous"):
    weight = make(r, d, values=values, dtype=dtype, layout=layout)
    generator = torch.Generator().manual_seed(r * d)
    rows = torch.randperm(r, generator=generator)[:m].sort().values
    return weight, rows, make(m, d, dtype=dtype, layout=layout, seed=1)


def expected_of(weight, rows, grad, dtype, **options):
    new, movement = reference.sparse_update(weight.to(dtype), rows, grad.to(dtype), 0.05 * 0.7, **options)
    return weight.to(dtype).index_copy(0, rows, new), movement


@pytest.mark.parametrize("renormalise", (False, True))
@pytest.mark.parametrize("clamp", (False, True))
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_update_is_accurate_and_movement_is_that_of_the_stored_rows(
    size, dtype, clamp, renormalise, backend, whole_table
):
    few = not whole_table and size[0] == 1000
    for values in ("normal",) if few else ("normal", "uniform", "ties", "zeros", "negative"):
        weight, rows, grad = problem(*size, dtype, values)
        before = weight.clone()
        movement = sparse_update_(
            weight, rows, grad, lr=0.05, scale=0.7, clamp=clamp, renormalise=renormalise, backend=backend
        )
        options = {"clamp": clamp, "renormalise": renormalise}
        gold, _ = expected_of(before, rows, grad, torch.float64, **options)
        low, _ = expected_of(before, rows, grad, dtype, **options)
        assert_accurate(weight, gold, low)
        untouched = torch.ones(len(weight), dtype=torch.bool).index_fill_(0, rows, False)
        assert torch.equal(weight[untouched], before[untouched])
        moved = (weight.double() - before.double()).norm(dim=1)
        assert movement.dtype == torch.float64
        # Summed in the accumulation type, in short blocks.
        torch.testing.assert_close(movement, moved[rows], atol=1e-300, rtol=1e-12 if dtype == torch.float64 else 1e-6)
        if clamp:
            assert (weight[rows] >= 0).all()


@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_the_case_tables(shape, backend):
    """Every kind of value, scale, dtype and layout, on K rows of an (R, D) weight."""
    rows = torch.randperm(shape.r, generator=torch.Generator().manual_seed(0))[: shape.k].sort().values
    turn = itertools.count()
    for values in testing.VALUES:
        for scale in testing.SCALES:
            case = next(turn)
            dtype, layout = testing.DTYPES[case % 4], testing.LAYOUTS[case % 5]
            slopes = values if values in testing.FINITE_VALUES else "normal"
            grad = make(shape.k, shape.d, values=slopes, scale=scale, dtype=dtype, layout=layout, seed=1)
            written = "contiguous" if layout == "expanded" else layout
            weight = make(shape.r, shape.d, values=values, dtype=dtype, layout=written)
            options = {"clamp": case % 2 == 0, "renormalise": case % 3 > 0}
            gold, _ = expected_of(weight, rows, grad, torch.float64, **options)
            low, _ = expected_of(weight, rows, grad, dtype, **options)
            sparse_update_(weight, rows, grad, lr=0.05, scale=0.7, backend=backend, **options)
            assert_accurate(weight, gold, low)


def test_it_is_the_dense_step_up_to_rounding(backend):
    """A dense step of SGD and projection moves an untouched unit row by rounding alone."""
    weight, rows, grad = problem(300, 64, 40, torch.float64)
    weight = torch.nn.functional.normalize(weight.abs())
    dense, dense_grad = weight.clone(), torch.zeros_like(weight).index_copy_(0, rows, grad)
    dense = torch.nn.functional.normalize((dense - 0.05 * 0.3 * dense_grad).clamp_min(0))
    sparse_update_(weight, rows, grad, lr=0.05, scale=0.3, backend=backend)
    torch.testing.assert_close(weight, dense, atol=1e-15, rtol=1e-14)


def test_a_row_that_becomes_zero_stays_zero_and_tiny_rows_are_normalised(backend):
    weight = torch.tensor([[1.0, 0.0], [3e-30, 4e-30], [6e-10, 8e-10]])
    grad = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    movement = sparse_update_(weight, torch.arange(3), grad, lr=2.0, backend=backend)
    assert weight[0].tolist() == [0.0, 0.0] and movement[0] == 1.0
    torch.testing.assert_close(weight[1], torch.tensor([3e-18, 4e-18]))  # its norm is below 1e-12
    torch.testing.assert_close(weight[2], torch.tensor([0.6, 0.8]))


def test_a_move_whose_squares_vanish_in_float32_is_seen(backend):
    weight = torch.tensor([[1e-25, 0.0]])
    movement = sparse_update_(weight, torch.arange(1), torch.tensor([[-1.0, 0.0]]), lr=2e-25, renormalise=False,
                              backend=backend)  # fmt: skip
    torch.testing.assert_close(movement, torch.tensor([2e-25], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("options", ({}, {"max_norm": 1.0}, {"clamp": False, "renormalise": False}), ids=str)
def test_a_gradient_that_is_not_finite_changes_nothing(value, options, backend):
    weight, rows, grad = problem(33, 7, 5)
    before = weight.clone()
    grad[2, 3] = value
    with pytest.raises(FloatingPointError, match=r"grad_rows, or lr . scale times it, is not finite: weight has not"):
        sparse_update_(weight, rows, grad, lr=0.1, backend=backend, **options)
    assert torch.equal(weight, before)


def test_a_step_beyond_float32_changes_nothing(backend):
    weight, rows, grad = problem(33, 7, 5)
    before = weight.clone()
    with pytest.raises(FloatingPointError, match="not finite"):
        sparse_update_(weight, rows, grad.mul_(1e3), lr=1e37, backend=backend)
    assert torch.equal(weight, before)
    sparse_update_(weight, rows, grad, lr=1e37, max_norm=1e-3, backend=backend)
    assert torch.isfinite(weight).all()


def test_numbers_that_are_refused(backend):
    weight, rows, grad = problem(33, 7, 5)
    before = weight.clone()
    nan, inf = float("nan"), float("inf")
    for options, message in (
        ({"lr": nan}, "lr must be 0 or more and finite, got nan"),
        ({"lr": inf}, "lr must be"),
        ({"lr": -0.1}, "lr must be"),
        ({"scale": nan}, "scale must be 0 or more and finite, got nan"),
        ({"scale": -1.0}, "scale must be"),
        ({"scale": torch.tensor(nan)}, "scale must be"),
        ({"scale": torch.tensor(-1.0)}, "scale must be"),
        ({"max_norm": nan}, "max_norm must be"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse_update_(weight, rows, grad, backend=backend, **({"lr": 0.1} | options))
    assert torch.equal(weight, before)


def test_a_weight_that_shares_memory_with_itself_is_refused(backend):
    rows, grad = torch.arange(2), torch.ones(2, 4)
    base = torch.rand(64)
    for weight in (base[:4].expand(5, 4), base.as_strided((5, 4), (2, 1)), base.as_strided((5, 4), (1, 1)),
                   base[:5, None].expand(5, 4)):  # fmt: skip
        with pytest.raises(ValueError, match="weight must not share memory with itself"):
            sparse_update_(weight, rows, grad, lr=0.1, backend=backend)
    for weight in (base.as_strided((5, 4), (1, 5)), base.as_strided((5, 4), (9, 2)), base[:4].expand(1, 4)):
        sparse_update_(weight, rows[: len(weight)], grad[: len(weight)], lr=0.1, backend=backend)


@pytest.mark.parametrize("layout", ("contiguous", "transposed", "strided", "unaligned"))
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_layouts_change_nothing(dtype, layout, backend):
    weight, rows, grad = problem(70, 31, 12, dtype, layout=layout)
    plain = weight.clone(memory_format=torch.contiguous_format)
    kept = grad.clone(), rows.clone()
    expected = sparse_update_(plain, rows, grad.contiguous(), lr=0.05, backend=backend)
    movement = sparse_update_(weight, rows, grad, lr=0.05, backend=backend)
    assert_accurate(weight, plain.double(), plain)
    torch.testing.assert_close(movement, expected, rtol=1e-3, atol=1e-3)
    if backend == "cpu":
        assert same_bits(weight, plain) and same_bits(movement, expected)
    assert torch.equal(grad, kept[0]) and torch.equal(rows, kept[1])


def test_strided_rows_and_a_scale_tensor(backend):
    weight, rows, grad = problem(70, 31, 12)
    other = weight.clone()
    wide = torch.stack([rows, rows + 1], 1)
    sparse_update_(weight, wide[:, 0], grad, lr=0.05, scale=torch.tensor([0.5]), backend=backend)
    sparse_update_(other, rows, grad, lr=0.05, scale=0.5, backend=backend)
    assert torch.equal(weight, other)


@pytest.mark.parametrize("max_norm", (0.0, 0.5, 1e9))
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_clipping_is_by_the_norm_of_the_gradient(dtype, max_norm, backend):
    for scale in (1.0, 1e-20, 1e25):  # squares that vanish or overflow in float32 count too
        weight, rows, grad = problem(300, 65, 111, dtype)
        grad = (grad.double() * scale).clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else grad * scale
        before, norm = weight.clone(), float(grad.double().norm())
        coefficient = min(1.0, max_norm / (norm + 1e-6))
        expected = before.clone()
        sparse_update_(expected, rows, grad, lr=0.05, scale=0.7 * coefficient, clamp=False, renormalise=False,
                       backend=backend)  # fmt: skip
        sparse_update_(weight, rows, grad, lr=0.05, scale=torch.tensor(0.7), max_norm=max_norm, clamp=False,
                       renormalise=False, backend=backend)  # fmt: skip
        torch.testing.assert_close(weight, expected)
        if max_norm == 0:
            assert torch.equal(weight, before)


def test_the_step_is_that_of_clip_grad_norm(backend):
    weight, rows, grad = problem(300, 64, 40, torch.float64)
    weight = torch.nn.functional.normalize(weight.abs())
    dense = torch.nn.Parameter(weight.clone())
    dense.grad = torch.zeros_like(weight).index_copy_(0, rows, grad)
    torch.nn.utils.clip_grad_norm_([dense], 1.0)
    stepped = torch.nn.functional.normalize((dense.detach() - 0.05 * dense.grad).clamp_min(0))
    sparse_update_(weight, rows, grad, lr=0.05, max_norm=1.0, backend=backend)
    torch.testing.assert_close(weight, stepped, atol=1e-15, rtol=1e-14)


def test_a_call_that_is_watched_goes_through_the_dispatcher(backend):
    """A dispatch mode sees the operation; the numbers are those of the direct call."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    weight, rows, grad = problem(33, 7, 5)
    other = weight.clone()
    with Watch():
        movement = sparse_update_(weight, rows, grad, lr=0.05, backend=backend)
    assert "ssd_kernels.sparse_update_.default" in seen
    assert same_bits(movement, sparse_update_(other, rows, grad, lr=0.05, backend=backend))
    assert same_bits(weight, other)


def test_a_parameter_is_updated_without_a_graph(backend):
    weight, rows, grad = problem(9, 4, 3)
    parameter, version = torch.nn.Parameter(weight), weight._version
    movement = sparse_update_(parameter, rows, grad, lr=0.05, backend=backend)
    assert parameter.is_leaf and parameter.requires_grad and not movement.requires_grad
    assert parameter._version > version  # autograd notices a change of what it saved


def test_no_rows_is_no_change(backend):
    weight = make(9, 4)
    before = weight.clone()
    movement = sparse_update_(weight, torch.empty(0, dtype=torch.int64), torch.empty(0, 4), lr=0.05, backend=backend)
    assert movement.shape == (0,) and torch.equal(weight, before)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)
def test_threads_repeats_and_poison_change_no_bit(dtype, backend):
    results = []
    for threads in (1, 2):
        for _ in range(50 if backend == "cpu" else 1):
            weight, rows, grad = problem(300, 65, 111, dtype)
            with num_threads(threads), poisoned_empty():
                results.append((sparse_update_(weight, rows, grad, lr=0.05, max_norm=1.0, backend=backend), weight))
    assert all(same_bits(m, results[0][0]) and same_bits(w, results[0][1]) for m, w in results)


@given(r=st.integers(1, 80), d=st.integers(1, 70), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(backend, r, d, data):
    weight, rows, grad = problem(r, d, data.draw(st.integers(0, r)), torch.float64)
    gold, gold_movement = expected_of(weight, rows, grad, torch.float64, clamp=True, renormalise=True)
    movement = sparse_update_(weight, rows, grad, lr=0.05, scale=0.7, backend=backend)
    torch.testing.assert_close(weight, gold)
    torch.testing.assert_close(movement, gold_movement)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_opcheck(dtype, backend):
    weight, rows, grad = problem(33, 7, 5, dtype)
    op = torch.ops.ssd_kernels.sparse_update_.default
    for factor, max_norm in ((None, None), (torch.tensor(0.5), 1.0)):
        torch.library.opcheck(op, (weight, rows, grad, 0.05, 0.7, factor, max_norm, True, True, backend))


def test_compiles_whole_with_a_dynamic_size(backend):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda w, rows, grad: sparse_update_(w, rows, grad, lr=0.05, backend=backend), fullgraph=True, dynamic=True
    )
    for m in (3, 5, 8):
        weight, rows, grad = problem(33, 7, m)
        other = weight.clone()
        torch.testing.assert_close(compiled(weight, rows, grad), sparse_update_(other, rows, grad, lr=0.05))
        torch.testing.assert_close(weight, other)


@pytest.mark.parametrize("rows", ([1, 1, 2], [2, 1, 3], [-1, 2, 3], [1, 2, 9]))
def test_rows_that_are_not_ascending_are_refused_before_any_change(rows, backend):
    weight = make(9, 4)
    before = weight.clone()
    with pytest.raises(ValueError, match="rows must be strictly ascending, from 0 to R - 1 = 8"):
        sparse_update_(weight, torch.tensor(rows), make(3, 4), lr=0.05, backend=backend)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": torch.ones(9)}, "weight must be floating point"),
        ({"rows": torch.arange(3, dtype=torch.int32)}, "rows must be int64"),
        ({"grad_rows": torch.ones(2, 4)}, "grad_rows must be"),
        ({"grad_rows": torch.ones(3, 4).double()}, "grad_rows must be"),
        ({"scale": torch.ones(2)}, "scale must be a number or a tensor of one element"),
        ({"max_norm": -1.0}, "max_norm must be at least 0"),
        ({"backend": "fast"}, "there is no such backend"),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(change, message):
    arguments = {"weight": torch.ones(9, 4), "rows": torch.arange(3), "grad_rows": torch.ones(3, 4)} | change
    with pytest.raises(ValueError, match=message):
        sparse_update_(**arguments, lr=0.1)
