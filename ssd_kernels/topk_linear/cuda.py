"""Calls the CUDA kernels of topk_linear. Not yet run on a GPU.

Up to 127 winners the forward pass is one fused kernel and a merge; fp64, and more winners, go through a slab of scores
of at most 24 MB (cuBLAS, under torch's own settings for TF32) and threshold_select.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cuda_calls, _native
from .._pointers import DTYPES, adjacent, row_stride

_SLAB = 24 << 20
_MOST_FUSED = 127  # as kMostFusedWinners of ssd/topk_linear_cuda.h
_NORM_FLOOR = 2.0**-50  # as kNormFloor of topk_linear.cuh


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    activation: str,
    normalize: str,
    inhibition: bool,
    scale: Tensor | None = None,
    chosen: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As reference.forward, for one group. The chosen rows of the weight are gathered, a transposed one is copied."""
    if activation == "abs":
        raise ValueError("topk_linear: activation='abs': backend='cuda' takes 'relu' and 'none'")
    if scale is not None and bias is not None and x.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(f"topk_linear: scale with a bias of {x.dtype}: backend='cuda' takes float32 and float64")
    if chosen is not None:
        weight = weight.detach()[chosen]
        bias, scale = (None if t is None else t.detach()[chosen] for t in (bias, scale))
    lead, wide = x.shape[:-1], _cuda_calls.accumulation_dtype(x.dtype)
    rows, weight = adjacent(x.detach().reshape(-1, x.shape[-1])), adjacent(weight.detach())
    outputs = (
        torch.empty(len(rows), k, dtype=x.dtype, device=x.device),
        torch.empty(len(rows), k, dtype=torch.int32, device=x.device),
        torch.empty(len(rows), dtype=x.dtype, device=x.device),
    )
    w_scale = _cuda_calls.norms(weight, inverse=True) if normalize == "both" else None
    if scale is not None:  # s = scale (x . w + b), so the shift is scale b
        factor = scale.detach().to(wide).contiguous()
        w_scale = factor if w_scale is None else w_scale * factor
        bias = None if bias is None else bias.detach() * factor
    arguments = {
        "bias": None if bias is None else bias.detach().contiguous(),
        "x_scale": _cuda_calls.norms(rows, inverse=True) if normalize != "none" else None,
        "weight_scale": w_scale, "relu": activation == "relu", "inhibition": inhibition, "k": k,
    }  # fmt: skip
    if x.dtype != torch.float64 and k <= _MOST_FUSED:
        _fused(rows, weight, outputs, arguments)
    else:
        _from_scores(rows, weight, outputs, arguments)
    values, indices, threshold = outputs
    if chosen is not None:
        indices = chosen[indices.long()].to(torch.int32)
    return values.reshape(*lead, k), indices.reshape(*lead, k), threshold.reshape(lead)


def _fused(x: Tensor, weight: Tensor, outputs: tuple[Tensor, Tensor, Tensor], arguments: dict) -> None:
    (batch, inputs), neurons, k, device = x.shape, len(weight), arguments["k"], x.device
    sizes = _cuda_calls.norms(weight) + _NORM_FLOOR
    if arguments["weight_scale"] is not None:
        sizes = sizes * arguments["weight_scale"].abs()
    index = torch.cuda.current_device() if device.index is None and device.type == "cuda" else device.index or 0
    parts = _native.cuda_module()[0].topk_linear_parts(batch=batch, neurons=neurons, k=k, device=index)
    _cuda_calls.call(
        "topk_linear", device, dtype=DTYPES[x.dtype], batch=batch, inputs=inputs, neurons=neurons, x=x,
        x_stride=row_stride(x), weight=weight, weight_stride=row_stride(weight), x_norms=_cuda_calls.norms(x),
        weight_norm_most=sizes.amax(), parts=parts,
        lists=torch.empty(batch, parts, min(k + 1, neurons), dtype=torch.int64, device=device),
        values=outputs[0], indices=outputs[1], threshold=outputs[2], **arguments,
    )  # fmt: skip


def select(scores: Tensor, outputs: tuple[Tensor, Tensor, Tensor], arguments: dict) -> None:
    """The winners of given scores (B, R), any strides, into values (B, K), indices (B, K) and threshold (B,)."""
    values, indices, threshold = outputs
    _cuda_calls.call(
        "threshold_select", scores.device, score_dtype=DTYPES[scores.dtype], dtype=DTYPES[values.dtype],
        batch=len(scores), neurons=scores.shape[1], scores=scores, row_stride=scores.stride(0),
        column_stride=scores.stride(1), values=values, indices=indices, threshold=threshold, **arguments,
    )  # fmt: skip


def _from_scores(x: Tensor, weight: Tensor, outputs: tuple[Tensor, Tensor, Tensor], arguments: dict) -> None:
    dtype = _cuda_calls.accumulation_dtype(x.dtype)
    addresses, neurons, size = weight.to(dtype).t(), len(weight), torch.finfo(dtype).bits // 8
    step, scale = max(_SLAB // (neurons * size), 1), arguments["x_scale"]
    slab = torch.empty(min(step, len(x)), neurons, dtype=dtype, device=x.device)
    for begin in range(0, len(x), step):
        part = slice(begin, min(begin + step, len(x)))
        scores = torch.mm(x[part].to(dtype), addresses, out=slab[: part.stop - begin])
        own = {**arguments, "x_scale": None if scale is None else scale[part]}
        select(scores, tuple(output[part] for output in outputs), own)  # type: ignore[arg-type]


def backward(
    grad_values: Tensor,
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    indices: Tensor,
    activation: str,
    normalize: str,
    inhibition: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    *,
    as_rows: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients that are needed: of x; the active rows; of the weight, dense or those rows alone; of the bias.

    `as_rows` waits for the GPU once: how many rows are active decides a shape.
    """
    shape, k, (neurons, inputs), dtype = x.shape, values.shape[-1], weight.shape, x.dtype
    x, weight = adjacent(x.reshape(-1, inputs)), adjacent(weight)
    grad, values, indices = (t.reshape(-1, k).contiguous() for t in (grad_values, values, indices))
    wide = _cuda_calls.accumulation_dtype(dtype)
    masked = activation == "relu" or inhibition
    x_scale = _cuda_calls.norms(x, inverse=True) if normalize != "none" else None
    w_scale = _cuda_calls.norms(weight, inverse=True) if normalize == "both" else None
    grad_x = rows = grad_weight = grad_bias = None
    if need_x:
        grad_x = x.new_empty(x.shape, dtype=dtype if x_scale is None else wide)
        _cuda_calls.weighted_sums(
            grad_x, grad, weight, per_sum=k, indices=indices, mask=values if masked else None, scale=w_scale
        )
        if x_scale is not None:
            grad_x = _cuda_calls.through_norm(grad_x, x, x_scale, None)
        grad_x = grad_x.reshape(shape)
    if not (need_weight or need_bias or as_rows):
        return grad_x, rows, grad_weight, grad_bias
    segments = own = _cuda_calls.Segments.of(indices, neurons, values <= 0 if masked else None)
    if as_rows:
        rows, own = segments.rows()
    if need_weight:
        grad_weight = x.new_empty(len(own.starts) - 1, inputs, dtype=dtype if w_scale is None else wide)
        _cuda_calls.weighted_sums(grad_weight, grad, x, segments=own, per_row=k, scale=x_scale)
        if w_scale is not None:
            grad_weight = _cuda_calls.through_norm(grad_weight, weight, w_scale, rows)
    if need_bias:
        grad_bias = x.new_empty(neurons)
        _cuda_calls.weighted_sums(grad_bias[:, None], grad, None, segments=segments, per_row=k)
    return grad_x, rows, grad_weight, grad_bias
