"""How much each weight matters for what was learned (EWC, MAS), and the quadratic that holds weights in place.

Both need the gradient of every sample or batch with respect to every weight. For a linear layer z = X W^T with
G = dL/dz that is G^T X per batch, and for single samples its square is (G*G)^T (X*X): two matrix products, no loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import EPS, SDMLP, ReLUMLP

BATCH = 512
ESTIMATORS = ("batch-argmax", "batch-true", "batch-sampled", "sample-argmax", "sample-true", "sample-sampled", "exact",
              "mean-argmax", "mean-true", "mean-sampled")  # fmt: skip


class Layer(NamedTuple):
    """A linear layer in one forward pass.

    names: its weight's and, where it has one, its bias's name. x: (B, D) input. z: (B, R) output, part of the graph.
    mask: (B, R), where a gradient reaches z, or None where it reaches all of it.
    """

    names: tuple[str, ...]
    x: Tensor
    z: Tensor
    mask: Tensor | None


def layers_of(model: nn.Module, x: Tensor) -> list[Layer]:
    """One dense forward pass of prepared inputs x: (B, D); the last layer's z are the logits."""
    layers: list[Layer] = []
    if isinstance(model, ReLUMLP):
        for i, layer in enumerate(model.hidden):
            z = layer(x)
            layers.append(Layer((f"hidden.{i}.weight", f"hidden.{i}.bias"), x, z, None))
            x = torch.relu(z)
        return [*layers, Layer(("output.weight", "output.bias"), x, model.output(x), None)]
    assert isinstance(model, SDMLP)
    for i in range(len(model.weights)):
        if layers:
            x = x / x.norm(dim=1, keepdim=True).clamp_min(EPS)
        h = model.activate(i, x, "dense")
        layers.append(Layer((f"weights.{i}",), x, h, h.detach() > 0))
        x = h
    return [*layers, Layer(("output_weight",), x, x @ model.output_weight.T, None)]


def fisher(model: nn.Module, x: Tensor, y: Tensor, estimator: str, beta: float,
           generator: torch.Generator | None = None, batch_size: int = BATCH) -> dict[str, Tensor]:  # fmt: skip
    """Diagonal Fisher information of every weight, the mean over the samples.

    With l_b = -log softmax(beta y_b)[label]: `batch-*` is (d/dw sum of l_b over a batch of 512)^2, added over batches
    and divided by the samples; `sample-*` is the mean of (d/dw l_b)^2, exact for the labels taken; `mean-*` is
    (d/dw mean of l_b over a batch)^2, its mean over batches of `batch_size` (`mean-true` is avalanche-lib's). Labels
    are the argmax of the logits, the true ones, or drawn from the softmax. `exact` is the mean over samples of the
    expectation over all labels.

    Args:
        x: (N, D) prepared inputs. y: (N,) int64. generator: draws the labels of `*-sampled`.
        batch_size: samples of a batch for `mean-*`; the others take 512 at a time.

    Returns:
        One tensor per parameter, of its shape.
    """
    kind, _, labels = estimator.partition("-")
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    size = batch_size if kind == "mean" else BATCH
    for part, targets in zip(x.split(size), y.split(size)):
        layers = layers_of(model, part)
        scaled = beta * layers[-1].z
        if kind == "exact":
            _add_exact(total, model, layers, beta)
            continue
        match labels:
            case "argmax":
                targets = scaled.argmax(1)
            case "sampled":
                probabilities = scaled.detach().softmax(1).cpu()
                targets = torch.multinomial(probabilities, 1, generator=generator).flatten().to(scaled.device)
        loss = F.cross_entropy(scaled, targets, reduction="mean" if kind == "mean" else "sum")
        for layer, gradient in zip(layers, _gradients(loss, layers)):
            if kind == "sample":
                _add_linear(total, layer, gradient.square(), layer.x.detach().square())
            else:
                _add_squared_batch(total, layer, gradient)
    count = -(-len(x) // size) if kind == "mean" else len(x)
    return {name: value / count for name, value in total.items()}


def sensitivity(model: nn.Module, x: Tensor, estimator: str, beta: float, batch_size: int = BATCH) -> dict[str, Tensor]:
    """MAS: how strongly the squared length of beta y reacts to each weight, |d ||beta y||^2 / dw|, mean over samples.

    `batch` takes the absolute value of the sum over a batch of 512, `sample` that of each sample; `mean` the absolute
    value of the mean over a batch of `batch_size`, and its mean over batches (avalanche-lib's).
    """
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    size = batch_size if estimator == "mean" else BATCH
    for part in x.split(size):
        layers = layers_of(model, part)
        length = (beta * layers[-1].z).square().sum() / (len(part) if estimator == "mean" else 1)
        for layer, gradient in zip(layers, _gradients(length, layers)):
            if estimator == "sample":
                _add_linear(total, layer, gradient.abs(), layer.x.detach().abs())
            else:
                total[layer.names[0]] += (gradient.T @ layer.x.detach()).abs()
                if len(layer.names) > 1:
                    total[layer.names[1]] += gradient.sum(0).abs()
    count = -(-len(x) // size) if estimator == "mean" else len(x)
    return {name: value / count for name, value in total.items()}


def _gradients(loss: Tensor, layers: list[Layer]) -> list[Tensor]:
    """dL/dz of each layer, 0 where the mask lets nothing through."""
    gradients = torch.autograd.grad(loss, [layer.z for layer in layers], retain_graph=True)
    return [g if layer.mask is None else g * layer.mask for g, layer in zip(gradients, layers)]


def _add_linear(total: dict[str, Tensor], layer: Layer, g: Tensor, x: Tensor) -> None:
    total[layer.names[0]] += g.T @ x
    if len(layer.names) > 1:
        total[layer.names[1]] += g.sum(0)


def _add_squared_batch(total: dict[str, Tensor], layer: Layer, g: Tensor) -> None:
    total[layer.names[0]] += (g.T @ layer.x.detach()).square()
    if len(layer.names) > 1:
        total[layer.names[1]] += g.sum(0).square()


def _add_exact(total: dict[str, Tensor], model: nn.Module, layers: list[Layer], beta: float) -> None:
    """The expectation over labels c ~ p. One hidden layer needs no backward pass: E (dL/dh_j)^2 = beta^2 Var V_cj."""
    last = layers[-1]
    p = (beta * last.z).detach().softmax(1)
    _add_linear(total, last, beta**2 * p * (1 - p), last.x.detach().square())
    if len(layers) == 2:
        v = (model.output.weight if isinstance(model, ReLUMLP) else model.output_weight).detach()
        variance = (p @ v.square() - (p @ v).square()).clamp_min_(0)
        mask = layers[0].z.detach() > 0
        _add_linear(total, layers[0], beta**2 * variance * mask, layers[0].x.detach().square())
        return
    log_p = (beta * last.z).log_softmax(1)
    for c in range(p.shape[1]):
        for layer, g in zip(layers[:-1], _gradients(-log_p[:, c].sum(), layers[:-1])):
            _add_linear(total, layer, p[:, c : c + 1] * g.square(), layer.x.detach().square())


class Quadratic:
    """sum over tasks of F_t (w - a_t)^2, merged into one: A (w - m)^2 + constant.

    A is the sum of the F_t, m their weighted mean of anchors, and the constant sum F a^2 - A m^2, so that neither time
    nor memory grow with the number of tasks.
    """

    def __init__(self) -> None:
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant = 0.0

    def __bool__(self) -> bool:
        return bool(self.importance)

    @torch.no_grad()
    def add(self, model: nn.Module, importance: dict[str, Tensor]) -> None:
        """Adds a task's term with the model's present weights as its anchor."""
        for name, parameter in model.named_parameters():
            new = importance[name]
            if name not in self.importance:
                self.importance[name], self.anchor[name] = new.clone(), parameter.detach().clone()
                continue
            old, anchor = self.importance[name], self.anchor[name]
            total = old + new
            # The constant of two merged terms is the spread of their anchors: old * new / total * (difference)^2.
            share = torch.where(total != 0, new / total, torch.zeros_like(new))
            difference = parameter - anchor
            self.constant += float((old * share * difference.square()).sum(dtype=torch.float64))
            self.anchor[name] = torch.where(total != 0, anchor + share * difference, parameter)
            self.importance[name] = total

    @torch.no_grad()
    def replace(self, model: nn.Module, importance: dict[str, Tensor], old: float = 0.0, new: float = 1.0) -> None:
        """One term with the present weights as its anchor, instead of what was there (SI, L2, online EWC and MAS).

        Its importance is `old` times that of before plus `new` times the one given; the first one is taken as it is.
        """
        if self.importance and old:
            importance = {name: old * self.importance[name] + new * value for name, value in importance.items()}
        self.importance = {name: value.clone() for name, value in importance.items()}
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.constant = 0.0

    def value(self, model: nn.Module) -> Tensor:
        """The sum, differentiable in the model's weights."""
        terms = (
            (self.importance[name] * (p - self.anchor[name]).square()).sum() for name, p in model.named_parameters()
        )
        return sum(terms, start=next(model.parameters()).new_tensor(self.constant))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for kind, named in (("importance", self.importance), ("anchor", self.anchor)):
            yield from ((f"{kind}.{name}", tensor) for name, tensor in named.items())
        yield "constant", torch.tensor(self.constant, dtype=torch.float64)

    def load(self, tensors: dict[str, Tensor], device: str) -> None:
        for kind in ("importance", "anchor"):
            prefix = f"{kind}."
            named = {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}
            setattr(self, kind, named)
        self.constant = float(tensors["constant"])
