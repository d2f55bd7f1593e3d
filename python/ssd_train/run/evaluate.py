"""`ssd-train eval`: the accuracy of saved models. The model's file tells all that is needed but the data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from .. import data as datasets
from ..checkpoint import read_state, read_tensors
from ..config import TrainConfig
from ..errors import BadInput, bad, reading, say
from ..methods import Method
from ..methods.find import find_method
from ..metrics import accuracy as metrics
from ..model import Network, build_model, predict
from ..options import config_of
from ..validate import check, check_device, model_kind
from .folder import is_seed


def load_model(path: Path, device: str = "cpu") -> tuple[Network, dict[str, Any]]:
    """The network in a model.safetensors, and its metadata: config, seed, data, order of the classes.

    Raises:
        BadInput: the file is damaged, or its metadata and its tensors do not describe one network.
    """
    state, shapes = read_state(path)
    if "order" not in state or "data" not in state:
        raise BadInput(f"{path}: a checkpoint; expected a model.safetensors")
    with reading(path, "its metadata describe no network"):
        config = _checked(state, path)
        if find_method(config.method).predict is not Method.predict:
            raise BadInput(f"{path}: {config.method} predicts with more than its network; "
                           "its accuracy is in results.json")  # fmt: skip
        data = state["data"]
        settings = {
            "dim": data["dim"], "classes": data["classes"], "neurons": config.neurons, "layers": config.layers,
            "k": config.k, "gaba_switch": state["gaba_switch"], "backend": "auto",
            "dtype": getattr(torch, config.dtype), "topk": config.topk,
        }  # fmt: skip
        with torch.device("meta"):  # sizes without memory
            expected = build_model(model_kind(config), **settings, device="meta").state_dict()
        for name in sorted(expected.keys() | shapes.keys()):
            wanted = tuple(expected[name].shape) if name in expected else None
            if shapes.get(name) != wanted:
                raise BadInput(f"{path}: {name} has shape {shapes.get(name)}, its settings ask for {wanted}")
        tensors, _ = read_tensors(path)
        for name, tensor in tensors.items():
            if tensor.dtype != expected[name].dtype or not torch.isfinite(tensor).all() or (
                name.startswith("counts") and int(tensor.min()) < 0
            ):
                raise BadInput(f"{path}: {name} is not finite, negative or of type {tensor.dtype}; no training ends so")
        model = build_model(model_kind(config), **settings, device=device)
        model.load_state_dict(tensors)
    return model, state


def _checked(state: dict[str, Any], path: Path) -> TrainConfig:
    """The settings in a model's metadata, each checked as if it were typed."""
    try:
        find_method(state["config"]["method"])
    except BadInput as error:
        raise BadInput(f"{path}: trained with a method that is not to be had here; {error}") from None
    config = config_of(str(path), **state["config"])
    if not isinstance(config.data, str | None):
        raise BadInput(f"{path}: its data are {config.data!r}, allowed is a name")
    here = {"device": "cpu", "backend": "auto", "pretrained": None, "resume": False, "data": config.data or "given"}
    try:
        check(dataclasses.replace(config, **here))
    except BadInput as error:
        raise BadInput(f"{path}: its settings: {error}") from None
    if config.dtype not in ("float32", "float64"):
        raise BadInput(f"{path}: its dtype is {config.dtype!r}, allowed is float32 or float64")
    data, order, switch = state["data"], state["order"], state["gaba_switch"]
    for name in ("dim", "classes"):
        if type(data[name]) is not int or data[name] < 1:
            raise BadInput(f"{path}: its {name} is {data[name]!r}, allowed is 1 or more")
    if len(order) != data["classes"] or any(type(c) is not int for c in order) or sorted(order) != [*range(len(order))]:
        raise BadInput(f"{path}: its order of classes is none of its {data['classes']} classes")
    if switch is not None and not (type(switch) in (int, float) and math.isfinite(switch) and switch > 0):
        raise BadInput(f"{path}: its gaba_switch is {switch!r}, allowed is a positive number or null")
    return config


def evaluate(path: Path, spec: str | None, device: str) -> int:
    """Prints the test accuracy of a model, or of each model of a run, over all classes and per task."""
    check_device(device)
    paths = [path]
    if path.is_dir():
        found = [p for p in path.glob("seed-*/model.safetensors") if is_seed(p.parent.name)]
        paths = sorted(found, key=lambda p: int(p.parent.name.removeprefix("seed-")))
    if not paths:
        raise BadInput(f"{path}: no seed-*/model.safetensors in it; expected the folder of a finished run")
    loaded: dict[str, datasets.Dataset] = {}
    values = []
    for file in paths:
        model, state = load_model(file, device)
        name = spec or state["config"]["data"]
        if name is None:
            raise bad("--data", spec, "the data to test on: this model was not trained from files")
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
        say(f"mean accuracy {triple['mean']:.4f} +- {triple['std']:.4f} over {len(values)} seeds")
    return 0


def _print_one(file: Path, model: Network, state: dict[str, Any], data: datasets.Dataset) -> float | None:
    parameter = next(model.parameters())
    x = model.prepare(data.x_test.to(device=parameter.device, dtype=parameter.dtype))
    tasks = datasets.make_tasks(data, state["order"], state["config"]["classes_per_task"])
    logits, labels = predict(model, x), data.y_test.to(parameter.device)
    pairs = [metrics.accuracies(logits[r], labels[r], c) for r, c in zip(tasks.test, tasks.classes)]
    tag, taw = [p[0] for p in pairs], [p[1] for p in pairs]
    sizes = [len(r) for r in tasks.test]
    total = metrics.weighted(tag, sizes)
    known = metrics.weighted(taw, sizes)
    say(f"{file}: accuracy {total:.4f}, task known {known:.4f} on {data.name} ({data.sha256[:12]})")
    if len(tag) <= 20:
        say("  per task " + " ".join("-" if a is None else f"{a:.3f}" for a in tag))
    return total
