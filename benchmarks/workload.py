"""The training step's workload: task 1 of Split CIFAR-10 on ConvMixer embeddings, from the end of task 0."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from ssd_kernels import SDMLPEngine, normalize_inputs, top_n

K, CLASSES, BATCH, UNITS = 10, 10, 128, 1000
TASK0_EPOCHS = 20


@functools.cache
def embeddings() -> tuple[Tensor, Tensor, str]:
    """Normalised samples, labels, and where they come from: SSD_DATA_DIR, or clusters of the same size without it."""
    folder = os.environ.get("SSD_DATA_DIR")
    if folder:
        from safetensors.torch import load_file

        data = load_file(Path(folder) / "cifar10_convmixer.safetensors")
        return normalize_inputs(data["x_train"].float()), data["y_train"].long(), "CIFAR-10 ConvMixer embeddings"
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, 256, generator=generator)
    y = torch.randint(CLASSES, (50_000,), generator=generator)
    x = centres[y] + 0.4 * torch.randn(50_000, 256, generator=generator)
    return normalize_inputs(x), y, "random clusters (SSD_DATA_DIR is not set)"


@functools.cache
def task(index: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Samples and labels of one task of two classes."""
    x, y, _ = embeddings()
    mask = (y // 2) == index
    return x[mask][:limit].contiguous(), y[mask][:limit].contiguous()


def fresh_model(neurons: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """torch.nn.Linear's initialisation, projected; counters at 0."""
    torch.manual_seed(seed)
    weight = torch.nn.Linear(256, neurons, bias=False).weight.detach().clamp_(min=0)
    weight /= torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    output = torch.nn.Linear(neurons, CLASSES, bias=False).weight.detach().clamp_(min=0)
    return weight.contiguous(), output.contiguous(), torch.zeros(neurons, dtype=torch.int64)


@functools.cache
def _after_task0(neurons: int, limit: int | None, epochs: int) -> tuple[Tensor, Tensor, Tensor, float]:
    x, y = task(0, limit)
    switch = 0.2 * epochs * len(x)
    model = fresh_model(neurons)
    engine = SDMLPEngine(*model, k=K, gaba_switch=switch)
    order = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        engine.train_epoch(x, y, torch.randperm(len(x), generator=order), BATCH)
    return *model, switch


def after_task0(neurons: int, *, saturated: bool = True, limit: int | None = None, epochs: int = TASK0_EPOCHS):
    """The model at the end of task 0 and its switch; above 10 000 neurons, widened by untouched initial rows."""
    trained = min(neurons, 10_000)
    weight, output, counts, switch = _after_task0(trained, limit, epochs)
    model = [weight.clone(), output.clone(), counts.clone()]
    if neurons > trained:
        wide = fresh_model(neurons, seed=2)
        for part, narrow in zip(wide, model, strict=True):
            part[..., :trained] = narrow if part.dim() < 2 or part.shape[0] == CLASSES else part[..., :trained]
        wide[0][:trained] = weight
        model = list(wide)
    if saturated:
        model[2].fill_(int(switch) + 1)
    return (*model, switch)


def engine_and_teacher(neurons: int, *, saturated: bool = True, limit: int | None = None, **options):
    """An engine at the start of task 1 with its teacher on task 1's samples."""
    weight, output, counts, switch = after_task0(neurons, saturated=saturated, limit=limit)
    engine = SDMLPEngine(weight, output, counts, k=K, gaba_switch=switch, **options)
    units = top_n(engine.frequencies(task(0, limit)[0]), min(UNITS, neurons))
    return engine, engine.make_teacher(task(1, limit)[0], units)
