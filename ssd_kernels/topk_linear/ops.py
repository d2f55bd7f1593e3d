"""Registration of topk_linear with torch: schema, fake, autograd. The kernels know nothing of torch.

Autocast is applied by api.py, because its dtype is a setting of the caller and not a constant.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from .._library import register, register_backward
from ..sparse_linear.ops import like_weight
from . import cpu, reference

_FWD = (
    "(Tensor x, Tensor weight, Tensor? bias, int k, str activation, str normalize, bool inhibition, "
    "bool sparse_grad, str backend, Tensor? scale=None, Tensor? chosen=None, int groups=1)"
    " -> (Tensor values, Tensor indices, Tensor threshold)"
)
_BWD_ARGUMENTS = (
    "Tensor grad_values, Tensor x, Tensor weight, Tensor values, Tensor indices, str activation, str normalize, "
    "bool inhibition, bool need_x, bool need_weight, bool need_bias, str backend"
)
_BWD = f"({_BWD_ARGUMENTS}) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)"
_BWD_ROWS = f"({_BWD_ARGUMENTS}) -> (Tensor grad_x, Tensor rows, Tensor grad_rows, Tensor grad_bias)"


def _native_kernels(backend: str) -> ModuleType:
    """The module of a native backend; that of CUDA is imported by the calls that run it."""
    if backend == "cpu":
        return cpu
    from . import cuda

    return cuda


def _fwd(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    activation: str,
    normalize: str,
    inhibition: bool,
    sparse_grad: bool,
    backend: str,
    scale: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    match backend:
        case "reference":
            return reference.forward(x, weight, bias, k, activation, normalize, inhibition, scale, chosen, groups)
        case "cpu":
            forward: Any = cpu.forward
        case "triton":
            from . import triton_kernel

            forward = triton_kernel.forward
        case "cuda":
            from . import cuda

            forward = cuda.forward
        case _:
            raise ValueError(f"topk_linear: backend={backend!r} is not resolved")
    if groups == 1:
        return forward(x, weight, bias, k, activation, normalize, inhibition, scale, chosen)
    found = []
    for first, part in _parts(len(weight), groups):
        own = (None if t is None else t[part] for t in (bias, scale))
        own_bias, own_scale = own
        values, indices, threshold = forward(
            x, weight[part], own_bias, k // groups, activation, normalize, inhibition, own_scale, None
        )
        found.append((values, indices + first, threshold))
    values, indices, thresholds = zip(*found)
    return torch.cat(values, -1), torch.cat(indices, -1), torch.stack(thresholds, -1).amax(-1)


def _parts(neurons: int, groups: int) -> list[tuple[int, slice]]:
    each = neurons // groups
    return [(first, slice(first, first + each)) for first in range(0, neurons, each)]


def _fwd_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    activation: str,
    normalize: str,
    inhibition: bool,
    sparse_grad: bool,
    backend: str,
    scale: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lead = x.shape[:-1]
    return x.new_empty(*lead, k), x.new_empty(*lead, k, dtype=torch.int32), x.new_empty(lead)


def _bwd(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_x, grad_weight, grad_bias = _gradients(*arguments)
    weight, need_weight = arguments[2], arguments[9]
    if need_weight and grad_weight.stride() != (like := like_weight(weight)).stride():
        grad_weight = like.copy_(grad_weight)
    return grad_x, grad_weight, grad_bias


def _gradients(
    grad_values: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    activation: str,
    normalize: str,
    inhibition: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    match backend:
        case "reference":
            grads = reference.backward(grad_values, x, weight, values, indices, activation, normalize, inhibition)
            needed = (need_x, need_weight, need_bias)
            return tuple(grad if need else grad.new_empty(0) for grad, need in zip(grads, needed))
        case "cpu" | "cuda":
            grad_x, _, grad_weight, grad_bias = _native_kernels(backend).backward(
                grad_values, x, weight, values, indices, activation, normalize, inhibition,
                need_x, need_weight, need_bias, as_rows=False,
            )  # fmt: skip
            return tuple(x.new_empty(0) if grad is None else grad for grad in (grad_x, grad_weight, grad_bias))
        case "triton":
            from . import triton_backward

            grad_x, _, grad_weight, grad_bias = triton_backward.backward(
                grad_values, x, weight, values, indices, activation, normalize, inhibition,
                need_x, need_weight, need_bias, as_rows=False,
            )  # fmt: skip
            return tuple(x.new_empty(0) if grad is None else grad for grad in (grad_x, grad_weight, grad_bias))
        case _:
            raise ValueError(f"topk_linear: backend={backend!r} is not resolved")


def _bwd_fake(
    grad_values: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    activation: str,
    normalize: str,
    inhibition: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape if need_x else (0,)),
        like_weight(weight) if need_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[:1] if need_bias else (0,)),
    )


def _bwd_rows(
    grad_values: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    activation: str,
    normalize: str,
    inhibition: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    match backend:
        case "reference":
            grad_x, rows, grad_rows, grad_bias = reference.backward_rows(
                grad_values, x, weight, values, indices, activation, normalize, inhibition
            )
            return (
                grad_x if need_x else grad_x.new_empty(0),
                rows,
                grad_rows,
                grad_bias if need_bias else grad_bias.new_empty(0),
            )
        case "cpu" | "cuda":
            grads = _native_kernels(backend).backward(
                grad_values, x, weight, values, indices, activation, normalize, inhibition,
                need_x, need_weight, need_bias, as_rows=True,
            )  # fmt: skip
            return tuple(x.new_empty(0) if grad is None else grad for grad in grads)
        case "triton":
            from . import triton_backward

            grads = triton_backward.backward(
                grad_values, x, weight, values, indices, activation, normalize, inhibition,
                need_x, need_weight, need_bias, as_rows=True,
            )  # fmt: skip
            return tuple(x.new_empty(0) if grad is None else grad for grad in grads)
        case _:
            raise ValueError(f"topk_linear: backend={backend!r} is not resolved")


def _bwd_rows_fake(*_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    raise RuntimeError(
        "topk_linear: sparse_grad=True: the gradient's shape depends on the data; under torch.compile allowed is False"
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, _, ctx.activation, ctx.normalize, ctx.inhibition, ctx.sparse_grad, ctx.backend, scale = inputs[:10]
    values, indices, threshold = output
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(indices, threshold)
    ctx.save_for_backward(x, weight, values, indices, scale, threshold if scale is not None else None)


def _through_scale(
    ctx: Any,
    grad: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    scale: torch.Tensor,
    threshold: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """For values = scale_j z_j: the gradient of z, (..., K), and that of the scale, (R,) or None."""
    wide = reference.accumulation_dtype(values.dtype)
    factor = scale[indices.long()].to(wide)
    grad_z = (grad.to(wide) * factor).to(grad.dtype)
    if not ctx.needs_input_grad[9]:
        return grad_z, None
    scores = values.to(wide) + threshold.to(wide)[..., None] if ctx.inhibition else values.to(wide)
    terms = grad.to(wide) * scores / factor
    if ctx.activation == "relu" or ctx.inhibition:
        terms = torch.where(values <= 0, torch.zeros_like(terms), terms)
    sums = torch.zeros(scale.shape, dtype=wide, device=scale.device)
    return grad_z, sums.index_add(0, indices.reshape(-1).long(), terms.reshape(-1)).to(scale.dtype)


def _backward(ctx: Any, grad_values: torch.Tensor, _grad_indices: Any, _grad_threshold: Any) -> tuple:
    x, weight, values, indices, scale, threshold = ctx.saved_tensors
    grad_scale = None
    if scale is not None:
        grad_values, grad_scale = _through_scale(ctx, grad_values, values, indices, scale, threshold)
    need_x, need_weight = ctx.needs_input_grad[:2]
    need_bias = ctx.has_bias and ctx.needs_input_grad[2]
    arguments = (
        grad_values, x, weight, values, indices, ctx.activation, ctx.normalize, ctx.inhibition,
        need_x, need_weight, need_bias, ctx.backend,
    )  # fmt: skip
    if ctx.sparse_grad and need_weight:
        grad_x, rows, grad_rows, grad_bias = torch.ops.ssd_kernels.topk_linear_bwd_rows(*arguments)
        grad_weight = torch.sparse_coo_tensor(
            rows[None], grad_rows, weight.shape, is_coalesced=True, check_invariants=False
        )
        # AccumulateGrad takes apart a sparse gradient that nobody else holds, and forgets that it is coalesced.
        ctx.grad_weight = grad_weight
    else:
        grad_x, grad_weight, grad_bias = torch.ops.ssd_kernels.topk_linear_bwd(*arguments)
    return (
        grad_x if need_x else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        *(None,) * 6,
        grad_scale,
        None,
        None,
    )


register_backward(f"topk_linear_bwd{_BWD}", _bwd, _bwd_fake)
register_backward(f"topk_linear_bwd_rows{_BWD_ROWS}", _bwd_rows, _bwd_rows_fake)
register(f"topk_linear_fwd{_FWD}", _fwd, _fwd_fake, setup_context=_setup_context, backward=_backward)
