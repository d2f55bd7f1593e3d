"""Lazy pre-activations and codes: the calls of eager autoencoders give what they give on dense tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ssd_kernels import testing
from ssd_kernels.sae import accelerate
from ssd_kernels.sae.accelerate import LazyLinear
from ssd_kernels.sae.lazy import Chosen, Code, LazyTensor, Scores


class Autoencoder(nn.Module):
    """relu, topk, scatter_ and a linear decoder, with a loss that revives dead neurons and a threshold."""

    def __init__(self, k: int = 5, d: int = 12, r: int = 60):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("k", torch.tensor(k))
        self.encoder, self.decoder = nn.Linear(d, r), nn.Linear(r, d, bias=False)
        self.dead = torch.arange(r) % 3 == 0

    def code(self, acts: torch.Tensor) -> torch.Tensor:
        top = acts.topk(self.k, sorted=False, dim=-1)
        return torch.zeros_like(acts).scatter_(dim=-1, index=top.indices, src=top.values)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        acts = functional.relu(self.encoder(x))
        residual = x - self.decoder(self.code(acts))
        top = torch.where(self.dead[None], acts, -torch.inf).topk(4, sorted=False)
        revived = self.decoder(torch.zeros_like(acts).scatter_(-1, top.indices, top.values))
        return residual.square().sum() + (revived - residual.detach()).square().sum()

    def threshold(self, x: torch.Tensor) -> torch.Tensor:
        acts = functional.relu(self.encoder(x))
        return self.decoder(acts * (acts > 0.3)).square().sum()

    def batch(self, x: torch.Tensor) -> torch.Tensor:
        acts = functional.relu(self.encoder(x))
        top = acts.flatten().topk(int(self.k) * len(x), sorted=False)
        code = torch.zeros_like(acts.flatten()).scatter_(-1, top.indices, top.values).reshape(acts.shape)
        return self.decoder(code).square().sum() + (code.sum(0) > 0).sum()


def pair() -> tuple[Autoencoder, Autoencoder]:
    eager = Autoencoder()
    lazy = copy.deepcopy(eager)
    lazy.encoder.__class__ = LazyLinear
    return eager, lazy


@pytest.mark.parametrize("call", ["loss", "threshold", "batch"])
@pytest.mark.parametrize("k", [5, 9])
def test_losses_and_gradients_are_those_of_dense_tensors(call, k):
    results = []
    for model in pair():
        model.k.fill_(k)
        x = testing.make(9, 12).requires_grad_()
        loss = getattr(model, call)(x)
        loss.backward()
        results.append([loss.detach(), x.grad, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*reversed(results)):
        torch.testing.assert_close(ours, theirs)


def test_the_short_ways_never_hold_all_scores():
    _, model = pair()
    acts = functional.relu(model.encoder(testing.make(9, 12)))
    code = model.code(acts)
    model.decoder(code)
    chosen = torch.where(model.dead[None], acts, -torch.inf)
    chosen.topk(4)
    assert (type(acts), type(code), type(chosen)) == (Scores, Code, Chosen)
    assert acts._value is None and code._value is None and chosen._value is None
    assert acts.shape == (9, 60) and acts.dtype == torch.float32 and len(acts) == 9 and not acts.is_sparse


def test_any_other_call_sees_the_dense_tensor():
    eager, model = pair()
    x = testing.make(9, 12)
    expected = functional.relu(eager.encoder(x))
    for read in (
        lambda t: t + 1,
        lambda t: t[2:4],
        lambda t: (t > 0).sum(0),
        lambda t: torch.cat([t, t]),
        lambda t: torch.where(eager.dead[None], t, torch.zeros(())),
        lambda t: t.topk(3, dim=0).values,
        lambda t: t.topk(3, largest=False).values,
        lambda t: t.clone().mul_(2),
        lambda t: t.T,
        lambda t: torch.stack((t, t)).mean(),
        lambda t: functional.linear(t, eager.decoder.weight),
        lambda t: 2 * t @ eager.decoder.weight.T,
    ):
        torch.testing.assert_close(read(functional.relu(model.encoder(x))), read(expected))
    for lazy, dense in ((model.code(functional.relu(model.encoder(x))), eager.code(expected)),):
        torch.testing.assert_close(lazy * 2, dense * 2)
    assert "tensor" in repr(model.encoder(x)) and not isinstance(copy.deepcopy(model.encoder(x).detach()), LazyTensor)


def test_a_code_that_is_changed_after_it_was_read():
    code = Code(None, None, shape=torch.Size((2, 4)), like=torch.zeros(1))
    assert code.sum() == 0
    code.scatter_(-1, torch.tensor([[1], [2]]), torch.ones(2, 1))
    code[0, 3] = 5
    torch.testing.assert_close(code + 0, torch.tensor([[0.0, 1, 0, 5], [0, 0, 1, 0]]))
    assert functional.linear(code, torch.eye(4)).tolist() == code.tolist()


def test_scores_that_are_read_after_the_weights_changed():
    _, model = pair()
    late, early = model.encoder(testing.make(9, 12)), model.encoder(testing.make(9, 12))
    early.sum()
    with torch.no_grad():
        model.encoder.weight.mul_(2)
    early.mean()
    for read in (lambda: late.sum(), lambda: late.topk(3)):
        with pytest.raises(RuntimeError, match="read after the weights"):
            read()


def test_no_grad_is_that_of_the_forward_pass():
    _, model = pair()
    with torch.no_grad():
        scores = model.encoder(testing.make(9, 12))
    assert not scores.topk(3).values.requires_grad and not (scores + 0).requires_grad


def test_accelerate_refuses_what_it_does_not_know():
    class AutoEncoderTopK(Autoencoder):
        pass

    for model in (Autoencoder(), AutoEncoderTopK(), nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=r"is not known; allowed are dictionary_learning\.trainers\.top_k"):
            accelerate(model)
