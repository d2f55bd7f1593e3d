"""torch.library registration of gaba_linear: schemas, fakes, derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from .._library import register, register_backward
from . import cpu, reference


def _triton_kernel():
    """Imported by the calls that run it: importing the package imports no triton."""
    from . import triton_kernel

    return triton_kernel


def _cuda():
    """Imported by the calls that run it, too."""
    from . import cuda

    return cuda


def _rows_kernels(backend: str):
    """The module that holds rows_backward of a backend."""
    match backend:
        case "cpu":
            return cpu
        case "cuda":
            return _cuda()
        case _:
            return _triton_kernel()


def _dense_fwd(x: Tensor, weight: Tensor, g: Tensor, k: int, sparse_grad: bool, backend: str) -> tuple[Tensor, Tensor]:
    match backend:
        case "cpu":
            return cpu.dense(x, weight, g, k)
        case "triton":
            return _triton_kernel().dense(x, weight, g, k)
        case "cuda":
            return _cuda().dense(x, weight, g, k)
        case _:
            return reference.gaba_linear(x, weight, g, k)


def _dense_fwd_fake(x, weight, g, k, sparse_grad, backend):
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0])


def _dense_bwd(
    grad_h: Tensor, h: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, backend: str
) -> tuple[Tensor, Tensor]:
    if backend == "cpu":
        return cpu.dense_backward(grad_h, h, x, weight, need_x, need_weight)
    if backend == "triton":
        return _triton_kernel().dense_backward(grad_h, h, x, weight, need_x, need_weight)
    return _needed(reference.gaba_linear_backward(grad_h, h, x, weight), need_x, need_weight)


def _needed(grads: tuple[Tensor, Tensor], need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    """The gradients that are asked for, empty ones in the place of the others."""
    return tuple(grad if need else grad.new_empty(0) for grad, need in zip(grads, (need_x, need_weight)))


def _bwd_fake(x, weight, need_x, need_weight):
    return x.new_empty(x.shape if need_x else (0,)), weight.new_empty(weight.shape if need_weight else (0,))


def _dense_bwd_fake(grad_h, h, x, weight, need_x, need_weight, backend):
    return _bwd_fake(x, weight, need_x, need_weight)


def _rows_fwd(
    x: Tensor, weight: Tensor, g: Tensor, k: int, sparse_grad: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend == "cpu":
        return cpu.rows(x, weight, g, k)
    if backend == "triton":
        return _triton_kernel().rows(x, weight, g, k)
    if backend == "cuda":
        return _cuda().rows(x, weight, g, k)
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
    grad_values: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    x: Tensor,
    weight: Tensor,
    need_x: bool,
    need_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend in ("cpu", "triton", "cuda"):
        kernels = _rows_kernels(backend)
        grad_x, _, grad_weight = kernels.rows_backward(
            grad_values, values, indices, offsets, x, weight, need_x, need_weight
        )
        return grad_x, grad_weight
    grad_h = reference.rows_to_dense(grad_values, indices, offsets, weight.shape[0])
    h = reference.rows_to_dense(values, indices, offsets, weight.shape[0])
    return _needed(reference.gaba_linear_backward(grad_h, h, x, weight), need_x, need_weight)


def _rows_bwd_fake(grad_values, values, indices, offsets, x, weight, need_x, need_weight, backend):
    return _bwd_fake(x, weight, need_x, need_weight)


def _rows_sparse_bwd(
    grad_values: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    x: Tensor,
    weight: Tensor,
    need_x: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if backend in ("cpu", "triton", "cuda"):
        kernels = _rows_kernels(backend)
        return kernels.rows_backward(grad_values, values, indices, offsets, x, weight, need_x, True, as_rows=True)
    grad_x, grad_weight = _rows_bwd(grad_values, values, indices, offsets, x, weight, need_x, True, backend)
    neurons = torch.unique(indices[~(values <= 0)].long())
    return grad_x, neurons, grad_weight[neurons]


def _rows_sparse_bwd_fake(grad_values, values, indices, offsets, x, weight, need_x, backend):
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(count, dtype=torch.int64),
        weight.new_empty(count, weight.shape[1]),
    )


def _dense_setup(ctx, inputs, output):
    x, weight, _, _, ctx.sparse_grad, ctx.backend = inputs
    h, threshold = output
    ctx.mark_non_differentiable(threshold)
    ctx.save_for_backward(x, weight, h)


def _dense_backward(ctx, grad_h, _):
    x, weight, h = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad[:2]
    if ctx.sparse_grad and need_weight:
        values, indices, offsets = reference.dense_to_rows(h)
        return _sparse_gradients(ctx, grad_h[~(h <= 0)], values, indices, offsets, x, weight)
    grad_x, grad_weight = torch.ops.ssd_kernels.gaba_linear_dense_bwd(
        grad_h, h, x, weight, need_x, need_weight, ctx.backend
    )
    return grad_x if need_x else None, grad_weight if need_weight else None, None, None, None, None


def _rows_setup(ctx, inputs, output):
    x, weight, _, _, ctx.sparse_grad, ctx.backend = inputs
    values, indices, offsets, threshold = output
    ctx.mark_non_differentiable(indices, offsets, threshold)
    ctx.save_for_backward(x, weight, values, indices, offsets)


def _rows_backward(ctx, grad_values, *_):
    x, weight, values, indices, offsets = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad[:2]
    if ctx.sparse_grad and need_weight:
        return _sparse_gradients(ctx, grad_values, values, indices, offsets, x, weight)
    grad_x, grad_weight = torch.ops.ssd_kernels.gaba_linear_rows_bwd(
        grad_values, values, indices, offsets, x, weight, need_x, need_weight, ctx.backend
    )
    return grad_x if need_x else None, grad_weight if need_weight else None, None, None, None, None


def _sparse_gradients(ctx, grad_values, values, indices, offsets, x, weight):
    """The weight's gradient as a coalesced (R, D) COO tensor with one sparse dimension, as nn.Embedding's."""
    need_x = ctx.needs_input_grad[0]
    grad_x, neurons, rows = torch.ops.ssd_kernels.gaba_linear_rows_sparse_bwd(
        grad_values, values, indices, offsets, x, weight, need_x, ctx.backend
    )
    grad_weight = torch.sparse_coo_tensor(neurons[None], rows, weight.shape, is_coalesced=True, check_invariants=False)
    return grad_x if need_x else None, grad_weight, None, None, None, None


_FWD = "(Tensor x, Tensor weight, Tensor g, int k, bool sparse_grad, str backend)"
_ROWS = "Tensor grad_values, Tensor values, Tensor indices, Tensor offsets, Tensor x, Tensor weight, bool need_x"
register_backward(
    "gaba_linear_dense_bwd(Tensor grad_h, Tensor h, Tensor x, Tensor weight, bool need_x, bool need_weight,"
    " str backend) -> (Tensor, Tensor)",
    _dense_bwd,
    _dense_bwd_fake,
)
register_backward(
    f"gaba_linear_rows_bwd({_ROWS}, bool need_weight, str backend) -> (Tensor, Tensor)", _rows_bwd, _rows_bwd_fake
)
register_backward(
    f"gaba_linear_rows_sparse_bwd({_ROWS}, str backend) -> (Tensor, Tensor, Tensor)",
    _rows_sparse_bwd,
    _rows_sparse_bwd_fake,
)
register(
    f"gaba_linear_dense_fwd{_FWD} -> (Tensor, Tensor)",
    _dense_fwd,
    _dense_fwd_fake,
    setup_context=_dense_setup,
    backward=_dense_backward,
)
register(
    f"gaba_linear_rows_fwd{_FWD} -> (Tensor, Tensor, Tensor, Tensor)",
    _rows_fwd,
    _rows_fwd_fake,
    setup_context=_rows_setup,
    backward=_rows_backward,
)
