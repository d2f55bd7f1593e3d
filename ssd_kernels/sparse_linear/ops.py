"""torch.library registration of sparse_linear: schema, fake, derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from .._library import register, register_backward
from . import cpu, reference


def check_indices(indices: Tensor, width: int) -> None:
    """Refuses an index outside the weight where looking costs no synchronisation."""
    if indices.device.type == "cpu" and indices.numel():
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= width:
            raise IndexError(f"indices must be from 0 to R - 1 = {width - 1}, got {low if low < 0 else high}")


def check_offsets(offsets: Tensor | None, count: int) -> None:
    """Refuses offsets that do not cut the entries into samples where looking costs no synchronisation."""
    if offsets is None or offsets.device.type != "cpu":
        return
    if int(offsets[0]) != 0 or int(offsets[-1]) != count or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets must ascend from 0 to nnz = {count}")


def _fwd(values: Tensor, indices: Tensor, offsets: Tensor | None, weight: Tensor, backend: str) -> Tensor:
    if backend == "cpu":
        return cpu.forward(values, indices, offsets, weight)
    check_indices(indices, weight.shape[1])
    check_offsets(offsets, values.numel())
    if backend == "triton":
        from . import triton_kernel

        return triton_kernel.forward(values, indices, offsets, weight)
    if backend == "cuda":
        from . import cuda

        return cuda.forward(values, indices, offsets, weight)
    return reference.sparse_linear(values, indices, offsets, weight)


def _fwd_fake(values, indices, offsets, weight, backend):
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    return weight.new_empty(batch, weight.shape[0])


def _bwd(
    grad_y: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    weight: Tensor,
    need_values: bool,
    need_weight: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend in ("cpu", "triton", "cuda"):
        grad_values = values.new_empty(values.shape if need_values else 0)
        grad_weight = like_weight(weight) if need_weight else weight.new_empty(0)
        wanted = (grad_values if need_values else None, grad_weight if need_weight else None)
        if backend == "cpu":
            cpu.backward(grad_y, values, indices, offsets, weight, *wanted)
        elif backend == "cuda":
            from . import cuda

            cuda.backward(grad_y, values, indices, offsets, weight, *wanted)
        else:
            from . import triton_kernel

            triton_kernel.backward(grad_y, values, indices, offsets, weight, *wanted)
        return grad_values, grad_weight
    grad_values, grad_weight = reference.sparse_linear_backward(grad_y, values, indices, offsets, weight)
    return (
        grad_values.contiguous() if need_values else values.new_empty(0),
        like_weight(weight).copy_(grad_weight) if need_weight else weight.new_empty(0),
    )


def like_weight(weight: Tensor) -> Tensor:
    """An empty (C, R) tensor, with the columns contiguous where those of the weight are, else the rows."""
    if cpu.columns_adjacent(weight):
        return weight.new_empty(weight.shape[1], weight.shape[0]).t()
    return weight.new_empty(weight.shape)


def _bwd_fake(grad_y, values, indices, offsets, weight, need_values, need_weight, backend):
    return (
        values.new_empty(values.shape if need_values else (0,)),
        like_weight(weight) if need_weight else weight.new_empty(0),
    )


def _setup(ctx, inputs, output):
    values, indices, offsets, weight, ctx.backend = inputs
    ctx.save_for_backward(values, indices, offsets, weight)


def _backward(ctx, grad_y):
    values, indices, offsets, weight = ctx.saved_tensors
    need_values, need_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    grad_values, grad_weight = torch.ops.ssd_kernels.sparse_linear_bwd(
        grad_y, values, indices, offsets, weight, need_values, need_weight, ctx.backend
    )
    return grad_values if need_values else None, None, None, grad_weight if need_weight else None, None


# ---- The weight as an (R, C) table with a row-sparse gradient.
def _table_fwd(values: Tensor, indices: Tensor, offsets: Tensor | None, table: Tensor, backend: str) -> Tensor:
    return _fwd(values, indices, offsets, table.t(), backend)


def _table_fwd_fake(values, indices, offsets, table, backend):
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    return table.new_empty(batch, table.shape[1])


def _table_bwd(
    grad_y: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    table: Tensor,
    need_values: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_values, _ = _bwd(grad_y, values, indices, offsets, table.t(), need_values, False, backend)
    size = torch.where(values == 0, 0.0, 1.0).to(values.dtype).flatten()  # entries of 0 add nothing: no row for them
    flat, places = values.flatten(), indices.flatten()
    if offsets is None:
        offsets = torch.arange(values.shape[0] + 1, device=values.device) * values.shape[1]
    if backend == "reference":
        rows = torch.unique(places[size > 0].long())
        _, grad_weight = reference.sparse_linear_backward(grad_y, flat, places, offsets, table.t())
        return grad_values, rows, grad_weight.t()[rows].contiguous()
    # The gradient of a layer's weight from pairs (b, j): rows of grad_y take the place of x, values that of ds.
    _, rows, grad_rows = rows_backward(backend)(flat, size, places, offsets, grad_y, table, False, True, as_rows=True)
    return grad_values, rows, grad_rows


def rows_backward(backend: str):
    """The kernel of a backend that sums over pairs by neuron; it is gaba_linear's."""
    if backend == "cpu":
        from ..gaba_linear.cpu import rows_backward as kernel
    elif backend == "cuda":
        from ..gaba_linear.cuda import rows_backward as kernel
    else:
        from ..gaba_linear.triton_kernel import rows_backward as kernel
    return kernel


def _table_bwd_fake(grad_y, values, indices, offsets, table, need_values, backend):
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        values.new_empty(values.shape if need_values else (0,)),
        table.new_empty(count, dtype=torch.int64),
        table.new_empty(count, table.shape[1]),
    )


def _table_backward(ctx, grad_y):
    values, indices, offsets, table = ctx.saved_tensors
    need_values, need_table = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    if not need_table:
        arguments = (grad_y, values, indices, offsets, table.t(), need_values, False, ctx.backend)
        return torch.ops.ssd_kernels.sparse_linear_bwd(*arguments)[0], None, None, None, None
    grad_values, rows, grad_rows = torch.ops.ssd_kernels.sparse_linear_table_bwd(
        grad_y, values, indices, offsets, table, need_values, ctx.backend
    )
    grad_table = torch.sparse_coo_tensor(rows[None], grad_rows, table.shape, is_coalesced=True, check_invariants=False)
    # AccumulateGrad takes apart a sparse gradient that nobody else holds, and forgets that it is coalesced.
    ctx.grad_table = grad_table
    return grad_values if need_values else None, None, None, grad_table, None


register_backward(
    "sparse_linear_table_bwd(Tensor grad_y, Tensor values, Tensor indices, Tensor? offsets, Tensor table,"
    " bool need_values, str backend) -> (Tensor, Tensor, Tensor)",
    _table_bwd,
    _table_bwd_fake,
)
register(
    "sparse_linear_table_fwd(Tensor values, Tensor indices, Tensor? offsets, Tensor table, str backend) -> Tensor",
    _table_fwd,
    _table_fwd_fake,
    setup_context=_setup,
    backward=_table_backward,
)
register_backward(
    "sparse_linear_bwd(Tensor grad_y, Tensor values, Tensor indices, Tensor? offsets, Tensor weight,"
    " bool need_values, bool need_weight, str backend) -> (Tensor, Tensor)",
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
