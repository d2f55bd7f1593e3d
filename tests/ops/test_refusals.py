"""What cannot work is refused by a sentence that names it and what is allowed."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import ssd_kernels
from ssd_kernels import testing

X, WEIGHT = testing.make(4, 8), testing.make(20, 8, seed=1)
ACTIVE = ssd_kernels.TopK(torch.ones(4, 2), torch.ones(4, 2, dtype=torch.int32), torch.zeros(4))
CALLS = {
    "topk_linear": lambda x: ssd_kernels.topk_linear(x, WEIGHT, 2).values,
    "gaba_linear": lambda x: ssd_kernels.gaba_linear(x, WEIGHT, 2, torch.ones(20)),
    "threshold_linear": lambda x: ssd_kernels.threshold_linear(x, WEIGHT, 1.0).values,
    "batch_topk_linear": lambda x: ssd_kernels.batch_topk_linear(x, WEIGHT, 2).values,
    "sparse_linear": lambda x: ssd_kernels.sparse_linear(ACTIVE, WEIGHT.T) + x.sum(),
}


class Call(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CALLS)
def test_onnx(name, tmp_path) -> None:
    with pytest.raises(NotImplementedError, match=rf"{name}: ONNX has no such operation; allowed are torch\.export"):
        torch.onnx.export(Call(CALLS[name]), (X,), str(tmp_path / "model.onnx"), dynamo=False)
    CALLS[name](X)  # outside an export all is well


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_script() -> None:
    model = nn.Sequential(nn.Linear(8, 8), ssd_kernels.SparseTopKLinear(8, 20, 2))
    with pytest.raises(NotImplementedError, match=r"SparseTopKLinear: torch\.jit\.script .* torch\.compile"):
        torch.jit.script(model)


@pytest.fixture
def process_group():
    os.environ.setdefault("MASTER_ADDR", "localhost")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["topk_linear", "gaba_linear", "sparse_linear"])
def test_sparse_gradients_in_ddp(name, process_group) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(WEIGHT.clone())

        def forward(self, x: torch.Tensor, sparse_grad: bool) -> torch.Tensor:
            match name:
                case "topk_linear":
                    return ssd_kernels.topk_linear(x, self.weight, 2, sparse_grad=sparse_grad).values.sum()
                case "gaba_linear":
                    ones = torch.ones(20)
                    return ssd_kernels.gaba_linear(x, self.weight, 2, ones, sparse_grad=sparse_grad).sum()
                case _:
                    return ssd_kernels.sparse_linear(ACTIVE, self.weight.T, sparse_grad=sparse_grad).sum()

    layer = nn.parallel.DistributedDataParallel(Layer())
    with pytest.raises(ValueError, match=rf"{name}: sparse_grad=True in DistributedDataParallel, .* allowed is False"):
        layer(X, True)
    layer(X, False).backward()
    assert layer.module.weight.grad.abs().sum() > 0
    layer.module(X, True).backward()  # outside DDP
