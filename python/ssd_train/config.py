"""Every setting of a run: one flat dataclass, and how it is read and written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import BadInput, bad, reading
from .sizes import read_text

MAX_CONFIG = 1 << 20  # bytes of a YAML file of settings
MAX_DEPTH = 20
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
    max_grad_norm: float | None = _option(1.0, "global norm that the gradient is clipped to; null or inf: not clipped")
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
    checkpoint_seconds: float | None = _option(60.0, "seconds between checkpoints, null or inf: none; one is also "
                                                     "written after every task")  # fmt: skip
    out: str | None = _option(None, "output folder; by default runs/DATA-METHOD-TIME")
    resume: bool = _option(False, "continue what --out holds")
    overwrite: bool = _option(False, "replace the run that --out holds")

    def __post_init__(self) -> None:
        """Writes "no limit" as null, which JSON knows."""
        self.max_grad_norm = None if self.max_grad_norm == math.inf else self.max_grad_norm
        self.checkpoint_seconds = None if self.checkpoint_seconds == math.inf else self.checkpoint_seconds


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


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings that say what was run; `resume` and `overwrite` only say how it was started."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in ("resume", "overwrite")}


def from_dict(settings: dict[str, Any], source: str) -> TrainConfig:
    """A config from a saved run's settings."""
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    if unknown := sorted(set(settings) - known):
        raise BadInput(f"{source}: unknown setting {unknown[0]!r}; this version knows {', '.join(sorted(known))}")
    return TrainConfig(**settings)


class _PlainLoader(yaml.SafeLoader):
    """YAML of settings: values and lists of values. Aliases, which can stand for gigabytes, and depth are refused."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases (*name)")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a run's config.yaml.

    Raises:
        BadInput: no such file, too large a one, no YAML, or YAML that is no plain mapping.
    """
    text = read_text(path, MAX_CONFIG)
    with reading(path, "cannot be read as YAML"):
        settings = yaml.load(text, _PlainLoader)
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise BadInput(f"{path}: expected a mapping of settings")
    return settings


def dump(config: TrainConfig) -> str:
    return yaml.safe_dump(as_dict(config), sort_keys=False)
