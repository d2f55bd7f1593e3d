"""The networks: SDMLP with one or more hidden layers, and the ReLU MLP that the baselines use."""

from __future__ import annotations

import copy
import itertools
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

import ssd_kernels
from ssd_kernels import Rows, TopK
from ssd_kernels._types import Backend

from .errors import BadInput

EPS = 1e-12


class Output(NamedTuple):
    """What a forward pass returns.

    logits: (B, C) float. hidden: the activations of each hidden layer, as Rows, or (B, R) while most neurons are
    active (empty for the ReLU MLP).
    """

    logits: Tensor
    hidden: list[Rows | Tensor]


class Layer(NamedTuple):
    """A linear layer in one forward pass.

    names: its weight's and, where it has one, its bias's name. x: (B, D) input. z: (B, R) output, part of the graph.
    mask: (B, R), where a gradient reaches z, or None where it reaches all of it.
    """

    names: tuple[str, ...]
    x: Tensor
    z: Tensor
    mask: Tensor | None


class Network(nn.Module):
    """What training, evaluation and the methods need of a network.

    Attributes:
        kind: its name for `--model`.
        ignores: settings that do nothing for it; one that is typed gets a word on stderr.
        sparse_grad: whether the gradients of the hidden weights are row-sparse; only `sdmlp` can have it.
        counters: per hidden layer c, how often each neuron was active in training, (R,) int64; none in a dense network.
    """

    kind: ClassVar[str]
    ignores: ClassVar[frozenset[str]] = frozenset()
    sparse_grad = False
    backend: Backend = "auto"

    @property
    def counters(self) -> list[Tensor]:
        return []

    def prepare(self, x: Tensor) -> Tensor:
        """What the first layer sees of raw inputs x: (N, D); `forward(..., normalized=True)` takes it."""
        return x

    def layers(self, x: Tensor) -> list[Layer]:
        """One dense forward pass of prepared inputs x: (B, D); the last layer's z are the logits."""
        raise NotImplementedError

    def count(self, hidden: list[Rows | Tensor]) -> None:
        """Adds a training batch's activity to the counters."""

    def project(self) -> None:
        """Puts the weights back where the network's constraints allow them, after a step."""


class SDMLP(Network):
    """Sparse distributed memory MLP: unit addresses, Top-K with GABA inhibition, no biases.

    Per layer: x <- relu(x) / ||x||, a = max(W x, 0), h = relu(a - g I) with I the (K+1)-th largest of a and g the
    GABA coefficient; then y = V h (algorithm of the SDMLP paper; Eq. 1-3 there).

    `sparse_grad` makes the gradients of the addresses row-sparse, as the touched-rows update needs them.

    Args:
        dim: D, inputs. classes: C. neurons: R per hidden layer. k: K. layers: number of hidden layers.
        gaba_switch: S, activations after which a neuron is fully inhibited; None means g = 1 from the start.
        topk: `gaba`, or `mask`: h = a on the K winners (ties: the lowest index), nothing subtracted, no inhibition.
        backend: implementation of the operations.
        shard: the neurons that this model has, from the first to before the last, of one layer of R; None: all. They
            begin as those of the whole model would, and leave the random state as it would.
    """

    kind = "sdmlp"

    def __init__(
        self, dim: int, classes: int, neurons: int, k: int, *, layers: int = 1, gaba_switch: float | None = None,
        topk: Literal["gaba", "mask"] = "gaba", backend: Backend = "auto", shard: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 1 <= k < neurons:
            raise ValueError(f"k: got {k}, allowed is 1 .. {neurons - 1} (below the {neurons} neurons)")
        self.k, self.gaba_switch, self.topk, self.backend = k, gaba_switch, topk, backend
        self.sparse_grad = False
        if shard is None:
            sizes = [dim] + [neurons] * layers
            self.weights = nn.ParameterList(
                nn.Parameter(nn.Linear(d, r, bias=False).weight.detach()) for d, r in itertools.pairwise(sizes)
            )
            self.output_weight = nn.Parameter(nn.Linear(neurons, classes, bias=False).weight.detach())
        else:
            self.weights = nn.ParameterList([nn.Parameter(_drawn(neurons, dim, *shard))])
            self.output_weight = nn.Parameter(_drawn(classes, neurons, 0, classes)[:, slice(*shard)].contiguous())
        here = neurons if shard is None else shard[1] - shard[0]
        for layer in range(layers):
            self.register_buffer(f"counts{layer}", torch.zeros(here, dtype=torch.int64))
        self.project()

    @property
    def counts(self) -> list[Tensor]:
        """The GABA counters c of each hidden layer: (R,) int64, how often each neuron was active in training."""
        return [getattr(self, f"counts{layer}") for layer in range(len(self.weights))]

    @property
    def counters(self) -> list[Tensor]:
        return self.counts

    def prepare(self, x: Tensor) -> Tensor:
        """relu and unit norm: once for the whole data, not per step."""
        return ssd_kernels.normalize_inputs(x)

    def layers(self, x: Tensor) -> list[Layer]:
        layers: list[Layer] = []
        for i in range(len(self.weights)):
            if layers:
                x = x / x.norm(dim=1, keepdim=True).clamp_min(EPS)
            h = _dense(self.activate(i, x, "dense"), len(self.weights[i]))
            layers.append(Layer((f"weights.{i}",), x, h, h.detach() > 0))
            x = h
        return [*layers, Layer(("output_weight",), x, x @ self.output_weight.T, None)]

    def gaba(self, counts: Tensor) -> Tensor:
        """g = clip(-1 + 2 c / S, -1, 1) per neuron, computed in fp64: (R,) in the weights' dtype."""
        dtype = self.output_weight.dtype
        if self.gaba_switch is None:
            return torch.ones_like(counts, dtype=dtype)
        return (counts.double() * (2.0 / self.gaba_switch) - 1.0).clamp_(-1.0, 1.0).to(dtype)

    def forward(self, x: Tensor, *, normalized: bool = False) -> Output:
        """Logits and active neurons of x: (B, D). The counters are read, never changed.

        Args:
            normalized: x already went through relu and unit norm (`ssd_kernels.normalize_inputs`).
        """
        hidden: list[Rows | Tensor] = []
        for layer, weight in enumerate(self.weights):
            if hidden:
                x = _dense(hidden[-1], weight.shape[1])
                x = x / x.norm(dim=1, keepdim=True).clamp_min(EPS)
            elif not normalized:
                x = ssd_kernels.normalize_inputs(x)
            hidden.append(self.activate(layer, x))
        if isinstance(hidden[-1], Rows):
            logits = ssd_kernels.sparse_linear(hidden[-1], self.output_weight, backend=self.backend)
        else:
            logits = hidden[-1] @ self.output_weight.T
        return Output(logits, hidden)

    def activate(self, layer: int, x: Tensor, kind: Literal["rows", "dense"] | None = None) -> Rows | Tensor:
        """The activations of one hidden layer for its normalised inputs x: (B, D).

        Args:
            kind: `rows` or `dense`, (B, R); None takes what is faster, which only the counters decide.
        """
        weight, counts = self.weights[layer], self.counts[layer]
        options: dict[str, Any] = {"sparse_grad": self.sparse_grad and kind is None, "backend": self.backend}
        if self.topk == "mask":
            rows = _sorted_rows(ssd_kernels.topk_linear(x, weight, self.k, **options))
            return _dense(rows, len(weight)) if kind == "dense" else rows
        g = self.gaba(counts)
        # Neurons with g <= 0 are active wherever their score is positive: with many of them dense is faster.
        kind = kind or ("dense" if 4 * int((g <= 0).sum()) > len(g) else "rows")
        return ssd_kernels.gaba_linear(x, weight, self.k, g, output=kind, **options)

    @torch.no_grad()
    def count(self, hidden: list[Rows | Tensor]) -> None:
        """Adds a training batch's activity to the GABA counters: c_j += samples with h_j > 0."""
        for counts, active in zip(self.counts, hidden):
            counts += ssd_kernels.activation_counts(active, len(counts), backend=self.backend)

    @torch.no_grad()
    def project(self) -> None:
        """Dale's principle and unit addresses: all weights at least 0, each row of W of norm 1 (a zero row stays)."""
        for weight in self.weights:
            weight.clamp_(min=0)
            weight /= weight.norm(dim=1, keepdim=True).clamp_min_(EPS)
        self.output_weight.clamp_(min=0)


class ReLUMLP(Network):
    """Linear, ReLU, ..., Linear, all with biases: the network of the dense baselines."""

    kind = "relu"
    ignores = frozenset({"k", "k_start", "k_epochs", "topk", "gaba_switch"})

    def __init__(self, dim: int, classes: int, neurons: int, *, layers: int = 1) -> None:
        super().__init__()
        sizes = [dim] + [neurons] * layers
        self.hidden = nn.ModuleList(nn.Linear(d, r) for d, r in itertools.pairwise(sizes))
        self.output = nn.Linear(neurons, classes)

    def forward(self, x: Tensor, *, normalized: bool = False) -> Output:
        """Logits of x: (B, D); `normalized` is accepted for the sake of one signature and changes nothing."""
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return Output(self.output(x), [])

    def layers(self, x: Tensor) -> list[Layer]:
        layers: list[Layer] = []
        for i, layer in enumerate(self.hidden):
            z = layer(x)
            layers.append(Layer((f"hidden.{i}.weight", f"hidden.{i}.bias"), x, z, None))
            x = torch.relu(z)
        return [*layers, Layer(("output.weight", "output.bias"), x, self.output(x), None)]


def _drawn(rows: int, columns: int, begin: int, end: int) -> Tensor:
    """Rows begin to end - 1 of the weight that nn.Linear draws for `columns` inputs and `rows` outputs."""
    kept = torch.empty(end - begin, columns)
    step = max(1, (1 << 22) // columns)
    for first in range(0, rows, step):
        piece = torch.empty(min(step, rows - first), columns)
        nn.init.kaiming_uniform_(piece, a=5**0.5)
        low, high = max(begin, first), min(end, first + len(piece))
        if low < high:
            kept[low - begin : high - begin] = piece[low - first : high - first]
    return kept


def _dense(rows: Rows | Tensor, neurons: int) -> Tensor:
    """The activations as (B, R), differentiable in the values."""
    if isinstance(rows, Tensor):
        return rows
    batch = len(rows.offsets) - 1
    sample = torch.repeat_interleave(torch.arange(batch, device=rows.values.device), rows.offsets.diff())
    flat = rows.values.new_zeros(batch * neurons).index_put((sample * neurons + rows.indices,), rows.values)
    return flat.view(batch, neurons)


def _sorted_rows(top: TopK) -> Rows:
    """The positive winners of each sample as Rows, in ascending order of neurons; differentiable in the values."""
    indices, order = top.indices.sort(dim=1)
    values = top.values.gather(1, order)
    active = values > 0
    offsets = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
    torch.cumsum(active.sum(1), 0, out=offsets[1:])
    return Rows(values[active], indices[active], offsets, top.threshold)


NETWORKS: dict[str, type[Network]] = {network.kind: network for network in (SDMLP, ReLUMLP)}


def build_model(kind: str, *, dim: int, classes: int, neurons: int, layers: int, k: int, gaba_switch: float | None,
                backend: Backend, dtype: torch.dtype, device: str, topk: Literal["gaba", "mask"] = "gaba",
                shard: tuple[int, int] | None = None) -> Network:  # fmt: skip
    """A fresh network from the global random state. The fp32 draw is the same for every dtype and device."""
    if kind == "relu":
        model: Network = ReLUMLP(dim, classes, neurons, layers=layers)
    elif kind == "sdmlp":
        model = SDMLP(dim, classes, neurons, k, layers=layers, gaba_switch=gaba_switch, topk=topk, backend=backend,
                      shard=shard)  # fmt: skip
    else:
        raise BadInput(f"model: got {kind!r}, allowed is sdmlp or relu")
    return model.to(device=device, dtype=dtype)


def frozen_copy(model: Network) -> Network:
    """A copy that needs no gradient: the teacher."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def predict(model: Network, x: Tensor, batch_size: int = 1024) -> Tensor:
    """Logits of prepared inputs x: (N, D), in batches: (N, C)."""
    return torch.cat([model(part, normalized=True).logits for part in x.split(batch_size)])


@torch.no_grad()
def activity(model: Network, x: Tensor, batch_size: int = 1024) -> list[Tensor]:
    """Per hidden layer, how many of the prepared samples x: (N, D) activate each neuron: (R,) int64."""
    totals = [torch.zeros_like(counts) for counts in model.counters]
    for part in x.split(batch_size):
        for total, active in zip(totals, model(part, normalized=True).hidden):
            total += ssd_kernels.activation_counts(active, len(total), backend=model.backend)
    return totals
