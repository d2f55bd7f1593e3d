"""gaba_linear on Triton against the reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch

from ssd_kernels import gaba_linear, testing
from ssd_kernels.gaba_linear import reference
from ssd_kernels.testing import Shape, assert_accurate, id_of, make, same_bits

pytest.importorskip("triton")
from ssd_kernels import _triton

pytestmark = pytest.mark.interpreter
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [shape for shape in testing.SHAPES if shape.k < shape.r]
COEFFICIENTS = ("one", "near_one", "mixed", "zero", "minus_one")


def coefficients(kind: str, r: int) -> torch.Tensor:
    noise = make(r, values="uniform")
    match kind:
        case "near_one":
            return 1 - 0.02 * noise
        case "mixed":
            return 2 * noise - 1
        case _:
            return torch.full((r,), {"one": 1.0, "zero": 0.0, "minus_one": -1.0}[kind])


def inputs(shape: Shape, dtype: torch.dtype = torch.float32, values: str = "normal", scale: float = 1.0):
    x = make(shape.b, shape.d, values=values, scale=scale, dtype=dtype)
    return x, make(shape.r, shape.d, values=values, dtype=dtype, seed=1)


def everything(x, weight, k, g, backend, output="dense", **options) -> tuple[torch.Tensor, ...]:
    """The outputs and both gradients, on the CPU, for one fixed cotangent."""
    device = DEVICE if backend == "triton" else torch.device("cpu")
    x, weight = (t.to(device).detach().requires_grad_() for t in (x, weight))
    out = gaba_linear(x, weight, k, g.to(device), output=output, backend=backend, **options)
    values = out if output == "dense" else out.values
    cotangent = make(x.shape[0], weight.shape[0], seed=5, dtype=x.dtype).to(device)
    if output == "rows":
        sample = torch.repeat_interleave(torch.arange(x.shape[0], device=device), out.offsets.diff())
        cotangent = cotangent[sample, out.indices.long()]
    parts = (out,) if output == "dense" else tuple(out)
    return tuple(t.detach().cpu() for t in (*parts, *torch.autograd.grad(values, (x, weight), cotangent)))


def slack(x, weight, gold) -> float:
    """Units in the last place of h, and of the scores whose difference h is."""
    if gold.numel() == 0:
        return 0.0
    scores = float((x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)).max())
    stored = torch.finfo(x.dtype)
    return 8 * torch.finfo(torch.float32).eps * scores + 4 * stored.eps * float(gold.abs().max()) + 4 * stored.tiny


def cases():
    """Every shape below 100 samples in one dtype; the rest where slow tests run, for they take minutes."""
    for number, (shape, dtype) in enumerate(itertools.product(SHAPES, _triton.DTYPES)):
        slow = number % 3 != number // 3 % 3 or shape.b > 100
        yield pytest.param(shape, dtype, marks=[pytest.mark.slow] if slow else [], id=f"{shape}-{id_of(dtype)}")


@pytest.mark.parametrize(("shape", "dtype"), list(cases()))
def test_dense_and_rows_are_accurate_and_agree(shape: Shape, dtype: torch.dtype) -> None:
    """Kinds of values, scales and coefficients rotate over the cases; the gradients are those of the reference."""
    number = 3 * SHAPES.index(shape) + _triton.DTYPES.index(dtype)
    values = testing.FINITE_VALUES[number % len(testing.FINITE_VALUES)]
    if values == "denormal" and dtype != torch.float32:
        values = "normal"  # zero in fp16; and the interpreter reads the denormals of bf16 as other numbers
    x, weight = inputs(shape, dtype, values, testing.SCALES[number % 3])
    g = coefficients(COEFFICIENTS[number % 5], shape.r)
    h, grad_x, grad_weight = everything(x, weight, shape.k, g, "triton")
    gold, _ = reference.gaba_linear(x.double(), weight.double(), g, shape.k)
    low, _ = reference.gaba_linear(x, weight, g, shape.k)
    assert_accurate(h, gold, low, tol=slack(x, weight, gold))
    grad = make(shape.b, shape.r, seed=5, dtype=dtype)
    golds = reference.gaba_linear_backward(grad.double(), h.double(), x.double(), weight.double())
    lows = reference.gaba_linear_backward(grad, h, x, weight)
    for kernel, gold, low in zip((grad_x, grad_weight), golds, lows):
        assert_accurate(kernel, gold, low)

    entries, indices, offsets, threshold, rows_x, rows_weight = everything(x, weight, shape.k, g, "triton", "rows")
    assert same_bits(reference.rows_to_dense(entries, indices, offsets, shape.r), h)
    assert offsets[0] == 0 and offsets[-1] == len(entries) and (entries > 0).all()
    for b in range(shape.b):
        assert (indices[offsets[b] : offsets[b + 1]].diff() > 0).all()
    torch.testing.assert_close(threshold, reference.gaba_linear(x, weight, g, shape.k)[1])
    for kernel, gold, low in zip((rows_x, rows_weight), golds, lows):
        assert_accurate(kernel, gold, low)


def exact_cases():
    """Every shape with all values; each with one of them, unless slow tests run."""
    kinds = ("ties", "nan", "inf", "negative_inf", "zeros", "equal_rows")
    for (index, shape), (kind, values) in itertools.product(enumerate(SHAPES), enumerate(kinds)):
        slow = kind != (index % len(kinds) if shape.b < 100 else 0)
        yield pytest.param(shape, values, marks=[pytest.mark.slow] if slow else [], id=f"{shape}-{values}")


@pytest.mark.parametrize(("shape", "values"), list(exact_cases()))
def test_ties_and_non_finite_values_match_the_reference_bitwise(shape: Shape, values: str) -> None:
    x, weight = make(shape.b, shape.d, values=values), make(shape.r, shape.d, values="ties", seed=1)
    g = torch.round(4 * coefficients(("one", "mixed")[shape.b % 2], shape.r)) / 4
    expected, _ = reference.gaba_linear(x, weight, g, shape.k)
    on_device = (x.to(DEVICE), weight.to(DEVICE), shape.k, g.to(DEVICE))
    assert same_bits(gaba_linear(*on_device, backend="triton").cpu(), expected)
    rows = gaba_linear(*on_device, output="rows", backend="triton")
    entries, indices, offsets = (t.cpu() for t in rows[:3])
    assert same_bits(reference.rows_to_dense(entries, indices, offsets, shape.r), expected)


@pytest.mark.parametrize("output", ("dense", "rows"))
def test_sparse_gradients_equal_the_dense_ones(output: str) -> None:
    shape = Shape(13, 65, 257, 5)
    x, weight = inputs(shape)
    g = coefficients("near_one", shape.r)
    _, dense_x, dense_weight = everything(x, weight, shape.k, g, "triton")
    *_, grad_x, grad_weight = everything(x, weight, shape.k, g, "triton", output, sparse_grad=True)
    assert grad_weight.is_sparse and grad_weight.is_coalesced() and grad_weight.sparse_dim() == 1
    torch.testing.assert_close(grad_x, dense_x)
    torch.testing.assert_close(grad_weight.to_dense(), dense_weight)


@pytest.mark.parametrize("layout", ("transposed", "strided", "expanded", "unaligned"))
def test_layouts_repeats_and_poison_change_no_bit(layout: str) -> None:
    x, weight, g = make(7, 33, layout=layout), make(101, 33, layout=layout, seed=1), coefficients("near_one", 101)
    for output in ("dense", "rows") if layout == "strided" else ("dense",):
        expected = everything(x.contiguous(), weight.contiguous(), 10, g, "triton", output)
        with testing.poisoned_empty():
            got = everything(x, weight, 10, g, "triton", output)
        assert all(same_bits(a, b) for a, b in zip(got, expected))


def test_an_excited_neuron_without_a_positive_score_receives_its_gradient() -> None:
    x, weight = torch.tensor([[1.0]]), torch.tensor([[2.0], [-1.0], [0.5]])
    h, _, grad_weight = everything(x, weight, 1, -torch.ones(3), "triton")
    assert h.tolist() == [[2.5, 0.5, 1.0]]
    assert torch.equal(grad_weight, make(1, 3, seed=5).T)


def test_double_backward_raises_and_what_it_does_not_take_is_refused() -> None:
    x, weight, g = make(4, 5).to(DEVICE).requires_grad_(), make(9, 5, seed=1).to(DEVICE), torch.ones(9, device=DEVICE)
    (grad,) = torch.autograd.grad(gaba_linear(x, weight, 2, g, backend="triton").square().sum(), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="double backward is not"):
        grad.sum().backward()
    with pytest.raises(ValueError, match=r"no kernel for torch.float64"):
        gaba_linear(x.double(), weight.double(), 2, g, backend="triton")
    with pytest.raises(ValueError, match=r"k=129: backend='triton' takes 1 to 128"):
        gaba_linear(x, make(200, 5).to(DEVICE), 129, torch.ones(200, device=DEVICE), backend="triton")


def test_opcheck() -> None:
    x, weight = (t.to(DEVICE).requires_grad_() for t in inputs(Shape(5, 7, 33, 4)))
    g = coefficients("near_one", 33).double().to(DEVICE)
    for op in (torch.ops.ssd_kernels.gaba_linear_dense_fwd.default, torch.ops.ssd_kernels.gaba_linear_rows_fwd.default):
        torch.library.opcheck(op, (x, weight, g, 4, False, "triton"))
