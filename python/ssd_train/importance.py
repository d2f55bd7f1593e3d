"""How much each weight matters for what was learned (EWC, MAS), and the quadratic that holds weights in place.

Both need the gradient of every sample or batch with respect to every weight. For a linear layer z = X W^T with
G = dL/dz that is G^T X per batch, and for single samples its square is (G*G)^T (X*X): two matrix products, no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssd_kernels
from ssd_kernels import Rows
from ssd_kernels._backend import resolve
from ssd_kernels.relu_fisher import relu_fisher_, relu_mlp

from .model import Layer, Network

BATCH = 512
ESTIMATORS = ("batch-argmax", "batch-true", "batch-sampled", "sample-argmax", "sample-true", "sample-sampled", "exact",
              "mean-argmax", "mean-true", "mean-sampled")  # fmt: skip


def fisher(model: Network, x: Tensor, y: Tensor, estimator: str, beta: float,
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
        if kind in ("sample", "exact") and len(total) in (2, 4):
            _add_one_hidden(total, model, part, targets, labels, beta, generator)
            continue
        layers = model.layers(part)
        scaled = beta * layers[-1].z
        if kind == "exact":
            _add_exact(total, layers, beta)
            continue
        targets = _labels(scaled, targets, labels, generator)
        loss = F.cross_entropy(scaled, targets, reduction="mean" if kind == "mean" else "sum")
        for layer, gradient in zip(layers, _gradients(loss, layers)):
            if kind == "sample":
                _add_linear(total, layer, gradient.square(), layer.x.detach().square())
            else:
                _add_squared_batch(total, layer, gradient)
    count = -(-len(x) // size) if kind == "mean" else len(x)
    return {name: value.div_(count) for name, value in total.items()}


def sensitivity(model: Network, x: Tensor, estimator: str, beta: float, batch_size: int = BATCH) -> dict[str, Tensor]:
    """MAS: how strongly the squared length of beta y reacts to each weight, |d ||beta y||^2 / dw|, mean over samples.

    `batch` takes the absolute value of the sum over a batch of 512, `sample` that of each sample; `mean` the absolute
    value of the mean over a batch of `batch_size`, and its mean over batches (avalanche-lib's).
    """
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    size = batch_size if estimator == "mean" else BATCH
    for part in x.split(size):
        layers = model.layers(part)
        length = (beta * layers[-1].z).square().sum() / (len(part) if estimator == "mean" else 1)
        for layer, gradient in zip(layers, _gradients(length, layers)):
            if estimator == "sample":
                _add_linear(total, layer, gradient.abs(), layer.x.detach().abs())
            else:
                total[layer.names[0]] += (gradient.T @ layer.x.detach()).abs()
                if len(layer.names) > 1:
                    total[layer.names[1]] += gradient.sum(0).abs()
    count = -(-len(x) // size) if estimator == "mean" else len(x)
    return {name: value.div_(count) for name, value in total.items()}


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


def _labels(scaled: Tensor, y: Tensor, kind: str, generator: torch.Generator | None) -> Tensor:
    """The labels whose gradient is taken, of samples with logits scaled: (B, C) and true labels y: (B,)."""
    match kind:
        case "argmax":
            return scaled.argmax(1)
        case "sampled":
            probabilities = scaled.detach().softmax(1).cpu()
            return torch.multinomial(probabilities, 1, generator=generator).flatten().to(scaled.device)
    return y


def _add_exact(total: dict[str, Tensor], layers: list[Layer], beta: float) -> None:
    """The expectation over labels c ~ p, by a backward pass per label."""
    last = layers[-1]
    p = (beta * last.z).detach().softmax(1)
    _add_linear(total, last, beta**2 * p * (1 - p), last.x.detach().square())
    log_p = (beta * last.z).log_softmax(1)
    for c in range(p.shape[1]):
        for layer, g in zip(layers[:-1], _gradients(-log_p[:, c].sum(), layers[:-1])):
            _add_linear(total, layer, p[:, c : c + 1] * g.square(), layer.x.detach().square())


@torch.no_grad()
def _add_one_hidden(total: dict[str, Tensor], model: Network, x: Tensor, y: Tensor, labels: str, beta: float,
                    generator: torch.Generator | None) -> None:  # fmt: skip
    """`sample-*` and `exact` with one hidden layer, without a backward pass.

    For the label c, dL/dy = beta (p - e_c) and dL/dh_j = beta (p V_j - V_cj) where h_j > 0; over c ~ p the mean square
    of the first is beta^2 p (1 - p), of the second beta^2 Var V_cj. An SDMLP's few active neurons are taken as Rows.
    """
    if model.kind == "relu":
        layer, output = model.hidden[0], model.output
        h, logits = relu_mlp(x, layer.weight, layer.bias, output.weight, output.bias)
        scaled = beta * logits
        targets = _labels(scaled, y, labels, generator) if labels else None
        relu_fisher_(tuple(total.values()), x, h, output.weight, scaled.softmax(1), targets, beta)
        return
    h, v = model.activate(0, x, "rows"), model.output_weight
    scaled = beta * ssd_kernels.sparse_linear(h, v, backend=model.backend)
    p = scaled.softmax(1)
    sample = torch.repeat_interleave(torch.arange(len(x), device=x.device), h.offsets.diff())
    columns = v.T[h.indices.long()]

    def of_hidden(left: Tensor, right: Tensor) -> Tensor:
        """The sum over the classes of left: (B, C) and right: (E, C), for every entry of h."""
        return (left[sample] * right).sum(1)

    if labels:
        d = p.clone()
        d[torch.arange(len(y)), _labels(scaled, y, labels, generator)] -= 1
        d *= beta
        squares, g = d.square(), of_hidden(d, columns).square_()
    else:
        squares = beta**2 * p * (1 - p)
        g = (of_hidden(p, columns.square()) - of_hidden(p, columns).square_()).clamp_min_(0).mul_(beta**2)
    total["weights.0"] += _rows_product(h, g, x.square(), model.weights[0], model.backend)
    total["output_weight"] += _rows_product(h, h.values.square(), squares, v.T.contiguous(), model.backend).T


def _rows_product(h: Rows, g: Tensor, x: Tensor, like: Tensor, backend: str) -> Tensor:
    """G^T X with the entries g of G where h has its own: the weight gradient of the layer, with other operands."""
    backend = resolve(backend, "gaba_linear", x.device)
    return torch.ops.ssd_kernels.gaba_linear_rows_bwd(
        g.contiguous(), h.values, h.indices, h.offsets, x.contiguous(), like, False, True, backend
    )[1]


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

    def change(self, of: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Puts `of` the importance and `of` the anchor in their places."""
        self.importance, self.anchor = of(self.importance), of(self.anchor)

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
