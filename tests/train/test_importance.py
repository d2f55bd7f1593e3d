"""Importance of weights, Fisher and MAS, against the same written out sample by sample; the merged quadratic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ssd_train.importance import Quadratic, fisher, sensitivity
from ssd_train.model import SDMLP, ReLUMLP

MODELS = ["relu", "relu2", "sdmlp", "sdmlp2"]


def network(kind, dtype=torch.float64):
    torch.manual_seed(0)
    layers = 2 if kind.endswith("2") else 1
    if kind.startswith("relu"):
        return ReLUMLP(12, 5, 30, layers=layers).to(dtype)
    model = SDMLP(12, 5, 30, 4, layers=layers, gaba_switch=10.0).to(dtype)
    for counts in model.counts:  # from excited to fully inhibited neurons
        counts.copy_(torch.arange(30) % 13)
    return model


def samples(n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = F.normalize(torch.rand(n, 12, generator=generator, dtype=dtype), dim=1)
    return x, torch.randint(5, (n,), generator=generator)


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))


def nll(model, x, beta):
    return -(beta * model(x, normalized=True).logits).log_softmax(1)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("labels", ["argmax", "true", "exact"])
def test_per_sample_fisher_is_the_loop_over_samples(kind, labels):
    model, (x, y), beta = network(kind), samples(40), 0.7
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(x)):
        probabilities = (-nll(model, x[i : i + 1], beta)).exp()[0].detach()
        single = {"argmax": F.one_hot(probabilities.argmax(), 5), "true": F.one_hot(y[i], 5), "exact": probabilities}
        for c, weight in enumerate(single[labels].double()):
            if weight:
                for name, g in gradients(model, nll(model, x[i : i + 1], beta)[0, c]).items():
                    wanted[name] += weight * g**2 / len(x)
    found = fisher(model, x, y, "exact" if labels == "exact" else f"sample-{labels}", beta)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.linalg.norm(found[name] - wanted[name]) <= 1e-6 * torch.linalg.norm(wanted[name]) + 1e-15, name
        assert wanted[name].abs().sum() > 0


@pytest.mark.parametrize("kind", MODELS)
def test_batch_fisher_is_the_papers(kind):
    """Batches of 512, the last one smaller: (sum of gradients)^2 per batch, added, over the samples."""
    model, (x, y), beta = network(kind), samples(700), 0.08
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for part in x.split(512):
        losses = nll(model, part, beta)
        for name, g in gradients(model, losses.min(1).values.sum()).items():
            wanted[name] += g**2 / len(x)
    for name, value in fisher(model, x, y, "batch-argmax", beta).items():
        assert torch.allclose(value, wanted[name], rtol=1e-9, atol=1e-15)


def test_sampled_labels_average_to_the_exact_fisher():
    model, (x, y) = network("relu"), samples(30)
    generator = torch.Generator().manual_seed(0)
    exact, drawn = fisher(model, x, y, "exact", 1.0), None
    for _ in range(400):
        new = fisher(model, x, y, "sample-sampled", 1.0, generator)
        drawn = new if drawn is None else {name: drawn[name] + new[name] for name in new}
    for name in exact:
        assert torch.linalg.norm(drawn[name] / 400 - exact[name]) < 0.1 * torch.linalg.norm(exact[name]), name


@pytest.mark.parametrize("estimator", ("sample-true", "exact"))
@pytest.mark.parametrize("kind", ("relu", "sdmlp"))
def test_per_sample_fisher_takes_no_backward_pass(kind, estimator, monkeypatch):
    """What makes it fast (benchmarks/bench_importance.py measures how fast)."""
    model, (x, y) = network(kind), samples(70)
    wanted = fisher(model, x, y, estimator, 0.8)

    def refuse(*arguments, **options):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.autograd, "backward", refuse)
    for name, value in fisher(model, x, y, estimator, 0.8).items():
        assert torch.equal(value, wanted[name])
    with pytest.raises(AssertionError, match="backward"):
        fisher(model, x, y, "batch-true", 0.8)


@pytest.mark.parametrize("kind", MODELS)
def test_mean_fisher_is_the_mean_over_batches(kind):
    """(gradient of the mean loss)^2 in batches of the size given, the last one smaller; each batch counts alike."""
    model, (x, y), beta = network(kind), samples(70), 0.8
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for part, labels in zip(x.split(32), y.split(32)):
        loss = F.cross_entropy(beta * model(part, normalized=True).logits, labels)
        for name, g in gradients(model, loss).items():
            wanted[name] += g**2 / 3
    for name, value in fisher(model, x, y, "mean-true", beta, batch_size=32).items():
        assert torch.allclose(value, wanted[name], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("estimator, size", [("batch", 30), ("sample", 1), ("mean", 8)])
def test_mas(kind, estimator, size):
    model, (x, _), beta = network(kind), samples(30), 0.5
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for part in x.split(size):
        length = (beta * model(part, normalized=True).logits).square().sum(1)
        length = length.mean() / 4 if estimator == "mean" else length.sum() / len(x)
        for name, g in gradients(model, length).items():
            wanted[name] += g.abs()
    for name, value in sensitivity(model, x, estimator, beta, size).items():
        assert torch.allclose(value, wanted[name], rtol=1e-9, atol=1e-15)


def test_merged_quadratic_is_the_sum_of_its_terms():
    """Value and gradient, with entries whose importance is 0 in one task or in all; memory does not grow."""
    torch.manual_seed(0)
    model, merged, terms = network("relu"), Quadratic(), []
    for task in range(6):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        importance = {name: torch.rand_like(p) * (torch.rand_like(p) < 0.4) for name, p in model.named_parameters()}
        importance["output.bias"].zero_()
        merged.add(model, importance)
        terms.append((importance, {name: p.detach().clone() for name, p in model.named_parameters()}))
        assert len(merged.importance) == len(merged.anchor) == 4, task
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    wanted = sum((f[name] * (p - a[name]) ** 2).sum() for f, a in terms for name, p in model.named_parameters())
    assert torch.allclose(merged.value(model), wanted, rtol=1e-12)
    for a, b in zip(torch.autograd.grad(merged.value(model), model.parameters()),
                    torch.autograd.grad(wanted, model.parameters())):  # fmt: skip
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12) and torch.isfinite(a).all()
