"""The README's sparse autoencoder, run as printed, and the same on embeddings."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path

import pytest
import torch

import ssd_kernels

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def example() -> dict:
    """The names that the example defines, after it has run."""
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len(re.findall(r"replace_topk\(", code)) == 1, "one line converts the model"
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    return names


def test_losses_are_those_of_the_eager_model(example):
    """The example's own assertion has held; here: it trained, and by Top-K."""
    assert isinstance(example["sparse"].encoder, ssd_kernels.SparseTopKLinear)
    assert type(example["eager"].encoder) is torch.nn.Linear
    assert example["losses"][-1] < 0.5 * example["losses"][0]
    torch.testing.assert_close(example["losses"], example["expected"], rtol=1e-3, atol=1e-5)


@pytest.mark.skipif("SSD_DATA_DIR" not in os.environ, reason="SSD_DATA_DIR is not set")
def test_losses_on_embeddings(example):
    from safetensors import safe_open

    path = Path(os.environ["SSD_DATA_DIR"]) / "cifar10_convmixer.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with safe_open(path, "pt") as file:
        data = file.get_slice("x_train")[:2560].float()
    torch.manual_seed(0)
    eager = example["SparseAutoencoder"](data.shape[1], 2048)
    sparse = copy.deepcopy(eager)
    ssd_kernels.replace_topk(sparse, {"encoder": example["K"]})
    expected, losses = (example["train"](model, data, epochs=2) for model in (eager, sparse))
    assert losses[-1] < losses[0]
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-5)
