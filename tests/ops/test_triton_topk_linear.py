"""topk_linear on Triton against the reference: on a GPU where there is one, else in Triton's interpreter.

The interpreter takes milliseconds per tile, so each case stands for several: options rotate over the cases.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from ssd_kernels import testing, topk_linear
from ssd_kernels.testing import Shape, assert_accurate, id_of, make, same_bits

pytest.importorskip("triton")
from ssd_kernels import _triton
from ssd_kernels.topk_linear import reference as spec
from ssd_kernels.topk_linear import triton_kernel

pytestmark = pytest.mark.interpreter
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = _triton.DTYPES
EXACT_VALUES = ("ties", "equal_rows", "zeros", "nan", "inf", "negative_inf")
# The normalisations, activations and inhibition that case number i of a table runs with.
OPTIONS = [
    {"activation": a, "inhibition": i} for a, i in itertools.product(("relu", "none"), (False, True))
]  # fmt: skip


def run(backend: str, x: torch.Tensor, weight: torch.Tensor, k: int, bias: torch.Tensor | None = None, **options):
    """TopK on the CPU, computed on the tests' device."""
    device = DEVICE if backend == "triton" else torch.device("cpu")
    moved = [None if t is None else t.to(device) for t in (x, weight, bias)]
    return tuple(t.cpu() for t in topk_linear(moved[0], moved[1], k, moved[2], backend=backend, **options))


def assert_same(got: tuple, expected: tuple) -> None:
    assert torch.equal(got[1], expected[1])
    assert same_bits(got[0], expected[0]) and same_bits(got[2], expected[2])


def exact_cases():
    """Every shape with all values; the largest with some of them, unless slow tests run."""
    for shape, values in itertools.product(testing.SHAPES, EXACT_VALUES):
        slow = (shape.r > 200 or shape.b > 100) and values != "ties"
        yield pytest.param(shape, values, marks=[pytest.mark.slow] if slow else [], id=f"{shape}-{values}")


@pytest.mark.parametrize(("shape", "values"), list(exact_cases()))
def test_exact_inputs_give_the_stable_sorts_bits(shape: Shape, values: str) -> None:
    number = testing.SHAPES.index(shape) + EXACT_VALUES.index(values)
    x = make(shape.b, shape.d, values=values, seed=1)
    weight = make(shape.r, shape.d, values="ties", seed=2)
    bias = make(shape.r, values="ties", seed=3) if number % 2 else None
    arguments, options = (x, weight, shape.k, bias), OPTIONS[number % 4]
    assert_same(run("triton", *arguments, **options), run("reference", *arguments, **options))


def rounded_cases():
    """Every shape in all dtypes; the larger ones in one of them, unless slow tests run."""
    for number, (shape, dtype) in enumerate(itertools.product(testing.SHAPES, DTYPES)):
        slow = (shape.r > 200 or shape.b > 100) and number % 3 != number // 3 % 3
        yield pytest.param(shape, dtype, marks=[pytest.mark.slow] if slow else [], id=f"{shape}-{id_of(dtype)}")


@pytest.mark.parametrize(("shape", "dtype"), list(rounded_cases()))
def test_values_obey_the_2x_rule(shape: Shape, dtype: torch.dtype) -> None:
    number = testing.SHAPES.index(shape) + DTYPES.index(dtype)
    normalize = ("none", "input", "both")[number % 3]
    values = ("normal", "uniform", "negative", "denormal")[number % 4]
    if values == "denormal" and dtype != torch.float32:
        values = "normal"  # zero in fp16; and the interpreter reads the denormals of bf16 as other numbers
    x = make(shape.b, shape.d, values=values, scale=testing.SCALES[number % 3], dtype=dtype, seed=1)
    weight = make(shape.r, shape.d, dtype=dtype, seed=2)
    bias = make(shape.r, dtype=dtype, scale=0.1, seed=3) if number % 2 else None
    options = {"activation": ("relu", "none")[number % 2], "normalize": normalize}
    kernel, low = (run(backend, x, weight, shape.k, bias, **options) for backend in ("triton", "reference"))
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    every = run("reference", wide[0], wide[1], shape.r, wide[2], **options)
    scores = torch.empty_like(every[0]).scatter_(-1, every[1].long(), every[0])
    assert_accurate(kernel[0], every[0][:, : shape.k], low[0])
    assert_accurate(kernel[0], scores.gather(1, kernel[1].long()), low[0])  # the winners are the right ones
    if shape.k < shape.r:
        info = torch.finfo(dtype)
        slack = 4 * info.eps * float(scores.abs().max() if scores.numel() else 0) + 4 * info.tiny
        assert_accurate(kernel[2], every[0][:, shape.k], low[2], tol=slack)


@pytest.mark.parametrize("dtype", DTYPES, ids=id_of)
def test_winners_are_chosen_before_rounding(dtype: torch.dtype) -> None:
    step = 2.0**-7
    weight = torch.tensor([[1.0, 0.0], [1.0, step], [1.0, 0.0], [1.0, 2 * step]]).to(dtype)
    assert run("triton", torch.tensor([[256.0, 1.0]]).to(dtype), weight, 2)[1].tolist() == [[3, 1]]


def test_fewer_than_k_positive_scores() -> None:
    weight = torch.tensor([[-1.0], [2.0], [-3.0], [0.0], [1.0]])
    values, indices, threshold = run("triton", torch.ones(1, 1), weight, 4)
    assert values.tolist() == [[2.0, 1.0, 0.0, 0.0]] and indices.tolist() == [[1, 4, 0, 2]]
    assert threshold.tolist() == [0.0]


@pytest.mark.parametrize("k", [1, 128])
@pytest.mark.parametrize("order", ["rising", "falling", "stairs", "shuffled", "nan"])
def test_late_neurons_overflow_the_buffer(order: str, k: int) -> None:
    """Rising scores let every neuron pass the limit, equal ones and NaN keep the buffer full: only pruning helps."""
    neurons = torch.arange(900, dtype=torch.float32)[:, None]
    weight = {
        "rising": neurons, "falling": -neurons, "stairs": neurons // 300, "shuffled": (neurons * 1237) % 900,
        "nan": torch.where(neurons > 100, float("nan"), neurons),
    }[order]  # fmt: skip
    x = torch.ones(3, 1)
    assert_same(run("triton", x, weight, k, activation="none"), run("reference", x, weight, k, activation="none"))


@pytest.mark.parametrize("parts", [1, 4, 11])
def test_parts_and_their_merge_change_no_bit(parts: int) -> None:
    """The neurons cut into any number of parts, and merged in one step or in several."""
    x, weight = make(5, 8, values="ties", seed=1).to(DEVICE), make(1300, 8, values="ties", seed=2).to(DEVICE)
    expected = run("reference", x.cpu(), weight.cpu(), 7)
    for keys in (2**12, 2**9):
        machine = _triton.Machine(90, parts, keys)
        config = triton_kernel.scan_config(5, 8, 1300, 8, x.dtype, machine)
        assert config.parts == parts
        lists = triton_kernel.scan(x, weight, None, None, None, 8, True, config)
        got = triton_kernel.merge(*lists, 7, 8, False, x.dtype, machine)
        assert_same(tuple(t.cpu() for t in got), expected)


@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_layouts_change_nothing(layout: str) -> None:
    x, weight, bias = make(6, 21, layout=layout, seed=1), make(50, 21, layout=layout, seed=2), make(50, seed=3)
    kept = [t.clone() for t in (x, weight, bias)]
    got = run("triton", x, weight, 7, bias, normalize="both")
    assert all(same_bits(a, b) for a, b in zip((x, weight, bias), kept))
    assert_same(got, run("triton", x.contiguous(), weight.contiguous(), 7, bias, normalize="both"))


def test_every_output_is_written_and_repeats_agree() -> None:
    x, weight, bias = make(13, 33, seed=1), make(170, 33, seed=2), make(170, seed=3)
    expected = run("triton", x, weight, 6, bias, normalize="both", inhibition=True)
    for _ in range(100 if DEVICE.type == "cuda" else 2):
        with testing.poisoned_empty():
            got = run("triton", x, weight, 6, bias, normalize="both", inhibition=True)
        assert_same(got, expected)


def test_offsets_beyond_32_bits() -> None:
    """Rows that lie more than 2**31 elements apart."""
    step = 2**31 + 3
    if DEVICE.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 * step:
        pytest.skip("needs 13 GB of GPU memory")
    far = torch.empty(2 * step + 20, dtype=torch.bfloat16, device=DEVICE).as_strided((3, 20), (step, 1))
    near = make(3, 20, dtype=torch.bfloat16, seed=1).to(DEVICE)
    far.copy_(near)
    other = make(20, 20, dtype=torch.bfloat16, seed=2).to(DEVICE)
    for there, here in (((far, other, 4), (near, other, 4)), ((other, far, 2), (other, near, 2))):
        results = [topk_linear(*arguments, backend="triton") for arguments in (there, here)]
        assert all(torch.equal(a, b) for a, b in zip(*results))


def test_what_it_does_not_take_is_refused() -> None:
    x, weight = torch.zeros(4, 9, device=DEVICE), torch.zeros(300, 9, device=DEVICE)
    with pytest.raises(ValueError, match=r"k=129: backend='triton' takes 1 to 128"):
        topk_linear(x, weight, 129, backend="triton")
    with pytest.raises(ValueError, match=r"no kernel for torch.float64: allowed are torch.float32"):
        topk_linear(x.double(), weight.double(), 3, backend="triton")


# ---- Gradients.
def backward_cases():
    for number, (shape, dtype) in enumerate(itertools.product(testing.SHAPES, DTYPES)):
        slow = shape.b > 10 and number % 3 != number // 3 % 3
        options = (("relu", "none")[number // 2 % 2], ("none", "input", "both")[number // 3 % 3], number % 2 == 1)
        marks = [pytest.mark.slow] if slow else []
        yield pytest.param(shape, dtype, *options, marks=marks, id=f"{shape}-{id_of(dtype)}")


@pytest.mark.parametrize(("shape", "dtype", "activation", "normalize", "inhibition"), list(backward_cases()))
def test_gradients_obey_the_2x_rule(shape, dtype, activation, normalize, inhibition) -> None:
    x, weight = make(shape.b, shape.d, seed=1, dtype=dtype), make(shape.r, shape.d, seed=2, dtype=dtype)
    top = topk_linear(x, weight, shape.k, activation=activation, normalize=normalize, inhibition=inhibition)
    grad = make(*top.values.shape, seed=4, dtype=dtype)
    tensors, arguments = (grad, x, weight, top.values, top.indices), (activation, normalize, inhibition)
    on_device = [t.to(DEVICE) for t in tensors]
    needed = (True, True, True, "triton")
    kernel = torch.ops.ssd_kernels.topk_linear_bwd(*on_device, *arguments, *needed)
    low = spec.backward(*tensors, *arguments)
    gold = spec.backward(*(t.double() for t in tensors[:4]), top.indices, *arguments)
    for ours, low_grad, exact in zip(kernel, low, gold):
        # With D = 1 a normalised gradient is 0 in exact arithmetic: what is left of the sum that cancels.
        tol = None
        if normalize != "none" and shape.d == 1:
            smallest = min(float(m.double().norm(dim=1).min()) for m in (x, weight))
            tol = 8 * torch.finfo(torch.float32).eps * float(grad.double().abs().sum()) / smallest
        assert_accurate(ours.cpu(), exact, low_grad, tol=tol)
    grad_x, rows, grad_rows, grad_bias = torch.ops.ssd_kernels.topk_linear_bwd_rows(*on_device, *arguments, *needed)
    active = spec.active_mask(top.values, activation, inhibition)
    assert torch.equal(rows.cpu(), top.indices.reshape(active.shape)[active].long().unique())
    for dense, sparse in zip(kernel, (grad_x, torch.zeros_like(kernel[1]).index_copy(0, rows, grad_rows), grad_bias)):
        assert torch.equal(dense, sparse)


@pytest.mark.parametrize("inhibition", [False, True])
def test_exact_gradients_equal_the_reference_bitwise_through_autograd(inhibition: bool) -> None:
    """Whole numbers: sums are exact in any order. A neuron that wins in all 40 samples makes a long segment."""
    inputs = [make(40, 9, values="ties", seed=1), make(90, 9, values="ties", seed=2), make(90, values="ties", seed=3)]
    inputs[2][7] = 100.0
    results = []
    for backend, device in (("triton", DEVICE), ("reference", torch.device("cpu"))):
        leaves = [t.to(device, copy=True).requires_grad_() for t in inputs]
        top = topk_linear(leaves[0], leaves[1], 5, leaves[2], inhibition=inhibition, backend=backend)
        assert not top.indices.requires_grad and not top.threshold.requires_grad
        top.values.backward(make(40, 5, values="ties", seed=9).to(device))
        results.append([leaf.grad.cpu() for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_sparse_gradient_is_coalesced_and_double_backward_raises() -> None:
    x, weight = make(9, 21, seed=1).to(DEVICE).requires_grad_(), make(300, 21, seed=2).to(DEVICE).requires_grad_()
    top = topk_linear(x, weight, 4, sparse_grad=True, backend="triton")
    (grad,) = torch.autograd.grad(top.values.sum(), x, create_graph=True, retain_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward(retain_graph=True)
    weight.grad = None
    top.values.sum().backward()
    assert weight.grad.is_coalesced() and weight.grad.sparse_dim() == 1


def test_opcheck() -> None:
    x, weight, bias = (make(*s, seed=1).to(DEVICE).requires_grad_() for s in ((4, 9), (20, 9), (20,)))
    op = torch.ops.ssd_kernels.topk_linear_fwd.default
    torch.library.opcheck(op, (x, weight, bias, 3, "relu", "both", True, False, "triton"))
