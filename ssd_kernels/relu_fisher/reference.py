"""The specification of relu_mlp and relu_fisher_ in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def relu_mlp(
    x: Tensor, weight: Tensor, bias: Tensor, output_weight: Tensor, output_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """h = relu(x W^T + bias), (B, R) with the samples of a neuron adjacent, and the logits h V^T + output_bias."""
    hidden = torch.relu(torch.addmm(bias[:, None], weight, x.T)).T
    return hidden, torch.addmm(output_bias, hidden, output_weight.T)


def relu_fisher(
    x: Tensor, hidden: Tensor, output_weight: Tensor, probabilities: Tensor, labels: Tensor | None, beta: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums over samples of the squared gradients of W, its bias, V and its bias; for the Args see the api."""
    if labels is None:
        squares = beta**2 * probabilities * (1 - probabilities)
        of_hidden = probabilities @ output_weight.square() - (probabilities @ output_weight).square()
        of_hidden = beta**2 * of_hidden.clamp_min(0)
    else:
        d = probabilities.clone()
        d[torch.arange(len(labels), device=labels.device), labels] -= 1
        d = beta * d
        squares, of_hidden = d.square(), (d @ output_weight).square()
    of_hidden = torch.where(hidden > 0, of_hidden, 0)
    return of_hidden.T @ x.square(), of_hidden.sum(0), squares.T @ hidden.square(), squares.sum(0)
