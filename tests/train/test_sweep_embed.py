"""`ssd-train sweep` and `ssd-train embed`."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from ssd_train import data
from ssd_train.cli import main as cli
from ssd_train.embed import embed as embed_module
from ssd_train.embed import extractor
from ssd_train.embed.convmixer import ConvMixer, from_state, shape_of
from ssd_train.embed.embed import read_state
from ssd_train.errors import BadInput
from ssd_train.report.sweep import combinations

TINY = ["--data", "digits", "--epochs", "1", "--neurons", "40", "--k", "5", "--n-distill", "20", "--workers", "0"]


def test_combinations():
    vary = ["alpha=0.1,0.5", "n-distill=10,20"]
    grid = [{"alpha": a, "n_distill": n} for a in (0.1, 0.5) for n in (10, 20)]
    assert combinations(vary, "grid", 1, 0) == grid
    assert combinations(vary, "list", 1, 0) == [grid[0], grid[3]]
    drawn = combinations(["lr=log:0.001..0.1", "k=2..9", "kl=forward,reverse", "alpha=0..1"], "random", 200, 3)
    assert drawn == combinations(["lr=log:0.001..0.1", "k=2..9", "kl=forward,reverse", "alpha=0..1"], "random", 200, 3)
    assert all(0.001 <= d["lr"] <= 0.1 and 0 <= d["alpha"] <= 1 for d in drawn)
    assert {d["k"] for d in drawn} == set(range(2, 10)) and {d["kl"] for d in drawn} == {"forward", "reverse"}
    assert 0.3 < sum(math.log10(d["lr"]) < -2 for d in drawn) / 200 < 0.7


@pytest.mark.parametrize("vary, mode", [(["speed=1"], "grid"), (["alpha"], "grid"), (["alpha=x"], "grid"),
                                        (["alpha=1,2", "k=1"], "list"), (["alpha=1"], "spiral"),
                                        (["lr=log:0..1"], "random"), (["lr=a..b"], "random")])  # fmt: skip
def test_bad_combinations(vary, mode):
    with pytest.raises(BadInput):
        combinations(vary, mode, 2, 0)


def test_sweep_ranks_on_held_out_data_and_tests_the_best_once(tmp_path, capsys):
    """E1: nothing is chosen by the test set, unless that is asked for."""
    argv = ["sweep", *TINY, "--vary", "lr=0.02,0.2"]
    assert cli.main([*argv, "--out", str(tmp_path / "a")]) == 0
    text, found = capsys.readouterr().out, json.loads((tmp_path / "a" / "sweep.json").read_text())
    assert "held-out training data (0.1 of each class)" in text and "tested once on the test set" in text
    shares = [json.loads(p.read_text()) for p in tmp_path.glob("a/runs/*/results.json")]
    assert sorted(r["config"]["validation"] for r in shares) == [0.0, 0.1, 0.1]
    tested = next(r for r in shares if r["config"]["validation"] == 0)
    assert found["best"]["accuracy"]["mean"] == tested["accuracy"]["mean"]
    assert tested["config"]["lr"] == found["rows"][0]["settings"]["lr"]
    assert cli.main([*argv, "--validation", "0", "--out", str(tmp_path / "b")]) == 0
    assert "the accuracy on the test set" in capsys.readouterr().out
    assert len(list(tmp_path.glob("b/runs/*/results.json"))) == 2


def test_sweep_trains_each_combination_once(tmp_path, capsys):
    argv = ["sweep", *TINY, "--vary", "alpha=0.2,0.9", "temperature=2,8", "--seeds", "0-1", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert len(result["rows"]) == 4 and all(row["n"] == 2 for row in result["rows"])
    means = [row["accuracy"]["mean"] for row in result["rows"]]
    assert means == sorted(means, reverse=True)
    assert (tmp_path / "sweep.md").read_text() in capsys.readouterr().out
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/results.json")}
    assert len(stamps) == 8 + 2 and cli.main(argv) == 0, "and the best on all of the training data"
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/results.json")}
    assert cli.main(["sweep", *TINY, "--vary", "k=99", "--out", str(tmp_path / "no")]) == 2
    assert "--k: got 99" in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(5):
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def small_convmixer():
    torch.manual_seed(0)
    return ConvMixer(dim=12, depth=2, kernel=3, patch=2, classes=4).eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_embed_with_convmixer(suffix, images, tmp_path, capsys):
    model, weights, out = small_convmixer(), tmp_path / f"weights{suffix}", tmp_path / "embeddings.safetensors"
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, weights) if suffix == ".safetensors" else torch.save({"state_dict": state}, weights)
    argv = ["embed", "--data", f"images:{images}", "--weights", str(weights), "--out", str(out), "--batch-size", "3"]
    assert cli.main([*argv, "--mean", "0.4", "0.5", "0.6", "--std", "0.2"]) == 0
    raw, embedded = data.load(f"images:{images}"), data.load(str(out))
    x = (raw.x_train.view(-1, 3, 8, 8) - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
    with torch.no_grad():
        assert torch.allclose(embedded.x_train, model.embed(x), atol=1e-5)
    assert torch.equal(embedded.y_test, raw.y_test) and embedded.dim == 12
    with safe_open(out, "pt") as file:
        assert "ConvMixer-12/2, kernel 3, patch 2" in file.metadata()["extractor"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["images", weights.name, out.name])


def test_embed_goes_on_where_it_stopped(images, tmp_path, monkeypatch):
    weights, out = tmp_path / "w.safetensors", tmp_path / "e.safetensors"
    save_file({k: v.contiguous() for k, v in small_convmixer().state_dict().items()}, weights)
    argv = ["embed", "--data", f"images:{images}", "--weights", str(weights), "--out"]
    assert cli.main([*argv, str(tmp_path / "whole.safetensors")]) == 0
    monkeypatch.setattr(embed_module, "PART", 4)

    class StopSoon(embed_module.StopSignals):
        calls = 0

        def __call__(self):
            StopSoon.calls += 1
            self.received = 2 if StopSoon.calls >= 3 else None
            return self.received is not None

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "StopSignals", StopSoon)
        assert cli.main([*argv, str(out)]) == 130 and not out.exists()
    seen = []
    embed_convmixer = ConvMixer.embed
    monkeypatch.setattr(ConvMixer, "embed", lambda self, x: seen.append(len(x)) or embed_convmixer(self, x))
    assert cli.main([*argv, str(out)]) == 0
    assert sum(seen) == 20 - 8, "the 8 images done before are not done again"
    a, b = data.load(str(out)), data.load(str(tmp_path / "whole.safetensors"))
    assert torch.allclose(a.x_train, b.x_train, atol=1e-6) and torch.allclose(a.x_test, b.x_test, atol=1e-6)


def test_convmixer_256_8_has_the_published_shape():
    model = ConvMixer()
    assert shape_of(from_state(model.state_dict())) == "ConvMixer-256/8, kernel 5, patch 2"
    with torch.no_grad():
        assert model.eval().embed(torch.rand(2, 3, 32, 32)).shape == (2, 256)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_weights_are_never_executed(tmp_path, capsys):
    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(BadInput, match="more than weights"):
        read_state(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("options, words", [
    (["--weights", "nowhere.pt"], ["--weights", "nowhere.pt"]),
    ([], ["--weights"]),
    (["--extractor", "resnet50"], ["--extractor", "torchvision:NAME"]),
    (["--extractor", "convmixer", "--std", "0"], ["--std"]),
])  # fmt: skip
def test_embed_refuses(options, words, images, tmp_path, capsys):
    argv = ["embed", "--data", f"images:{images}", "--out", str(tmp_path / "e.safetensors"), *options]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words)


def test_pretrain_extractor_learns_resumes_and_feeds_embed(tmp_path, capsys, monkeypatch):
    """Two classes, dark and bright; stopped after each epoch it ends bitwise where it ends undisturbed."""
    for split in ("train", "test"):
        for label, low in (("dark", 0), ("bright", 128)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = np.random.default_rng(i).integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    argv = ["pretrain-extractor", "--data", f"images:{tmp_path / 'images'}", "--dim", "8", "--depth", "1",
            "--kernel", "3", "--epochs", "6", "--batch-size", "4"]  # fmt: skip
    assert cli.main([*argv, "--out", str(tmp_path / "whole")]) == 0
    assert "test accuracy 1.0000" in capsys.readouterr().out

    class StopAfterOne(extractor.StopSignals):
        def __call__(self):
            self.calls = getattr(self, "calls", 0) + 1
            self.received = 15 if self.calls > 1 else None
            return self.received is not None

    with monkeypatch.context() as patch:
        patch.setattr(extractor, "StopSignals", StopAfterOne)
        for _ in range(3):
            assert cli.main([*argv, "--out", str(tmp_path / "parts"), "--resume"]) == 143
    assert cli.main([*argv, "--out", str(tmp_path / "parts"), "--resume", "--lr", "0.5"]) == 2
    assert "--lr" in capsys.readouterr().err
    assert cli.main([*argv, "--out", str(tmp_path / "parts"), "--resume"]) == 0
    weights = [load_file(tmp_path / name / "extractor.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    embed = ["embed", "--data", f"images:{tmp_path / 'images'}", "--out", str(tmp_path / "e.safetensors")]
    assert cli.main([*embed, "--weights", str(tmp_path / "whole" / "extractor.safetensors")]) == 0
    assert data.load(str(tmp_path / "e.safetensors")).dim == 8
