"""torch.library registration of gaba_linear: schemas, fakes, derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from .._library import register, register_backward
from . import reference


def _dense_fwd(x: Tensor, weight: Tensor, g: Tensor, k: int, sparse_grad: bool, backend: str) -> tuple[Tensor, Tensor]:
    return reference.gaba_linear(x, weight, g, k)


def _dense_fwd_fake(x, weight, g, k, sparse_grad, backend):
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0])


def _dense_bwd(grad_h: Tensor, h: Tensor, x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return reference.gaba_linear_backward(grad_h, h, x, weight)


def _dense_bwd_fake(grad_h, h, x, weight, backend):
    return torch.empty_like(x, memory_format=torch.contiguous_format), weight.new_empty(weight.shape)


def _rows_fwd(x: Tensor, weight: Tensor, g: Tensor, k: int, sparse_grad: bool, backend: str):
    h, threshold = reference.gaba_linear(x, weight, g, k)
    return (*reference.dense_to_rows(h), threshold)


def _rows_fwd_fake(x, weight, g, k, sparse_grad, backend):
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        x.new_empty(count),
        x.new_empty(count, dtype=torch.int32),
        x.new_empty(x.shape[0] + 1, dtype=torch.int64),
        x.new_empty(x.shape[0]),
    )


def _rows_bwd(
    grad_values: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, x: Tensor, weight: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    grad_h = reference.rows_to_dense(grad_values, indices, offsets, weight.shape[0])
    h = reference.rows_to_dense(values, indices, offsets, weight.shape[0])
    return reference.gaba_linear_backward(grad_h, h, x, weight)


def _rows_bwd_fake(grad_values, values, indices, offsets, x, weight, backend):
    return torch.empty_like(x, memory_format=torch.contiguous_format), weight.new_empty(weight.shape)


def _rows_bwd_sparse(
    grad_values: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, x: Tensor, weight: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight = _rows_bwd(grad_values, values, indices, offsets, x, weight, backend)
    neurons = torch.unique(indices[~(values <= 0)].long())
    return grad_x, neurons, grad_weight[neurons]


def _rows_bwd_sparse_fake(grad_values, values, indices, offsets, x, weight, backend):
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(count, dtype=torch.int64),
        weight.new_empty(count, weight.shape[1]),
    )


def _sparse_weight_gradient(neurons: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """The coalesced (R, D) COO gradient with one sparse dimension, as nn.Embedding's."""
    return torch.sparse_coo_tensor(neurons[None], rows, weight.shape, is_coalesced=True, check_invariants=False)


def _dense_setup(ctx, inputs, output):
    x, weight, _, _, ctx.sparse_grad, ctx.backend = inputs
    h, threshold = output
    ctx.mark_non_differentiable(threshold)
    ctx.save_for_backward(x, weight, h)


def _dense_backward(ctx, grad_h, _):
    x, weight, h = ctx.saved_tensors
    if ctx.sparse_grad and ctx.needs_input_grad[1]:
        values, indices, offsets = reference.dense_to_rows(h)
        grad_values = grad_h[~(h <= 0)]
        grad_x, neurons, rows = torch.ops.ssd_kernels.gaba_linear_rows_sparse_bwd(
            grad_values, values, indices, offsets, x, weight, ctx.backend
        )
        grad_weight = _sparse_weight_gradient(neurons, rows, weight)
    else:
        grad_x, grad_weight = torch.ops.ssd_kernels.gaba_linear_dense_bwd(grad_h, h, x, weight, ctx.backend)
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    return grad_x if needs_x else None, grad_weight if needs_weight else None, None, None, None, None


def _rows_setup(ctx, inputs, output):
    x, weight, _, _, ctx.sparse_grad, ctx.backend = inputs
    values, indices, offsets, threshold = output
    ctx.mark_non_differentiable(indices, offsets, threshold)
    ctx.save_for_backward(x, weight, values, indices, offsets)


def _rows_backward(ctx, grad_values, *_):
    x, weight, values, indices, offsets = ctx.saved_tensors
    arguments = (grad_values, values, indices, offsets, x, weight, ctx.backend)
    if ctx.sparse_grad and ctx.needs_input_grad[1]:
        grad_x, neurons, rows = torch.ops.ssd_kernels.gaba_linear_rows_sparse_bwd(*arguments)
        grad_weight = _sparse_weight_gradient(neurons, rows, weight)
    else:
        grad_x, grad_weight = torch.ops.ssd_kernels.gaba_linear_rows_bwd(*arguments)
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    return grad_x if needs_x else None, grad_weight if needs_weight else None, None, None, None, None


_FORWARD_ARGUMENTS = "(Tensor x, Tensor weight, Tensor g, int k, bool sparse_grad, str backend)"
_ROWS_BWD_ARGUMENTS = (
    "(Tensor grad_values, Tensor values, Tensor indices, Tensor offsets, Tensor x, Tensor weight, str backend)"
)
register_backward(
    "gaba_linear_dense_bwd(Tensor grad_h, Tensor h, Tensor x, Tensor weight, str backend) -> (Tensor, Tensor)",
    _dense_bwd,
    _dense_bwd_fake,
)
register_backward(f"gaba_linear_rows_bwd{_ROWS_BWD_ARGUMENTS} -> (Tensor, Tensor)", _rows_bwd, _rows_bwd_fake)
register_backward(
    f"gaba_linear_rows_sparse_bwd{_ROWS_BWD_ARGUMENTS} -> (Tensor, Tensor, Tensor)",
    _rows_bwd_sparse,
    _rows_bwd_sparse_fake,
)
register(
    f"gaba_linear_dense_fwd{_FORWARD_ARGUMENTS} -> (Tensor, Tensor)",
    _dense_fwd,
    _dense_fwd_fake,
    setup_context=_dense_setup,
    backward=_dense_backward,
)
register(
    f"gaba_linear_rows_fwd{_FORWARD_ARGUMENTS} -> (Tensor, Tensor, Tensor, Tensor)",
    _rows_fwd,
    _rows_fwd_fake,
    setup_context=_rows_setup,
    backward=_rows_backward,
)
