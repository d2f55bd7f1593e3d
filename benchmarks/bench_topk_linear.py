"""topk_linear against eager torch, torch.compile, eai-sparsify's fused encoder and faiss, forward and backward."""

from __future__ import annotations

import os
from collections.abc import Callable
from unittest import mock

import measure
import peers
import pytest
import shapes
import torch

from ssd_kernels import testing, topk_linear
from ssd_kernels.testing import Shape


def inputs(shape: Shape, grad: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and dL/dvalues: rows on the unit sphere's positive part, as in the SDMLP."""
    x = torch.nn.functional.normalize(testing.make(shape.b, shape.d, values="uniform", seed=1))
    weight = torch.nn.functional.normalize(testing.make(shape.r, shape.d, values="uniform", seed=2))
    return x.requires_grad_(grad), weight.requires_grad_(grad), testing.make(shape.b, shape.k, values="uniform", seed=3)


def gate_of(x: torch.Tensor, weight: torch.Tensor, k: int) -> Callable[[], None]:
    """The first rows against the reference in fp64, winners and values."""

    def gate() -> None:
        rows = x.detach()[:64]
        ours = topk_linear(rows, weight.detach(), k)
        low = topk_linear(rows, weight.detach(), k, backend="reference")
        gold = topk_linear(rows.double(), weight.detach().double(), k, backend="reference")
        testing.assert_accurate(ours.values, gold.values, low.values)
        exact = (rows.double() @ weight.detach().double().T).gather(1, ours.indices.long())
        testing.assert_accurate(ours.values, exact, low.values)

    return gate


def work_of(shape: Shape, dense: bool) -> measure.Work:
    """Forward and backward: all scores, two sums over the winners, and the gradient's rows, all or the active ones."""
    pairs = shape.b * shape.k
    rows = shape.r if dense else min(shape.r, pairs)
    flops = 2.0 * shape.b * shape.d * shape.r + 4.0 * pairs * shape.d
    return measure.Work(flops, 4.0 * shape.d * (shape.r + rows + 3 * shape.b) + 8.0 * pairs)


def at_level(simd: str, call: Callable[[], object]) -> Callable[[], None]:
    """The call at another SIMD level."""

    def run() -> None:
        with mock.patch.dict(os.environ, SSD_SIMD=simd):
            call()

    return run


FORWARD_TARGETS = {
    "SDMLP_10K": {
        "topk_linear": ("matmul + topk(K+1)", 2.5 if testing.simd_levels()[-1] == "avx512bf16" else 1.3),
        "topk_linear, fp32 scan": ("matmul + topk(K+1)", 1.3),
    }
}
BACKWARD_TARGETS = {
    "SDMLP_10K": {
        "topk_linear": ("eager relu + topk(K+1)", 2.2),
        "topk_linear, sparse_grad": ("eager relu + topk(K+1)", 3.0),
    },
    "SAE": {
        "topk_linear": ("eager relu + topk(K+1)", 3.0),
        "topk_linear, sparse_grad": ("eai-sparsify fused encoder", 1.0),
    },
}
NAMES = ("SDMLP_1K", "SDMLP_10K", "SDMLP_100K", "SAE")


def _shape(name: str, smoke: bool) -> Shape:
    if smoke and name != "SDMLP_1K":
        pytest.skip("not a small size")
    return shapes.SMOKE if smoke else getattr(shapes, name)


@pytest.mark.parametrize("name", NAMES)
def bench_topk_linear_forward(name: str, compare: Callable, smoke: bool) -> None:
    shape = _shape(name, smoke)
    x, weight, _ = inputs(shape, grad=False)
    contenders = {
        "matmul + topk(K+1)": lambda: torch.topk(x @ weight.T, shape.k + 1),
        "topk_linear": lambda: topk_linear(x, weight, shape.k),
    }
    if testing.simd_levels()[-1] == "avx512bf16":  # there `topk_linear` preselects in bf16
        contenders["topk_linear, fp32 scan"] = at_level("avx512", lambda: topk_linear(x, weight, shape.k))
    compare(
        f"topk_linear forward, {shape}, fp32",
        contenders,
        baseline="matmul + topk(K+1)",
        gate=gate_of(x, weight, shape.k),
        targets={n: t for n, t in FORWARD_TARGETS.get(name, {}).items() if n in contenders},
        seconds=12,
    )


@pytest.mark.parametrize("name", NAMES)
def bench_topk_linear_against_faiss(name: str, compare: Callable, smoke: bool) -> None:
    """A table of its own: faiss's threads go on spinning for a while, at the expense of whatever runs next."""
    if (faiss := peers.faiss()) is None:
        pytest.skip("faiss-cpu is not installed")
    shape = _shape(name, smoke)
    x, weight, _ = inputs(shape, grad=False)
    index = faiss.IndexFlatIP(shape.d)
    index.add(weight.numpy())
    contenders = {
        "faiss IndexFlatIP": lambda: index.search(x.numpy(), shape.k + 1),
        "topk_linear": lambda: topk_linear(x, weight, shape.k),
    }
    title = f"topk_linear forward against faiss, {shape}, fp32"
    compare(title, contenders, baseline="faiss IndexFlatIP", gate=gate_of(x, weight, shape.k), seconds=6)


@pytest.mark.parametrize("name", NAMES)
def bench_topk_linear_forward_backward(name: str, compare: Callable, smoke: bool) -> None:
    shape = _shape(name, smoke)
    x, weight, grad = inputs(shape, grad=True)

    def step(values_of: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            values_of().backward(grad)
            x.grad = weight.grad = None  # each contender pays for freeing its own gradients

        return run

    contenders = {
        "eager relu + topk(K+1)": step(lambda: peers.eager_layer(x, weight, shape.k)[0]),
        "topk_linear": step(lambda: topk_linear(x, weight, shape.k).values),
        "topk_linear, sparse_grad": step(lambda: topk_linear(x, weight, shape.k, sparse_grad=True).values),
    }
    if not smoke:
        contenders["torch.compile of the eager layer"] = step(lambda: peers.compiled_layer()(x, weight, shape.k)[0])
    if (encoder := peers.sparsify_fused_encoder()) is not None:
        bias = torch.zeros(shape.r)
        contenders["eai-sparsify fused encoder"] = step(lambda: encoder(x, weight, bias, shape.k, "topk").top_acts)
    targets = {n: t for n, t in BACKWARD_TARGETS.get(name, {}).items() if t[0] in contenders}
    compare(
        f"topk_linear forward + backward, {shape}, fp32",
        contenders,
        baseline="eager relu + topk(K+1)",
        gate=gate_of(x, weight, shape.k),
        targets=targets,
        work={"topk_linear": work_of(shape, dense=True), "topk_linear, sparse_grad": work_of(shape, dense=False)},
        seconds=12,
    )
