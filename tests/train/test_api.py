"""The Python interface: what a script imports."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ssd_train
import torch
from ssd_train import BadInput, Dataset, Method, TrainConfig, data, load_model
from ssd_train.cli.main import main as command

SMALL = {"data": "digits", "neurons": 40, "k": 5, "epochs": 2, "classes_per_task": 5, "eval_every": 1}


@dataclass
class Options:
    share: float = 1.0


class Mine(Method):
    """Trains as finetune does, on the model that SSD trains."""

    Options = Options


def test_it_gives_what_the_command_gives(tmp_path, capsys):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    seen = []
    settings = SMALL | {"method": "ssd", "n_distill": 20, "seeds": "0,1"}
    result = ssd_train.train(settings, progress=lambda p: seen.append((p.seed, p.stage, p.epoch)))
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert seen == [(seed, stage, epoch) for seed in (0, 1) for stage in (0, 1) for epoch in (1, 2)]
    assert result.accuracy_matrix.shape == (2, 2, 2) and result.metrics["accuracy"]["mean"] is not None
    assert [list(c)[:2] for c in result.curves] == [["task", "epoch"]] * 2
    assert result.curves[0]["kd_logits"].shape == (4,) and result.curves[0]["kd_logits"][-1] > 0
    words = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    # The command takes the recipe of the digits; its batch size is the one setting that differs here.
    assert command(["run", *words, "--batch-size", "128", "--out", str(tmp_path / "run")]) == 0
    for seed, model in enumerate(result.models):
        theirs = load_model(tmp_path / "run" / f"seed-{seed}" / "model.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.parameters()))
    saved = result.save(tmp_path / "saved")
    capsys.readouterr()
    assert command(["report", str(saved)]) == 0 and command(["eval", str(saved)]) == 0
    assert f"{result.metrics['accuracy']['mean']:.4f}" in capsys.readouterr().out
    with pytest.raises(BadInput, match="new or empty"):
        result.save(tmp_path / "saved")


def test_own_data_and_a_method_of_the_script():
    digits = data.load("digits")
    own = Dataset.of(digits.x_train.numpy(), digits.y_train.numpy(), digits.x_test, digits.y_test, name="mine")
    settings = {k: v for k, v in SMALL.items() if k != "data"}
    result = ssd_train.train(settings | {"method": Mine, "share": 0.5}, own)
    plain = ssd_train.train(SMALL | {"method": "sdmlp", "engine": "autograd"})
    assert result.summary["method"].endswith(":Mine") and result.summary["config"]["share"] == 0.5
    assert result.summary["data"]["name"] == "mine" and np.array_equal(result.accuracy_matrix, plain.accuracy_matrix)
    x = digits.x_test[:3]
    assert result.models[0](x).logits.shape == (3, 10)


@pytest.mark.parametrize(
    "settings, words",
    [({"method": "ssd", "n_distil": 3}, "n_distil.*did you mean n_distill"), ({"method": "sdmlp", "alpha": 1}, "alpha"),
     ({"neurons": 0}, "--neurons: got 0"), ({"method": "ssd", "alpha": "much"}, "--alpha")],
)  # fmt: skip
def test_what_is_wrong_is_named(settings, words):
    with pytest.raises(BadInput, match=words):
        ssd_train.train(SMALL | settings)
    with pytest.raises(BadInput, match="online"):
        ssd_train.train(TrainConfig(data="digits", method="ssd", options={"online": 0.5}))


def test_importing_imports_little():
    """In a process of its own: no torch for the package itself, nothing that draws, parses or serves."""
    code = "import sys, ssd_train; ssd_train.__version__; print([m for m in sys.modules if '.' not in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("torch", "matplotlib", "jsonargparse", "sklearn", "ray", "numpy"):
        assert f"'{name}'" not in done.stdout
    assert set(ssd_train.__all__) <= set(dir(ssd_train)) and all(hasattr(ssd_train, n) for n in ssd_train.__all__)
    with pytest.raises(AttributeError):
        _ = ssd_train.nothing


README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="not a checkout")
def test_the_readme_s_example_runs(tmp_path):
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert "ssd_train.train(" in code
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "decayed" / "results.json").exists() and "per_seed" in done.stdout
