"""torch.library registration of threshold_linear, and the derivative that it shares with batch_topk_linear."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .._library import register, register_backward
from ..sparse_linear.ops import like_weight, rows_backward
from . import cpu, reference


def kernels(backend: str) -> ModuleType:
    """The module that holds the forward passes of a backend; Triton's is imported by the calls that run it."""
    if backend == "cpu":
        return cpu
    from . import triton_kernel

    return triton_kernel


def _fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, threshold: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    forward = reference.forward if backend == "reference" else kernels(backend).forward
    return forward(x, weight, bias, scale, threshold)


def rows_fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entries in a number that depends on the data."""
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        x.new_empty(count),
        x.new_empty(count, dtype=torch.int32),
        x.new_empty(x.shape[0] + 1, dtype=torch.int64),
        x.new_empty(x.shape[0]),
    )


def _fwd_fake(x, weight, bias, scale, threshold, backend):
    return rows_fake(x)


def _bwd(
    grad_values: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    need_scale: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nothing = x.new_empty(0)
    if backend == "reference":
        grads = reference.backward(grad_values, values, indices, offsets, x, weight, scale)
        needed = (need_x, need_weight, need_bias, need_scale)
        chosen = [grad if need else nothing.clone() for grad, need in zip(grads, needed)]
        chosen[1] = like_weight(weight).copy_(chosen[1]) if need_weight else chosen[1]
        return tuple(chosen)
    wide = reference.accumulation_dtype(x.dtype)
    grad_z, grad_scale = grad_values, nothing.clone()
    neuron_sums = kernels(backend).neuron_sums
    if scale is not None:
        factor = scale[indices.long()].to(wide)
        grad_z = (grad_values.to(wide) * factor).to(x.dtype)
        if need_scale:
            terms = grad_values.to(wide) * values.to(wide) / factor
            grad_scale = neuron_sums(terms, indices, len(weight)).to(x.dtype)
    grad_x, _, grad_weight = rows_backward(backend)(grad_z, values, indices, offsets, x, weight, need_x, need_weight)
    if need_weight and grad_weight.stride() != (like := like_weight(weight)).stride():
        grad_weight = like.copy_(grad_weight)
    grad_bias = neuron_sums(grad_z.to(wide), indices, len(weight)).to(x.dtype) if need_bias else nothing.clone()
    return grad_x, grad_weight, grad_bias, grad_scale


def _bwd_fake(
    grad_values, values, indices, offsets, x, weight, scale, need_x, need_weight, need_bias, need_scale, backend
):
    neurons = weight.shape[0]
    return (
        x.new_empty(x.shape if need_x else (0,)),
        like_weight(weight) if need_weight else weight.new_empty(0),
        x.new_empty((neurons if need_bias else 0,)),
        x.new_empty((neurons if need_scale else 0,)),
    )


def setup(ctx, inputs, output) -> None:
    """Saves what the derivative needs; values alone have one."""
    x, weight, _, scale, _, ctx.backend = inputs
    values, indices, offsets, threshold = output
    ctx.mark_non_differentiable(indices, offsets, threshold)
    ctx.save_for_backward(x, weight, scale, values, indices, offsets)


def backward(ctx, grad_values, *_):
    """The gradients of x, weight, bias and scale."""
    x, weight, scale, values, indices, offsets = ctx.saved_tensors
    needed = ctx.needs_input_grad[:4]
    grads = torch.ops.ssd_kernels.threshold_linear_bwd(
        grad_values, values, indices, offsets, x, weight, scale, *needed, ctx.backend
    )
    return *(grad if need else None for grad, need in zip(grads, needed)), None, None


register_backward(
    "threshold_linear_bwd(Tensor grad_values, Tensor values, Tensor indices, Tensor offsets, Tensor x, Tensor weight,"
    " Tensor? scale, bool need_x, bool need_weight, bool need_bias, bool need_scale, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
register(
    "threshold_linear_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor threshold, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fwd,
    _fwd_fake,
    setup_context=setup,
    backward=backward,
)
