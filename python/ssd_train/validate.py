"""The checks of a run's settings that need no data: ranges, and what the method, the model and the backend allow."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch

from ssd_kernels._backend import resolve

from .config import TrainConfig, parse_gaba_switch, parse_seeds
from .data import ALLOWED
from .errors import BadInput, bad
from .methods import Method
from .methods.find import find_method
from .options import checked_options
from .sizes import check_memory, cores

MAX_LAYERS = 100
MAX_TIMEOUT = 86_400

def check(config: TrainConfig) -> None:
    """Everything that can be said without the data; fills in the defaults of the method's own options.

    Raises:
        BadInput: names the option, its value and what is allowed.
    """
    def need(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise bad("--" + name.replace("_", "-"), getattr(config, name), allowed)

    need(config.data is not None, "data", f"{ALLOWED}")
    method = find_method(config.method)
    models = method.models
    need(config.model in (None, *models), "model", f"{' or '.join(models)} with --method {config.method}")
    need(config.neurons >= 1, "neurons", "1 or more")
    need(1 <= config.layers <= MAX_LAYERS, "layers", f"1 .. {MAX_LAYERS}")
    if model_kind(config) == "sdmlp":
        need(1 <= config.k < config.neurons, "k", f"1 .. {config.neurons - 1} (below --neurons {config.neurons})")
        start = config.k_start is None or config.k <= config.k_start < config.neurons
        need(start, "k_start", f"{config.k} .. {config.neurons - 1} (--k .. below --neurons), or null")
        span = config.k_epochs is None or (config.k_start is not None and 1 <= config.k_epochs <= config.epochs)
        need(span, "k_epochs", f"1 .. {config.epochs} together with --k-start, or null")
    need(config.epochs >= 0, "epochs", "0 or more")
    need(config.batch_size >= 1, "batch_size", "1 or more")
    need(math.isfinite(config.lr) and config.lr > 0, "lr", "a positive number")
    need(0 <= config.momentum < 1, "momentum", "0 or more, below 1")
    need(config.max_grad_norm is None or config.max_grad_norm > 0, "max_grad_norm", "a positive number or null")
    need(0 <= config.validation < 1, "validation", "0 or more, below 1")
    need(config.pretrained is None or Path(config.pretrained).is_file(), "pretrained", "an existing model.safetensors")
    need(config.pretrained is None or model_kind(config) == "sdmlp", "pretrained", "null with a ReLU MLP")
    need(config.classes_per_task >= 1, "classes_per_task", "1 or more")
    most = 4 * cores()
    need(config.threads is None or 1 <= config.threads <= most, "threads", f"1 .. {most} (4 x the cores at hand)")
    need(config.parallel in (None, "data", "neurons"), "parallel", "data, neurons or null")
    long_enough = math.isfinite(config.parallel_timeout) and 1 <= config.parallel_timeout <= MAX_TIMEOUT
    need(long_enough, "parallel_timeout", f"1 .. {MAX_TIMEOUT} seconds")
    need(config.parallel is None or config.jobs in (None, 1), "jobs", "1 or null with --parallel")
    need(config.parallel is None or config.device == "cpu", "device", "cpu with --parallel")
    need(config.jobs is None or config.jobs >= 1, "jobs", "1 or more")
    need(config.eval_every is None or config.eval_every >= 1, "eval_every", "1 or more")
    need(config.probe_size >= 0, "probe_size", "0 or more")
    need(config.checkpoint_seconds is None or config.checkpoint_seconds >= 0, "checkpoint_seconds",
         "0 or more, or null")  # fmt: skip
    need(config.backend in ("auto", "reference", "cpu", "triton", "cuda"), "backend",
         "auto, reference, cpu, triton or cuda")  # fmt: skip
    need(not (config.resume and config.out is None), "resume", "used together with --out, the folder to continue")
    need(not (config.resume and config.overwrite), "overwrite", "false together with --resume")
    parse_gaba_switch(config.gaba_switch)
    parse_seeds(config.seeds)
    check_device(config.device)
    config.options = checked_options(config.method, config.options)
    config.options = _made(method, config).options
    if model_kind(config) == "sdmlp":
        _check_backend(config)


def _made(method: type[Method], config: TrainConfig) -> TrainConfig:
    """The config with the options as the method has taken them.

    Raises:
        BadInput: the method refuses its options.
    """
    try:
        taken = method(config).options
    except BadInput:
        raise
    except (TypeError, ValueError) as error:
        raise BadInput(f"--method {config.method}: {error}") from None
    return dataclasses.replace(config, options=dataclasses.asdict(taken))


def _check_backend(config: TrainConfig) -> None:
    """The operations of a training step must all run on the backend asked for."""
    layer = "topk_linear" if config.topk == "mask" else "gaba_linear"
    for op in (layer, "sparse_linear", "sparse_update", "distill", "activation_counts"):
        try:
            resolve(config.backend, op, torch.device(config.device))
        except ValueError as error:
            raise BadInput(f"--backend: {error}") from None


def check_device(name: str) -> None:
    """Whether torch knows the device and sees it.

    Raises:
        BadInput: it does not.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise bad("--device", name, "cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise bad("--device", name, "cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise bad("--device", name, f"a device that torch sees; it sees {torch.cuda.device_count()} CUDA devices")


def check_size(config: TrainConfig, dim: int, classes: int, processes: int = 1) -> None:
    """Whether the network, or its share of one of several processes, fits the memory, before anything of it is made.

    Raises:
        BadInput: names --neurons and --layers, and the memory.
    """
    weights = config.neurons * (dim + (config.layers - 1) * config.neurons + classes)
    size = 8 if config.dtype == "float64" else 4
    check_memory(f"--neurons {config.neurons} --layers {config.layers}", weights * size // processes)


def model_kind(config: TrainConfig) -> str:
    """`sdmlp` or `relu`: the network asked for, or the method's default."""
    return config.model or find_method(config.method).models[0]
