"""Every setting of a run: one flat dataclass, its checks, and how a recipe, a file and options combine."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from ssd_kernels._backend import resolve

from .data import ALLOWED
from .errors import BadInput, bad

RECIPES = resources.files("ssd_train") / "recipes"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    """The options of `ssd-train run`; `None` means that the method or the data decide."""

    data: str | None = _option(
        None,
        "digits, FILE.safetensors or FILE.npz (keys x_train, y_train, x_test, y_test), mnist:DIR, cifar10:DIR, "
        "cifar100:DIR, tiny-imagenet:DIR or images:DIR",
    )
    recipe: str | None = _option(None, "a packaged set of options; options given beside it win")
    method: str = _option("ssd", "finetune, joint, sdmlp, ssd, ssd+ewc, ewc, si, mas, l2, lwf, icarl or flymodel")
    model: Literal["sdmlp", "relu"] | None = _option(None, "the network; by default the method's own")
    neurons: int = _option(1000, "R, neurons of a hidden layer")
    layers: int = _option(1, "number of hidden layers")
    k: int = _option(10, "K, winners per sample and layer")
    k_start: int | None = _option(None, "K at the start, from where it falls linearly to --k; null: K does not change")
    k_epochs: int | None = _option(None, "epochs of the first task in which K falls; by default all of them")
    topk: Literal["gaba", "mask"] = _option("gaba", "gaba: inhibition by the (K+1)-th score; mask: winners keep theirs")
    epochs: int = _option(2000, "epochs per task")
    batch_size: int = _option(128, "B; the last smaller batch of an epoch is kept")
    lr: float = _option(0.05, "learning rate of SGD")
    momentum: float = _option(0.0, "momentum of SGD")
    max_grad_norm: float | None = _option(1.0, "global norm that the gradient is clipped to; null: not clipped")
    gaba_switch: float | str = _option("auto", "S; auto: 0.2 x epochs x samples of task 0; none: exact Top-K at once")
    alpha: float = _option(0.7, "weight of the cross entropy against the distillation (ssd)")
    lam: float = _option(0.1, "weight of the hidden against the logit distillation (ssd)")
    temperature: float = _option(8.0, "T of the distillation (ssd)")
    n_distill: int = _option(1000, "n, distilled neurons per hidden layer, clamped to K .. R (ssd)")
    kl: Literal["forward", "reverse"] = _option("forward", "forward: KL(teacher || student); reverse: as Eq. 2-3 print")
    hidden: Literal["activations", "scores"] = _option("activations", "what the hidden distillation compares (ssd)")
    frequency: Literal["eval", "last_epoch"] = _option("eval", "where activity is counted: a pass after the task, or "
                                                       "its last epoch's steps (ssd)")  # fmt: skip
    rank: Literal["frequency", "entropy"] = _option("frequency", "distilled neurons: most frequent, or active ones "
                                                    "of least entropy (ssd)")  # fmt: skip
    old_classes_only: bool = _option(False, "distil the logits of classes seen before only (ssd)")
    validation: float = _option(
        0.0, "share of the training data held out by class and tested on instead of the test set"
    )
    coef: float | None = _option(None, "weight of a penalty; by default what the SDMLP paper used on CIFAR")
    beta: float | None = _option(None, "factor of the logits where importance is measured (ewc, si, mas)")
    estimator: str | None = _option(None, "how importance is estimated; ewc: batch-argmax, sample-true, exact, ...")
    online: float | None = _option(None, "one penalty instead of one per task: factor of the older importance; "
                                   "the task's is added to it (ewc) or weighs 1 - online (mas)")  # fmt: skip
    importance_samples: int = _option(2048, "samples per task that importance is measured on; 0: all (ewc, mas)")
    order: str = _option("ordinal", "order of the classes: ordinal, seed:N, numpy:N, or seed (the run's seed)")
    classes_per_task: int = _option(2, "classes per task; the last task takes what is left")
    pretrained: str | None = _option(None, "model.safetensors of `ssd-train pretrain` to start from")
    gaba_reset: bool = _option(False, "start from --pretrained without its GABA counters and S")
    seeds: int | str | list[int] = _option("0", "0, 0,1,2 or 0-4; one run each")  # noqa: RUF009
    device: str = _option("cpu", "cpu, cuda or cuda:N")
    dtype: Literal["float32", "float64"] = _option("float32", "floating-point type of weights and inputs")
    backend: str = _option("auto", "implementation of the operations: auto, reference, cpu, triton or cuda")
    engine: Literal["autograd", "fused"] = _option(
        "fused", "fused: SDMLPEngine, where it applies; autograd: one operation at a time"
    )
    threads: int | None = _option(None, "CPU threads; by default one for small layers, else torch's choice")
    eval_every: int | None = _option(None, "epochs between points of the curves; by default 5 points per task")
    probe_size: int = _option(512, "test samples whose winners the neuron heatmap shows; 0: no heatmap")
    plots: bool = _option(True, "draw the figures of the run")
    checkpoint_seconds: float = _option(60.0, "seconds between checkpoints; one is also written after every task")
    out: str | None = _option(None, "output folder; by default runs/DATA-METHOD-TIME")
    resume: bool = _option(False, "continue what --out holds")
    overwrite: bool = _option(False, "replace the run that --out holds")


# Settings that may differ when a run is resumed: they say where and how it runs, not what it computes.
FREE_ON_RESUME = frozenset({"recipe", "out", "checkpoint_seconds", "seeds", "threads", "plots"})


def recipe_names() -> list[str]:
    return sorted(p.name.removesuffix(".yaml") for p in RECIPES.iterdir() if p.name.endswith(".yaml"))


def recipe_settings(name: str) -> dict[str, Any]:
    """The options that the packaged recipe sets."""
    if name not in recipe_names():
        raise bad("--recipe", name, ", ".join(recipe_names()))
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


def parse_seeds(value: int | str | list[int]) -> list[int]:
    """`0`, `0,1,2`, `0-4` or a list, as a list without repeats."""
    allowed = "a seed, a list like 0,1,2, or a range like 0-4 (seeds are 0 .. 2**32 - 1)"
    parts = [str(item) for item in value] if isinstance(value, list) else str(value).strip().strip("[]").split(",")
    seeds: list[int] = []
    for part in parts:
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not all(end.isascii() and end.isdigit() for end in (first, last)) or int(first) > int(last):
            raise bad("--seeds", value, allowed)
        if int(last) >= 2**32 or int(last) - int(first) >= 10_000:
            raise bad("--seeds", value, allowed)
        seeds += range(int(first), int(last) + 1)
    return list(dict.fromkeys(seeds))


def parse_gaba_switch(value: float | str) -> float | Literal["auto"] | None:
    """S as a number, `auto`, or None for no GABA at all."""
    if value in ("auto", "none"):
        return "auto" if value == "auto" else None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise bad("--gaba-switch", value, "auto, none or a positive number")
    return number


def check(config: TrainConfig) -> None:
    """Everything that can be said without the data.

    Raises:
        BadInput: names the option, its value and what is allowed.
    """
    from .methods import METHODS

    def need(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise bad("--" + name.replace("_", "-"), getattr(config, name), allowed)

    need(config.data is not None, "data", f"{ALLOWED}")
    need(config.method in METHODS, "method", ", ".join(METHODS))
    models = METHODS[config.method].models
    need(config.model in (None, *models), "model", f"{' or '.join(models)} with --method {config.method}")
    need(config.neurons >= 1, "neurons", "1 or more")
    need(config.layers >= 1, "layers", "1 or more")
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
    need(0 <= config.alpha <= 1, "alpha", "0 .. 1")
    need(0 <= config.lam <= 1, "lam", "0 .. 1")
    need(math.isfinite(config.temperature) and config.temperature > 0, "temperature", "a positive number")
    need(config.n_distill >= 1, "n_distill", "1 or more")
    need(0 <= config.validation < 1, "validation", "0 or more, below 1")
    need(config.hidden == "activations" or config.layers == 1, "hidden", "activations with more than one hidden layer")
    need(config.coef is None or (math.isfinite(config.coef) and config.coef >= 0), "coef", "0 or more")
    need(config.beta is None or (math.isfinite(config.beta) and config.beta > 0), "beta", "a positive number")
    need(config.online is None or 0 <= config.online <= 1, "online", "0 .. 1, or null")
    online = config.online is None or config.method in ("ewc", "ssd+ewc", "mas")
    need(online, "online", f"null: {config.method} has one way")
    need(config.importance_samples >= 0, "importance_samples", "0 or more")
    estimators = getattr(METHODS[config.method], "estimators", ())
    listed = ", ".join(estimators) or f"nothing: {config.method} has one way"
    need(config.estimator in (None, *estimators), "estimator", listed)
    need(config.pretrained is None or Path(config.pretrained).is_file(), "pretrained", "an existing model.safetensors")
    need(config.pretrained is None or model_kind(config) == "sdmlp", "pretrained", "null with a ReLU MLP")
    need(config.classes_per_task >= 1, "classes_per_task", "1 or more")
    need(config.threads is None or config.threads >= 1, "threads", "1 or more")
    need(config.eval_every is None or config.eval_every >= 1, "eval_every", "1 or more")
    need(config.probe_size >= 0, "probe_size", "0 or more")
    need(config.checkpoint_seconds >= 0, "checkpoint_seconds", "0 or more")
    need(config.backend in ("auto", "reference", "cpu", "triton", "cuda"), "backend",
         "auto, reference, cpu, triton or cuda")  # fmt: skip
    need(not (config.resume and config.out is None), "resume", "used together with --out, the folder to continue")
    need(not (config.resume and config.overwrite), "overwrite", "false together with --resume")
    parse_gaba_switch(config.gaba_switch)
    parse_seeds(config.seeds)
    _check_device(config.device)
    if model_kind(config) == "sdmlp":
        _check_backend(config)


def _check_backend(config: TrainConfig) -> None:
    """The operations of a training step must all run on the backend asked for."""
    layer = "topk_linear" if config.topk == "mask" else "gaba_linear"
    for op in (layer, "sparse_linear", "sparse_update", "distill", "activation_counts"):
        try:
            resolve(config.backend, op, torch.device(config.device))
        except ValueError as error:
            raise BadInput(f"--backend: {error}") from None


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise bad("--device", name, "cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise bad("--device", name, "cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise bad("--device", name, f"a device that torch sees; it sees {torch.cuda.device_count()} CUDA devices")


def model_kind(config: TrainConfig) -> str:
    """`sdmlp` or `relu`: the network asked for, or the method's default."""
    from .methods import METHODS

    return config.model or METHODS[config.method].models[0]


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings that say what was run; `resume` and `overwrite` only say how it was started."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in ("resume", "overwrite")}


def from_dict(settings: dict[str, Any], source: str) -> TrainConfig:
    """A config from a saved run's settings."""
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    if unknown := sorted(set(settings) - known):
        raise BadInput(f"{source}: unknown setting {unknown[0]!r}; this version knows {', '.join(sorted(known))}")
    return TrainConfig(**settings)


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a run's config.yaml."""
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(settings, dict):
        raise BadInput(f"{path}: expected a mapping of settings")
    return settings


def dump(config: TrainConfig) -> str:
    return yaml.safe_dump(as_dict(config), sort_keys=False)
