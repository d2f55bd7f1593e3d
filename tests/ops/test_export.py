"""torch.export of every operation, with a dynamic batch: the exported program gives what the call gives."""

import pytest
import torch

import ssd_kernels
from ssd_kernels import TopK, testing


def topk(values: torch.Tensor, indices: torch.Tensor) -> TopK:
    return TopK(values, indices, values[:, -1])


def some_indices(batch: int) -> torch.Tensor:
    return (torch.arange(batch * 3, dtype=torch.int32).view(batch, 3) * 7) % 40


WEIGHT, OUTPUT = testing.make(40, 19), testing.make(5, 40)
CALLS = {
    "topk_linear": (
        lambda x: ssd_kernels.topk_linear(x, WEIGHT, 3).values,
        lambda batch: (testing.make(batch, 19, seed=1),),
    ),
    "gaba_linear": (
        lambda x: ssd_kernels.gaba_linear(x, WEIGHT, 3, torch.ones(40)),
        lambda batch: (testing.make(batch, 19, seed=1),),
    ),
    "gaba_linear rows": (
        lambda x: ssd_kernels.gaba_linear(x, WEIGHT, 3, torch.ones(40), output="rows").values,
        lambda batch: (testing.make(batch, 19, seed=1),),
    ),
    "threshold_linear": (
        lambda x: ssd_kernels.threshold_linear(x, WEIGHT, 0.5).values,
        lambda batch: (testing.make(batch, 19, seed=1),),
    ),
    "batch_topk_linear": (
        lambda x: ssd_kernels.batch_topk_linear(x, WEIGHT, 3).values,
        lambda batch: (testing.make(batch, 19, seed=1),),
    ),
    "sparse_linear": (
        lambda values, indices: ssd_kernels.sparse_linear(topk(values, indices), OUTPUT),
        lambda batch: (testing.make(batch, 3, seed=2), some_indices(batch)),
    ),
    "sparse_update_": (
        lambda weight, rows, grad: ssd_kernels.sparse_update_(weight, rows, grad, lr=0.1, max_norm=1.0),
        lambda batch: (testing.make(40, 19), torch.arange(batch), testing.make(batch, 19, seed=3)),
    ),
    "distill_loss": (
        lambda y, labels, values, indices, q: (
            ssd_kernels.distill_loss(
                y, labels, topk(values, indices), q, topk(values.flip(0), indices), units=torch.arange(0, 40, 2)
            ).loss
        ),
        lambda batch: (
            testing.make(batch, 5, seed=4),
            torch.arange(batch) % 5,
            testing.make(batch, 3, values="uniform"),
            some_indices(batch),
            testing.make(batch, 5, seed=5),
        ),
    ),
    "activation_counts": (
        lambda values, indices: ssd_kernels.activation_counts(topk(values, indices), 40),
        lambda batch: (testing.make(batch, 3, values="uniform"), some_indices(batch)),
    ),
}


class Module(torch.nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def forward(self, *tensors):
        return self.call(*tensors)


@pytest.mark.parametrize("name", CALLS)
def test_an_exported_program_gives_what_the_call_gives(name):
    call, inputs = CALLS[name]
    batch = torch.export.Dim("batch", min=2, max=64)
    fixed = {"sparse_update_": (0,)}.get(name, ())
    shapes = tuple(None if i in fixed else {0: batch} for i in range(len(inputs(4))))
    program = torch.export.export(Module(call), inputs(4), dynamic_shapes={"tensors": shapes})
    for size in (3, 9):
        torch.testing.assert_close(program.module()(*inputs(size)), call(*inputs(size)))
