"""torch.library registration of sparse_linear: schema, fake, derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from .._library import register, register_backward
from . import reference


def _check_indices(indices: Tensor, width: int) -> None:
    """Refuses an index outside the weight where looking costs no synchronisation."""
    if indices.device.type == "cpu" and indices.numel():
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= width:
            raise IndexError(f"indices must be from 0 to R - 1 = {width - 1}, got {low if low < 0 else high}")


def _fwd(values: Tensor, indices: Tensor, offsets: Tensor | None, weight: Tensor, backend: str) -> Tensor:
    _check_indices(indices, weight.shape[1])
    return reference.sparse_linear(values, indices, offsets, weight)


def _fwd_fake(values, indices, offsets, weight, backend):
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    return weight.new_empty(batch, weight.shape[0])


def _bwd(
    grad_y: Tensor, values: Tensor, indices: Tensor, offsets: Tensor | None, weight: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    grad_values, grad_weight = reference.sparse_linear_backward(grad_y, values, indices, offsets, weight)
    return grad_values.contiguous(), torch.empty_like(weight).copy_(grad_weight)


def _bwd_fake(grad_y, values, indices, offsets, weight, backend):
    return values.new_empty(values.shape), torch.empty_like(weight)


def _setup(ctx, inputs, output):
    values, indices, offsets, weight, ctx.backend = inputs
    ctx.save_for_backward(values, indices, offsets, weight)


def _backward(ctx, grad_y):
    values, indices, offsets, weight = ctx.saved_tensors
    grad_values, grad_weight = torch.ops.ssd_kernels.sparse_linear_bwd(
        grad_y, values, indices, offsets, weight, ctx.backend
    )
    needs = ctx.needs_input_grad
    return grad_values if needs[0] else None, None, None, grad_weight if needs[3] else None, None


register_backward(
    "sparse_linear_bwd(Tensor grad_y, Tensor values, Tensor indices, Tensor? offsets, Tensor weight, str backend)"
    " -> (Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
register(
    "sparse_linear_fwd(Tensor values, Tensor indices, Tensor? offsets, Tensor weight, str backend) -> Tensor",
    _fwd,
    _fwd_fake,
    setup_context=_setup,
    backward=_backward,
)
