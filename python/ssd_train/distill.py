"""The SSD teacher: which neurons are distilled, and what the frozen model says about the next task's data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import ssd_kernels
from ssd_kernels import Rows

from .model import SDMLP, frozen_copy


def select_units(counts: list[Tensor], n: int, k: int, samples: int = 0, rank: str = "frequency") -> list[Tensor]:
    """J per hidden layer, ascending: n neurons, ties to the lowest index; n is clamped to K .. R.

    `frequency` takes those most often active. `entropy` takes those of least entropy (Eq. 1) among the active ones,
    p = count / samples; where there are fewer than n of them, silent neurons follow.
    """
    chosen = []
    for c in counts:
        size = min(max(n, k), len(c))
        if rank == "frequency":
            chosen.append(ssd_kernels.top_n(c, size).sort().values)
            continue
        p = c.double() / samples
        entropy = torch.where(c > 0, torch.special.entr(p) + torch.special.entr(1 - p), torch.inf)
        chosen.append(entropy.sort(stable=True).indices[:size].sort().values)
    return chosen


class Answers(NamedTuple):
    """What a frozen model says about a task's data.

    logits: (N, C). hidden: per hidden layer the activations of the distilled neurons on all N samples, as Rows.
    """

    logits: Tensor
    hidden: list[Rows]

    def batch(self, rows: Tensor) -> tuple[Tensor, list[Rows]]:
        """Logits and selected activations of some of the samples: rows (B,) int64."""
        return self.logits[rows], [take(hidden, rows) for hidden in self.hidden]


@torch.no_grad()
def answers(model: SDMLP, units: list[Tensor], x: Tensor, batch_size: int = 1024) -> Answers:
    """Evaluates a frozen model on prepared inputs x: (N, D), once. Its counters stay as they are.

    Args:
        units: per hidden layer the neurons to distil, (n,) int64, ascending.
    """
    logits, parts = [], []
    for part in x.split(batch_size):
        output = model(part, normalized=True)
        logits.append(output.logits)
        layers = zip(output.hidden, units, model.weights)
        parts.append([_only(hidden, chosen, len(weight)) for hidden, chosen, weight in layers])
    return Answers(torch.cat(logits), [_concatenate([layers[i] for layers in parts]) for i in range(len(units))])


class Teacher:
    """A frozen copy of the model after the previous task.

    Attributes:
        model: the copy, with its own GABA counters. units: J of each hidden layer, (n,) int64 each, ascending.
    """

    def __init__(self, model: SDMLP, units: list[Tensor]) -> None:
        self.model, self.units = frozen_copy(model), [u.clone() for u in units]

    def tensors(self) -> dict[str, Tensor]:
        """Weights, counters and index sets; what it says is evaluated anew after a resume and gives the same bits."""
        named = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return named | {f"units{i}": units for i, units in enumerate(self.units)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], model: SDMLP) -> Teacher:
        """The teacher that `tensors` came from; `model` gives the shape."""
        units = [tensors[f"units{i}"].to(model.output_weight.device) for i in range(len(model.weights))]
        teacher = cls(model, units)
        prefix = "model."
        teacher.model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        return teacher


def take(rows: Rows, samples: Tensor) -> Rows:
    """The activations of some samples, in the order given: samples (B,) int64."""
    starts = rows.offsets[:-1][samples]
    lengths = rows.offsets[1:][samples] - starts
    offsets = torch.zeros(len(samples) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    total = int(offsets[-1])
    source = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
    source += torch.arange(total, device=source.device)
    return Rows(rows.values[source], rows.indices[source], offsets, rows.threshold[samples])


def _only(rows: Rows | Tensor, units: Tensor, neurons: int) -> Rows:
    """The positive entries whose neuron is one of `units` (ascending)."""
    if isinstance(rows, Tensor):
        selected = rows[:, units]
        active = selected > 0
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64, device=rows.device)
        torch.cumsum(active.sum(1), 0, out=offsets[1:])
        neuron = units[active.nonzero()[:, 1]].to(torch.int32)
        # The threshold takes no part in a distillation.
        return Rows(selected[active], neuron, offsets, rows.new_zeros(len(rows)))
    selected = torch.zeros(neurons, dtype=torch.bool, device=units.device)
    selected[units] = True
    kept = selected[rows.indices]
    before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
    torch.cumsum(kept, 0, out=before[1:])
    return Rows(rows.values[kept], rows.indices[kept], before[rows.offsets], rows.threshold)


def _concatenate(parts: list[Rows]) -> Rows:
    """One Rows over all samples of the parts, in order."""
    counts = torch.cat([p.offsets.diff() for p in parts])
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return Rows(*(torch.cat(column) for column in zip(*((p.values, p.indices) for p in parts))), offsets,
                torch.cat([p.threshold for p in parts]))  # fmt: skip
