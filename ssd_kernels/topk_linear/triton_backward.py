"""The gradients of topk_linear in Triton: sums over the pairs of a sample and of a neuron, then through the norms."""

from __future__ import annotations

import torch

from .. import _triton
from .triton_norms import inverse_norms, through_norm


def backward(
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
    *,
    as_rows: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The gradients that are needed: of x; the active rows; of the weight, dense or those rows alone; of the bias.

    `as_rows` waits for the GPU once: how many rows are active decides a shape.
    """
    shape, k, (neurons, inputs), dtype = x.shape, values.shape[-1], weight.shape, x.dtype
    x, weight = _triton.rows_adjacent(x.reshape(-1, inputs)), _triton.rows_adjacent(weight)
    grad, values, indices = (t.reshape(-1, k).contiguous() for t in (grad_values, values, indices))
    masked = activation == "relu" or inhibition
    x_scale = inverse_norms(x) if normalize != "none" else None
    w_scale = inverse_norms(weight) if normalize == "both" else None
    grad_x = grad_bias = grad_weight = rows = place = None
    if need_x:
        grad_x = x.new_empty(x.shape, dtype=dtype if x_scale is None else torch.float32)
        _triton.gather_sum(grad, indices, None, weight, grad_x, mask=values if masked else None, scale=w_scale)
        if x_scale is not None:
            grad_x = through_norm(grad_x, x, x_scale, None)
        grad_x = grad_x.reshape(shape)
    if need_weight or need_bias or as_rows:
        segments = _triton.Segments.of(indices, neurons, values <= 0 if masked else None)
        if as_rows:
            rows, place = segments.rows()
    if need_weight:
        out = (len(rows), inputs) if as_rows else (neurons, inputs)
        grad_weight = torch.zeros(out, dtype=dtype if w_scale is None else torch.float32, device=x.device)
        _triton.segment_sum(segments, grad, None, x, grad_weight, place=place, scale=x_scale)
        if w_scale is not None:
            grad_weight = through_norm(grad_weight, weight, w_scale, rows)
    if need_bias:
        grad_bias = torch.zeros(neurons, dtype=dtype, device=x.device)
        _triton.segment_sum(segments, grad, None, None, grad_bias[:, None])
    return grad_x, rows, grad_weight, grad_bias
