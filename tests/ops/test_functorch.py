"""torch.func and forward-mode derivatives: right, or refused by name. Never a derivative of 0 without a word."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import ssd_kernels
from ssd_kernels import SparseTopKLinear, TopK, testing

OPTIONS = [
    {},
    {"activation": "none"},
    {"normalize": "both"},
    {"inhibition": True},
]


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(testing.make(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate([(5, 7), (19, 7), (19,)]))


def ours(options: dict):
    def loss(x, weight, bias):
        top = ssd_kernels.topk_linear(x, weight, 4, bias, **options)
        weights = torch.arange(1.0, 5.0, dtype=x.dtype)
        return (top.values * weights).square().sum() + 0 * top.threshold.sum()

    return loss


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_topk_linear_under_torch_func(options):
    tensors = operands()
    loss = ours(options)
    leaves = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for transform in (grad, jacrev, jacfwd):
        found = transform(loss, (0, 1, 2))(*tensors)
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other)
    tangents = tuple(testing.make(*t.shape, seed=9, dtype=t.dtype) for t in tensors)
    along = sum((g * t).sum() for g, t in zip(expected, tangents))
    value, tangent = jvp(loss, tensors, tangents)
    torch.testing.assert_close(value, loss(*tensors))
    torch.testing.assert_close(tangent, along)
    assert tangent != 0
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, tangent) for t, tangent in zip(tensors, tangents)]
        torch.testing.assert_close(forward_ad.unpack_dual(loss(*duals)).tangent, along)
        assert forward_ad.unpack_dual(loss(*tensors)).tangent is None


def test_second_derivatives():
    x, weight, bias = operands()
    found = hessian(lambda v: ours({})(v, weight, bias))(x[0])
    top = ssd_kernels.topk_linear(x[0], weight, 4, bias)
    rows = weight[top.indices.long()] * torch.arange(1.0, 5.0, dtype=x.dtype)[:, None] * (top.values > 0)[:, None]
    torch.testing.assert_close(found, 2 * rows.T @ rows)


def test_per_sample_gradients_of_a_module():
    torch.manual_seed(0)
    layer = SparseTopKLinear(7, 19, 4, dtype=torch.float64)
    x = operands()[0]

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample,)).square().sum()

    found = vmap(grad(loss), (None, 0))(dict(layer.named_parameters()), x)
    for i, sample in enumerate(x):
        layer.zero_grad()
        layer(sample).square().sum().backward()
        torch.testing.assert_close(found["weight"][i], layer.weight.grad)
        torch.testing.assert_close(found["bias"][i], layer.bias.grad)


def test_vmap_alone_runs_the_operation():
    x, weight, bias = operands()
    found = vmap(lambda row: ssd_kernels.topk_linear(row, weight, 4, bias).values)(x)
    assert torch.equal(found, ssd_kernels.topk_linear(x, weight, 4, bias).values)


@pytest.mark.parametrize("rows", [False, True], ids=["TopK", "Rows"])
def test_sparse_linear_under_torch_func(rows):
    values, weight = testing.make(3, 4, dtype=torch.float64), testing.make(6, 9, seed=1, dtype=torch.float64)
    indices = torch.tensor([[0, 3, 4, 8], [1, 2, 5, 7], [0, 6, 7, 8]], dtype=torch.int32)

    def loss(values, weight):
        code = TopK(values, indices, values[:, 0].detach())
        if rows:
            code = ssd_kernels.Rows(values.flatten(), indices.flatten(), torch.arange(4) * 4, values[:, 0].detach())
        return ssd_kernels.sparse_linear(code, weight).pow(3).sum()

    leaves = [values.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for found in (grad(loss, (0, 1))(values, weight), jacfwd(loss, (0, 1))(values, weight)):
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("output", ["dense", "rows"])
def test_gaba_linear_is_refused_by_name(output):
    x, weight, _ = operands()

    def loss(x):
        h = ssd_kernels.gaba_linear(x, weight, 4, torch.ones(19), output=output)
        return (h if output == "dense" else h.values).sum()

    for transform in (grad(loss), jacrev(loss), lambda x: jvp(loss, (x,), (x,))):
        with pytest.raises(NotImplementedError, match=r"gaba_linear: torch\.func: allowed is"):
            transform(x)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="gaba_linear: forward-mode derivatives"):
        loss(forward_ad.make_dual(x, x))


def test_distill_loss_is_refused_by_name():
    logits, teacher = testing.make(5, 4), testing.make(5, 4, seed=1)
    labels = torch.arange(5) % 4

    def loss(logits):
        return ssd_kernels.distill_loss(logits, labels, teacher_logits=teacher).loss

    with pytest.raises(NotImplementedError, match=r"distill_loss: torch\.func"):
        grad(loss)(logits)


def test_sparse_gradients_are_refused_by_name():
    x, weight, _ = operands()
    with pytest.raises(ValueError, match=r"sparse_grad=True under torch\.func: allowed is False"):
        grad(lambda w: ssd_kernels.topk_linear(x, w, 4, sparse_grad=True).values.sum())(weight)
