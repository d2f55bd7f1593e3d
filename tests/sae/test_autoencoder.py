"""TopKAutoencoder against the same model written in plain torch, and its state against the clients' own."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from ssd_kernels import Rows
from ssd_kernels.sae import TopKAutoencoder, from_client, to_client

B, D, R, K = 32, 16, 128, 4


def batches(count: int) -> list[torch.Tensor]:
    """A mixture in few dimensions: many neurons die."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(6, D, generator=generator)
    return [torch.relu(torch.randn(B, 6, generator=generator)) @ basis for _ in range(count)]


class Eager(nn.Module):
    """The specification: all (B, R) scores, masks and scatters; a stable sort decides ties."""

    def __init__(self, model: TopKAutoencoder) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)  # parameters, counters and settings, never its forward pass
        self.since = torch.zeros(R, dtype=torch.long)
        self.step = 0

    def dense(self, scores: torch.Tensor, k: int, mask: torch.Tensor | None = None) -> torch.Tensor:
        scores = scores if mask is None else torch.where(mask, scores, -torch.inf)
        places = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
        return torch.zeros_like(scores).scatter(-1, places, scores.gather(-1, places))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = self.model
        k = m.k(self.step) if callable(m.k) else m.k
        norms = m.W_dec.norm(dim=1) if m.scale_by_decoder_norm else torch.ones(R)
        a = torch.relu(norms * functional.linear(x - m.b_dec, m.encoder.weight, m.encoder.bias))
        code = self.dense(a, k) if m.selection == "sample" else self.dense(a.flatten(), len(x) * k).view_as(a)
        variance = (x - x.mean(0)).square().sum()
        residual = x - ((code / norms) @ m.W_dec + m.b_dec)
        loss = residual.square().sum() / variance
        if m.multi > 1:
            many = (self.dense(a, m.multi * k) / norms) @ m.W_dec + m.b_dec
            loss = loss + m.multi_weight * (x - many).square().sum() / variance
        dead = self.since >= m.dead_after
        if count := int(dead.sum()):
            revived = self.dense(a, min(m.aux_k, count), dead)
            error = ((revived / norms) @ m.W_dec - residual.detach()).square().sum()
            loss = loss + m.aux_weight * min(count / m.aux_k, 1.0) * error / variance
        fired = (code > 0).any(0)
        self.since = torch.where(fired, 0, self.since + len(x))
        self.step += 1
        return loss


def grows(step: int) -> int:
    return K + step // 10


OPTIONS = {
    "plain": {},
    "multi and a schedule": {"k": grows, "multi": 4},
    "scaled": {"scale_by_decoder_norm": True},
    "batch": {"selection": "batch"},
    "batch and a schedule": {"k": grows, "selection": "batch"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_training_is_that_of_the_eager_model(name):
    torch.manual_seed(0)
    ours = TopKAutoencoder(D, R, **{"k": K, "dead_after": 5 * B, **OPTIONS[name]})
    theirs = Eager(ours)
    optimizers = [torch.optim.Adam(m.parameters(), lr=3e-3) for m in (ours, theirs)]
    most = 0
    for step, x in enumerate(batches(40)):
        dead = int((theirs.since >= ours.dead_after).sum())
        expected = theirs(x)
        optimizers[1].zero_grad()
        expected.backward()
        weight = theirs.model.W_dec
        if not ours.scale_by_decoder_norm:
            weight.grad -= (weight.grad * weight).sum(1, keepdim=True).detach() * weight.detach()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizers[1].step()
        if not ours.scale_by_decoder_norm:
            weight.data /= weight.data.norm(dim=1, keepdim=True)
        output = ours.training_step(x, optimizers[0])
        torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-7, msg=f"step {step}")
        assert output.dead == dead and torch.equal(ours.samples_since_fired, theirs.since)
        most = max(most, dead)
    assert most > 0, "the case has dead neurons"
    assert int(ours.step) == 40 and ours.threshold > 0


def test_eval_mode_changes_nothing_and_the_threshold_selects():
    torch.manual_seed(0)
    model = TopKAutoencoder(D, R, K, selection="batch")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for x in batches(5):
        model.training_step(x, optimizer)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    code = model(x).code
    assert isinstance(code, Rows) and (code.threshold == model.threshold).all()
    assert (code.values > model.threshold).all()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_state_dict_pickle_leading_dimensions_and_double():
    model = TopKAutoencoder(D, R, grows, multi=2, dtype=torch.float64)
    x = batches(1)[0].double()
    model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = TopKAutoencoder(D, R, grows, multi=2, dtype=torch.float64)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x).loss, copy.deepcopy(model)(x).loss)
    assert model.eval()(x.reshape(2, B // 2, D)).reconstruction.shape == (2, B // 2, D)
    norms = model.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 with multi=1 at step 0: allowed are whole numbers"),
        ({"k": 100, "multi": 2}, "allowed are whole numbers with 1 <= multi k <= R = 128"),
        ({"selection": "row"}, "selection='row': allowed are sample, batch"),
        ({"selection": "batch", "multi": 4}, "multi=4 with selection='batch'"),
        ({"dead_after": 0}, "dead_after=0: allowed are"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        TopKAutoencoder(D, R, **{"k": K, **options})


# ---- Clients.
def client_model(name: str) -> nn.Module:
    torch.manual_seed(3)
    match name:
        case "dictionary_learning":
            model = pytest.importorskip("dictionary_learning.trainers.top_k").AutoEncoderTopK(D, R, K)
        case "sae_lens":
            pytest.importorskip("sae_lens")
            lens = pytest.importorskip("sae_lens.saes.topk_sae")
            model = lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(d_in=D, d_sae=R, k=K))
        case "sparsify":
            sparsify = pytest.importorskip("sparsify")
            model = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(num_latents=R, k=K))
        case _:
            openai = pytest.importorskip("sparse_autoencoder.model")
            model = openai.Autoencoder(R, D, activation=openai.TopK(K))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("client", ["dictionary_learning", "openai", "sae_lens", "sparsify"])
def test_state_dicts_round_trip_with_the_client(client):
    theirs = client_model(client)
    state = {n: v.clone() for n, v in theirs.state_dict().items() if isinstance(v, torch.Tensor)}
    ours = from_client(state, K, scale_by_decoder_norm=client == "sae_lens").eval()
    x = batches(1)[0]
    found = theirs.eval()(x)
    found = found[2] if client == "openai" else getattr(found, "sae_out", found)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).reconstruction, found, rtol=1e-5, atol=1e-5)
    back = to_client(ours, client)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) and back[name].dtype == state[name].dtype for name in state)
    other = client_model(client)
    other.load_state_dict(back, strict=client != "openai")  # openai's holds its activation's name too
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), theirs.parameters()))


@pytest.mark.parametrize("client", ["dictionary_learning", "openai", "sae_lens", "sparsify"])
def test_conversion_needs_no_client(client):
    torch.manual_seed(0)
    model = TopKAutoencoder(D, R, K)
    with torch.no_grad():
        model.b_dec.normal_()
    state = to_client(model, client)
    assert all(tensor.is_contiguous() for tensor in state.values())
    other = from_client(state, None if client == "dictionary_learning" else K)
    assert other.winners() == K
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters()))


def test_unknown_states_are_refused():
    state = to_client(TopKAutoencoder(D, R, K), "sparsify")
    with pytest.raises(ValueError, match="a state_dict of sparsify holds no K: give k"):
        from_client(state)
    with pytest.raises(ValueError, match=r"the state_dict has weight; allowed are dictionary_learning: enc"):
        from_client({"weight": torch.ones(2, 2)}, K)
    with pytest.raises(ValueError, match="client='xformers': allowed are"):
        to_client(TopKAutoencoder(D, R, K), "xformers")
