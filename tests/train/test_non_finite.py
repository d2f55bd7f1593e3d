"""A step whose loss or gradient is not finite is not taken, on either engine, and the message says what and where."""

from __future__ import annotations

import pytest
import torch
from ssd_train import data
from ssd_train.config import TrainConfig
from ssd_train.errors import BadInput
from ssd_train.options import config_of
from ssd_train.trainer import Trainer


def train(config: TrainConfig, folder, spoil):
    """Runs until `spoil(step, loss, model)` changes a loss; the message, the trainer and its weights before that."""
    trainer = Trainer(config, data.load("digits"), 0, folder)
    original, seen = trainer.method.loss, []

    def loss(model, batch):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return spoil(len(seen), original(model, batch), model)

    trainer.method.loss = loss
    with pytest.raises(BadInput) as info:
        trainer.fit()
    assert all(torch.equal(p, seen[-1][name]) for name, p in trainer.model.named_parameters())
    return str(info.value), len(seen)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"model": "relu", "method": "finetune"}, {"max_grad_norm": None}],
    ids=["touched rows", "all rows", "relu", "unclipped"],
)
@pytest.mark.parametrize("what", ["part", "gradient"])
def test_the_autograd_engine_stops_before_the_step(what, options, tmp_path) -> None:
    def spoil(step, loss, model):
        if step < 5:
            return loss
        if what == "part":
            part = loss.parts["ce"] * float("nan")
            return loss._replace(total=loss.total + part, parts=loss.parts | {"ce": part})
        output = list(model.parameters())[-1]
        return loss._replace(total=loss.total + (output - output.detach()).abs().sum().sqrt())  # 0, of infinite slope

    config = config_of(**{"data": "digits", "method": "sdmlp", "neurons": 60, "k": 5, "epochs": 2, "batch_size": 64,
                            "engine": "autograd", **options})  # fmt: skip
    message, steps = train(config, tmp_path, spoil)
    assert steps == 5 and "is not finite in step 4; that step was not taken; task 0, epoch 0" in message
    named = "the cross-entropy" if what == "part" else "the gradient of "
    assert message.startswith(f"training: {named}") and "try a smaller --lr (it is 0.05)" in message


@pytest.mark.parametrize("temperature", [1e160, 1e-160, 0.0, -1.0, float("inf"), float("nan")])
def test_an_extreme_temperature_is_refused(temperature, tmp_path) -> None:
    """Its square would leave the range of fp64."""
    config = config_of(data="digits", method="ssd", neurons=60, k=5, n_distill=20, temperature=temperature)
    with pytest.raises(BadInput, match=r"--temperature: got .*, allowed is 1e-150 \.\. 1e150"):
        Trainer(config, data.load("digits"), 0, tmp_path)


def test_a_temperature_that_is_too_large_for_the_loss_is_blamed(tmp_path) -> None:
    config = config_of(data="digits", method="ssd", neurons=60, k=5, epochs=1, batch_size=64, n_distill=20,
                         temperature=1e140, engine="autograd")  # fmt: skip
    trainer = Trainer(config, data.load("digits"), 0, tmp_path)
    with pytest.raises(BadInput, match=r"distillation.* is not finite .*task 1, epoch 0; try a smaller --temperature"):
        trainer.fit()


@pytest.mark.parametrize("temperature", [1e-3, 1e-10])
def test_a_small_temperature_trains(temperature, tmp_path) -> None:
    config = config_of(data="digits", method="ssd", neurons=60, k=5, epochs=2, batch_size=64, n_distill=20,
                         temperature=temperature, classes_per_task=5)  # fmt: skip
    trainer = Trainer(config, data.load("digits"), 0, tmp_path)
    trainer.fit()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert all(p == p for row in trainer.progress.matrix for p in row)


@pytest.mark.parametrize("option", [{"momentum": 1e-50}, {"lr": 1e-50}, {"lr": 1e39}])
def test_numbers_beyond_float32_are_one_line(option, tmp_path) -> None:
    config = config_of(data="digits", method="sdmlp", neurons=60, k=5, epochs=1, **option)
    with pytest.raises(BadInput, match=f"{next(iter(option))}=.*: allowed is .* float32"):
        Trainer(config, data.load("digits"), 0, tmp_path)
