"""Structural metrics (arXiv 2512.15267): what the hidden layer does, seen on a fixed probe set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import SDMLP

MAX_GRAPH = 500  # a step of all shortest paths costs its cube


@dataclass
class Probe:
    """The first hidden layer's activity on the probe set.

    counts: (R,) int64, samples that activate each neuron. classes: (C, R) float64, its summed activation per class.
    """

    samples: int
    counts: Tensor
    classes: Tensor


@torch.no_grad()
def probe(model: SDMLP, x: Tensor, y: Tensor, classes: int) -> Probe:
    """Activity on prepared inputs x: (N, D) with labels y: (N,) int64; the GABA counters stay as they are."""
    neurons = len(model.counts[0])
    sample, neuron, value = active_pairs(model, x)
    counts = torch.bincount(neuron, minlength=neurons)
    flat = torch.bincount(y[sample] * neurons + neuron, weights=value.double(), minlength=classes * neurons)
    return Probe(len(x), counts, flat.view(classes, neurons))


@torch.no_grad()
def active_pairs(model: SDMLP, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every active (sample, neuron) of the first hidden layer and its activation."""
    hidden = model(x, normalized=True).hidden[0]
    if isinstance(hidden, Tensor):
        sample, neuron = (hidden > 0).nonzero(as_tuple=True)
        return sample, neuron, hidden[sample, neuron]
    sample = torch.repeat_interleave(torch.arange(len(x), device=x.device), hidden.offsets.diff())
    return sample, hidden.indices.long(), hidden.values


def activation_entropy(counts: Tensor, samples: int) -> float:
    """Eq. 1: mean over neurons of -p log p - (1 - p) log(1 - p) in nats, p the share of samples that activate it."""
    p = counts.double() / samples
    return (torch.special.entr(p) + torch.special.entr(1 - p)).mean().item()


def class_entropy(classes: Tensor) -> float | None:
    """Entropy in nats over classes of a neuron's activation, its mean over neurons weighted by their activation."""
    total = classes.sum(0)
    if total.sum() == 0:
        return None
    q = classes / total.clamp_min(torch.finfo(classes.dtype).tiny)
    return (torch.special.entr(q).sum(0) * total).sum().item() / total.sum().item()


def most_frequent(counts: Tensor, size: int) -> set[int]:
    """The `size` most frequent of the active neurons, ties to the lowest index."""
    order = counts.sort(descending=True, stable=True).indices[:size]
    return set(order[counts[order] > 0].tolist())


def jaccard(a: Tensor, b: Tensor, size: int) -> float | None:
    """Eq. 8: shared over all neurons of the two sets of most frequent ones."""
    first, second = most_frequent(a, size), most_frequent(b, size)
    union = first | second
    return len(first & second) / len(union) if union else None


def row_cosine(teacher: Tensor, student: Tensor, units: Tensor) -> float:
    """Mean cosine between the teacher's and the student's addresses of the distilled neurons."""
    return torch.cosine_similarity(teacher[units].double(), student[units].double(), dim=1).mean().item()


@torch.no_grad()
def path_length(model: SDMLP, x: Tensor) -> float | None:
    """Average shortest path between connected neurons of the co-activation graph.

    Two neurons are joined when a sample activates both. Of more than 500 active neurons the most frequent are taken.
    """
    sample, neuron, _ = active_pairs(model, x)
    counts = torch.bincount(neuron, minlength=len(model.counts[0]))
    nodes = sorted(most_frequent(counts, MAX_GRAPH))
    if len(nodes) < 2:
        return None
    position = torch.full((len(counts),), -1, dtype=torch.int64, device=x.device)
    position[nodes] = torch.arange(len(nodes), device=x.device)
    kept = position[neuron] >= 0
    incidence = torch.zeros(len(x), len(nodes), device=x.device)
    incidence[sample[kept], position[neuron[kept]]] = 1
    joined = ((incidence.T @ incidence) > 0).float()
    reached = frontier = torch.eye(len(nodes), device=x.device)
    steps = pairs = distance = 0
    while frontier.any():  # breadth first from every neuron at once
        distance += 1
        frontier = ((frontier @ joined) > 0).float() * (1 - reached)
        reached = reached + frontier
        found = int(frontier.sum(dtype=torch.float64))
        steps, pairs = steps + distance * found, pairs + found
    return steps / pairs if pairs else None
