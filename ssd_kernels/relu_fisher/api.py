"""The functions relu_mlp and relu_fisher_: validation and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .._backend import resolve
from .._types import Backend
from . import ops  # noqa: F401  registers the operations


def relu_mlp(
    x: Tensor, weight: Tensor, bias: Tensor, output_weight: Tensor, output_bias: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """The forward pass of an MLP with one ReLU layer: h = relu(W x + bias), y = V h + output_bias. No derivative.

    Args:
        x: (B, D) float32 or float64, D at least 1. weight: (R, D). bias: (R,). output_weight: (C, R).
        output_bias: (C,). All of one dtype.
        backend: "auto", "reference" or "cpu".

    Returns:
        h: (B, R), stored with the samples of a neuron adjacent. y: (B, C). NaN passes through.

    Raises:
        ValueError: a shape, dtype or backend that is not allowed.

    Examples:
        >>> eye = torch.eye(2)
        >>> relu_mlp(torch.tensor([[1.0, -2.0]]), eye, torch.zeros(2), eye, torch.tensor([0.0, 3.0]))
        (tensor([[1., 0.]]), tensor([[1., 3.]]))
    """
    (_, inputs), (classes, neurons) = _matrix("x", x), _matrix("output_weight", output_weight)
    _check(x.dtype, weight=(weight, (neurons, inputs)), bias=(bias, (neurons,)),
           output_weight=(output_weight, (classes, neurons)), output_bias=(output_bias, (classes,)))  # fmt: skip
    tensors = (tensor.detach() for tensor in (x, weight, bias, output_weight, output_bias))
    return torch.ops.ssd_kernels.relu_mlp(*tensors, resolve(backend, "relu_fisher", x.device))


def relu_fisher_(
    sums: tuple[Tensor, Tensor, Tensor, Tensor],
    x: Tensor,
    hidden: Tensor,
    output_weight: Tensor,
    probabilities: Tensor,
    labels: Tensor | None,
    beta: float,
    *,
    backend: Backend = "auto",
) -> None:
    """Adds the squares of every sample's gradients, of an MLP with one ReLU layer, to `sums`, in place.

    With p = softmax(beta y) and the loss -log p[label], the gradient of a sample's logits is d = beta (p - e_label),
    that of its activations d V where h > 0; the squares that are added are those of d V x, of d V, of d h and of d.
    Without labels it is their expectation over labels drawn from p: beta^2 p (1 - p) in place of d^2, and
    beta^2 (p V^2 - (p V)^2), which is not negative, in place of (d V)^2.

    Args:
        sums: of W (R, D), its bias (R,), V (C, R) and its bias (C,), added to.
        x: (B, D) float32 or float64, the inputs. hidden: (B, R), h. output_weight: (C, R), V. probabilities: (B, C), p.
        labels: (B,) int64, or None for the expectation.
        beta: factor of the logits.
        backend: "auto", "reference" or "cpu".

    Raises:
        ValueError: a shape, dtype or backend that is not allowed.
        IndexError: a label outside [0, C) (checked on CPUs, before anything is added).

    Examples:
        >>> sums = (torch.zeros(1, 1), torch.zeros(1), torch.zeros(2, 1), torch.zeros(2))
        >>> one, half = torch.ones(1, 1), torch.full((1, 2), 0.5)
        >>> relu_fisher_(sums, one, one, torch.tensor([[1.0], [3.0]]), half, torch.tensor([0]), 1.0)
        >>> sums[0]
        tensor([[1.]])
    """
    (batch, inputs), (classes, neurons) = _matrix("x", x), _matrix("output_weight", output_weight)
    weight, bias, output, output_bias = sums
    _check(x.dtype, hidden=(hidden, (batch, neurons)), output_weight=(output_weight, (classes, neurons)),
           probabilities=(probabilities, (batch, classes)), weight=(weight, (neurons, inputs)),
           bias=(bias, (neurons,)), output=(output, (classes, neurons)),
           output_bias=(output_bias, (classes,)))  # fmt: skip
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != (batch,)):
        raise ValueError(f"labels must be int64 (B,) with B = {batch}, got {labels.dtype} {tuple(labels.shape)}")
    name = resolve(backend, "relu_fisher", x.device)
    tensors = (tensor.detach() for tensor in (*sums, x, hidden, output_weight, probabilities))
    torch.ops.ssd_kernels.relu_fisher_(*tensors, labels, float(beta), name)


def _matrix(name: str, tensor: Tensor) -> tuple[int, int]:
    if tensor.dim() != 2 or tensor.shape[1] < 1 or tensor.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be a float32 or float64 matrix, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.shape[0], tensor.shape[1]


def _check(dtype: torch.dtype, **expected: tuple[Tensor, tuple[int, ...]]) -> None:
    for name, (tensor, shape) in expected.items():
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"{name} must be {dtype} {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
