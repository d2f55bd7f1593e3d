"""torch.library registration of relu_mlp and relu_fisher_: schemas and fakes. Neither has a derivative."""

from __future__ import annotations

from torch import Tensor

from .._library import register
from . import cpu, reference


def _mlp(
    x: Tensor, weight: Tensor, bias: Tensor, output_weight: Tensor, output_bias: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    run = cpu.relu_mlp if backend == "cpu" else reference.relu_mlp
    return run(x, weight, bias, output_weight, output_bias)


def _mlp_fake(x, weight, bias, output_weight, output_bias, backend):
    (batch, _), (classes, neurons) = x.shape, output_weight.shape
    return x.new_empty(neurons, batch).T, x.new_empty(batch, classes)


def _fisher(
    weight: Tensor, bias: Tensor, output: Tensor, output_bias: Tensor, x: Tensor, hidden: Tensor,
    output_weight: Tensor, probabilities: Tensor, labels: Tensor | None, beta: float, backend: str,
) -> None:  # fmt: skip
    sums = (weight, bias, output, output_bias)
    if backend == "cpu":
        return cpu.relu_fisher_(sums, x, hidden, output_weight, probabilities, labels, beta)
    if labels is not None and labels.device.type == "cpu":
        classes = output_weight.shape[0]
        for bad in labels[(labels < 0) | (labels >= classes)].tolist():
            raise IndexError(cpu.BAD_LABEL.format(classes - 1, bad))
    for total, new in zip(sums, reference.relu_fisher(x, hidden, output_weight, probabilities, labels, beta)):
        total.add_(new)


def _fisher_fake(weight, bias, output, output_bias, x, hidden, output_weight, probabilities, labels, beta, backend):
    return None


register(
    "relu_mlp(Tensor x, Tensor weight, Tensor bias, Tensor output_weight, Tensor output_bias, str backend)"
    " -> (Tensor, Tensor)",
    _mlp,
    _mlp_fake,
)
register(
    "relu_fisher_(Tensor(a!) weight, Tensor(b!) bias, Tensor(c!) output, Tensor(d!) output_bias, Tensor x,"
    " Tensor hidden, Tensor output_weight, Tensor probabilities, Tensor? labels, float beta, str backend) -> ()",
    _fisher,
    _fisher_fake,
)
