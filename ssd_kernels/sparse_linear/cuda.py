"""Calls the CUDA kernels of sparse_linear. Not yet run on a GPU."""

from __future__ import annotations

from torch import Tensor

from .. import _cuda_calls
from .._pointers import DTYPES


def forward(values: Tensor, indices: Tensor, offsets: Tensor | None, weight: Tensor) -> Tensor:
    """As reference.sparse_linear."""
    values, indices = values.contiguous(), indices.contiguous()
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    y = weight.new_empty(batch, weight.shape[0])
    _cuda_calls.weighted_sums(
        y, values, weight.t(), offsets=None if offsets is None else offsets.contiguous(),
        per_sum=values.shape[-1] if offsets is None else 0, indices=indices,
    )  # fmt: skip
    return y


def backward(
    grad_y: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    weight: Tensor,
    grad_values: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """As reference.sparse_linear_backward, into the tensors given."""
    grad_y, values, indices = grad_y.contiguous(), values.contiguous(), indices.contiguous()
    samples = _cuda_calls.samples_of(values.numel(), offsets)
    per_row = values.shape[-1] if offsets is None else 1
    if grad_values is not None:
        _cuda_calls.call(
            "entry_dots", weight.device, dtype=DTYPES[weight.dtype], entries=values.numel(), outputs=weight.shape[0],
            grad=grad_y, grad_stride=grad_y.shape[1], indices=indices, samples=samples, per_sample=per_row,
            weight=weight, output_stride=weight.stride(0), neuron_stride=weight.stride(1), out=grad_values,
        )  # fmt: skip
    if grad_weight is not None:
        segments = _cuda_calls.Segments.of(indices, weight.shape[1])
        _cuda_calls.weighted_sums(grad_weight.t(), values, grad_y, segments=segments, samples=samples, per_row=per_row)
