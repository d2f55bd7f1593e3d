"""Starting from an SDMLP that was pretrained on other data: its addresses and GABA counters, with a new head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint import read_tensors
from .data.dataset import file_sha256
from .errors import BadInput
from .model import SDMLP

if TYPE_CHECKING:
    from .config import TrainConfig

NEEDED = ("neurons", "layers", "k")


def read_pretrained(config: TrainConfig, dim: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of `config.pretrained`.

    Raises:
        BadInput: the file cannot be read, or is no SDMLP of this size.
    """
    path = Path(config.pretrained)
    tensors, state = read_tensors(path)
    if "gaba_switch" not in state or "weights.0" not in tensors:
        raise BadInput(f"--pretrained: {path} holds no SDMLP; expected a model.safetensors of `ssd-train pretrain`")
    for name in NEEDED:
        if state["config"][name] != getattr(config, name):
            found, wanted = state["config"][name], getattr(config, name)
            raise BadInput(f"--pretrained: {path} has {name} {found}, this run --{name} {wanted}; they must agree")
    if tensors["weights.0"].shape[1] != dim:
        found = tensors["weights.0"].shape[1]
        raise BadInput(f"--pretrained: {path} was trained on {found} values per sample, this data has {dim}")
    return tensors, state


@torch.no_grad()
def load_pretrained(model: SDMLP, config: TrainConfig) -> None:
    """Copies the addresses into a fresh model; the output layer stays as it was drawn.

    The counters and S come along, so that neurons that pretraining has inhibited stay so; with `gaba_reset` they do
    not. An S given by --gaba-switch wins over the file's.
    """
    tensors, state = read_pretrained(config, model.weights[0].shape[1])
    for i, weight in enumerate(model.weights):
        weight.copy_(tensors[f"weights.{i}"])
        if not config.gaba_reset:
            model.counts[i].copy_(tensors[f"counts{i}"])
    if not config.gaba_reset and config.gaba_switch == "auto":
        model.gaba_switch = state["gaba_switch"]


def describe_pretraining(config: TrainConfig) -> dict[str, Any] | None:
    """What results.json says about the pretraining: file, its hash, data and epochs."""
    if config.pretrained is None:
        return None
    _, state = read_tensors(Path(config.pretrained))
    return {
        "file": str(config.pretrained),
        "sha256": file_sha256(Path(config.pretrained)),
        "data": state["data"]["name"],
        "epochs": state["config"]["epochs"],
        "gaba_reset": config.gaba_reset,
    }
