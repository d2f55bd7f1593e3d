"""accelerate against the models and training loops of public packages, where they are installed (CONTRIBUTING.md).

200 steps with dead latents, a change of k and inference with a threshold. Losses are equal within 1e-5, or twice what
the package itself differs between one thread and two; dead latents are the same.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssd_kernels import testing
from ssd_kernels.sae import accelerate

B, D, R, K, STEPS = 64, 256, 1024, 8, 200


def activations() -> torch.Tensor:
    """Embeddings of CIFAR-10 where SSD_DATA_DIR has them, else a mixture in few dimensions."""
    folder = os.environ.get("SSD_DATA_DIR")
    for file in sorted(Path(folder).glob("*cifar10*.safetensors")) if folder else []:
        from safetensors.torch import load_file

        found = [t for t in load_file(file).values() if t.dim() == 2 and t.shape[1] == D and t.is_floating_point()]
        if found:
            return max(found, key=len)[: B * STEPS].float()
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(40, D, generator=generator)
    return torch.relu(torch.randn(B * 64, 40, generator=generator)) @ basis / 6


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    x = activations()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    return [x[order[torch.arange(step * B, (step + 1) * B) % len(x)]] for step in range(STEPS)]


def compare(run: Callable[[bool], tuple[list[float], list[int]]]) -> None:
    """Losses and dead counts of the package and of the accelerated model."""
    theirs, dead = run(False)
    ours, our_dead = run(True)
    expected, found = (torch.tensor(losses, dtype=torch.float64) for losses in (theirs, ours))
    difference, allowed = ((found - expected) / expected).abs().max().item(), 1e-5
    if difference > allowed:
        with testing.num_threads(1 if torch.get_num_threads() > 1 else 2):
            other = torch.tensor(run(False)[0], dtype=torch.float64)
        allowed = 2 * ((other - expected) / expected).abs().max().item()
    print(f"losses {theirs[0]:.4g} -> {theirs[-1]:.4g}, dead {dead[-1]}; difference {difference:.1e} of {allowed:.1e}")
    assert difference <= allowed
    assert our_dead == dead
    assert max(dead) > 0, "the case has dead latents"


def dictionary_learning(kind: str, batches: list[torch.Tensor], fast: bool) -> tuple[list[float], list[int]]:
    trainers = pytest.importorskip("dictionary_learning.trainers")
    trainer = getattr(trainers, kind)(
        steps=STEPS, activation_dim=D, dict_size=R, k=K, layer=0, lm_name="none", lr=1e-3, warmup_steps=10,
        threshold_start_step=20, seed=0, device="cpu",
    )  # fmt: skip
    trainer.dead_feature_threshold = 10 * B
    keys = list(trainer.ae.state_dict())
    if fast:
        assert accelerate(trainer.ae) is trainer.ae and accelerate(trainer.ae) is trainer.ae
    losses, dead = [], []
    for step, x in enumerate(batches):
        if step == STEPS // 2:
            trainer.ae.k.fill_(2 * K)  # a schedule
        losses.append(trainer.update(step, x))
        dead.append(int((trainer.num_tokens_since_fired >= trainer.dead_feature_threshold).sum()))
    with torch.no_grad():
        code = trainer.ae.encode(batches[0], use_threshold=True)
        losses += [trainer.ae.decode(code).square().sum().item(), trainer.ae(batches[0]).square().sum().item()]
        dead.append(int((code > 0).sum()))
    assert list(trainer.ae.state_dict()) == keys
    other = copy.deepcopy(trainer.ae)
    assert torch.equal(other(batches[0]), trainer.ae(batches[0]))
    pickle.loads(pickle.dumps(trainer.ae))
    return losses, dead


@pytest.mark.parametrize("kind", ["TopKTrainer", "BatchTopKTrainer"])
def test_dictionary_learning(kind, batches):
    compare(lambda fast: dictionary_learning(kind, batches, fast))


@pytest.mark.parametrize("rescale", [True, False])
def test_sae_lens(rescale, batches):
    pytest.importorskip("sae_lens")
    lens = pytest.importorskip("sae_lens.saes.topk_sae")
    base = pytest.importorskip("sae_lens.saes.sae")

    def run(fast: bool) -> tuple[list[float], list[int]]:
        torch.manual_seed(0)
        model = lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(d_in=D, d_sae=R, k=K,
                                                                rescale_acts_by_decoder_norm=rescale))  # fmt: skip
        if fast:
            accelerate(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        fired, losses, dead = torch.zeros(R, dtype=torch.long), [], []
        for step, x in enumerate(batches):
            mask = fired >= 10
            dead.append(int(mask.sum()))
            output = model.training_forward_pass(
                base.TrainStepInput(
                    sae_in=x, coefficients={}, dead_neuron_mask=mask, n_training_steps=step, is_logging_step=False
                )
            )
            fired = torch.where((output.feature_acts > 0).any(0), 0, fired + 1)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            losses.append(output.loss.item())
        with torch.no_grad():
            losses.append(model(batches[0]).square().sum().item())
        return losses, dead

    compare(run)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("multi_topk", [False, True])
def test_sparsify(activation, multi_topk, batches):
    sparsify = pytest.importorskip("sparsify")

    def run(fast: bool) -> tuple[list[float], list[int]]:
        torch.manual_seed(0)
        cfg = sparsify.SparseCoderConfig(num_latents=R, k=K, multi_topk=multi_topk, activation=activation)
        model = sparsify.SparseCoder(D, cfg)
        if fast:
            accelerate(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        fired, losses, dead = torch.zeros(R, dtype=torch.long), [], []
        for x in batches[: STEPS if activation == "topk" else 20]:
            mask = fired >= 10
            dead.append(int(mask.sum()))
            out = model(x, dead_mask=mask)
            loss = out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8
            fired += 1
            fired[out.latent_indices[out.latent_acts > 0]] = 0
            optimizer.zero_grad()
            loss.backward()
            model.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            model.set_decoder_norm_to_unit_norm()
            losses.append(loss.item())
        return losses, dead

    compare(run)


def test_openai(batches):
    openai = pytest.importorskip("sparse_autoencoder.model")

    def run(fast: bool) -> tuple[list[float], list[int]]:
        torch.manual_seed(0)
        model = openai.Autoencoder(R, D, activation=openai.TopK(K), normalize=True)
        with torch.no_grad():
            model.decoder.weight.copy_(model.encoder.weight.t())
        if fast:
            accelerate(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses, dead = [], []
        for x in batches:
            _, _, recons = model(x)
            loss = (recons - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            dead.append(int((model.stats_last_nonzero > 10).sum()))
        return losses, dead

    compare(run)


def test_unknown_models_and_versions_are_refused(monkeypatch):
    trainers = pytest.importorskip("dictionary_learning.trainers")

    class Changed(trainers.top_k.AutoEncoderTopK):
        pass

    with pytest.raises(TypeError, match=r"Changed is not known; allowed are"):
        accelerate(Changed(8, 16, 2))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.2.0")
    with pytest.raises(ValueError, match=r"dictionary-learning 0\.2\.0: allowed are versions from 0\.1 and below 0\.2"):
        accelerate(trainers.top_k.AutoEncoderTopK(8, 16, 2))
