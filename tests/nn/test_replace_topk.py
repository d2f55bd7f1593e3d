"""replace_topk: what it swaps, what it refuses, and that no model changes without a word."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from ssd_kernels import SparseTopKLinear, replace_topk, testing


def nested() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Linear(24, 130), "body": nn.Sequential(nn.ReLU(), nn.Linear(130, 24))})


def test_replace_topk_swaps_in_place_and_shares_parameters():
    model = nested()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert replace_topk(model, {"encoder": 9, "body.1": 3}, activation="none") is model
    assert isinstance(model["encoder"], SparseTopKLinear) and isinstance(model["body"][1], SparseTopKLinear)
    assert (model["encoder"].k, model["body"][1].k, model["body"][1].activation) == (9, 3, "none")
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in before.items()}
    weight = model["encoder"].weight.clone()
    model["encoder"](testing.make(4, 24)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, model["encoder"].weight)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ({"encoder": 9, "decoder": 3}, ValueError, r"no module 'decoder'; its linear layers: encoder, body\.1"),
        ({"encoder": 9, "body.0": 3}, TypeError, "from_linear takes a plain torch.nn.Linear, got ReLU"),
        ({"encoder": 9, "body.1": 25}, ValueError, "k=25: allowed are whole numbers from 1 to R = 24"),
        ({"": 9}, ValueError, "no module ''"),
    ],
)
def test_replace_topk_with_a_wrong_name_changes_nothing(names, error, message):
    model = nested()
    with pytest.raises(error, match=message):
        replace_topk(model, names)
    assert type(model["encoder"]) is nn.Linear


# ---- Models in the manner of four public Top-K autoencoders, small. Each selects its Top-K itself.


class Autoencoder(nn.Module):
    """relu, topk, scatter, as dictionary_learning's AutoEncoderTopK; `k` is a buffer that a schedule may change."""

    def __init__(self, k: int = 5, d: int = 12, r: int = 60):
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("k", torch.tensor(k))
        self.register_buffer("threshold", torch.tensor(0.3))
        self.encoder, self.decoder = nn.Linear(d, r), nn.Linear(r, d, bias=False)
        self.dead = torch.arange(r) % 3 == 0

    def encode(self, x: torch.Tensor, use_threshold: bool = False):
        acts = functional.relu(self.encoder(x))
        if use_threshold:
            return acts * (acts > self.threshold), acts
        top = acts.topk(self.k, sorted=False, dim=-1)
        return torch.zeros_like(acts).scatter_(-1, top.indices, top.values), acts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encode(x)[0])

    def loss(self, x: torch.Tensor, auxiliary: bool = False) -> torch.Tensor:
        code, acts = self.encode(x)
        residual = x - self.decoder(code)
        loss = residual.square().sum()
        if auxiliary:  # the loss that revives dead neurons
            top = torch.where(self.dead[None], acts, -torch.inf).topk(4, sorted=False)
            revived = self.decoder(torch.zeros_like(acts).scatter_(-1, top.indices, top.values))
            loss = loss + (revived - residual.detach()).square().sum()
        return loss


class BatchAutoencoder(Autoencoder):
    """The K B largest of a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        acts = functional.relu(self.encoder(x))
        top = acts.flatten().topk(int(self.k) * len(x))
        code = torch.zeros_like(acts.flatten()).scatter_(-1, top.indices, top.values).reshape(acts.shape)
        return self.decoder(code)


class Coder(Autoencoder):
    """Multiplies by the weight itself, as sparsify's SparseCoder and openai's Autoencoder."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        acts = functional.relu(functional.linear(x, self.encoder.weight, self.encoder.bias))
        top = acts.topk(self.k, dim=-1)
        return self.decoder(torch.zeros_like(acts).scatter_(-1, top.indices, top.values))


class ParameterAutoencoder(nn.Module):
    """W_enc is a (D, R) Parameter, as SAELens' TopKTrainingSAE."""

    def __init__(self):
        super().__init__()
        self.W_enc = nn.Parameter(torch.zeros(12, 60))


def inputs(rows: int = 9) -> torch.Tensor:
    return testing.make(rows, 12)


def test_a_model_that_reads_winners_alone_is_what_it_was():
    model = Autoencoder()
    expected = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace_topk(model, {"encoder": 5}, check=inputs()) is model
        assert isinstance(model.encoder, SparseTopKLinear)
        x = inputs(20)
        torch.testing.assert_close(model(x), expected(x))
        for one in (model, expected):
            one.loss(x).backward()
    for ours, theirs in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        with pytest.raises(RuntimeError, match="reads more of layer 'encoder'"):
            other.loss(x, auxiliary=True)


def schedule(model: Autoencoder) -> torch.Tensor:
    model.k.fill_(7)
    return model.loss(inputs())


SILENT = {
    "auxk": (Autoencoder, lambda m: m.loss(inputs(), auxiliary=True), "where"),
    "schedule": (Autoencoder, schedule, "topk with k=7"),
    "threshold": (Autoencoder, lambda m: m.encode(inputs(), use_threshold=True)[0], "gt"),
    "batch": (BatchAutoencoder, lambda m: m(inputs()), "flatten"),
}


@pytest.mark.parametrize("case", SILENT)
def test_whoever_reads_more_than_winners_is_told(case):
    kind, use, what = SILENT[case]
    model = replace_topk(kind(), {"encoder": 5})
    with pytest.warns(UserWarning, match=rf"reads more of layer 'encoder' than its K = 5 winners \(.*({what})"):
        use(model)
    with warnings.catch_warnings():  # once for each layer
        warnings.simplefilter("error")
        use(model)


@pytest.mark.parametrize("case", SILENT)
def test_a_checked_model_raises_where_more_than_winners_are_read(case):
    kind, use, what = SILENT[case]
    model = kind()
    if kind is BatchAutoencoder:
        with pytest.raises(ValueError, match=r"reads more of layer 'encoder'.*flatten"):
            replace_topk(model, {"encoder": 5}, check=inputs())
        assert type(model.encoder) is nn.Linear
        return
    replace_topk(model, {"encoder": 5}, check=inputs())
    with pytest.raises(RuntimeError, match=rf"reads more of layer 'encoder' .*({what}|mul)"):
        use(model)


@pytest.mark.parametrize("case", SILENT)
def test_check_of_the_call_that_reads_more_fails_at_once(case):
    kind, use, _ = SILENT[case]
    model = kind()
    with pytest.raises(ValueError, match="reads more of layer 'encoder'"):
        replace_topk(model, {"encoder": 5}, check=use)
    assert type(model.encoder) is nn.Linear and model.k == 5


def test_a_layer_that_is_never_called():
    with pytest.raises(ValueError, match="never calls encoder"):
        replace_topk(Coder(), {"encoder": 5}, check=inputs())
    model = replace_topk(Coder(), {"encoder": 5})
    with pytest.warns(UserWarning, match="never calls encoder"):
        model(inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(inputs())
        called = replace_topk(Autoencoder(), {"encoder": 5})
        called(inputs())
        assert not called._forward_hooks and not called.encoder._forward_hooks


def test_a_parameter_in_place_of_a_layer_is_refused():
    with pytest.raises(ValueError, match="no module 'W_enc'"):
        replace_topk(ParameterAutoencoder(), {"W_enc": 5})


@pytest.mark.parametrize(
    ("model", "k"),
    [(Autoencoder(), 4), (nn.Sequential(nn.Linear(12, 60), nn.ReLU(), nn.Linear(60, 3)), 5)],
    ids=["another K", "no Top-K"],
)
def test_check_refuses_another_output_and_restores_the_model(model, k):
    name = "encoder" if isinstance(model, Autoencoder) else "0"
    linear = model.get_submodule(name)
    with pytest.raises(ValueError, match=r"reads more of layer|output is another: tensor 0, .* differs in"):
        replace_topk(model, {name: k}, check=inputs())
    assert model.get_submodule(name) is linear


def test_negative_winners_are_not_mistaken_for_zeros():
    class Raw(Autoencoder):
        def forward(self, x):
            scores = self.encoder(x)
            top = scores.topk(self.k)
            return self.decoder(torch.zeros_like(scores).scatter_(-1, top.indices, top.values))

    model = Raw(k=50)
    with pytest.raises(ValueError, match="some winners are negative"):
        replace_topk(model, {"encoder": 50}, check=inputs(), activation="none")
    replace_topk(Raw(k=5), {"encoder": 5}, check=inputs(), activation="none")


class Restless(Autoencoder):
    """Noise, a counter in a buffer, and dropout in training mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        self.calls += 1
        return super().forward(self.dropout(x) + 0.1 * torch.rand(x.shape))


@pytest.mark.parametrize("k", [5, 3], ids=["passes", "fails"])
def test_check_leaves_modes_buffers_and_random_state(k):
    model = Restless()
    model.decoder.eval()
    calls, state = model.calls, torch.get_rng_state()
    if k == 5:
        replace_topk(model, {"encoder": k}, check=(inputs(),))
    else:
        with pytest.raises(ValueError):
            replace_topk(model, {"encoder": k}, check={"x": inputs()})
    assert torch.equal(state, torch.get_rng_state()) and model.calls is calls and calls == 0
    assert model.training and not model.decoder.training and model.encoder.training
    assert all(p.grad is None for p in model.parameters())


def test_winners_that_tie_within_rounding_are_no_difference():
    """Two equal neurons at the place of the last winner: torch.topk and the kernel may take either."""
    model = Autoencoder(k=1)
    with torch.no_grad():
        model.encoder.weight[1:] = model.encoder.weight[0] * torch.linspace(1, 1 + 1e-6, 59)[:, None]
        model.encoder.bias.fill_(3.0)
    replace_topk(model, {"encoder": 1}, check=testing.make(300, 12))


def test_a_second_call_changes_k_and_keeps_options():
    model = replace_topk(Autoencoder(), {"encoder": 5}, check=inputs(), backend="reference")
    weight = model.encoder.weight
    model.k.fill_(7)
    replace_topk(model, {"encoder": 7}, check=inputs())
    assert (model.encoder.k, model.encoder.backend) == (7, "reference") and model.encoder.weight is weight
    with pytest.raises(ValueError, match=r"is another|reads more"):
        replace_topk(model, {"encoder": 6}, check=inputs())
    assert model.encoder.k == 7
    with pytest.raises(ValueError, match="k=61: allowed"):
        replace_topk(model, {"encoder": 61})


def test_hooks_are_refused():
    model = Autoencoder()
    model.encoder.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'encoder' has hooks \(_forward_hooks\)"):
        replace_topk(model, {"encoder": 5})
    assert type(model.encoder) is nn.Linear


def test_a_module_under_two_names():
    model = nn.ModuleDict({"one": nn.Linear(12, 60), "other": nn.Sequential()})
    model["other"].append(model["one"])
    with pytest.raises(ValueError, match=r"'one' is also the module 'other\.0': name all of one, other\.0"):
        replace_topk(model, {"one": 5})
    with pytest.raises(ValueError, match="is also the module"):
        replace_topk(model, {"one": 5, "other.0": 6})
    replace_topk(model, {"one": 5, "other.0": 5})
    assert model["one"] is model["other"][0] and model["one"].k == 5
    shared = nn.Sequential()
    shared.append(nn.Sequential(nn.Linear(12, 60)))
    shared.append(shared[0])  # the same place under two names
    replace_topk(shared, {"0.0": 5})
    assert isinstance(shared[1][0], SparseTopKLinear)
