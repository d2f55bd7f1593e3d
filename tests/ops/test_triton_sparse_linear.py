"""sparse_linear on Triton against the reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch

from ssd_kernels import Rows, TopK, sparse_linear, testing
from ssd_kernels.sparse_linear import reference
from ssd_kernels.testing import Shape, assert_accurate, id_of, make, same_bits

pytest.importorskip("triton")
from ssd_kernels import _triton

pytestmark = pytest.mark.interpreter
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLASSES = 13


def activations(
    shape: Shape, kind: str, dtype: torch.dtype = torch.float32, values: str = "normal", scale: float = 1.0
):
    """Top-K activations of a shape, or rows that own 0 to K of the entries."""
    generator = torch.Generator().manual_seed(testing.seed_of(shape, kind))
    indices = torch.rand(shape.b, shape.r, generator=generator).argsort(1)[:, : shape.k].to(torch.int32)
    entries = make(shape.b, shape.k, values=values, dtype=dtype, scale=scale)
    if kind == "topk":
        return TopK(entries, indices, entries.sum(-1))
    counts = torch.randint(0, shape.k + 1, (shape.b,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    keep = torch.arange(shape.k) < counts[:, None]
    return Rows(entries[keep], torch.where(keep, indices, 2**30).sort(1).values[keep], offsets, entries.sum(-1))


def outputs(
    active: TopK | Rows, weight: torch.Tensor, backend: str, values: str = "normal"
) -> tuple[torch.Tensor, ...]:
    """The result and both gradients, on the CPU, for one fixed cotangent."""
    device = DEVICE if backend == "triton" else torch.device("cpu")
    active = type(active)(*(part.to(device) for part in active))
    active = active._replace(values=active.values.detach().requires_grad_())
    weight = weight.to(device).detach().requires_grad_()
    y = sparse_linear(active, weight, backend=backend)
    cotangent = make(*y.shape, values=values, seed=5, dtype=y.dtype).to(device)
    grads = torch.autograd.grad(y, (active.values, weight), cotangent)
    assert grads[1].stride() == weight.stride()
    return tuple(t.detach().cpu() for t in (y, *grads))


@pytest.mark.parametrize("kind", ("topk", "rows"))
@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_forward_and_backward_are_accurate(shape: Shape, kind: str) -> None:
    """Every dtype, every finite kind of value, every scale and both layouts of the weight, over the shapes."""
    first = testing.SHAPES.index(shape) + (kind == "rows")
    dtypes = _triton.DTYPES if shape.b < 100 else _triton.DTYPES[first % 3 :][:1]
    for number, dtype in enumerate(dtypes, start=first):
        values = testing.FINITE_VALUES[number % len(testing.FINITE_VALUES)]
        active = activations(shape, kind, dtype, values, testing.SCALES[number % 3])
        layout = ("contiguous", "transposed", "strided", "unaligned")[number % 4]
        weight = make(CLASSES, shape.r, dtype=dtype, layout=layout, seed=1)
        offsets = active.offsets if kind == "rows" else None
        if layout == "strided":  # gradients have the layout of a dense weight
            weight = weight.contiguous()
        got = outputs(active, weight, "triton")
        grad = make(got[0].shape[0], CLASSES, seed=5, dtype=dtype)
        arguments = (active.values, active.indices, offsets, weight)
        wide = (active.values.double(), active.indices, offsets, weight.double())
        golds = (reference.sparse_linear(*wide), *reference.sparse_linear_backward(grad.double(), *wide))
        lows = (reference.sparse_linear(*arguments), *reference.sparse_linear_backward(grad, *arguments))
        for kernel, gold, low in zip(got, golds, lows):
            assert_accurate(kernel, gold, low)


@pytest.mark.parametrize("values", ("ties", "zeros", "nan", "inf", "negative_inf"))
def test_exact_and_non_finite_values_equal_the_reference_bitwise(values: str) -> None:
    for kind in ("topk", "rows"):
        active = activations(Shape(50, 1, 57, 5), kind, values=values)
        weight = make(CLASSES, 57, values="ties", seed=1)
        expected = reference.sparse_linear(*active[:2], active.offsets if kind == "rows" else None, weight)
        assert same_bits(outputs(active, weight, "triton")[0], expected)


def test_a_neuron_of_every_sample_and_a_wide_output() -> None:
    """One segment of 70 samples, and more outputs than one program has columns; whole numbers, so sums are exact."""
    indices = torch.stack([torch.full((70,), 3), torch.arange(70) + 4], 1).to(torch.int32)
    active = TopK(make(70, 2, values="ties"), indices, torch.zeros(70))
    weight = make(600, 80, values="ties", seed=1)
    got, expected = (outputs(active, weight, backend, "ties") for backend in ("triton", "reference"))
    assert all(same_bits(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_layouts_repeats_and_poison_change_no_bit(layout: str) -> None:
    active = activations(Shape(7, 1, 101, 10), "topk")
    expected = outputs(active, make(CLASSES, 101, seed=1, layout=layout).contiguous(), "triton")
    laid_out = active._replace(values=testing.lay_out(active.values, "strided" if layout == "expanded" else layout))
    with testing.poisoned_empty():
        got = outputs(laid_out, make(CLASSES, 101, seed=1, layout=layout).contiguous(), "triton")
    assert all(same_bits(a, b) for a, b in zip(got, expected))
    weight = testing.lay_out(make(CLASSES, 101, seed=1, layout=layout), "transposed").to(DEVICE)
    active = TopK(*(part.to(DEVICE) for part in active))
    assert same_bits(sparse_linear(active, weight, backend="triton").cpu(), expected[0])


def test_gradients_only_where_required_and_double_backward_raises() -> None:
    for needs in itertools.product((True, False), repeat=2):
        active = activations(Shape(4, 1, 9, 3), "topk")
        active = TopK(*(part.to(DEVICE) for part in active))
        weight = make(5, 9, seed=1).to(DEVICE).requires_grad_(needs[1])
        active.values.requires_grad_(needs[0])
        y = sparse_linear(active, weight, backend="triton")
        if any(needs):
            y.sum().backward()
        assert (active.values.grad is not None, weight.grad is not None) == needs
    weight = make(5, 9, seed=1).to(DEVICE).requires_grad_()
    y = sparse_linear(active, weight, backend="triton")
    (grad,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="double backward is not"):
        grad.sum().backward()


@pytest.mark.skipif(DEVICE.type != "cpu", reason="indices are checked on CPUs only")
@pytest.mark.parametrize("bad", (-1, 9))
def test_an_index_out_of_range_is_refused(bad: int) -> None:
    active, weight = activations(Shape(4, 1, 9, 3), "topk"), make(5, 9)
    active.indices[2, 1] = bad
    with pytest.raises(IndexError, match=f"indices must be from 0 to R - 1 = 8, got {bad}"):
        sparse_linear(active, weight, backend="triton")


def test_opcheck() -> None:
    for kind in ("topk", "rows"):
        active = type(a := activations(Shape(5, 1, 33, 4), kind))(*(part.to(DEVICE) for part in a))
        offsets = active.offsets if kind == "rows" else None
        weight = make(CLASSES, 33, seed=1).to(DEVICE).requires_grad_()
        op = torch.ops.ssd_kernels.sparse_linear_fwd.default
        torch.library.opcheck(op, (active.values.requires_grad_(), active.indices, offsets, weight, "triton"))
