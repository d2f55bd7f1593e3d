"""distill_loss: every contract, on the reference, every native kernel and Triton.

Triton's interpreter takes milliseconds per sample, so its batches and tables are smaller. The file is long because one
table of cases serves every contract.
"""

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ssd_kernels import Rows, TopK, distill_hidden, distill_loss, testing
from ssd_kernels.distill import reference
from ssd_kernels.testing import assert_accurate, id_of, make, num_threads, poisoned_empty, same_bits

OPERATION = "distill"
KINDS = ("dense", "topk", "rows")


def as_kind(h, kind, dtype=None):
    """Dense non-negative activations as dense, TopK (all of the neurons) or Rows."""
    h = h.to(dtype or h.dtype)
    if kind == "dense":
        return h
    if kind == "topk":
        top = torch.topk(h, h.shape[1] // 2 + 1)
        return TopK(top.values, top.indices.to(torch.int32), top.values[:, -1])
    sample, neuron = h.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (h != 0).sum(1).cumsum(0)])
    return Rows(h[sample, neuron], neuron.to(torch.int32), offsets, h.new_zeros(len(h)))


def hidden(b, r, seed=0, scale=0.3, share=0.2):
    """Activations of which about `share` are positive, fewer than half of a sample."""
    h = torch.relu(make(b, r, values="uniform", dtype=torch.float64, seed=seed) - (1 - share)) * scale / share
    keep = torch.topk(h, r // 2).indices if r > 1 else torch.zeros(b, 1, dtype=torch.int64)
    return torch.zeros_like(h).scatter(1, keep, h.gather(1, keep))


def problem(b=7, r=41, c=10, n=13, dtype=torch.float64, student="rows", teacher="rows", scale=0.3, seed=0):
    logits, q = make(b, c, dtype=dtype, seed=seed + 1), make(b, c, dtype=dtype, seed=seed + 2)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, c, (b,), generator=generator)
    units = torch.randperm(r, generator=generator)[:n]
    z = as_kind(hidden(b, r, seed + 3, scale), student, dtype)
    return logits, labels, z, q, as_kind(hidden(b, r, seed + 4, scale), teacher, dtype), units


def sized(backend, many, few):
    """`many`, or `few` for the interpreter."""
    return few if backend == "triton" else many


def values_of(active):
    return active if isinstance(active, torch.Tensor) else active.values


def with_values(active, values):
    return values if isinstance(active, torch.Tensor) else active._replace(values=values)


def dense_of(active, r):
    if isinstance(active, torch.Tensor):
        return active
    sample = reference.sample_of_entry(active.values, active.offsets if isinstance(active, Rows) else None)
    b = active.values.shape[0] if isinstance(active, TopK) else len(active.offsets) - 1
    dense = active.values.new_zeros(b, r)
    return dense.index_put((sample, active.indices.flatten().long()), active.values.flatten())


def oracle(logits, labels, z, q, t, units, r, *, alpha=0.7, lam=0.1, temperature=8.0, kl="forward", old_classes=None):
    """Section 5 of the specification, dense, by autograd in float64, with torch's own loss functions."""

    def kd(student, teacher):
        log_s, log_t = (log_softmax(v.double() / temperature, 1) for v in (student, teacher))
        pair = (log_s, log_t) if kl == "forward" else (log_t, log_s)
        return temperature**2 * kl_div(*pair, reduction="batchmean", log_target=True)

    classes = torch.arange(logits.shape[1]) if old_classes is None else old_classes
    ce = cross_entropy(logits.double(), labels)
    kd_logits = kd(logits[:, classes], q[:, classes])
    kd_hidden = kd(dense_of(z, r)[:, units], dense_of(t, r)[:, units])
    return alpha * ce + (1 - alpha) * (lam * kd_hidden + (1 - lam) * kd_logits), ce, kd_hidden, kd_logits


def gradients(loss, logits, z):
    return torch.autograd.grad(loss, (logits, values_of(z)))


def leaves(logits, z):
    return logits.detach().requires_grad_(), with_values(z, values_of(z).detach().requires_grad_())


@pytest.mark.parametrize("kl", ("forward", "reverse"))
@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("temperature", (0.5, 8.0))
def test_losses_and_gradients_are_those_of_the_oracle(student, teacher, temperature, kl, backend):
    both = (None, torch.tensor([7, 2, 5]))
    for old_classes in sized(backend, both, both[: 1 if temperature == 8.0 else None][-1:]):
        logits, labels, z, q, t, units = problem(b=sized(backend, 7, 2), student=student, teacher=teacher)
        logits, z = leaves(logits, z)
        options = {"temperature": temperature, "kl": kl, "alpha": 0.6, "lam": 0.4, "old_classes": old_classes}
        got = distill_loss(logits, labels, z, q, t, units=units, backend=backend, **options)
        gold = oracle(logits, labels, z, q, t, units, 41, **options)
        for a, b in zip(got, gold):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-15)
        for a, b in zip(gradients(got.loss, logits, z), gradients(gold[0], logits, z)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("part", ("ce", "kd_hidden", "kd_logits"))
def test_each_part_is_differentiable(part, backend):
    logits, labels, z, q, t, units = problem()
    logits, z = leaves(logits, z)
    got = getattr(distill_loss(logits, labels, z, q, t, units=units, backend=backend), part)
    gold = oracle(logits, labels, z, q, t, units, 41)[{"ce": 1, "kd_hidden": 2, "kd_logits": 3}[part]]
    pairs = [torch.autograd.grad(f, (logits, z.values), allow_unused=True) for f in (got, gold)]
    for a, b in zip(*pairs):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if a is None else a.double(), zero if b is None else b, check_dtype=False)


@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_every_dtype_is_as_accurate_as_its_storage(dtype, student, backend):
    logits, labels, z, q, t, units = problem(b=sized(backend, 33, 2), r=300, n=70, dtype=dtype, student=student)
    logits, z = leaves(logits, z)
    got = distill_loss(logits, labels, z, q, t, units=units, backend=backend)
    wide = logits.detach().double().requires_grad_(), with_values(z, values_of(z).detach().double().requires_grad_())
    gold = oracle(wide[0], labels, wide[1], q.double(), with_values(t, values_of(t).double()), units, 300)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for a, b in zip(got, gold):
        assert a.dtype == expected
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=0)
    for a, b in zip(gradients(got.loss, logits, z), gradients(gold[0], *wide)):
        assert a.dtype == dtype
        assert_accurate(a, b, b.to(dtype), tol=sized(backend, 1e-17, 2e-16) if dtype == torch.float64 else None)


def case_table(shape, backend, whole_table):
    """(values, scale, forms) of the cases of one shape; the interpreter needs up to half a second for a sample."""
    values, scales = list(testing.VALUES), testing.SCALES
    for place, kind in enumerate(values if whole_table or shape.r < 200 else values[:2]):
        if backend != "triton" or (whole_table and shape.b < 30):
            yield from ((kind, scale, ("dense", "rows")) for scale in scales)
        else:
            yield kind, scales[place % 3], ("dense",) if whole_table and place > 1 else ("dense", "rows")


@pytest.mark.parametrize("shape", testing.SHAPES, ids=id_of)
def test_the_case_tables(shape, backend, whole_table):
    """Every kind of value, scale, dtype and layout: D classes, K selected units of R, dense and as rows."""
    table = list(case_table(shape, backend, whole_table))
    if not whole_table:
        shape = dataclasses.replace(shape, b=min(shape.b, 2))
    units = torch.randperm(shape.r, generator=torch.Generator().manual_seed(0))[: shape.k]
    labels = torch.randint(0, shape.d, (shape.b,), generator=torch.Generator().manual_seed(0))
    for case, (values, scale, forms) in enumerate(table):
        options = {"values": values, "scale": scale, "dtype": testing.DTYPES[case % 4]}
        options["layout"] = testing.LAYOUTS[case % 5]
        z, t = (make(shape.b, shape.r, seed=seed, **options) for seed in (1, 2))
        logits, q = (make(shape.b, shape.d, seed=seed, **options) for seed in (3, 4))
        gold = oracle(logits, labels, z, q, t, units, shape.r)
        for kind in forms:
            active = (as_kind(z, kind), q, as_kind(t, kind))
            got = distill_loss(logits, labels, *active, units=units, backend=backend)
            for a, g in zip(got, gold):
                if shape.b == 0:
                    assert a == 0
                elif torch.isfinite(g):
                    torch.testing.assert_close(a.double(), g, rtol=1e-6, atol=1e-9)
                else:
                    assert not torch.isfinite(a)


@pytest.mark.parametrize("student, teacher", [("rows", "rows"), ("topk", "rows"), ("dense", "dense")])
def test_a_tiny_hidden_loss_is_resolved(student, teacher, backend):
    """Near-equal activations give a loss that a float32 log-softmax cannot see."""
    for scale in (1e-3, 1e-2):
        logits, labels, z, q, t, units = problem(
            b=sized(backend, 64, 4), r=400, n=200, dtype=torch.float32, student=student, teacher=teacher, scale=scale
        )
        got = distill_loss(logits, labels, z, q, t, units=units, backend=backend).kd_hidden
        dense_z, dense_t = dense_of(z, 400)[:, units].double(), dense_of(t, 400)[:, units].double()
        half_variance = ((dense_z - dense_t).var(1, unbiased=False) / 2).mean()
        assert 0 < float(got) < 1e-4
        torch.testing.assert_close(got.double(), half_variance, rtol=0.01, atol=0)


@pytest.mark.parametrize("kl", ("forward", "reverse"))
@pytest.mark.parametrize("level", (-20.0, -40.0, -1e3, -1e49))
def test_units_that_are_all_far_below_0(level, kl, backend):
    """n + sum expm1(h) cancels there: at -40 it was 0, and the loss NaN."""
    z, t = (level + torch.tensor(h, dtype=torch.float64) for h in ([[0.3, -0.2, 0.1]], [[0.0, 0.4, -0.5]]))
    units = torch.tensor([2, 0, 1])
    given = z.clone().requires_grad_()
    got = distill_hidden(given, t, units, temperature=1.0, kl=kl, backend=backend)
    student = z[:, units].clone().requires_grad_()
    gold = reference.divergence(student, t[:, units], 1.0, kl == "reverse")
    torch.testing.assert_close(got, gold, rtol=1e-9, atol=1e-11)
    (ours,) = torch.autograd.grad(got, given)
    (theirs,) = torch.autograd.grad(gold, student)
    torch.testing.assert_close(ours[:, units], theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kl", ("forward", "reverse"))
@pytest.mark.parametrize("whose", ("student", "teacher"))
def test_logits_of_minus_infinity(whose, kl, backend):
    """0 x -inf is NaN, as in torch's kl_div; a probability of 3e-308 would make an infinity of it."""
    z, q = torch.tensor([[0.5, 1.0, -1.0]]), torch.tensor([[0.0, 0.2, 0.1]])
    (z if whose == "student" else q)[0, 1] = -math.inf
    got = distill_loss(z, torch.tensor([0]), None, q, kl=kl, backend=backend)
    gold = oracle(z, torch.tensor([0]), torch.zeros(1, 2), q, torch.zeros(1, 2), torch.tensor([0]), 2, kl=kl)
    torch.testing.assert_close(got.kd_logits.double(), gold[3], equal_nan=True)
    torch.testing.assert_close(got.ce.double(), gold[1])


def test_equal_student_and_teacher_have_no_divergence(backend):
    logits, labels, z, _, _, units = problem()
    got = distill_loss(logits, labels, z, logits, z, units=units, backend=backend)
    assert abs(float(got.kd_hidden)) < 1e-15 and abs(float(got.kd_logits)) < 1e-13


def test_absent_neurons_and_empty_samples(backend):
    """A sample without active neurons, units that never fire, and neurons that are not selected."""
    z = Rows(torch.tensor([0.5, 0.25]).double(), torch.tensor([3, 8], dtype=torch.int32), torch.tensor([0, 2, 2]), None)
    t = Rows(torch.tensor([0.75]).double(), torch.tensor([5], dtype=torch.int32), torch.tensor([0, 0, 1]), None)
    logits, labels, units = make(2, 4, dtype=torch.float64), torch.tensor([0, 3]), torch.tensor([5, 3, 1])
    z = z._replace(values=z.values.requires_grad_())
    got = distill_loss(logits, labels, z, logits, t, units=units, backend=backend)
    gold = oracle(logits, labels, z, logits, t, units, 9)[2]
    torch.testing.assert_close(got.kd_hidden, gold)
    grad, expected = (torch.autograd.grad(f, z.values)[0] for f in (got.kd_hidden, gold))
    torch.testing.assert_close(grad, expected)
    assert grad[1] == 0


def test_without_a_teacher_the_loss_is_cross_entropy(backend):
    logits, labels, z, q, _, _ = problem(dtype=torch.float32)
    logits.requires_grad_()
    got = distill_loss(logits, labels, z, backend=backend)
    expected = cross_entropy(logits, labels)
    torch.testing.assert_close(got.loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(f, logits)[0] for f in (got.loss, expected)))
    assert got.kd_hidden == 0 and got.kd_logits == 0
    only_logits = distill_loss(logits, labels, None, q, backend=backend)
    assert only_logits.kd_hidden == 0 and only_logits.kd_logits > 0


def test_hidden_layers_are_summed(backend):
    a, b = problem(seed=0), problem(seed=50, r=60, n=20, student="dense", teacher="topk")
    logits, labels, q = a[0], a[1], a[3]
    both = distill_loss(logits, labels, (a[2], b[2]), q, (a[4], b[4]), units=(a[5], b[5]), backend=backend)
    single = [distill_loss(logits, labels, p[2], q, p[4], units=p[5], backend=backend).kd_hidden for p in (a, b)]
    torch.testing.assert_close(both.kd_hidden, single[0] + single[1])


def test_the_teacher_receives_no_gradient(backend):
    logits, labels, z, q, t, units = problem(teacher="dense")
    loss = distill_loss(logits.requires_grad_(), labels, z, q.requires_grad_(), t.requires_grad_(), units=units).loss
    loss.backward()
    assert q.grad is None and t.grad is None and logits.grad is not None


def test_an_empty_batch_has_loss_zero(backend):
    for kind in KINDS:
        logits, labels, z, q, t, units = problem(b=0, student=kind, teacher=kind)
        logits, z = leaves(logits, z)
        got = distill_loss(logits, labels, z, q, t, units=units, backend=backend)
        assert [part.item() for part in got] == [0, 0, 0, 0]
        assert all(g.numel() == 0 for g in gradients(got.loss, logits, z))


def test_extreme_logits_stay_finite(backend):
    logits, labels, z, q, t, units = problem()
    got = distill_loss(logits * 1e4, labels, z, q * -1e4, t, units=units, temperature=0.5, backend=backend)
    assert all(torch.isfinite(part) for part in got)
    wrong = distill_loss(torch.tensor([[0.0, 800.0]]), torch.tensor([0]), backend=backend)
    assert wrong.loss == 800.0


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, backend):
    size = sized(backend, {"b": 3, "r": 9, "c": 4, "n": 5}, {"b": 1, "r": 4, "c": 3, "n": 3})
    logits, labels, z, q, t, units = problem(**size, student=kind, teacher=kind)
    logits, z = leaves(logits, z)

    def loss(logits, values):
        return distill_loss(logits, labels, with_values(z, values), q, t, units=units, temperature=1, backend=backend)[
            0
        ]

    torch.autograd.gradcheck(loss, (logits, values_of(z)))


def test_double_backward_raises(backend):
    logits, labels, z, q, t, units = problem()
    logits, z = leaves(logits, z)
    loss = distill_loss(logits, labels, z, q, t, units=units, backend=backend).loss
    for leaf in (logits, z.values):
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises((NotImplementedError, RuntimeError), match="double backward is not"):
            grad.sum().backward(retain_graph=True)


@pytest.mark.parametrize("layout", ("contiguous", "transposed", "strided", "unaligned"))
@pytest.mark.parametrize("kind", ("dense", "topk"))
def test_layouts_change_nothing(kind, layout, backend):
    logits, labels, z, q, t, units = problem(student=kind, teacher=kind, dtype=torch.float32)

    def laid(tensor):
        return testing.lay_out(tensor, layout)

    def moved(active):
        return laid(active) if kind == "dense" else active._replace(values=laid(active.values))

    results = []
    for arguments in ((logits, z, q, t), (laid(logits), moved(z), laid(q), moved(t))):
        logits_, z_ = leaves(arguments[0], arguments[1])
        got = distill_loss(logits_, labels, z_, arguments[2], arguments[3], units=units, backend=backend)
        results.append((*(part.detach() for part in got), *gradients(got.loss, logits_, z_)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        assert backend == "reference" or same_bits(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_repeats_and_poison_change_no_bit(kind, backend):
    b = sized(backend, 129, 5)
    logits, labels, z, q, t, units = problem(b=b, r=500, n=100, student=kind, teacher=kind, dtype=torch.float32)
    results = []
    for threads in (1, 2):
        with num_threads(threads), poisoned_empty():
            for _ in range(50 if backend == "cpu" else 1):
                logits_, z_ = leaves(logits, z)
                got = distill_loss(logits_, labels, z_, q, t, units=units, backend=backend)
                results.append((*(part.detach() for part in got), *gradients(got.loss, logits_, z_)))
    if backend != "reference":
        assert all(same_bits(a, b) for result in results for a, b in zip(result, results[0]))
    assert all(torch.isfinite(part).all() for part in results[-1])


@given(b=st.sampled_from((0, 1, 2, 3, 66)), c=st.integers(1, 40), r=st.integers(1, 120), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(backend, b, c, r, data):
    student, teacher = (data.draw(st.sampled_from(KINDS)) for _ in range(2))
    n, b = data.draw(st.integers(1, r)), sized(backend, b, min(b, 2))
    logits, labels, z, q, t, units = problem(b, r, c, n, student=student, teacher=teacher)
    logits, z = leaves(logits, z)
    got = distill_loss(logits, labels, z, q, t, units=units, backend=backend)
    if b == 0:
        assert all(part == 0 for part in got)
        return
    gold = oracle(logits, labels, z, q, t, units, r)
    for a, g in zip(got, gold):
        torch.testing.assert_close(a, g, rtol=1e-8, atol=1e-14)
    for a, g in zip(gradients(got.loss, logits, z), gradients(gold[0], logits, z)):
        torch.testing.assert_close(a, g, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=id_of)
def test_opcheck(dtype, kind, backend):
    logits, labels, z, q, t, units = problem(b=5, dtype=dtype, student=kind, teacher=kind)
    logits, z = leaves(logits, z)
    ops = torch.ops.ssd_kernels
    torch.library.opcheck(ops.distill_logits.default, (logits, labels, q, None, 8.0, False, backend))
    torch.library.opcheck(ops.distill_logits.default, (logits, labels, None, None, 8.0, False, backend))
    parts = [(a, None, None) if kind == "dense" else (*a[:2], a.offsets if kind == "rows" else None) for a in (z, t)]
    torch.library.opcheck(ops.distill_hidden.default, (*parts[0], *parts[1], units, 8.0, True, backend))
    one = torch.ones(())
    torch.library.opcheck(ops.distill_hidden_bwd.default, (one, q, torch.arange(q.shape[1]), q, 20))
    torch.library.opcheck(ops.distill_hidden_bwd.default, (one, q, units, q, 0))
    torch.library.opcheck(ops.distill_logits_bwd.default, (one, one, q, q, q))


def test_compiles_whole_with_a_dynamic_batch(backend):
    torch._dynamo.reset()

    def loss(logits, labels, values, indices, q, t_values, t_indices, units):
        z, t = TopK(values, indices, values[:, 0]), TopK(t_values, t_indices, t_values[:, 0])
        return torch.stack(distill_loss(logits, labels, z, q, t, units=units, backend=backend)).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for b in (3, 5, 8):
        logits, labels, z, q, t, units = problem(b=b, student="topk", teacher="topk")
        logits, z = leaves(logits, z)
        arguments = (logits, labels, z.values, z.indices, q, t.values, t.indices, units)
        both = [f(*arguments) for f in (compiled, loss)]
        torch.testing.assert_close(*both)
        for a, g in zip(*(gradients(value, logits, z) for value in both)):
            torch.testing.assert_close(a, g)


def test_autocast_leaves_the_loss_in_float32(backend):
    logits, labels, z, q, t, units = problem(dtype=torch.float32)
    expected = distill_loss(logits, labels, z, q, t, units=units, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = distill_loss(logits, labels, z, q, t, units=units, backend=backend)
        half = distill_loss(logits.bfloat16(), labels, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, expected)) and half.loss.dtype == torch.float32


def test_the_loss_of_uniform_logits_is_log_c(backend):
    loss = distill_loss(torch.zeros(2, 4), torch.tensor([0, 3]), backend=backend).loss
    assert math.isclose(float(loss), math.log(4), rel_tol=1e-6)
