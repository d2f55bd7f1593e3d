"""threshold_linear and batch_topk_linear: every contract, on the reference and on every native kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssd_kernels import batch_topk_linear, testing, threshold_linear
from ssd_kernels.gaba_linear.reference import rows_to_dense
from ssd_kernels.testing import assert_accurate, id_of, make, num_threads, poisoned_empty, same_bits
from ssd_kernels.threshold_linear import reference

OPERATION = "threshold_linear"
TRITON_APART = True  # test_triton, below: tables that fit the interpreter
FORMS = ("threshold", "varying", "batch")
SHAPES = [shape for shape in testing.SHAPES if shape.k < 128]


def inputs(shape, dtype=torch.float32, values="normal", layout="contiguous"):
    """x, weight, bias, and a scale of powers of two, so that exact inputs stay exact."""
    few = values == "negative"
    scale = 2.0 ** (make(shape.r, values="ties", seed=4) / 2).round()
    weights = values if values in testing.FINITE_VALUES else "ties"
    if few:  # whole numbers here; few scores are positive, by the bias
        values = weights = "ties"
    x = make(shape.b, shape.d, values=values, dtype=dtype, layout=layout)
    weight = make(shape.r, shape.d, values=weights, dtype=dtype, layout=layout, seed=1)
    if few:
        x, weight = x.abs(), -weight.abs()
    return x, weight, make(shape.r, values="ties", dtype=dtype, seed=2), scale.to(dtype)


def call(form, x, weight, bias, scale, k, backend):
    if form == "batch":
        return batch_topk_linear(x, weight, k, bias, scale=scale, backend=backend)
    threshold = 1.0 if form == "threshold" else make(len(weight), values="ties", seed=3).abs()
    return threshold_linear(x, weight, threshold, bias, scale=scale, backend=backend)


def dense_of(rows, r):
    return rows_to_dense(rows.values, rows.indices, rows.offsets, r)


def same_rows(one, other) -> None:
    for name, a, b in zip(one._fields, one, other):
        assert same_bits(a, b), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", ["ties", "equal_rows", "zeros", "negative", "nan", "inf", "negative_inf"])
def test_exact_inputs_give_the_bits_of_a_stable_sort(values, form, backend) -> None:
    """Scores that are exact in any order: ties are real, and NaN and infinity are where they are."""
    for shape in SHAPES:
        x, weight, bias, scale = inputs(shape, values=values)
        for options in ((bias, scale), (None, None)):
            expected = call(form, x, weight, *options, shape.k, "reference")
            ours = call(form, x, weight, *options, shape.k, backend)
            same_rows(ours, expected)
            assert ours.offsets[0] == 0 and ours.offsets[-1] == len(ours.values) and not (ours.values <= 0).any()


def test_the_specification_written_out() -> None:
    x, weight, bias = make(6, 9, values="ties"), make(20, 9, values="ties", seed=1), make(20, values="ties", seed=2)
    a = torch.relu(x @ weight.T + bias)
    rows = threshold_linear(x, weight, 2.0, bias)
    assert torch.equal(dense_of(rows, 20), torch.where(a > 2, a, 0.0)) and (rows.threshold == 2).all()
    rows = batch_topk_linear(x, weight, 3, bias)
    order = sorted(range(6 * 20), key=lambda place: (-a.flatten()[place].item(), place))
    kept = torch.zeros(6 * 20)
    kept[order[:18]] = a.flatten()[order[:18]]
    assert torch.equal(dense_of(rows, 20), kept.reshape(6, 20))
    assert (rows.threshold == a.flatten()[order[18]]).all()
    assert (batch_topk_linear(x, weight, 20, bias).threshold == 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_forward_is_accurate(dtype, form, backend) -> None:
    for shape in SHAPES:
        x, weight, bias, scale = inputs(shape, dtype)
        rows = call(form, x, weight, bias, scale, shape.k, backend)
        ours, wide = dense_of(rows, shape.r), [t.double() for t in (x, weight, bias, scale)]
        gold = reference.activations(*wide)
        low = reference.activations(x, weight, bias, scale).to(dtype)
        active = ours > 0
        assert_accurate(ours[active], gold[active], low[active])
        # Who is active: nobody whose score is clear of the threshold is missing or too many.
        error = 2 * float((low.double() - gold).abs().max()) + 1e-4 if gold.numel() else 0.0
        border = rows.threshold.double()[:, None]
        if form == "varying":
            border = make(shape.r, values="ties", seed=3).abs().double()
        assert active[gold > border + error].all() and not active[gold < border - error].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_backward_is_accurate(dtype, form, backend) -> None:
    for shape in SHAPES[2:]:
        leaves = [t.detach().requires_grad_() for t in inputs(shape, dtype)]
        rows = call(form, *leaves, shape.k, backend)
        grad = make(len(rows.values), seed=5, dtype=dtype)
        ours = torch.autograd.grad(rows.values, leaves, grad)
        x, weight, _, scale = (t.detach() for t in leaves)
        entries = rows.values.detach(), rows.indices, rows.offsets
        low = reference.backward(grad, *entries, x, weight, scale)
        gold = reference.backward(
            grad.double(), entries[0].double(), *entries[1:], x.double(), weight.double(), scale.double()
        )
        for kernel, g, l in zip(ours, gold, low):
            # Rounded twice in 16 bits: z's gradient, then the sum. In fp64 the gold is as rounded as the kernel.
            most = float(g.abs().max()) if g.numel() else 0.0
            assert_accurate(kernel, g, l, tol=64 * torch.finfo(dtype).eps * most)


def test_gradcheck(backend) -> None:
    x, weight, bias = (make(*s, dtype=torch.float64, seed=i).requires_grad_() for i, s in
                       enumerate([(4, 5), (9, 5), (9,)]))  # fmt: skip
    scale = (make(9, values="uniform", dtype=torch.float64, seed=3) + 0.5).requires_grad_()
    for form in FORMS:
        assert torch.autograd.gradcheck(
            lambda *t, form=form: call(form, *t, 2, backend).values, (x, weight, bias, scale)
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", testing.LAYOUTS)
def test_layouts_change_nothing(layout, form, backend) -> None:
    shape = testing.Shape(7, 33, 101, 5)
    x, weight, bias, scale = inputs(shape, values="ties", layout=layout)
    kept = x.clone(), weight.clone()
    leaf = weight.detach().requires_grad_()
    ours = call(form, x, leaf, bias, scale, shape.k, backend)
    same_rows(ours, call(form, x.contiguous(), weight.contiguous(), bias, scale, shape.k, backend))
    ours.values.square().sum().backward()
    if layout in ("contiguous", "transposed"):
        assert leaf.grad.stride() == leaf.stride()
    other = weight.clone(memory_format=torch.contiguous_format).requires_grad_()
    call(form, x.contiguous(), other, bias, scale, shape.k, backend).values.square().sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)
    assert torch.equal(x, kept[0]) and torch.equal(weight, kept[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)
def test_threads_repeats_and_poison_change_no_bit(dtype, form) -> None:
    """Sizes with several blocks of samples, panels and cuts; the last two reach the bf16 preselection."""
    for shape in (testing.Shape(37, 48, 515, 8), testing.Shape(300, 64, 5000, 3), testing.Shape(70, 40, 3000, 90)):
        tensors = inputs(shape, dtype)
        with num_threads(1):
            leaves = [t.detach().requires_grad_() for t in tensors]
            expected = call(form, *leaves, shape.k, "cpu")
            grads = torch.autograd.grad(expected.values, leaves, expected.values.detach())
        for level in testing.simd_levels()[-2:]:
            with num_threads(2), poisoned_empty(), pytest.MonkeyPatch.context() as patch:
                patch.setenv("SSD_SIMD", level)
                leaves = [t.detach().requires_grad_() for t in tensors]
                ours = call(form, *leaves, shape.k, "cpu")
                same_rows(ours, expected)
                found = torch.autograd.grad(ours.values, leaves, ours.values.detach())
                assert all(same_bits(a, b) for a, b in zip(found, grads))
        gold = call(form, *(t.double() for t in tensors), shape.k, "reference")
        assert abs(len(gold.values) - len(expected.values)) <= 0.02 * len(gold.values) + 2


def test_preselection_and_plain_scan_agree(monkeypatch) -> None:
    """Thresholds that few pass, many pass, none passes; of one neuron they differ from panel to panel."""
    x, weight = make(80, 64, values="uniform"), make(4000, 64, values="uniform", seed=1)
    a = reference.activations(x, weight, None, None)
    thresholds = [float(a.flatten().kthvalue(int(a.numel() * q)).values) for q in (0.2, 0.9, 0.999)]
    many = torch.linspace(thresholds[1], thresholds[2], 4000)
    for threshold in (*thresholds, 1e6, many, many.flip(0), torch.full((4000,), float("inf"))):
        found = []
        for level in testing.simd_levels():
            monkeypatch.setenv("SSD_SIMD", level)
            found.append(threshold_linear(x, weight, threshold))
        same = found[-2:] if len(found) > 1 else found
        same_rows(same[0], same[-1])
        expected = (a > torch.as_tensor(threshold)).sum()
        assert all(abs(len(rows.values) - int(expected)) <= 3 for rows in found)


@given(b=st.sampled_from((0, 1, 2, 3, 17, 66)), d=st.integers(1, 70), r=st.integers(1, 200), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(b, d, r, data) -> None:
    shape = testing.Shape(b, d, r, data.draw(st.integers(1, r)))
    tensors = inputs(shape, values=data.draw(st.sampled_from(("ties", "negative", "nan"))))
    for form in FORMS:
        same_rows(call(form, *tensors, shape.k, "cpu"), call(form, *tensors, shape.k, "reference"))


def test_leading_dimensions_expanded_gradients_and_need_only(backend) -> None:
    x, weight = make(2, 3, 16), make(40, 16, seed=1)
    for form in FORMS:
        flat = call(form, x.reshape(6, 16), weight, None, None, 4, backend)
        for needs_x, needs_weight in ((True, False), (False, True)):
            a, w = x.clone().requires_grad_(needs_x), weight.clone().requires_grad_(needs_weight)
            rows = call(form, a, w, None, None, 4, backend)
            same_rows(rows, flat)
            rows.values.sum().backward()  # an expanded gradient of ones
            assert (a.grad is not None) == needs_x and (w.grad is not None) == needs_weight
            if needs_weight:
                active = torch.zeros(40, dtype=torch.bool)
                active[rows.indices.long()] = True
                assert torch.equal(w.grad.abs().sum(1) > 0, active)
        assert not rows.threshold.requires_grad and not rows.indices.requires_grad


def test_double_backward_raises(backend) -> None:
    x, weight = make(4, 5).requires_grad_(), make(9, 5, seed=1)
    for form in FORMS:
        values = call(form, x, weight, None, None, 2, backend).values
        (grad,) = torch.autograd.grad(values.square().sum(), x, create_graph=True)
        with pytest.raises((NotImplementedError, RuntimeError), match="double backward is not"):
            grad.sum().backward()


@pytest.mark.parametrize("layout", ("contiguous", "transposed"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=id_of)
def test_opcheck(dtype, layout, backend) -> None:
    shape, ops = testing.Shape(5, 7, 33, 4), torch.ops.ssd_kernels
    tensors = [t.requires_grad_() for t in inputs(shape, dtype, layout=layout)]
    threshold = torch.ones(33, dtype=torch.float64)
    torch.library.opcheck(ops.threshold_linear_fwd.default, (*tensors, threshold, backend))
    torch.library.opcheck(ops.batch_topk_linear_fwd.default, (*tensors, shape.k, backend))
    x, weight, bias, scale = (t.detach() for t in tensors)
    rows = call("batch", x, weight, bias, scale, shape.k, backend)
    arguments = (rows.values, rows.values, rows.indices, rows.offsets, x, weight, scale)
    torch.library.opcheck(ops.threshold_linear_bwd.default, (*arguments, True, True, True, True, backend))


def test_compiles_whole_with_a_dynamic_batch(backend) -> None:
    weight, bias = make(33, 7, seed=1).requires_grad_(), make(33, seed=2)
    torch._dynamo.reset()

    def both(x):
        return sum(call(form, x, weight, bias, None, 4, backend).values.sum() for form in ("threshold", "batch"))

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 8):
        x = make(batch, 7)
        torch.testing.assert_close(compiled(x), both(x))
        torch.testing.assert_close(*(torch.autograd.grad(f(x), weight)[0] for f in (compiled, both)))


def test_autocast_is_that_of_linear() -> None:
    x, weight, bias = make(4, 16), make(40, 16, seed=1), make(40, seed=2)
    for form in FORMS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = call(form, x, weight, bias, None, 3, "auto")
        assert rows.values.dtype == torch.bfloat16
        same_rows(rows, call(form, x.bfloat16(), weight.bfloat16(), bias.bfloat16(), None, 3, "auto"))


def test_what_rounds_to_zero_is_left_out(backend) -> None:
    x, weight = torch.full((2, 1), 2.0**-14, dtype=torch.float16), torch.full((3, 1), 2.0**-14, dtype=torch.float16)
    weight[1] = 1.0
    for rows in (
        threshold_linear(x, weight, 0.0, backend=backend), batch_topk_linear(x, weight, 2, backend=backend)
    ):  # fmt: skip
        assert rows.indices.tolist() == [1, 1] and rows.offsets.tolist() == [0, 1, 2]


def test_transforms_are_refused_by_name() -> None:
    x, weight = make(4, 5), make(9, 5, seed=1)
    for form, name in (("threshold", "threshold_linear"), ("batch", "batch_topk_linear")):
        with pytest.raises(NotImplementedError, match=rf"{name}: torch\.func: allowed is"):
            torch.func.grad(lambda w, form=form: call(form, x, w, None, None, 2, "auto").values.sum())(weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": -1.0}, "threshold must be a number >= 0 or a tensor"),
        ({"threshold": float("nan")}, "threshold must be a number >= 0"),
        ({"threshold": True}, "threshold must be a number >= 0"),
        ({"threshold": torch.ones(8)}, r"threshold must be \(\) or \(R,\) = \(9,\)"),
        ({"threshold": -torch.ones(9)}, "threshold must be >= 0"),
        ({"threshold": torch.ones(9, requires_grad=True)}, "threshold requires a gradient and has none here"),
        ({"x": torch.ones(2, 5)}, r"weight must be \(R, D\) with D = 5 as x"),
        ({"weight": torch.ones(9, 4).double()}, "weight must be torch.float32"),
        ({"bias": torch.ones(8)}, "bias must be"),
        ({"scale": torch.zeros(9)}, "scale must be positive and finite"),
        ({"scale": torch.full((9,), float("inf"))}, "scale must be positive and finite"),
        ({"x": torch.ones(2, 4).to_sparse()}, "x must be a dense tensor"),
        ({"backend": "fast"}, "there is no such backend"),
        ({"backend": "cuda"}, "cannot run threshold_linear"),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(change, message) -> None:
    arguments = {"x": torch.ones(2, 4), "weight": torch.ones(9, 4), "threshold": 1.0} | change
    with pytest.raises(ValueError, match=message):
        threshold_linear(**arguments)


@pytest.mark.parametrize("k", [0, 10, True, 1.5])
def test_k_is_from_one_to_r(k) -> None:
    with pytest.raises(ValueError, match="batch_topk_linear: k must be from 1 to R = 9"):
        batch_topk_linear(torch.ones(2, 4), torch.ones(9, 4), k)


@pytest.mark.interpreter
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", ["ties", "nan", "negative"])
def test_triton(values, form) -> None:
    pytest.importorskip("triton")
    for shape in (testing.Shape(0, 16, 20, 3), testing.Shape(3, 16, 17, 16), testing.Shape(7, 33, 101, 5)):
        for dtype in (torch.float32, torch.bfloat16) if shape.b == 3 else (torch.float32,):
            tensors = inputs(shape, dtype, values, layout="transposed" if values == "ties" else "contiguous")
            found, grads = [], []
            for backend in ("triton", "reference"):
                leaves = [t.detach().requires_grad_() for t in tensors]
                found.append(call(form, *leaves, shape.k, backend))
                grads.append(torch.autograd.grad(found[-1].values, leaves, torch.ones_like(found[-1].values)))
            same_rows(*found)
            if values == "nan":  # the reference's dense products spread it to neurons that are not active
                continue
            for one, other in zip(*grads):
                torch.testing.assert_close(one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4,
                                           equal_nan=True)  # fmt: skip
                assert one.stride() == other.stride()


@pytest.mark.interpreter
def test_triton_refuses_by_name() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="batch_topk_linear: k=200: backend='triton' takes 1 to 127, or R"):
        batch_topk_linear(make(2, 4), make(300, 4), 200, backend="triton")
