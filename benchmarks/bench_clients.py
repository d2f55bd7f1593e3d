"""Whole training steps of public packages, their own model and loop, before and after `accelerate`.

Needs the packages, in an environment of its own (CONTRIBUTING.md); what is not installed is skipped. Both sides have
the same optimizer, torch's fused Adam, and dead latents, so the loss that revives them is at work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import shapes
import torch
from torch import nn

from ssd_kernels import testing
from ssd_kernels.sae import accelerate
from ssd_kernels.testing import Shape

SHAPES = {"README shape": shapes.SAE, "small": Shape(512, 256, 8192, 32)}


def dictionary_learning(shape: Shape, x: torch.Tensor) -> tuple[nn.Module, Callable[[nn.Module], Callable[[], float]]]:
    """Its trainer's update(), with a tenth of the latents dead."""
    trainers = pytest.importorskip("dictionary_learning.trainers")

    def steps_of(model: nn.Module) -> Callable[[], float]:
        trainer = trainers.TopKTrainer(steps=10**6, activation_dim=shape.d, dict_size=shape.r, k=shape.k, layer=0,
                                       lm_name="none", lr=1e-4, warmup_steps=1, seed=0, device="cpu")  # fmt: skip
        trainer.ae = model
        trainer.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        trainer.scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 1.0)

        def step() -> float:
            trainer.num_tokens_since_fired[: shape.r // 10] = trainer.dead_feature_threshold
            return trainer.update(1, x)

        return step

    return trainers.top_k.AutoEncoderTopK(shape.d, shape.r, shape.k), steps_of


def sae_lens(shape: Shape, x: torch.Tensor) -> tuple[nn.Module, Callable[[nn.Module], Callable[[], float]]]:
    """Its training pass with default options, and the step of its trainer: backward, clip, Adam."""
    pytest.importorskip("sae_lens")
    lens, base = pytest.importorskip("sae_lens.saes.topk_sae"), pytest.importorskip("sae_lens.saes.sae")
    dead = torch.arange(shape.r) < shape.r // 10
    step_input = base.TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=1, is_logging_step=False
    )

    def loss(model: nn.Module) -> torch.Tensor:
        return model.training_forward_pass(step_input).loss

    model = lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(d_in=shape.d, d_sae=shape.r, k=shape.k))
    return model, lambda model: _plain_step(model, loss)


def sparsify(shape: Shape, x: torch.Tensor) -> tuple[nn.Module, Callable[[nn.Module], Callable[[], float]]]:
    """Its forward pass and losses, and its trainer's step with unit norms."""
    package = pytest.importorskip("sparsify")
    dead = torch.arange(shape.r) < shape.r // 10

    def loss(model: nn.Module) -> torch.Tensor:
        out = model(x, dead_mask=dead)
        return out.fvu + out.auxk_loss / 32

    def steps_of(model: nn.Module) -> Callable[[], float]:
        step = _plain_step(model, loss)

        def normalised() -> float:
            value = step()
            model.set_decoder_norm_to_unit_norm()
            return value

        return normalised

    return package.SparseCoder(shape.d, package.SparseCoderConfig(num_latents=shape.r, k=shape.k)), steps_of


def _plain_step(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> Callable[[], float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return value.item()

    return step


CLIENTS = {
    "dictionary_learning update()": (dictionary_learning, 3.0, 2.5),
    "SAELens TopK step": (sae_lens, 2.5, 2.5),
    "sparsify SparseCoder step": (sparsify, 2.5, 2.5),
}


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("client", CLIENTS)
def bench_client_step(client: str, size: str, compare: Callable, smoke: bool) -> None:
    shape = Shape(32, 32, 512, 8) if smoke else SHAPES[size]
    make, *targets = CLIENTS[client]
    x = testing.make(shape.b, shape.d, seed=1)
    torch.manual_seed(0)
    theirs, steps_of = make(shape, x)
    ours = accelerate(copy.deepcopy(theirs))
    their_step, our_step = steps_of(theirs), steps_of(ours)

    def gate() -> None:
        for _ in range(3):
            expected = their_step()
            assert abs(our_step() - expected) <= 1e-4 * abs(expected)

    compare(
        f"{client}, {shape}, fp32, Adam(fused=True)",
        {"theirs": their_step, "accelerated": our_step},
        baseline="theirs",
        gate=gate,
        targets={"accelerated": ("theirs", targets[list(SHAPES).index(size)])},
        seconds=25,
    )
