"""SparseTopKLinear as a drop-in for nn.Linear + relu + Top-K: values, gradients, and what a module must survive."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import ssd_kernels
from ssd_kernels import SparseTopKLinear, TopK, testing


def eager(x: torch.Tensor, linear: nn.Linear, k: int) -> torch.Tensor:
    """What users write today."""
    scores = torch.relu(linear(x))
    values, indices = scores.topk(k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, indices, values)


def pair(d: int = 24, r: int = 130, k: int = 9, dtype: torch.dtype = torch.float32, bias: bool = True, **options):
    """A linear layer and its Top-K twin with parameters of its own."""
    torch.manual_seed(0)
    linear = nn.Linear(d, r, bias=bias, dtype=dtype)
    return linear, SparseTopKLinear.from_linear(copy.deepcopy(linear), k, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(33,), (2, 5), (), (0,)], ids=str)
def test_dense_output_and_gradients_are_those_of_eager(lead, bias):
    linear, layer = pair(dtype=torch.float64, bias=bias)
    x = testing.make(33, 24, dtype=torch.float64)[0 if not lead else slice(None)]
    x = x[: max(torch.Size(lead).numel(), 0)].reshape(*lead, 24) if lead else x
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(ours), eager(theirs, linear, 9)
    torch.testing.assert_close(y, expected)
    grad = testing.make(*y.shape, seed=1, dtype=torch.float64)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad)
    for parameter, other in zip(layer.parameters(), linear.parameters()):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_topk_output_is_the_op_itself():
    linear, layer = pair(output="topk")
    x = testing.make(7, 24)
    top = layer(x)
    assert isinstance(top, TopK)
    for ours, theirs in zip(top, ssd_kernels.topk_linear(x, linear.weight, 9, linear.bias)):
        assert torch.equal(ours, theirs)
    dense = torch.zeros(7, 130).scatter(-1, top.indices.long(), top.values)
    assert torch.equal(dense, pair()[1](x))


@pytest.mark.parametrize(
    ("k", "options"),  # 100 of 130 winners: some have a negative score
    [(100, {"activation": "none"}), (9, {"normalize": "both"}), (9, {"inhibition": True})],
    ids=str,
)
def test_options_reach_the_op(k, options):
    linear, layer = pair(k=k, output="topk", **options)
    x = testing.make(7, 24)
    expected = ssd_kernels.topk_linear(x, linear.weight, k, linear.bias, **options)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(layer(x), expected))
    assert not torch.equal(expected.values, pair(k=k, output="topk")[1](x).values)


def test_slots_without_a_positive_score_send_no_gradient():
    layer = SparseTopKLinear(3, 6, 4)
    with torch.no_grad():
        layer.weight.fill_(-1.0)
        layer.weight[2] = 1.0
        layer.bias.zero_()
    y = layer(torch.ones(1, 3))
    assert y.tolist() == [[0, 0, 3, 0, 0, 0]]
    y.sum().backward()
    assert layer.weight.grad.abs().sum(1).tolist() == [0, 0, 3, 0, 0, 0]
    assert layer.bias.grad.tolist() == [0, 0, 1, 0, 0, 0]


def test_dense_output_keeps_no_score_matrix():
    """Between forward and backward only winners are kept: B x K, not B x R."""
    _, layer = pair(d=8, r=4000, k=3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(testing.make(16, 8))
    largest = max(t.numel() for t in kept if t.data_ptr() != layer.weight.data_ptr())
    assert largest <= 16 * 8


# ---- As nn.Linear.


def test_the_same_seed_draws_the_parameters_of_linear():
    torch.manual_seed(3)
    linear = nn.Linear(5, 11)
    torch.manual_seed(3)
    layer = SparseTopKLinear(5, 11, 2)
    assert torch.equal(linear.weight, layer.weight) and torch.equal(linear.bias, layer.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_moves_both_ways(bias):
    linear, _ = pair(bias=bias)
    layer = SparseTopKLinear(24, 130, 9, bias)
    assert list(layer.state_dict()) == list(linear.state_dict())
    layer.load_state_dict(linear.state_dict())
    torch.testing.assert_close(layer(testing.make(4, 24)), eager(testing.make(4, 24), linear, 9))
    other = nn.Linear(24, 130, bias)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, linear.weight)


def test_from_linear_shares_parameters_and_mode():
    linear = nn.Linear(24, 130).eval()
    layer = SparseTopKLinear.from_linear(linear, 9)
    assert layer.weight is linear.weight and layer.bias is linear.bias and not layer.training
    assert SparseTopKLinear.from_linear(nn.Linear(3, 4, bias=False, dtype=torch.float64), 2).bias is None


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_from_linear_refuses_what_it_would_change():
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    for module in (Scaled(3, 4), nn.Conv1d(3, 4, 1), parametrized):
        with pytest.raises(TypeError, match=r"from_linear takes a .*torch\.nn\.Linear"):
            SparseTopKLinear.from_linear(module, 2)


@pytest.mark.parametrize("k", [0, -1, 131])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"k={k}: allowed are whole numbers from 1 to R = 130"):
        SparseTopKLinear(24, 130, k)


def test_other_wrong_arguments():
    with pytest.raises(TypeError, match=r"k=2\.0: allowed are whole numbers"):
        SparseTopKLinear(24, 130, 2.0)
    with pytest.raises(ValueError, match="output='sparse': allowed are dense, topk"):
        SparseTopKLinear(24, 130, 2, output="sparse")


# ---- What happens to modules.


def test_deepcopy_and_pickle():
    _, layer = pair(output="topk", inhibition=True)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    x = testing.make(4, 24)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert repr(other) == repr(layer) and other.weight is not layer.weight
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(other(x), layer(x)))


@pytest.mark.parametrize("output", ["dense", "topk"])
def test_compile_fullgraph_with_a_dynamic_batch(output):
    _, layer = pair(output=output)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def value(top):
        return top if output == "dense" else top.values

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for batch in (3, 5, 33):
        x, expected = (testing.make(batch, 24).requires_grad_() for _ in range(2))
        value(compiled(x)).sum().backward()
        value(layer(expected)).sum().backward()
        assert torch.equal(value(compiled(x)), value(layer(x)))
        assert torch.equal(x.grad, expected.grad)
    assert len(graphs) == 1, "one graph serves every batch size"


def test_compile_with_inductor():
    _, layer = pair()
    x = testing.make(6, 24)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    assert torch.equal(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    grad = layer.weight.grad.clone()
    layer.weight.grad = None
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, grad)


def test_export_with_a_dynamic_batch():
    _, layer = pair()
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(layer, (testing.make(4, 24),), dynamic_shapes={"x": {0: batch}})
    for rows in (2, 9):
        x = testing.make(rows, 24)
        assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("output", ["dense", "topk"])
def test_autocast_gives_bfloat16_as_linear_does(output):
    linear, layer = pair(output=output)
    x = testing.make(6, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x) if output == "dense" else layer(x).values
        expected = ssd_kernels.topk_linear(*(t.bfloat16() for t in (x, linear.weight)), 9, linear.bias.bfloat16())
    assert y.dtype == torch.bfloat16 == linear(x).to(y.dtype).dtype
    assert torch.equal(y.sort(-1, descending=True).values[:, :9], expected.values.sort(-1, descending=True).values)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=testing.id_of)
def test_autocast_has_the_dtype_of_the_region_and_takes_mixed_inputs(dtype):
    linear, layer = pair()
    x = testing.make(6, 24)
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype == linear(x).dtype == dtype
        mixed = layer(x.to(dtype))  # as after another layer of the region; the weight is float32
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == torch.float32
    assert torch.equal(mixed, layer.to(dtype)(x.to(dtype)))


def test_meta_device():
    y = SparseTopKLinear(24, 130, 9, device="meta")(torch.empty(5, 24, device="meta"))
    assert y.shape == (5, 130) and y.is_meta


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_distributed_data_parallel(process_group):
    """Dense gradients only: DistributedDataParallel takes sparse ones from nn.Embedding alone."""
    _, layer = pair()
    single = copy.deepcopy(layer)
    parallel = nn.parallel.DistributedDataParallel(layer)
    x = testing.make(6, 24)
    for module in (parallel, single):
        module(x).square().sum().backward()
    for ours, theirs in zip(layer.parameters(), single.parameters()):
        assert torch.equal(ours.grad, theirs.grad)
