"""The FLOP formulas count what is computed: all scores forward, the entries of sparse activations elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ssd_kernels
from ssd_kernels import testing

B, D, R, K = 6, 8, 40, 3
PAIRS = B * K


def count(call) -> int:
    with FlopCounterMode(display=False, custom_mapping=ssd_kernels.flop_formulas()) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_operations(backend) -> None:
    x, weight = testing.make(B, D).requires_grad_(), testing.make(R, D, seed=1).requires_grad_()
    table = testing.make(R, D, seed=2).requires_grad_()
    rows = torch.arange(0, R, 2)

    def topk(**options):
        return ssd_kernels.topk_linear(x, weight, K, backend=backend, **options)

    forward, pair = 2 * B * D * R, 2 * PAIRS * D
    assert count(topk) == forward
    assert count(lambda: topk(rows=rows)) == forward // 2
    assert count(lambda: topk().values.sum().backward()) == forward + 2 * pair
    top = topk()
    fixed = top._replace(values=top.values.detach())
    assert count(lambda: ssd_kernels.sparse_linear(top, table.t(), backend=backend).detach()) == pair
    assert count(lambda: ssd_kernels.sparse_linear(fixed, table.t(), backend=backend).sum().backward()) == 2 * pair
    sparse = {"sparse_grad": True, "backend": backend}
    assert count(lambda: ssd_kernels.sparse_linear(fixed, table.t(), **sparse).sum().backward()) == 2 * pair
    batch = ssd_kernels.batch_topk_linear(x, weight, K, backend=backend)
    assert len(batch.values) == PAIRS
    assert count(lambda: batch.values.sum().backward()) == 2 * pair
    assert count(lambda: ssd_kernels.threshold_linear(x, weight, 0.5, backend=backend)) == forward
    g = torch.ones(R)
    assert count(lambda: ssd_kernels.gaba_linear(x, weight, K, g, output="rows", backend=backend)) == forward
