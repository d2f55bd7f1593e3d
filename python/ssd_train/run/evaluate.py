"""`ssd-train eval`: the accuracy of saved models. The model's file tells all that is needed but the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import ssd_kernels

from .. import data as datasets
from ..checkpoint import read_tensors
from ..config import from_dict
from ..errors import BadInput
from ..methods import METHODS, Method
from ..metrics import accuracy as metrics
from ..model import SDMLP, build_model, predict
from ..validate import model_kind


def load_model(path: Path, device: str = "cpu") -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network in a model.safetensors, and its metadata: config, seed, data, order of the classes."""
    tensors, state = read_tensors(path)
    if "order" not in state or "data" not in state:
        raise BadInput(f"{path}: a checkpoint; expected a model.safetensors")
    config = from_dict(state["config"], str(path))
    if METHODS[config.method].predict is not Method.predict:
        raise BadInput(f"{path}: {config.method} predicts with more than its network; its accuracy is in results.json")
    model = build_model(
        model_kind(config), dim=state["data"]["dim"], classes=state["data"]["classes"], neurons=config.neurons,
        layers=config.layers, k=config.k, gaba_switch=state["gaba_switch"], backend="auto",
        dtype=getattr(torch, config.dtype), device=device, topk=config.topk,
    )  # fmt: skip
    model.load_state_dict(tensors)
    return model, state


def evaluate(path: Path, spec: str | None, device: str) -> int:
    """Prints the test accuracy of a model, or of each model of a run, over all classes and per task."""
    paths = [path]
    if path.is_dir():
        paths = sorted(path.glob("seed-*/model.safetensors"), key=lambda p: int(p.parent.name.removeprefix("seed-")))
    if not paths:
        raise BadInput(f"{path}: no seed-*/model.safetensors in it; expected the folder of a finished run")
    loaded: dict[str, datasets.Dataset] = {}
    values = []
    for file in paths:
        model, state = load_model(file, device)
        name = spec or state["config"]["data"]
        share = 0.0 if spec else state["config"].get("validation", 0.0)
        if name not in loaded:
            loaded[name] = datasets.load(name).held_out(share) if share else datasets.load(name)
        data = loaded[name]
        expected = (state["data"]["dim"], state["data"]["classes"])
        if (data.dim, data.classes) != expected:
            raise BadInput(f"--data: {name} has {data.dim} values and {data.classes} classes, "
                           f"{file} was trained on {expected[0]} and {expected[1]}")  # fmt: skip
        values.append(_print_one(file, model, state, data))
    if len(values) > 1:
        triple = metrics.triple(values)
        print(f"mean accuracy {triple['mean']:.4f} +- {triple['std']:.4f} over {len(values)} seeds")
    return 0


def _print_one(file: Path, model: torch.nn.Module, state: dict[str, Any], data: datasets.Dataset) -> float | None:
    parameter = next(model.parameters())
    x = data.x_test.to(device=parameter.device, dtype=parameter.dtype)
    x = ssd_kernels.normalize_inputs(x) if isinstance(model, SDMLP) else x
    tasks = datasets.make_tasks(data, state["order"], state["config"]["classes_per_task"])
    logits, labels = predict(model, x), data.y_test.to(parameter.device)
    pairs = [metrics.accuracies(logits[r], labels[r], c) for r, c in zip(tasks.test, tasks.classes)]
    tag, taw = [p[0] for p in pairs], [p[1] for p in pairs]
    sizes = [len(r) for r in tasks.test]
    total = metrics.weighted(tag, sizes)
    known = metrics.weighted(taw, sizes)
    print(f"{file}: accuracy {total:.4f}, task known {known:.4f} on {data.name} ({data.sha256[:12]})")
    if len(tag) <= 20:
        print("  per task " + " ".join("-" if a is None else f"{a:.3f}" for a in tag))
    return total
