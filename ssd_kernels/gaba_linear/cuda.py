"""gaba_linear over cuBLAS scores and the CUDA kernels for selection and sparse gradients. Not yet run on a GPU.

The dense output is where the scores stand, so nothing else of size (B, R) is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cuda_calls
from .._pointers import adjacent
from ..topk_linear.cuda import select
from . import reference


def dense(x: Tensor, weight: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As reference.gaba_linear."""
    dtype = _cuda_calls.accumulation_dtype(x.dtype)
    h = x.detach().to(dtype) @ weight.detach().to(dtype).t()
    threshold = torch.empty(len(h), dtype=dtype, device=h.device)
    winners = (
        torch.empty(len(h), k, dtype=dtype, device=h.device),
        torch.empty(len(h), k, dtype=torch.int32, device=h.device),
        threshold,
    )
    select(h, winners, {"k": k, "x_scale": None, "weight_scale": None, "bias": None, "relu": True, "inhibition": False})
    h = h.relu_().addr_(threshold, g.to(dtype), alpha=-1).relu_()
    return h.to(x.dtype), threshold.to(x.dtype)


def rows(x: Tensor, weight: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, indices, offsets and threshold. Waits for the GPU once: the number of entries is a shape."""
    h, threshold = dense(x, weight, g, k)
    return (*reference.dense_to_rows(h), threshold)


def rows_backward(
    grad_values: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    x: Tensor,
    weight: Tensor,
    need_x: bool,
    need_weight: bool,
    *,
    as_rows: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_x, the active neurons (empty unless as_rows), and the gradient of the weight: dense, or those rows alone.

    `as_rows` waits for the GPU once: how many rows are active decides a shape.
    """
    grad_values, values, indices, offsets = (t.contiguous() for t in (grad_values, values, indices, offsets))
    x, weight = adjacent(x), adjacent(weight)
    grad_x = x.new_empty(x.shape if need_x else 0)
    if need_x:
        _cuda_calls.weighted_sums(grad_x, grad_values, weight, offsets=offsets, indices=indices, mask=values)
    neurons, grad_weight = torch.empty(0, dtype=torch.int64, device=x.device), weight.new_empty(0)
    if need_weight:
        segments = _cuda_calls.Segments.of(indices, len(weight), values <= 0)
        if as_rows:
            neurons, segments = segments.rows()
        grad_weight = weight.new_empty(len(segments.starts) - 1, weight.shape[1])
        samples = _cuda_calls.samples_of(values.numel(), offsets)
        _cuda_calls.weighted_sums(grad_weight, grad_values, x, segments=segments, samples=samples)
    return grad_x, neurons, grad_weight
