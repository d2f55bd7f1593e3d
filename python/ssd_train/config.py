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


def option(default: Any, text: str) -> Any:
    """A field of a dataclass of settings: its default, and the help that the command line shows."""
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    """The options of `ssd-train run`; `None` means that the method or the data decide.

    `options` are those of the method's own `Options`. In files and on the command line they stand beside the others.
    """

    data: str | None = option(
        None,
        "digits, FILE.safetensors or FILE.npz (keys x_train, y_train, x_test, y_test), mnist:DIR, cifar10:DIR, "
        "cifar100:DIR, tiny-imagenet:DIR or images:DIR",
    )
    recipe: str | None = option(None, "a packaged set of options; options given beside it win")
    method: str = option("ssd", "a method of this package or of an installed one, or package.module:Class")
    model: Literal["sdmlp", "relu"] | None = option(None, "the network; by default the method's own")
    neurons: int = option(1000, "R, neurons of a hidden layer")
    layers: int = option(1, "number of hidden layers")
    k: int = option(10, "K, winners per sample and layer")
    k_start: int | None = option(None, "K at the start, from where it falls linearly to --k; null: K does not change")
    k_epochs: int | None = option(None, "epochs of the first task in which K falls; by default all of them")
    topk: Literal["gaba", "mask"] = option("gaba", "gaba: inhibition by the (K+1)-th score; mask: winners keep theirs")
    epochs: int = option(2000, "epochs per task")
    batch_size: int = option(128, "B; the last smaller batch of an epoch is kept")
    lr: float = option(0.05, "learning rate of SGD")
    momentum: float = option(0.0, "momentum of SGD")
    max_grad_norm: float | None = option(1.0, "global norm that the gradient is clipped to; null or inf: not clipped")
    gaba_switch: float | str = option("auto", "S; auto: 0.2 x epochs x samples of task 0; none: exact Top-K at once")
    validation: float = option(
        0.0, "share of the training data held out by class and tested on instead of the test set"
    )
    order: str = option("ordinal", "order of the classes: ordinal, seed:N, numpy:N, or seed (the run's seed)")
    classes_per_task: int = option(2, "classes per task; the last task takes what is left")
    pretrained: str | None = option(None, "model.safetensors of `ssd-train pretrain` to start from")
    gaba_reset: bool = option(False, "start from --pretrained without its GABA counters and S")
    seeds: int | str | list[int] = option("0", "0, 0,1,2 or 0-4; one run each")  # noqa: RUF009
    device: str = option("cpu", "cpu, cuda or cuda:N")
    dtype: Literal["float32", "float64"] = option("float32", "floating-point type of weights and inputs")
    backend: str = option("auto", "implementation of the operations: auto, reference, cpu, triton or cuda")
    engine: Literal["autograd", "fused"] = option(
        "fused", "fused: SDMLPEngine, where it applies; autograd: one operation at a time"
    )
    threads: int | None = option(None, "CPU threads; by default one for small layers, else torch's choice")
    jobs: int | None = option(None, "seeds trained at a time, each in a process of one thread; by default as many as "
                                    "there are cores while B R D is at most 64 M, else 1")  # fmt: skip
    parallel: Literal["data", "neurons"] | None = option(
        None, "what the processes that torchrun started share: the samples of each batch, or the neurons"
    )
    parallel_timeout: float = option(120.0, "seconds without an answer after which a process counts as lost")
    keep_models: bool = option(False, "keep the model after each task as model-task-T.safetensors")
    log: Literal["tensorboard"] | None = option(None, "tensorboard: the curves for TensorBoard, too")
    eval_every: int | None = option(None, "epochs between points of the curves; by default 5 points per task")
    probe_size: int = option(512, "test samples whose winners the neuron heatmap shows; 0: no heatmap")
    plots: bool = option(True, "draw the figures of the run")
    checkpoint_seconds: float | None = option(60.0, "seconds between checkpoints, null or inf: none; one is also "
                                                    "written after every task")  # fmt: skip
    out: str | None = option(None, "output folder; by default runs/DATA-METHOD-TIME")
    resume: bool = option(False, "continue what --out holds")
    overwrite: bool = option(False, "replace the run that --out holds")
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Writes "no limit" as null, which JSON knows."""
        self.max_grad_norm = None if self.max_grad_norm == math.inf else self.max_grad_norm
        self.checkpoint_seconds = None if self.checkpoint_seconds == math.inf else self.checkpoint_seconds

    @classmethod
    def of(cls, **settings: Any) -> TrainConfig:
        """From flat settings: names of no general setting are the method's own."""
        return from_dict(settings)


# The settings of every run; a method's own options have other names.
GENERAL = frozenset(f.name for f in dataclasses.fields(TrainConfig))


# How a run was started, by how many processes; files say only what was run.
STARTED = ("resume", "overwrite", "parallel", "parallel_timeout")

# Settings that may differ when a run is resumed: they say where and how it runs, not what it computes.
FREE_ON_RESUME = frozenset(
    {"recipe", "out", "checkpoint_seconds", "seeds", "threads", "jobs", "plots", "keep_models", "log"}
)


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
    """The settings that say what was run, flat, without those of STARTED."""
    general = {k: v for k, v in dataclasses.asdict(config).items() if k not in (*STARTED, "options")}
    return general | config.options


def from_dict(settings: dict[str, Any]) -> TrainConfig:
    """A config from flat settings; names of no general setting are taken as the method's own."""
    options = settings.get("options", {}) | {k: v for k, v in settings.items() if k not in GENERAL}
    return TrainConfig(**{k: v for k, v in settings.items() if k in GENERAL} | {"options": options})


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
