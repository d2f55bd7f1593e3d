"""Calls the native CPU kernels of relu_mlp and relu_fisher_: allocates the outputs and passes addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._pointers import DTYPES, address, adjacent, row_stride

BAD_LABEL = "labels must be from 0 to C - 1 = {}, got {}"


def _matrix(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), row_stride(tensor)


def relu_mlp(
    x: Tensor, weight: Tensor, bias: Tensor, output_weight: Tensor, output_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """As reference.relu_mlp."""
    (batch, inputs), (classes, neurons) = x.shape, output_weight.shape
    x, weight, output_weight = adjacent(x), adjacent(weight), adjacent(output_weight)
    bias, output_bias = bias.contiguous(), output_bias.contiguous()
    hidden = torch.empty(neurons, batch, dtype=x.dtype)
    logits = torch.empty(batch, classes, dtype=x.dtype)
    _native.cpu_module()[0].relu_mlp(
        DTYPES[x.dtype], batch, inputs, neurons, classes, _matrix(x), _matrix(weight), bias.data_ptr(),
        _matrix(output_weight), output_bias.data_ptr(), hidden.data_ptr(), logits.data_ptr(),
        torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    return hidden.T, logits


def relu_fisher_(
    sums: tuple[Tensor, Tensor, Tensor, Tensor], x: Tensor, hidden: Tensor, output_weight: Tensor,
    probabilities: Tensor, labels: Tensor | None, beta: float,
) -> None:  # fmt: skip
    """Adds what reference.relu_fisher returns to `sums`."""
    (batch, inputs), (classes, neurons) = x.shape, output_weight.shape
    x, by_neuron, output_weight = adjacent(x), adjacent(hidden.T), adjacent(output_weight)
    probabilities, labels = probabilities.contiguous(), None if labels is None else labels.contiguous()
    written = tuple(total.contiguous() for total in sums)
    bad = _native.cpu_module()[0].relu_fisher(
        DTYPES[x.dtype], batch, inputs, neurons, classes, _matrix(x), _matrix(by_neuron), _matrix(output_weight),
        probabilities.data_ptr(), address(labels), beta, *(total.data_ptr() for total in written),
        torch.get_num_threads(), _native.simd_level(),
    )  # fmt: skip
    if bad is not None:
        raise IndexError(BAD_LABEL.format(classes - 1, bad))
    for total, new in zip(sums, written):
        if new is not total:
            total.copy_(new)
