"""threshold_linear and batch_topk_linear against eager torch: all scores, a mask or one topk over the batch."""

from __future__ import annotations

from collections.abc import Callable

import measure
import pytest
import shapes
import torch

from ssd_kernels import Rows, batch_topk_linear, testing, threshold_linear

NAMES = ("SDMLP_10K", "SAE")


def work_of(shape: testing.Shape, entries: int) -> measure.Work:
    """Forward and backward: all scores, then two sums over the entries."""
    flops = 2.0 * shape.b * shape.d * shape.r + 4.0 * entries * shape.d
    return measure.Work(flops, 4.0 * (2 * shape.d * shape.r + 3 * shape.b * shape.d + 2 * entries))


def steps(
    x: torch.Tensor, weight: torch.Tensor, eager: Callable[[], torch.Tensor], ours: Callable[[], Rows]
) -> dict[str, Callable[[], object]]:
    """Forward alone, and forward and backward with the active values' sum as the loss."""

    def backward(values: torch.Tensor) -> None:
        values.sum().backward()
        x.grad = weight.grad = None

    def without_gradients(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                call()

        return run

    return {
        "eager forward": without_gradients(eager),
        "ours forward": without_gradients(ours),
        "eager forward + backward": lambda: backward(eager()),
        "ours forward + backward": lambda: backward(ours().values),
    }


@pytest.mark.parametrize("form", ["threshold", "batch"])
@pytest.mark.parametrize("name", NAMES)
def bench_threshold_linear(name: str, form: str, compare: Callable, smoke: bool) -> None:
    shape = shapes.SMOKE if smoke else getattr(shapes, name)
    x, weight = testing.make(shape.b, shape.d, seed=1), testing.make(shape.r, shape.d, seed=2) / shape.d**0.5
    with torch.no_grad():
        wanted = batch_topk_linear(x, weight, shape.k)
    threshold = float(wanted.threshold[0])
    x.requires_grad_()
    weight.requires_grad_()

    def eager() -> torch.Tensor:
        a = torch.relu(x @ weight.T)
        return a * (a > threshold) if form == "threshold" else a.flatten().topk(shape.b * shape.k).values

    def ours() -> Rows:
        if form == "threshold":
            return threshold_linear(x, weight, threshold)
        return batch_topk_linear(x, weight, shape.k)

    def gate() -> None:
        rows = ours()
        gold = (x.double() @ weight.double().T).flatten()
        places = torch.repeat_interleave(torch.arange(shape.b), rows.offsets.diff()) * shape.r + rows.indices
        low = (x @ weight.T).flatten()[places]
        testing.assert_accurate(rows.values.detach(), gold[places].detach(), low.detach())
        assert abs(len(places) - shape.b * shape.k) <= 2

    compare(
        f"{form}_linear, {shape}, fp32",
        steps(x, weight, eager, ours),
        baseline="eager forward + backward",
        gate=gate,
        work={"ours forward + backward": work_of(shape, len(wanted.values))},
        seconds=10,
    )
