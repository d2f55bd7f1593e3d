"""What the engine takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .. import _native
from .._types import Divergence


@dataclass(frozen=True)
class Settings:
    """The engine's constants, in the letters of the README."""

    k: int
    gaba_switch: float | None
    lr: float
    momentum: float
    max_grad_norm: float
    alpha: float
    lam: float
    temperature: float
    kl: Divergence


@dataclass(frozen=True, eq=False)
class Share:
    """This process's part where several train one model together; all must make the same calls in the same order.

    Attributes:
        gather: takes this process's bytes and returns those of every process, by rank; raises where one is lost.
        rank, size: which process this is, of how many.
        by: "samples": every process has all weights, and finds the winners of a part of each batch. "neurons": it has
            the weights, counters and certificates of neurons bounds[rank] to bounds[rank + 1] - 1 (neuron_bounds), and
            is given every sample.
        neurons: R, of all processes together.
    """

    gather: Callable[[bytes], list[bytes]]
    rank: int
    size: int
    by: Literal["samples", "neurons"]
    neurons: int

    @property
    def bounds(self) -> list[int]:
        """(size + 1,) where each process's neurons begin; by samples all are everywhere."""
        if self.by == "samples":
            return [0] * self.size + [self.neurons]
        return neuron_bounds(self.neurons, self.size)

    @property
    def first(self) -> int:
        """The first neuron here."""
        return self.bounds[self.rank] if self.by == "neurons" else 0


def neuron_bounds(neurons: int, size: int) -> list[int]:
    """Where each of `size` processes' neurons begin and, last, end; (size + 1,).

    The engine sums over neurons in 16 ranges of whole 64s, whatever trains it; a process has whole ranges, as near to
    an even share as they allow. With few neurons or many processes some have none.
    """
    module, reason = _native.cpu_module()
    if module is None:
        raise ValueError(f"the native CPU module is not loaded ({reason})")
    return module.sdmlp_neuron_bounds(neurons=neurons, size=size)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model's outputs on the samples of a task, evaluated once (arXiv 2512.15267).

    Attributes:
        logits: (N, C) float, the teacher's logits.
        units: (n,) int64, the selected neurons J, ascending.
        values: (nnz,) float, its non-zero activations on J; one sample after another.
        indices: (nnz,) int32, their neurons, ascending within a sample.
        offsets: (N + 1,) int64, where each sample begins.
    """

    logits: Tensor
    units: Tensor
    values: Tensor
    indices: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class QuadraticPenalty:
    """coef sum importance (theta - anchor)^2 over both layers, added to the loss outside alpha (EWC, SI, MAS, L2).

    Attributes:
        weight_importance, weight_anchor: (R, D) float.
        output_importance, output_anchor: (C, R) float.
        coef: the factor of the sum; not negative.
    """

    weight_importance: Tensor
    weight_anchor: Tensor
    output_importance: Tensor
    output_anchor: Tensor
    coef: float


@dataclass
class EpochStats:
    """What one call of train_epoch did.

    Attributes:
        loss, ce, kd_hidden, kd_logits: means over the samples seen; loss holds no penalty.
        grad_norm: mean over the steps, before clipping; of both layers together, the penalty's gradient included.
        active_per_row: mean number of active neurons of a sample.
        touched: mean number of neurons active anywhere in a batch.
        steps: optimizer steps done; fewer than asked for when the call was interrupted.
        certified, refreshed, scanned: rows proved by certificates, rows scanned ahead to renew them, rows scanned.
        scored, examined: means per certified row, of the neurons scored and of the bounds looked at.
        seconds: wall-clock seconds per phase.
        exchanges, sent, received, exchange_seconds: with a Share, calls of its gather, the bytes given to it (each
            other process gets them), those of all others, and the seconds spent in it.
    """

    loss: float = 0.0
    ce: float = 0.0
    kd_hidden: float = 0.0
    kd_logits: float = 0.0
    grad_norm: float = 0.0
    active_per_row: float = 0.0
    touched: float = 0.0
    steps: int = 0
    certified: int = 0
    refreshed: int = 0
    scanned: int = 0
    scored: float = 0.0
    examined: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    exchanges: int = 0
    sent: int = 0
    received: int = 0
    exchange_seconds: float = 0.0


class NonFiniteStep(FloatingPointError):
    """A number of a step is not finite: that step was not taken, and everything is as the step before left it.

    Attributes:
        what: the first such number, as "cross-entropy", "gradient of the penalty" or "score".
        step: the steps done by the call before it.
        sample, neuron: where; None where it belongs to none.
    """

    def __init__(self, what: str, step: int, sample: int | None = None, neuron: int | None = None) -> None:
        super().__init__(what, step, sample, neuron)
        self.what, self.step, self.sample, self.neuron = what, step, sample, neuron

    def __str__(self) -> str:
        where = f" of sample {self.sample}" if self.sample is not None else ""
        where += f" of neuron {self.neuron}" if self.neuron is not None else ""
        return f"the {self.what}{where} is not finite in step {self.step}; that step was not taken"


def gaba_coefficients(counts: Tensor, gaba_switch: float | None) -> Tensor:
    """g_j = clip(-1 + 2 c_j / S, -1, 1) in float64, or 1 where there is no switch; (R,)."""
    if gaba_switch is None:
        return torch.ones(counts.shape, dtype=torch.float64, device=counts.device)
    return (-1 + 2 * counts.double() / gaba_switch).clamp(-1, 1)
