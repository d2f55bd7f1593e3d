"""The cases of triton_offline.py for the kernels around the layers: update, counts, losses.

python tests/ops/triton_offline_training.py CASE@CAPABILITY...
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import triton_offline


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def whole_numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return meta(*shape, dtype=dtype)


def sparse_update(rows: int, neurons: int, inputs: int, dtype: torch.dtype):
    from ssd_kernels.sparse_update.triton_kernel import sparse_update

    weight, grad = meta(neurons, inputs, dtype=dtype), meta(rows, inputs, dtype=dtype)
    sparse_update(weight, whole_numbers(rows), grad, 0.05, meta(), True, True)


def counts(batch: int, neurons: int, k: int, n: int, dtype: torch.dtype):
    from ssd_kernels.activation_counts import triton_kernel

    triton_kernel.activation_counts(meta(batch, neurons, dtype=dtype), None, neurons)
    triton_kernel.activation_counts(meta(batch * k, dtype=dtype), whole_numbers(batch * k, dtype=torch.int32), neurons)
    triton_kernel.top_n(whole_numbers(neurons), n)


def hidden(batch: int, neurons: int, k: int, units: int, student: str, teacher: str, dtype: torch.dtype):
    from ssd_kernels.distill import triton_kernel

    def form(kind: str) -> tuple:
        if kind == "dense":
            return meta(batch, neurons, dtype=dtype), None, None
        shape = (batch, k) if kind == "topk" else (batch * k,)
        offsets = whole_numbers(batch + 1) if kind == "rows" else None
        return meta(*shape, dtype=dtype), whole_numbers(*shape, dtype=torch.int32), offsets

    triton_kernel.distill_hidden(*form(student), *form(teacher), whole_numbers(units), 8.0, False)
    triton_kernel.distill_hidden(*form(student), *form(teacher), whole_numbers(units), 8.0, True)


def logits(batch: int, classes: int, dtype: torch.dtype):
    from ssd_kernels.distill import triton_kernel

    y, labels = meta(batch, classes, dtype=dtype), whole_numbers(batch)
    triton_kernel.distill_logits(y, labels, None, None, 8.0, False)
    triton_kernel.distill_logits(y, labels, y, None, 8.0, False)
    triton_kernel.distill_logits(y, labels, y, whole_numbers(classes), 8.0, True)


def engine(neurons: int, teacher: bool, penalty: bool, batch: int = 128, inputs: int = 256, classes: int = 10):
    from ssd_kernels.sdmlp_trainer.triton_trainer import TritonTrainer, _Step
    from ssd_kernels.sdmlp_trainer.types import QuadraticPenalty, Settings, Teacher
    from ssd_kernels.topk_linear import triton_kernel as topk_kernels

    settings = Settings(10, 2e5, 0.05, 0.9 if penalty else 0.0, 1.0, 0.7, 0.1, 8.0, "forward")
    weight, output = meta(neurons, inputs), meta(classes, neurons)
    trainer = TritonTrainer(weight, output, whole_numbers(neurons), settings)
    frozen = Teacher(meta(10_000, classes), whole_numbers(1000), meta(99), whole_numbers(99, dtype=torch.int32),
                     whole_numbers(10_001))  # fmt: skip
    pulls = QuadraticPenalty(weight, weight, output, output, 0.5)
    step = _Step(trainer, batch, meta(10_000, inputs), whole_numbers(10_000), 10_000, frozen if teacher else None,
                 pulls if penalty else None)  # fmt: skip
    winners = whole_numbers(batch, settings.k + 1, dtype=torch.int32)
    with mock.patch.object(topk_kernels, "forward", lambda *arguments: (None, winners, None)):  # has its own cases
        step.step()


CASES = {
    "engine/ssd/10k": lambda: engine(10_000, True, False),
    "engine/ewc/10k": lambda: engine(10_000, True, True),
    "engine/ce/100k": lambda: engine(100_000, False, False),
    "engine/classes/100": lambda: engine(10_000, True, True, classes=100),
    "engine/classes/200": lambda: engine(10_000, True, False, classes=200),
    "engine/classes/1000": lambda: engine(10_000, True, True, classes=1000),
    "sparse_update/fp32/10k": lambda: sparse_update(1400, 10_000, 256, torch.float32),
    "sparse_update/bf16/32k": lambda: sparse_update(8000, 32_768, 768, torch.bfloat16),
    "sparse_update/fp16/131k": lambda: sparse_update(20_000, 131_072, 4096, torch.float16),
    "counts/fp32/10k": lambda: counts(512, 10_000, 10, 1000, torch.float32),
    "counts/bf16/131k": lambda: counts(8192, 131_072, 64, 1000, torch.bfloat16),
    "hidden/topk-rows/10k": lambda: hidden(512, 10_000, 10, 1000, "topk", "rows", torch.float32),
    "hidden/rows-rows/10k": lambda: hidden(512, 10_000, 31, 1000, "rows", "rows", torch.float32),
    "hidden/topk-topk/32k": lambda: hidden(4096, 32_768, 32, 1000, "topk", "topk", torch.bfloat16),
    "hidden/dense-rows/10k": lambda: hidden(512, 10_000, 31, 1000, "dense", "rows", torch.float32),
    "hidden/dense-dense/10k": lambda: hidden(512, 10_000, 31, 1000, "dense", "dense", torch.float16),
    "logits/fp32/10": lambda: logits(512, 10, torch.float32),
    "logits/bf16/1000": lambda: logits(4096, 1000, torch.bfloat16),
}
triton_offline.CASES.update(CASES)

if __name__ == "__main__":
    if triton_offline.tools() is None:
        sys.exit(3)
    triton_offline.main(sys.argv[1:])
