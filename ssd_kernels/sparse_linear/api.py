"""The public function sparse_linear: validation and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _autocast, _checks
from .._backend import resolve
from .._library import derivative_of_transform, refuse_transforms
from .._types import Backend, Rows, TopK
from . import ops as ops  # registers the operations
from . import reference


def sparse_linear(
    activations: TopK | Rows | torch.return_types.topk,
    weight: Tensor,
    *,
    sparse_grad: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Linear layer on sparse activations: y_b = sum over the entries of sample b of value * weight[:, index].

    The cost is that of the entries, not of R. A weight that is the transpose of a contiguous (R, C) tensor is read
    fastest; the gradient has the layout of the weight.

    Args:
        activations: TopK with values (..., K), or Rows over B samples; or what torch.topk gives in the last dimension.
            No neuron twice in a sample.
        weight: (C, R) float, the dtype of the values.
        sparse_grad: for a weight that is the transpose (.t(), .T, .mT) of an (R, C) tensor, as sparse autoencoders
            store their decoder: that tensor's gradient is coalesced COO with one sparse dimension, the rows of
            neurons with an entry that is not 0, as torch.nn.Embedding's. Not under torch.compile nor in DDP.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        (..., C) float for TopK, (B, C) for Rows. Differentiable by values and weight; the derivatives of torch.func and
        forward mode run the specification in plain torch.

    Raises:
        ValueError: a shape, dtype, device or backend that is not allowed; sparse_grad where it cannot work.
        IndexError: an index outside [0, R) (checked on CPUs).

    Examples:
        >>> activations = TopK(torch.tensor([[2.0]]), torch.tensor([[1]], dtype=torch.int32), torch.zeros(1))
        >>> sparse_linear(activations, torch.tensor([[1.0, 10.0, 100.0]]))
        tensor([[20.]])
    """
    if isinstance(activations, torch.return_types.topk):
        found, places = activations
        activations = TopK(found, places.to(torch.int32), found[..., 0].detach())
    if not isinstance(activations, TopK | Rows):
        raise ValueError(f"activations must be TopK, Rows or torch.topk's result, got {type(activations).__name__}")
    _checks.exportable("sparse_linear")
    _checks.dense("values", activations.values)
    _checks.dense("weight", weight)
    if sparse_grad and weight.requires_grad and torch.is_grad_enabled():
        return _with_sparse_gradient(activations, weight, backend)
    values, weight = _autocast.cast(activations.values, weight)
    activations = activations._replace(values=values)
    indices = activations.indices
    _check(activations, weight)
    name = resolve(backend, "sparse_linear", weight.device)
    if derivative_of_transform(values, weight):
        return _in_plain_torch(activations, weight)
    if isinstance(activations, Rows):
        return torch.ops.ssd_kernels.sparse_linear_fwd(values, indices, activations.offsets, weight, name)
    k = values.shape[-1]
    y = torch.ops.ssd_kernels.sparse_linear_fwd(values.reshape(-1, k), indices.reshape(-1, k), None, weight, name)
    return y.reshape(*values.shape[:-1], weight.shape[0])


def _with_sparse_gradient(activations: TopK | Rows, weight: Tensor, backend: Backend) -> Tensor:
    """The same on the (R, C) tensor that the weight is the transpose of: a sparse gradient has no transpose."""
    if torch.compiler.is_compiling():
        raise ValueError("sparse_linear: sparse_grad=True cannot be compiled: allowed is False")
    _checks.sparse_gradient("sparse_linear")
    refuse_transforms("sparse_linear with sparse_grad=True", activations.values, weight)
    table = weight._base
    if (
        weight.dim() != 2
        or table is None
        or table.shape != weight.shape[::-1]
        or table.stride() != weight.stride()[::-1]
    ):
        raise ValueError(
            "sparse_linear: sparse_grad=True: weight must be the transpose (.t(), .T, .mT) of an (R, C) tensor, whose "
            "rows the gradient holds"
        )
    values, table = _autocast.cast(activations.values, table)
    activations = activations._replace(values=values)
    _check(activations, table.t())
    name = resolve(backend, "sparse_linear", table.device)
    indices, fixed = activations.indices, isinstance(activations, TopK)
    lead, k = values.shape[:-1], values.shape[-1] if fixed else 0
    if fixed:
        values, indices = values.reshape(-1, k), indices.reshape(-1, k)
    offsets = None if isinstance(activations, TopK) else activations.offsets
    y = torch.ops.ssd_kernels.sparse_linear_table_fwd(values, indices, offsets, table, name)
    return y.reshape(*lead, table.shape[1]) if fixed else y


def _in_plain_torch(activations: TopK | Rows, weight: Tensor) -> Tensor:
    """The specification, for transforms that differentiate what they can trace."""
    values, indices = activations.values, activations.indices
    if isinstance(activations, Rows):
        return reference.sparse_linear(values, indices, activations.offsets, weight)
    k = values.shape[-1]
    y = reference.sparse_linear(values.reshape(-1, k), indices.reshape(-1, k), None, weight)
    return y.reshape(*values.shape[:-1], weight.shape[0])


def _check(activations: TopK | Rows, weight: Tensor) -> None:
    if weight.dim() != 2:
        raise ValueError(f"weight must be floating point (C, R), got {weight.dtype} {tuple(weight.shape)}")
    if activations.values.dtype != weight.dtype:
        raise ValueError(f"values must have the dtype of weight, {weight.dtype}, got {activations.values.dtype}")
    _checks.sparse("activations", activations, device=weight.device)
