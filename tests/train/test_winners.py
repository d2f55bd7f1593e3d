"""The other Top-K modes: winners that keep their score, and a K that falls over the first epochs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ssd_train import data
from ssd_train.engines import fused_reason
from ssd_train.errors import BadInput
from ssd_train.model import SDMLP
from ssd_train.options import config_of
from ssd_train.run.evaluate import load_model
from ssd_train.trainer import Trainer
from ssd_train.validate import check


def config(**changes):
    base = {"data": "digits", "method": "ssd", "neurons": 60, "k": 5, "n_distill": 30, "epochs": 4,
            "batch_size": 32, "classes_per_task": 5, "eval_every": 2}  # fmt: skip
    return config_of(**base | changes)


def masked(x, weight, k):
    """h = a on the K largest of a = relu(x W^T), ties to the lowest index; the rest 0."""
    a = (x @ weight.T).clamp_min(0)
    order = a.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    return a * torch.zeros_like(a).scatter_(1, order, 1.0)


@pytest.mark.parametrize("layers", [1, 2])
def test_mask_keeps_the_winners_scores(layers):
    """Forward and gradients against the dense formula, with tied scores and samples of fewer than K positive ones."""
    torch.manual_seed(0)
    model = SDMLP(12, 5, 30, 4, layers=layers, gaba_switch=10.0, topk="mask").double()
    with torch.no_grad():
        model.weights[0][7:10] = model.weights[0][6]
        model.weights[0][20:] *= (torch.arange(12) < 4).double()
    x = torch.rand(40, 12, dtype=torch.float64)
    x[:5, :11] = 0
    x = F.normalize(x, dim=1)
    y = torch.randint(5, (40,))
    output = model(x, normalized=True)
    found = torch.autograd.grad(F.cross_entropy(output.logits, y), list(model.parameters()))
    h = x
    for i, weight in enumerate(model.weights):
        h = h if i == 0 else h / h.norm(dim=1, keepdim=True).clamp_min(1e-12)
        h = masked(h, weight, 4)
        rows = output.hidden[i]
        assert rows.offsets.diff().tolist() == (h > 0).sum(1).tolist()
        assert torch.allclose(rows.values, h[h > 0]) and rows.indices.tolist() == (h > 0).nonzero()[:, 1].tolist()
    logits = h @ model.output_weight.T
    assert torch.allclose(output.logits, logits)
    for a, b in zip(found, torch.autograd.grad(F.cross_entropy(logits, y), list(model.parameters()))):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.allclose(model.layers(x)[-1].z, logits)
    assert (h > 0).sum(1).max() == 4


@pytest.mark.parametrize("method", ["ssd", "ssd+ewc"])
def test_mask_trains_and_is_evaluated(method, tmp_path):
    trainer = Trainer(config(method=method, topk="mask", gaba_switch=20.0), data.load("digits"), 0, tmp_path)
    assert trainer.engine.name == "autograd"
    assert "GABA" in fused_reason(trainer.config, trainer.model, trainer.method)
    trainer.fit()
    hidden = trainer.model(trainer.x_test, normalized=True).hidden[0]
    assert hidden.offsets.diff().max() <= 5
    assert trainer.progress.loss_parts[1]["kd_logits"] > 0 and trainer.progress.accuracy > 0.2
    loaded, _ = load_model(tmp_path / "model.safetensors")
    logits = trainer.method.predict(trainer.context, trainer.x_test)
    assert torch.equal(loaded(trainer.x_test, normalized=True).logits, logits)


@pytest.mark.parametrize("topk", ["gaba", "mask"])
def test_winners_fall_linearly_in_the_first_task(topk, tmp_path):
    settings = config(topk=topk, k_start=25, k_epochs=None if topk == "gaba" else 2)
    trainer, seen = Trainer(settings, data.load("digits"), 0, tmp_path), []
    train_epoch = trainer.engine.train_epoch
    trainer.engine.train_epoch = lambda *rest: seen.append(trainer.model.k) or train_epoch(*rest)
    trainer.fit()
    assert seen == ([25, 20, 15, 10] if topk == "gaba" else [25, 15, 5, 5]) + [5] * 4
    assert trainer.model.k == 5 and trainer.method.teacher.model.k == 5


@pytest.mark.parametrize("changes", [{"k_start": 4}, {"k_start": 60}, {"k_epochs": 2}, {"k_start": 20, "k_epochs": 5}])
def test_impossible_winners_are_refused(changes):
    with pytest.raises(BadInput, match=r"--k-start|--k-epochs"):
        check(config(**changes))
