"""topk_linear on the CPU: the native kernels against the reference, and the contracts of the public function.

Long because one table of cases serves all of its contracts.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ssd_kernels
from ssd_kernels import testing, topk_linear
from ssd_kernels.testing import Shape, assert_accurate, id_of, make, same_bits
from ssd_kernels.topk_linear import reference as spec

LEVELS = ("generic", "avx2", "avx512", "avx512bf16")
NORMALIZE = ("none", "input", "both")
EXACT_VALUES = ("ties", "equal_rows", "zeros", "nan", "inf", "negative_inf")
SMALL = Shape(6, 19, 40, 5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small cases are fastest so, beside a busy neighbour above all; the tests of threads set their own count."""
    with testing.num_threads(1):
        yield


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each SIMD level that this processor has; asking for them fails when the native module is missing."""
    if request.param not in testing.simd_levels():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("SSD_SIMD", request.param)
    return request.param


def both(x: torch.Tensor, weight: torch.Tensor, k: int, bias: torch.Tensor | None = None, **options: object) -> tuple:
    """The same call on the native and on the reference backend."""
    return tuple(topk_linear(x, weight, k, bias, backend=name, **options) for name in ("cpu", "reference"))


def assert_same(a: ssd_kernels.TopK, b: ssd_kernels.TopK) -> None:
    assert torch.equal(a.indices, b.indices)
    assert same_bits(a.values, b.values)
    assert same_bits(a.threshold, b.threshold)


def gold_scores(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **options: object) -> torch.Tensor:
    """Every activation in fp64, from the reference with K = R, by neuron."""
    options = {**options, "inhibition": False}
    all_of_them = topk_linear(
        x.double(),
        weight.double(),
        len(weight),
        None if bias is None else bias.double(),
        backend="reference",
        **options,
    )
    return torch.empty_like(all_of_them.values).scatter_(-1, all_of_them.indices.long(), all_of_them.values)


# ---- Values and winners.
@pytest.mark.parametrize("values", EXACT_VALUES)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_exact_inputs_give_the_stable_sorts_bits(level: str, shape: Shape, values: str) -> None:
    """Whole numbers: every dot product is exact, so planted ties, NaN and Inf must land bitwise where they belong."""
    x = make(shape.b, shape.d, values=values, seed=1)
    weight = make(shape.r, shape.d, values="ties", seed=2)
    bias = make(shape.r, values="ties", seed=3)
    for activation, inhibition in itertools.product(("relu", "none"), (False, True)):
        options = {"activation": activation, "inhibition": inhibition}
        assert_same(*both(x, weight, shape.k, **options))
        assert_same(*both(x, weight, shape.k, bias, **options))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        *(("normal", dtype) for dtype in testing.DTYPES),
        *((v, torch.float32) for v in ("uniform", "negative", "denormal")),
    ],
    ids=id_of,
)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_values_obey_the_2x_rule(level: str, shape: Shape, values: str, dtype: torch.dtype) -> None:
    for scale, normalize in zip((1e-3, 1.0, 50.0), NORMALIZE):
        x = make(shape.b, shape.d, values=values, scale=scale, dtype=dtype, seed=1)
        weight = make(shape.r, shape.d, values="normal", dtype=dtype, seed=2)
        bias = make(shape.r, dtype=dtype, scale=0.1, seed=3) if normalize == "input" else None
        for activation in ("relu", "none"):
            options = {"activation": activation, "normalize": normalize}
            kernel, low = both(x, weight, shape.k, bias, **options)
            scores = gold_scores(x, weight, bias, **options)
            gold = scores.sort(dim=-1, descending=True, stable=True).values
            assert_accurate(kernel.values, gold[:, : shape.k], low.values)
            # The winners are the right ones: the gold activation of each chosen neuron is its value.
            assert_accurate(kernel.values, scores.gather(1, kernel.indices.long()), low.values)
            if shape.k < shape.r:
                assert_accurate(kernel.threshold, gold[:, shape.k], low.threshold, tol=tolerance(gold, dtype))


def tolerance(gold: torch.Tensor, dtype: torch.dtype) -> float:
    """Four units in the last place of the largest activation: what an entry that is nearly zero may be off."""
    info = torch.finfo(dtype)
    return 4 * info.eps * float(gold.abs().max() if gold.numel() else 0) + 4 * info.tiny


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_winners_are_chosen_before_rounding(level: str, dtype: torch.dtype) -> None:
    """16-bit storage: scores that round to the same value are still told apart."""
    step = 2.0**-7
    weight = torch.tensor([[1.0, 0.0], [1.0, step], [1.0, 0.0], [1.0, 2 * step]]).to(dtype)
    x = torch.tensor([[256.0, 1.0]]).to(dtype)
    kernel, low = both(x, weight, 2)
    assert kernel.indices.tolist() == low.indices.tolist() == [[3, 1]]


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_inhibition_subtracts_the_threshold(level: str, shape: Shape, normalize: str) -> None:
    x, weight = make(shape.b, shape.d, values="uniform", seed=1), make(shape.r, shape.d, values="uniform", seed=2)
    plain = topk_linear(x, weight, shape.k, normalize=normalize, backend="cpu")
    inhibited = topk_linear(x, weight, shape.k, normalize=normalize, inhibition=True, backend="cpu")
    assert torch.equal(plain.indices, inhibited.indices)
    assert torch.equal(plain.threshold, inhibited.threshold)
    assert torch.equal(inhibited.values, torch.relu(plain.values - plain.threshold[:, None]))
    if shape.k == shape.r:
        assert not plain.threshold.any()


def test_fewer_than_k_positive_scores(level: str) -> None:
    """The slots that are left hold 0 and the lowest tied indices, and no gradient goes through them."""
    x = torch.ones(1, 1, requires_grad=True)
    weight = torch.tensor([[-1.0], [2.0], [-3.0], [0.0], [1.0]], requires_grad=True)
    top = topk_linear(x, weight, 4, backend="cpu")
    assert top.values.tolist() == [[2.0, 1.0, 0.0, 0.0]]
    assert top.indices.tolist() == [[1, 4, 0, 2]]
    assert top.threshold.tolist() == [0.0]
    top.values.sum().backward()
    assert weight.grad.flatten().tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert x.grad.item() == 3.0


def test_nan_sorts_largest_and_lowest_index_first(level: str) -> None:
    nan = float("nan")
    weight = torch.tensor([[1.0], [nan], [float("inf")], [nan], [2.0]])
    for activation in ("relu", "none"):
        top = topk_linear(torch.ones(1, 1), weight, 3, activation=activation, backend="cpu")
        assert top.indices.tolist() == [[1, 3, 2]]
        assert top.threshold.tolist() == [2.0]


def test_late_neurons_overflow_the_buffer(level: str) -> None:
    """Scores that rise with the neuron let every one of them pass the limit; scores that fall, only the first."""
    neurons = torch.arange(5000, dtype=torch.float32)[:, None]
    for weight in (neurons, -neurons, neurons // 7, (neurons * 1237) % 5000):
        assert_same(*both(torch.ones(9, 1), weight, 12, activation="none"))


@pytest.mark.parametrize("k", [1, 50, 2999, 3000])
def test_large_k(level: str, k: int) -> None:
    assert_same(*both(make(5, 8, values="ties", seed=1), make(3000, 8, values="ties", seed=2), k, activation="none"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    """Odd shapes at the best level: values exact, so everything must agree bitwise, gradients included."""
    b, d = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 70))
    r = data.draw(st.integers(1, 200))
    k = data.draw(st.one_of(st.integers(1, r), st.just(r), st.just(max(r - 1, 1))))
    options = {
        "activation": data.draw(st.sampled_from(["relu", "none"])),
        "inhibition": data.draw(st.booleans()),
    }
    x = make(b, d, values="ties", seed=data.draw(st.integers(0, 99)))
    weight = make(r, d, values="ties", seed=data.draw(st.integers(0, 99)))
    bias = make(r, values="ties") if data.draw(st.booleans()) else None
    with testing.num_threads(data.draw(st.integers(1, 3))):
        assert_same(*both(x, weight, k, bias, **options))
        grads = [gradients(x, weight, bias, k, name, **options) for name in ("cpu", "reference")]
    for ours, expected in zip(*grads):
        assert torch.equal(ours, expected)


# ---- Layouts, threads, repeats, memory.
@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_layouts(level: str, layout: str) -> None:
    for which in ("x", "weight", "bias", "grad"):
        layouts = {name: layout if name == which else "contiguous" for name in ("x", "weight", "bias", "grad")}
        x, weight = make(9, 21, seed=1, layout=layouts["x"]), make(50, 21, seed=2, layout=layouts["weight"])
        bias, grad = make(50, seed=3, layout=layouts["bias"]), make(9, 7, seed=4, layout=layouts["grad"])
        results = []
        for arrange in (lambda t: t, torch.Tensor.contiguous):
            leaves = [arrange(t.detach()).requires_grad_() for t in (x, weight, bias)]
            top = topk_linear(leaves[0], leaves[1], 7, leaves[2], backend="cpu")
            results.append((*top, *torch.autograd.grad(top.values, leaves, arrange(grad))))
        for strided, contiguous in zip(*results):
            assert same_bits(strided, contiguous)


def test_leading_dimensions() -> None:
    x, weight = make(2, 3, 4, 8, seed=1), make(30, 8, seed=2)
    flat = topk_linear(x.reshape(24, 8), weight, 5)
    for lead in ((2, 3, 4), (24,), (1, 24), ()):
        top = topk_linear(x.reshape(24, 8)[0] if lead == () else x.reshape(*lead, 8), weight, 5)
        assert top.values.shape == top.indices.shape == (*lead, 5)
        assert top.threshold.shape == lead
        assert torch.equal(top.values.reshape(-1, 5), flat.values[: max(1, len(top.values.reshape(-1, 5)))])
    assert topk_linear(make(0, 3, 8), weight, 5).values.shape == (0, 3, 5)
    expanded = make(1, 8, seed=5).requires_grad_()
    topk_linear(expanded.expand(6, 8), weight, 5).values.sum().backward()
    assert torch.isfinite(expanded.grad).all()


def test_inputs_are_unchanged(level: str) -> None:
    x, weight, bias = make(9, 21, seed=1), make(50, 21, seed=2), make(50, seed=3)
    before = [t.clone() for t in (x, weight, bias)]
    gradients(x, weight, bias, 4, "cpu", normalize="both")
    assert all(torch.equal(a, b) for a, b in zip(before, (x, weight, bias)))


@pytest.mark.parametrize("shape", [Shape(1, 64, 5000, 10), Shape(5, 100, 3001, 7), Shape(130, 40, 700, 9)], ids=id_of)
def test_same_bits_for_any_thread_count_and_100_repeats(level: str, shape: Shape) -> None:
    x, weight, bias = make(shape.b, shape.d, seed=1), make(shape.r, shape.d, seed=2), make(shape.r, seed=3)

    def run() -> tuple:
        top = topk_linear(x, weight, shape.k, bias, normalize="both", backend="cpu")
        return *top, *gradients(x, weight, bias, shape.k, "cpu", normalize="both")

    with testing.num_threads(1):
        first = run()
    for threads in (2, 3, *([2] * 100 if level == testing.simd_levels()[-1] else [])):
        with testing.num_threads(threads):
            assert all(torch.equal(a, b) for a, b in zip(first, run()))


def test_every_output_is_written(level: str) -> None:
    x, weight, bias = make(13, 33, seed=1), make(70, 33, seed=2), make(70, seed=3)

    def run(**options: object) -> tuple:
        top = topk_linear(x, weight, 6, bias, backend="cpu", **options)
        return *top, *gradients(x, weight, bias, 6, "cpu", **options)

    for options in ({}, {"normalize": "both"}, {"sparse_grad": True}, {"inhibition": True}):
        clean = run(**options)
        with testing.poisoned_empty():
            poisoned = run(**options)
        assert all(torch.equal(a, b) for a, b in zip(clean, poisoned))


MEMORY = """
import resource, torch, ssd_kernels
x, weight = torch.randn(4096, 16), torch.randn(100_000, 16)
ssd_kernels.topk_linear(x[:8], weight, 10, backend="cpu")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
top = ssd_kernels.topk_linear(x, weight, 10, backend="cpu")
assert top.indices.shape == (4096, 10)
print((peak() - before) / 1024)
"""


def test_no_scores_in_memory() -> None:
    """B 4096, R 100 000: the scores alone would be 1.6 GB; the peak may grow by less than 200 MB."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 200, f"the peak grew by {run.stdout.strip()} MB"


def test_offsets_beyond_32_bits(level: str) -> None:
    """Rows that lie more than 2**31 elements apart; only the pages that hold them are ever touched."""
    step = 2**31 + 3
    far = torch.empty(2 * step + 40, dtype=torch.bfloat16).as_strided((3, 40), (step, 1))
    near = make(3, 40, dtype=torch.bfloat16, seed=1)
    far.copy_(near)
    other = make(20, 40, dtype=torch.bfloat16, seed=2)

    def run(x: torch.Tensor, weight: torch.Tensor, k: int) -> tuple:
        top = topk_linear(x, weight, k, backend="cpu")
        options = ("relu", "none", False, True, True, True, "cpu")
        return *top, *torch.ops.ssd_kernels.topk_linear_bwd(top.values, x, weight, top.values, top.indices, *options)

    for there, here in ((run(far, other, 4), run(near, other, 4)), (run(other, far, 2), run(other, near, 2))):
        assert all(torch.equal(a, b) for a, b in zip(there, here))


# ---- Gradients.
def gradients(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, k: int, backend: str, **options: object
) -> list[torch.Tensor]:
    """Gradients of x, weight and bias for a fixed, uneven dL/dvalues; a sparse one as dense."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    top = topk_linear(leaves[0], leaves[1], k, leaves[2], backend=backend, **options)
    top.values.backward(make(*top.values.shape, values="ties", seed=9, dtype=top.values.dtype))
    return [leaf.grad.to_dense() for leaf in leaves if leaf is not None]


@pytest.mark.parametrize("inhibition", [False, True])
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_gradcheck(level: str, normalize: str, inhibition: bool) -> None:
    """fp64, away from ties. The threshold is a constant of the gradient, so it is added back before the check."""
    x, weight, bias = (make(*s, dtype=torch.float64, seed=1).requires_grad_() for s in ((4, 7), (12, 7), (12,)))

    def values(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        top = topk_linear(x, weight, 3, bias, normalize=normalize, inhibition=inhibition, backend="cpu")
        return top.values + top.threshold[:, None] if inhibition else top.values

    assert torch.autograd.gradcheck(values, (x, weight, bias))


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_gradients_obey_the_2x_rule(level: str, shape: Shape, dtype: torch.dtype) -> None:
    for normalize, activation, inhibition in (
        ("none", "relu", False), ("input", "none", False), ("both", "relu", True)
    ):  # fmt: skip
        x, weight, bias = make(shape.b, shape.d, seed=1), make(shape.r, shape.d, seed=2), make(shape.r, seed=3)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        top = topk_linear(x, weight, shape.k, bias, activation=activation, normalize=normalize, inhibition=inhibition)
        grad = make(*top.values.shape, seed=4, dtype=dtype)
        arguments = (activation, normalize, inhibition)
        kernel = torch.ops.ssd_kernels.topk_linear_bwd(
            grad, x, weight, top.values, top.indices, *arguments, True, True, True, "cpu"
        )
        low = spec.backward(grad, x, weight, top.values, top.indices, *arguments)
        gold = spec.backward(*(t.double() for t in (grad, x, weight, top.values)), top.indices, *arguments)
        for ours, low_grad, exact in zip(kernel, low, gold):
            # With D = 1 a normalised gradient is 0 in exact arithmetic: what is left of the sum that cancels.
            cancelled = normalize != "none" and shape.d == 1
            assert_accurate(ours, exact, low_grad, tol=rounding(grad, x, weight) if cancelled else None)


def rounding(grad: torch.Tensor, *matrices: torch.Tensor) -> float:
    """Eight units of the sum of all gradients over the smallest norm that divides it."""
    epsilon = torch.finfo(torch.promote_types(grad.dtype, torch.float32)).eps
    return 8 * epsilon * float(grad.double().abs().sum() / min(m.double().norm(dim=1).min() for m in matrices))


def test_gradient_equals_eager_autograd(level: str) -> None:
    x, weight = make(17, 24, dtype=torch.float64, seed=1), make(60, 24, dtype=torch.float64, seed=2)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    eager = torch.relu(leaves[0] @ leaves[1].T).topk(5).values
    eager.backward(make(17, 5, values="ties", seed=9, dtype=torch.float64))
    for ours, leaf in zip(gradients(x, weight, None, 5, "cpu"), leaves):
        torch.testing.assert_close(ours, leaf.grad)


def test_sparse_gradient_is_coalesced_and_equals_the_dense_one(level: str) -> None:
    x, weight, bias = make(9, 21, seed=1), make(300, 21, seed=2).requires_grad_(), make(300, seed=3)
    topk_linear(x, weight, 4, bias, sparse_grad=True, backend="cpu").values.sum().backward()
    grad = weight.grad
    assert grad.layout == torch.sparse_coo
    assert grad.is_coalesced() and grad.sparse_dim() == 1 and grad.shape == weight.shape
    rows = grad.indices()[0]
    assert torch.equal(rows, rows.unique())
    weight.grad = None
    topk_linear(x, weight, 4, bias, backend="cpu").values.sum().backward()
    assert torch.equal(grad.to_dense(), weight.grad)
    assert len(rows) == int(weight.grad.any(1).sum())
    torch.optim.SGD([weight], lr=0.1).step()


def test_only_required_gradients() -> None:
    for needed in itertools.product((False, True), repeat=3):
        tensors = [make(*s, seed=1).requires_grad_(need) for s, need in zip(((4, 7), (12, 7), (12,)), needed)]
        top = topk_linear(tensors[0], tensors[1], 3, tensors[2], backend="cpu")
        assert top.values.requires_grad == any(needed)
        assert not top.indices.requires_grad and not top.threshold.requires_grad
        if any(needed):
            top.values.sum().backward()
            assert [t.grad is not None for t in tensors] == list(needed)


def test_double_backward_raises() -> None:
    x, weight = make(4, 7, seed=1).requires_grad_(), make(12, 7, seed=2).requires_grad_()
    for sparse_grad in (False, True):
        top = topk_linear(x, weight, 3, sparse_grad=sparse_grad, backend="cpu")
        (grad,) = torch.autograd.grad(top.values.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            grad.sum().backward()


# ---- Registration, compile, autocast, errors.
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_opcheck(dtype: torch.dtype, layout: str) -> None:
    x, weight = (make(*s, dtype=dtype, layout=layout, seed=1).requires_grad_() for s in ((6, 9), (20, 9)))
    bias = make(20, dtype=dtype, seed=3).requires_grad_()
    for backend, bias_or_none in itertools.product(("cpu", "reference"), (None, bias)):
        arguments = (x, weight, bias_or_none, 3, "relu", "both", True, False, backend)
        torch.library.opcheck(torch.ops.ssd_kernels.topk_linear_fwd.default, arguments)
    top = topk_linear(x.detach(), weight.detach(), 3)
    torch.library.opcheck(
        torch.ops.ssd_kernels.topk_linear_bwd.default,
        (
            top.values,
            x.detach(),
            weight.detach(),
            top.values,
            top.indices,
            "relu",
            "both",
            True,
            True,
            True,
            True,
            "cpu",
        ),
    )


def test_compile_fullgraph_with_dynamic_batch() -> None:
    torch._dynamo.reset()
    x, weight, bias = make(33, 9, seed=1), make(20, 9, seed=2).requires_grad_(), make(20, seed=3).requires_grad_()

    def loss(x: torch.Tensor) -> torch.Tensor:
        top = topk_linear(x, weight, 3, bias, inhibition=True)
        return (top.values * top.indices.cos()).sum() + top.threshold.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (33, 7, 2):
        expected = torch.autograd.grad(loss(x[:rows]), (weight, bias))
        actual = torch.autograd.grad(compiled(x[:rows]), (weight, bias))
        assert all(torch.equal(a, b) for a, b in zip(expected, actual))


def test_sparse_gradient_under_compile_is_a_clear_error() -> None:
    torch._dynamo.reset()
    weight = make(20, 9, seed=2).requires_grad_()
    compiled = torch.compile(lambda x: topk_linear(x, weight, 3, sparse_grad=True).values, backend="aot_eager")
    with pytest.raises(Exception, match=r"sparse_grad=True: .*allowed is False"):
        compiled(make(4, 9)).sum().backward()


def test_export() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return topk_linear(x, weight, 3).values

    x, weight = make(4, 9, seed=1), make(20, 9, seed=2)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Layer(), (x, weight), dynamic_shapes=({0: batch}, None))
    longer = make(11, 9, seed=3)
    assert torch.equal(program.module()(longer, weight), Layer()(longer, weight))


def test_autocast_behaves_as_linear() -> None:
    x, weight, bias = make(4, 9, seed=1), make(20, 9, seed=2).requires_grad_(), make(20, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        top = topk_linear(x, weight, 3, bias)
        assert top.values.dtype == torch.nn.functional.linear(x, weight, bias).dtype == torch.bfloat16
    expected = topk_linear(x.bfloat16(), weight.bfloat16(), 3, bias.bfloat16())
    assert torch.equal(top.values, expected.values)
    top.values.sum().backward()
    assert weight.grad.dtype == torch.float32


X, W = torch.zeros(4, 9), torch.zeros(20, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: topk_linear(X, W, 0), r"k=0: .*1 to R = 20"),
        (lambda: topk_linear(X, W, 21), r"k=21: .*1 to R = 20"),
        (lambda: topk_linear(X, W, 2.5), r"k=2\.5: .*whole numbers"),
        (lambda: topk_linear(X, W, True), r"k=True: .*whole numbers"),
        (lambda: topk_linear(torch.zeros(4, 8), W, 3), r"x has shape \(4, 8\): .*D = 9"),
        (lambda: topk_linear(torch.tensor(1.0), W, 3), r"x has shape \(\): .*\(\.\.\., D\)"),
        (lambda: topk_linear(X, torch.zeros(20), 3), r"weight has shape \(20,\): .*\(R, D\)"),
        (lambda: topk_linear(X, torch.zeros(0, 9), 3), r"weight has shape \(0, 9\): .*>= 1"),
        (lambda: topk_linear(X, W, 3, torch.zeros(19)), r"bias has shape \(19,\): .*\(20,\)"),
        (lambda: topk_linear(X.int(), W, 3), r"x has dtype torch.int32: .*torch.float32"),
        (lambda: topk_linear(X, W.double(), 3), r"weight has dtype torch.float64: .*torch.float32"),
        (lambda: topk_linear(X, W.to("meta"), 3), r"weight is on meta: .*cpu"),
        (lambda: topk_linear(X, W, 3, activation="gelu"), r"activation='gelu': .*relu, none"),
        (lambda: topk_linear(X, W, 3, normalize="l1"), r"normalize='l1': .*none, input, both"),
        (lambda: topk_linear(X, W, 3, precision="fp8"), r"precision='fp8': .*fp32"),
        (lambda: topk_linear(X, W, 3, backend="fast"), r"backend='fast'.*allowed"),
    ],
)
def test_errors_name_argument_value_and_what_is_allowed(call: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_unknown_simd_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSD_SIMD", "avx1024")
    with pytest.raises(ValueError, match=r"SSD_SIMD=avx1024: allowed are generic"):
        topk_linear(X, W, 3, backend="cpu")
