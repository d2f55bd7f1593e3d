"""Row-sparse training: clip_grad_norm_ and SparseSGD against their dense counterparts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ssd_kernels
from ssd_kernels import SparseSGD, SparseTopKLinear, testing


def sparse_rows(shape: tuple[int, int], rows: list[int], coalesced: bool = True) -> torch.Tensor:
    values = testing.make(len(rows), shape[1])
    grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, shape, check_invariants=True)
    return grad.coalesce() if coalesced else grad


def parameters() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """A row-sparse, an uncoalesced, a dense and a strided gradient; and the same, all dense."""
    ours = [nn.Parameter(testing.make(50, 7)) for _ in range(4)] + [nn.Parameter(torch.zeros(3))]
    grads = [
        sparse_rows((50, 7), [1, 4, 30]),
        sparse_rows((50, 7), [4, 4, 9], coalesced=False),
        testing.make(50, 7, seed=1),
        testing.make(7, 50, seed=2).T,
    ]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    for mine, other, grad in zip(ours, theirs, grads):
        mine.grad, other.grad = grad.clone(), grad.to_dense().clone()
    return ours, theirs


@pytest.mark.parametrize("max_norm", [0.5, 1e3, 0.0])
def test_clip_equals_the_dense_one(max_norm):
    ours, theirs = parameters()
    norm = ssd_kernels.clip_grad_norm_(ours, max_norm)
    expected = nn.utils.clip_grad_norm_(theirs, max_norm)
    assert norm.dtype == torch.float64
    torch.testing.assert_close(norm, expected.double())
    for mine, other in zip(ours[:-1], theirs):
        torch.testing.assert_close(mine.grad.to_dense(), other.grad)
    assert ours[0].grad.is_sparse and ours[1].grad.is_coalesced() and ours[-1].grad is None


def test_clip_below_the_bound_changes_no_bit():
    ours, _ = parameters()
    before = [p.grad.to_dense().clone() for p in ours[:-1]]
    ssd_kernels.clip_grad_norm_(ours, 1e6)
    assert all(torch.equal(p.grad.to_dense(), b) for p, b in zip(ours, before))


def test_norm_is_summed_in_fp64():
    """Three million squares of 1e-4 beside one of 1e3: a sum in fp32 loses them. More entries than one chunk."""
    weight = nn.Parameter(torch.zeros(3 << 20))
    weight.grad = torch.full_like(weight, 1e-4)
    weight.grad[0] = 1e3
    exact = weight.grad.double().square().sum().sqrt()
    torch.testing.assert_close(ssd_kernels.clip_grad_norm_(weight, 1e9), exact, rtol=1e-11, atol=0)


def test_clip_edge_cases():
    assert ssd_kernels.clip_grad_norm_([], 1.0) == 0
    empty = nn.Parameter(torch.zeros(5, 3))
    empty.grad = sparse_rows((5, 3), [])
    assert ssd_kernels.clip_grad_norm_(empty, 1.0) == 0
    with pytest.raises(ValueError, match="max_norm=-1"):
        ssd_kernels.clip_grad_norm_(empty, -1)
    bad = nn.Parameter(torch.zeros(2))
    bad.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(RuntimeError, match="the norm of the gradients is nan"):
        ssd_kernels.clip_grad_norm_(bad, 1.0, error_if_nonfinite=True)
    assert bad.grad[0] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=testing.id_of)
def test_row_sparse_training_equals_dense_training(dtype):
    """Ten steps of clip + SGD, row-sparse against torch's own on the dense gradient."""
    torch.manual_seed(0)
    sparse = SparseTopKLinear(12, 90, 5, sparse_grad=True, dtype=dtype)
    dense = copy.deepcopy(sparse)
    dense.sparse_grad = False
    ours, theirs = SparseSGD(sparse.parameters(), lr=0.1), torch.optim.SGD(dense.parameters(), lr=0.1)
    for step in range(10):
        x = testing.make(8, 12, dtype=dtype, seed=step)
        for layer, optimizer, clip in (
            (sparse, ours, ssd_kernels.clip_grad_norm_),
            (dense, theirs, nn.utils.clip_grad_norm_),
        ):
            optimizer.zero_grad()
            (layer(x) - 1).square().mean().backward()
            clip(layer.parameters(), 0.05)
            optimizer.step()
        assert sparse.weight.grad.is_sparse
    for mine, other in zip(sparse.parameters(), dense.parameters()):
        torch.testing.assert_close(mine, other)


def test_sgd_touches_only_the_rows_with_a_gradient():
    weight = nn.Parameter(testing.make(50, 7))
    before = weight.detach().clone()
    weight.grad = sparse_rows((50, 7), [1, 4, 30])
    SparseSGD([weight], lr=0.1).step()
    moved = (weight != before).any(1).nonzero().flatten()
    assert moved.tolist() == [1, 4, 30]
    torch.testing.assert_close(weight.detach(), before - 0.1 * weight.grad.to_dense())


@pytest.mark.parametrize("sparse", [True, False])
def test_projection_clamps_and_renormalises(sparse):
    weight = nn.Parameter(testing.make(50, 7))
    expected = weight.detach().clone()
    grad = sparse_rows((50, 7), [1, 4, 30]) if sparse else testing.make(50, 7, seed=5)
    weight.grad = grad
    rows = torch.tensor([1, 4, 30]) if sparse else torch.arange(50)
    SparseSGD([weight], lr=0.1, clamp=True, renormalise=True).step()
    new = (expected - 0.1 * grad.to_dense())[rows].clamp(min=0)
    expected[rows] = new / new.norm(dim=1, keepdim=True)
    torch.testing.assert_close(weight.detach(), expected)


def test_sgd_runs_a_closure_and_refuses_a_negative_rate():
    weight = nn.Parameter(torch.ones(2))
    optimizer = SparseSGD([weight], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert weight.tolist() == [0, 0]
    with pytest.raises(ValueError, match="lr=-1: allowed are numbers >= 0"):
        SparseSGD([weight], lr=-1)


def test_sgd_state_dict_round_trip():
    optimizer = SparseSGD([nn.Parameter(torch.ones(2))], lr=0.5, clamp=True)
    other = SparseSGD([nn.Parameter(torch.ones(2))])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.5 and other.param_groups[0]["clamp"]


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("norm_type", [1, 2.0, 3, 0.5, float("inf"), "inf"])
def test_norms_and_foreach_are_torchs(norm_type, foreach):
    ours, theirs = parameters()
    norm = ssd_kernels.clip_grad_norm_(ours, 0.7, norm_type, foreach=foreach)
    expected = nn.utils.clip_grad_norm_(theirs, 0.7, float(norm_type))
    torch.testing.assert_close(norm, expected.double(), rtol=1e-6, atol=0)  # torch's is a sum in fp32
    for mine, other in zip(ours[:-1], theirs):
        torch.testing.assert_close(mine.grad.to_dense(), other.grad)


def test_a_norm_type_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"norm_type=0\.0: allowed are numbers > 0, and inf"):
        ssd_kernels.clip_grad_norm_(parameters()[0], 1.0, 0)
