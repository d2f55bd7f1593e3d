"""`ssd-train pretrain-extractor`: trains the ConvMixer that `embed` then freezes, on any labelled image set."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from .. import data as datasets
from ..checkpoint import CheckpointFolder, write_atomic
from ..data import Dataset
from ..errors import BadInput, bad, say
from ..run.folder import StopSignals, claimed
from .convmixer import ConvMixer, shape_of

MEAN, STD = 0.5, 0.5  # what `embed` uses by default


@dataclass
class ExtractorConfig:
    """The options; a resumed training must have the same."""

    data: str
    dim: int = 256
    depth: int = 8
    kernel: int = 5
    patch: int = 2
    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.01
    weight_decay: float = 0.01
    seed: int = 0
    device: str = "cpu"

    def check(self) -> None:
        for name in ("dim", "depth", "kernel", "patch", "batch_size"):
            if getattr(self, name) < 1:
                raise bad("--" + name.replace("_", "-"), getattr(self, name), "1 or more")
        if self.epochs < 0:
            raise bad("--epochs", self.epochs, "0 or more")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise bad("--lr", self.lr, "a positive number")


class ExtractorTrainer:
    """AdamW with a cosine schedule and random horizontal flips; a checkpoint after every epoch, and when stopped."""

    def __init__(self, config: ExtractorConfig, data: Dataset, folder: Path) -> None:
        self.config, self.data = config, data
        side = round((data.dim / 3) ** 0.5)
        if 3 * side * side != data.dim or side % config.patch:
            raise bad("--data", config.data, f"square images of 3 channels whose side --patch {config.patch} divides")
        self.shape = (-1, 3, side, side)
        torch.manual_seed(config.seed)
        self.model = ConvMixer(config.dim, config.depth, config.kernel, config.patch, data.classes).to(config.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.checkpoints = CheckpointFolder(folder / "checkpoint")
        self.epoch = 0
        self._resume()

    def _images(self, x: Tensor) -> Tensor:
        return (x.view(self.shape).to(self.config.device) - MEAN) / STD

    def train_epoch(self) -> float:
        """One pass; returns the mean loss."""
        config, total = self.config, 0.0
        rate = 0.5 * config.lr * (1 + math.cos(math.pi * self.epoch / max(config.epochs, 1)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        order = torch.randperm(len(self.data.x_train), generator=self.generator)
        for rows in order.split(config.batch_size):
            if len(rows) < 2:  # batch normalisation needs two
                continue
            images = self._images(self.data.x_train[rows])
            flipped = torch.rand(len(rows), generator=self.generator).to(images.device) < 0.5
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
            loss = F.cross_entropy(self.model(images), self.data.y_train[rows].to(images.device))
            if not torch.isfinite(loss):
                raise BadInput(f"training: the loss became {loss.item()} in epoch {self.epoch}; try a smaller --lr")
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            total += loss.item() * len(rows)
        self.epoch += 1
        return total / len(order)

    @torch.no_grad()
    def accuracy(self) -> float:
        """On the test split."""
        self.model.eval()
        parts = zip(self.data.x_test.split(512), self.data.y_test.split(512))
        right = sum((self.model(self._images(x)).argmax(1).cpu() == y).sum().item() for x, y in parts)
        return right / max(len(self.data.x_test), 1)

    def save(self) -> None:
        named = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        named["generator"] = self.generator.get_state()
        self.checkpoints.save(named, {"config": asdict(self.config), "epoch": self.epoch})

    def _resume(self) -> None:
        found = self.checkpoints.load()
        if found is None:
            return
        tensors, state = found
        for name, value in asdict(self.config).items():
            if name != "device" and state["config"].get(name) != value:
                option = "--" + name.replace("_", "-")
                raise BadInput(f"{option}: got {value!r}, allowed is {state['config'].get(name)!r}, as it was started")
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".")
                moments.setdefault(int(number), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.epoch = state["epoch"]


def pretrain_extractor(config: ExtractorConfig, out: Path, resume: bool, overwrite: bool) -> int:
    """Writes out/extractor.safetensors, which `embed --weights` takes. Returns the exit code."""
    config.check()
    data = datasets.load(config.data)
    with claimed(out, resume=resume, overwrite=overwrite), StopSignals() as stop:
        trainer = ExtractorTrainer(config, data, out)
        with tqdm(total=config.epochs, initial=trainer.epoch, unit="epoch", disable=not sys.stderr.isatty()) as bar:
            while trainer.epoch < config.epochs:
                if stop():
                    say(f"ssd-train: interrupted, state saved; --resume --out {out} continues", file=sys.stderr)
                    return 128 + stop.received
                bar.set_postfix(loss=f"{trainer.train_epoch():.4f}")
                trainer.save()
                bar.update()
        accuracy = trainer.accuracy()
        described = {"extractor": shape_of(trainer.model), "data": data.name, "accuracy": f"{accuracy:.4f}"}
        write_atomic(out / "extractor.safetensors", save(trainer.model.state_dict(), described))
    say(f"{described['extractor']} on {data.name}: test accuracy {accuracy:.4f} after {config.epochs} epochs")
    say(f"written to {out / 'extractor.safetensors'}")
    return 0
