"""topk_linear's scale, rows, magnitude, groups and transposed weights: backends against reference, and autograd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ssd_kernels import testing, topk_linear
from ssd_kernels.testing import id_of, make, same_bits

LEVELS = ("generic", "avx2", "avx512", "avx512bf16")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with testing.num_threads(1):
        yield


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in testing.simd_levels():
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("SSD_SIMD", request.param)
    return request.param


def options_of(neurons: int, k: int, dtype: torch.dtype) -> dict[str, dict]:
    """Each choice by name; scales are powers of two, so exact inputs stay exact."""
    generator = torch.Generator().manual_seed(5)
    scale = 2.0 ** torch.randint(-2, 3, (neurons,), generator=generator)
    rows = torch.randperm(neurons, generator=generator)[: max(k, neurons * 2 // 3)].sort().values
    return {
        "scale": {"scale": scale.to(dtype)},
        "rows": {"rows": rows},
        "scale, rows, raw": {"scale": scale.to(dtype), "rows": rows, "activation": "none"},
        "abs": {"activation": "abs"},
        "abs, scale, rows": {"activation": "abs", "scale": scale.to(dtype), "rows": rows},
        "scale, normalize": {"scale": scale.to(dtype), "normalize": "both"},
        "inhibition, rows": {"inhibition": True, "rows": rows},
    }


CHOICES = tuple(options_of(1, 1, torch.float32))
# B, D, R, K: the last two reach the bf16 preselection and several panels, one of them with more than 64 winners.
SHAPES = [(1, 1, 3, 1), (5, 19, 40, 5), (33, 40, 700, 70), (18, 64, 2600, 9)]


def same(ours: tuple, expected: tuple) -> None:
    assert torch.equal(ours.indices, expected.indices)
    assert same_bits(ours.values, expected.values) and same_bits(ours.threshold, expected.threshold)


@pytest.mark.parametrize(
    ("choice", "layout"),
    [(choice, "contiguous") for choice in CHOICES]
    + [(choice, "transposed") for choice in ("plain", "scale", "abs, scale, rows", "scale, normalize")],
)
@pytest.mark.parametrize("shape", SHAPES, ids=id_of)
def test_exact_inputs_give_the_references_bits(level, shape, choice, layout) -> None:
    b, d, r, k = shape
    x, weight = make(b, d, values="ties", seed=1), make(r, d, values="ties", seed=2, layout=layout)
    bias = make(r, values="ties", seed=3)
    options = options_of(r, k, x.dtype).get(choice, {})
    if options.get("normalize") == "both":  # norms of whole numbers are no whole numbers
        weight = make(r, d, values="ties", seed=2).sign().mul(0).add(1)
        weight = testing.lay_out(weight, layout)
        x = x[:, :1].expand(b, d) * 1.0
        if d not in (1, 64):
            pytest.skip("the norm of D ones is a power of two for D = 1 and 64")
    for shift in (None, bias) if choice in ("plain", "scale") else (bias,):
        ours, expected = (topk_linear(x, weight, k, shift, backend=name, **options) for name in ("cpu", "reference"))
        same(ours, expected)
    with testing.num_threads(2):
        same(topk_linear(x, weight, k, bias, backend="cpu", **options), expected)


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
@pytest.mark.parametrize(
    ("choice", "layout"),
    [("scale", "transposed"), ("abs, scale, rows", "contiguous"), ("scale, normalize", "transposed")],
)
def test_values_obey_the_2x_rule(level, choice, layout, dtype) -> None:
    b, d, r, k = 20, 40, 500, 12
    x, weight = make(b, d, seed=1, dtype=dtype), make(r, d, seed=2, dtype=dtype, layout=layout)
    bias, options = make(r, seed=3, dtype=dtype), options_of(r, k, dtype)[choice]
    kernel, low = (topk_linear(x, weight, k, bias, backend=name, **options) for name in ("cpu", "reference"))
    wide = {name: v.double() if isinstance(v, torch.Tensor) and name == "scale" else v for name, v in options.items()}
    gold = topk_linear(x.double(), weight.double(), k, bias.double(), backend="reference", **wide)
    # Inhibition subtracts: what counts is the resolution of the activations before it.
    largest = float(gold.values.abs().max() + gold.threshold.abs().max())
    tol = 4 * torch.finfo(dtype).eps * largest
    if choice.startswith("abs"):
        gold, low, kernel = (t.values.abs() for t in (gold, low, kernel))
    else:
        gold, low, kernel = gold.values, low.values, kernel.values
    testing.assert_accurate(kernel, gold, low, tol=tol)


@pytest.mark.parametrize("groups", [2, 12])
@pytest.mark.parametrize(
    ("activation", "layout"), [("relu", "contiguous"), ("none", "transposed"), ("abs", "contiguous")]
)
def test_groups(level, groups, activation, layout) -> None:
    x, weight = make(7, 11, values="ties", seed=1), make(48, 11, values="ties", seed=2, layout=layout)
    options = {"groups": groups, "activation": activation, "scale": torch.full((48,), 2.0)}
    bias = make(48, values="ties", seed=3)
    ours, expected = (topk_linear(x, weight, 12, bias, backend=name, **options) for name in ("cpu", "reference"))
    same(ours, expected)
    if activation == "relu" and groups == 12:  # GroupMax, written out
        scores = torch.relu(2 * (x @ weight.T + bias)).unflatten(-1, (12, 4))
        assert torch.equal(ours.values, scores.amax(-1))
        assert torch.equal(ours.indices.long(), scores.argmax(-1) + 4 * torch.arange(12))
        assert torch.equal(ours.threshold, scores.sort(-1).values[..., -2].amax(-1))


# ---- Gradients.
GRADIENTS = ["scale", "rows", "abs, scale, rows", "scale, normalize", "groups", "transposed", "inhibition, scale"]


def gradient_case(name: str, dtype: torch.dtype = torch.float64) -> tuple[list, dict]:
    r, k = 24, 6
    table = options_of(r, k, dtype)
    table |= {"groups": {"groups": 3, "activation": "abs"}, "transposed": {}}
    table |= {"inhibition, scale": {"inhibition": True, **table["scale"]}}
    options = table[name]
    layout = "transposed" if name == "transposed" else "contiguous"
    tensors = [make(5, 9, seed=1, dtype=dtype), make(r, 9, seed=2, dtype=dtype, layout=layout)]
    tensors += [make(r, seed=3, dtype=dtype), options.get("scale", torch.ones(r, dtype=dtype))]
    return tensors, {**options, "k": k}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_formula(name, backend) -> None:
    tensors, options = gradient_case(name)
    k, groups = options.pop("k"), options.get("groups", 1)
    ours = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    theirs = [t.detach().clone().requires_grad_() for t in tensors]
    top = topk_linear(*ours[:2], k, ours[2], **{**options, "scale": ours[3]}, backend=backend)
    x, weight, bias, scale = theirs
    if options.get("normalize") == "both":
        x, weight = (torch.nn.functional.normalize(t, dim=1) for t in (x, weight))
    scores = scale * (x @ weight.T + bias)
    rows = options.get("rows", torch.arange(24))
    if options.get("activation", "relu") == "relu":
        scores = scores.relu()
    expected = scores.gather(1, top.indices.long())
    if options.get("inhibition"):
        expected = (expected - top.threshold[:, None]).relu()
    assert torch.isin(top.indices, rows.int()).all() and groups in (1, 3)
    torch.testing.assert_close(top.values, expected)
    grad = make(*expected.shape, seed=9, dtype=torch.float64)
    top.values.backward(grad)
    expected.backward(grad)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one.grad, other.grad)
    assert ours[1].grad.stride() == ours[1].stride()


def test_a_transposed_weight_is_not_copied_and_its_gradient_has_its_layout() -> None:
    stored = make(30, 400, seed=2).requires_grad_()  # (D, R), as SAELens keeps W_enc
    x = make(20, 30, seed=1).requires_grad_()
    top = topk_linear(x, stored.t(), 7, make(400, seed=3))
    top.values.square().sum().backward()
    x2, weight = x.detach().clone().requires_grad_(), stored.detach().t().contiguous().requires_grad_()
    expected = topk_linear(x2, weight, 7, make(400, seed=3))
    expected.values.square().sum().backward()
    same(top, expected)
    assert stored.grad.is_contiguous()
    assert torch.equal(stored.grad, weight.grad.t()) and torch.equal(x.grad, x2.grad)


def test_gradcheck() -> None:
    for name in ("rows", "abs, scale, rows", "scale, normalize", "groups"):
        tensors, options = gradient_case(name)
        k = options.pop("k")

        def values(x, weight, bias, scale, k=k, options=options):
            return topk_linear(x, weight, k, bias, **{**options, "scale": scale}).values

        assert torch.autograd.gradcheck(values, [t.requires_grad_() for t in tensors])


def test_rows_is_the_selection_from_gathered_rows() -> None:
    """As the loss that revives dead neurons selects: topk_linear(x, W[dead], k, b[dead])."""
    x, weight, bias = make(9, 12, seed=1), make(60, 12, seed=2), make(60, seed=3)
    dead = (torch.arange(60) % 3 == 0).nonzero().flatten()
    ours = topk_linear(x, weight, 4, bias, rows=dead)
    gathered = topk_linear(x, weight[dead], 4, bias[dead])
    assert torch.equal(ours.values, gathered.values) and torch.equal(ours.threshold, gathered.threshold)
    assert torch.equal(ours.indices.long(), dead[gathered.indices.long()])


def test_the_first_k_of_more_winners_are_the_top_k() -> None:
    """Multi-TopK: one call with 4 K gives K too, bitwise; its threshold is another."""
    x, weight, bias = make(40, 64, seed=1), make(900, 64, seed=2), make(900, seed=3)
    few, many = topk_linear(x, weight, 8, bias), topk_linear(x, weight, 32, bias)
    assert torch.equal(few.values, many.values[:, :8]) and torch.equal(few.indices, many.indices[:, :8])
    assert torch.equal(few.threshold, many.values[:, 8])


def test_opcheck_and_compile() -> None:
    tensors, options = gradient_case("abs, scale, rows")
    x, weight, bias, scale = (t.requires_grad_() for t in tensors)
    arguments = (x, weight, bias, 6, "abs", "none", False, False, "cpu", scale, options["rows"], 1)
    torch.library.opcheck(torch.ops.ssd_kernels.topk_linear_fwd.default, arguments)
    arguments = (x, weight, bias, 6, "relu", "none", False, False, "cpu", scale, None, 3)
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")  # the rest is as above
    torch.library.opcheck(torch.ops.ssd_kernels.topk_linear_fwd.default, arguments, test_utils=quick)

    def loss(x, weight, scale):
        return topk_linear(x, weight, 6, scale=scale, rows=options["rows"]).values.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x, weight, scale), (x, weight, scale))
    for one, other in zip(ours, torch.autograd.grad(loss(x, weight, scale), (x, weight, scale))):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": torch.zeros(24)}, "scale has entries that are not > 0"),
        ({"scale": torch.full((24,), float("inf"))}, "scale has entries that are not > 0 and finite"),
        ({"scale": torch.ones(24).numpy()}, "scale must be a Tensor, got ndarray"),
        ({"scale": torch.ones(23)}, r"scale is torch.float32 \(23,\).*allowed is \(R,\) = \(24,\)"),
        ({"rows": torch.arange(5)}, "k=6: allowed are whole numbers from 1 to the 5 chosen rows"),
        ({"rows": torch.arange(8).flip(0)}, "rows: allowed are ascending, distinct neurons from 0 to 23"),
        ({"rows": torch.arange(20, 28)}, "rows: allowed are ascending"),
        ({"rows": torch.arange(8).int()}, r"rows is torch.int32 \(8,\).*allowed is int64"),
        ({"groups": 5}, "groups=5: allowed are divisors of R = 24 and of k = 6"),
        ({"groups": 2, "rows": torch.arange(8)}, "groups and rows together"),
        ({"groups": 2, "inhibition": True}, "inhibition=True with activation='abs' or groups"),
        ({"activation": "gelu"}, "activation='gelu': allowed are relu, none, abs"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        topk_linear(make(5, 9), make(24, 9), 6, **options)


@pytest.mark.interpreter
@pytest.mark.parametrize("choice", [*CHOICES, "groups", "transposed"])
def test_triton(choice) -> None:
    x, weight, bias = (make(*s, values="ties", seed=i) for i, s in enumerate([(3, 16), (48, 16), (48,)]))
    table = options_of(48, 6, x.dtype) | {"groups": {"groups": 3, "activation": "abs"}, "transposed": {}}
    options = table[choice]
    if choice == "transposed":
        weight = testing.lay_out(weight, "transposed")
    if choice == "scale, normalize":
        weight = weight.mul(0) + 1
    leaves = [[t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, bias)] for _ in "ab"]
    found = []
    for (x, weight, bias), backend in zip(leaves, ("triton", "reference")):
        top = topk_linear(x, weight, 6, bias, backend=backend, **options)
        top.values.square().sum().backward()
        found.append(top)
    same(*found)
    for one, other in zip(*leaves):
        torch.testing.assert_close(one.grad, other.grad)
        assert one.grad.stride() == one.stride()
