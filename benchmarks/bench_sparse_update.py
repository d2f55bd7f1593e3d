"""sparse_update_ against the dense step: clip, SGD, clamp and renormalise on all rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ssd_kernels import sparse_update_, testing


@pytest.mark.parametrize("touched", (300, 1400, 10_000))
def bench_sparse_update(touched: int, compare: Callable, smoke: bool) -> None:
    neurons, inputs = (1000, 64) if smoke else (10_000, 256)
    touched = min(touched, neurons)
    weight = torch.nn.functional.normalize(testing.make(neurons, inputs, values="uniform"))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(neurons, generator=generator)[:touched].sort().values
    grad_rows = 0.01 * testing.make(touched, inputs, seed=1)
    dense_grad = torch.zeros(neurons, inputs).index_copy_(0, rows, grad_rows)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.05)

    def dense() -> None:
        parameter.grad = dense_grad  # clipping scales it in place; its norm is at most 1 from then on
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()
        with torch.no_grad():
            parameter.clamp_(min=0)
            parameter.div_(torch.linalg.vector_norm(parameter, dim=1, keepdim=True).clamp_min_(1e-12))

    def sparse() -> None:
        sparse_update_(weight, rows, grad_rows, lr=0.05, max_norm=1.0)

    def norm_apart() -> None:
        scale = min(1.0, 1.0 / (torch.linalg.vector_norm(grad_rows).item() + 1e-6))
        sparse_update_(weight, rows, grad_rows, lr=0.05, scale=scale)

    def gate() -> None:
        parameter.data.copy_(weight)
        sparse()
        dense()
        torch.testing.assert_close(weight, parameter.detach(), atol=1e-6, rtol=0)

    compare(
        f"sparse_update_, R {neurons}, D {inputs}, {touched} rows touched, fp32",
        {
            "dense: clip, SGD, clamp, renormalise": dense,
            "sparse_update_, clipping within": sparse,
            "torch's norm, then sparse_update_": norm_apart,
            "sparse_update_ without clipping": lambda: sparse_update_(weight, rows, grad_rows, lr=0.05),
        },
        baseline="dense: clip, SGD, clamp, renormalise",
        gate=gate,
        targets=dict.fromkeys(
            ("sparse_update_, clipping within", "torch's norm, then sparse_update_", "sparse_update_ without clipping"),
            ("dense: clip, SGD, clamp, renormalise", 20.0),
        )
        if touched < 10_000
        else None,
        seconds=6,
        rounds=200,
    )
