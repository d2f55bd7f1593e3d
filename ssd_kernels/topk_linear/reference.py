"""The specification of topk_linear in plain torch: forward, and the gradient written out."""

from __future__ import annotations

import torch

EPS = 1e-12  # guards the L2 norms, as torch.nn.functional.normalize does


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64; fp32 for fp32 and for 16-bit storage, whose scores are never rounded before the selection."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _norms(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(EPS)


def _operands(x: torch.Tensor, weight: torch.Tensor, normalize: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x as (B, D) and weight (R, D) in the accumulation dtype, normalised where asked."""
    dtype = accumulation_dtype(x.dtype)
    x, weight = x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype)
    if normalize in ("input", "both"):
        x = x / _norms(x)
    if normalize == "both":
        weight = weight / _norms(weight)
    return x, weight


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    activation: str,
    normalize: str,
    inhibition: bool,
    scale: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The K largest activations of act(x W^T + bias) per row, by a stable sort. Differentiable, twice and forwards too.

    Args:
        x: (..., D) float.
        weight: (R, D) float.
        bias: (R,) float or None.
        k: winners per row, 1 <= k <= R.
        activation: "relu", "none", or "abs": the largest |score| win, and values keep their sign.
        normalize: "none", "input" (x / ||x||) or "both" (and w_j / ||w_j||).
        inhibition: subtract the (K+1)-th largest activation I and rectify: h = relu(a - I).
        scale: (R,) float > 0, or None: multiplies x . w_j + bias_j.
        chosen: (n,) int64 ascending, the neurons that take part, or None: all. R is n then, but for indices.
        groups: G equal parts of the neurons, one after another; the K / G largest of each win.

    Returns:
        values (..., K), indices (..., K) int32, threshold I (...,), which is 0 where K = R; by groups, one after
        another, the threshold being the largest activation that does not win.
    """
    lead = x.shape[:-1]
    rows, addresses = _operands(x, weight if chosen is None else weight[chosen], normalize)
    scores = rows @ addresses.T
    if bias is not None:
        scores = scores + (bias if chosen is None else bias[chosen]).to(scores.dtype)
    if scale is not None:
        scores = scores * (scale if chosen is None else scale[chosen]).to(scores.dtype)
    if activation == "relu":
        scores = torch.relu(scores)
    compared = (scores.abs() if activation == "abs" else scores).unflatten(-1, (groups, scores.shape[-1] // groups))
    neurons, each = compared.shape[-1], k // groups
    ordered, indices = torch.sort(compared, dim=-1, descending=True, stable=True)
    first = neurons * torch.arange(groups, device=x.device)[:, None]
    indices = (indices[..., :each] + first).flatten(1)
    threshold = ordered[..., each] if each < neurons else ordered.new_zeros(len(ordered), groups)
    threshold = threshold.amax(-1).detach().clone()
    values = scores.gather(1, indices)
    if chosen is not None:
        indices = chosen[indices]
    if inhibition:
        values = torch.relu(values - threshold[:, None])
    return (
        values.to(x.dtype).reshape(*lead, k),
        indices.to(torch.int32).reshape(*lead, k),
        threshold.to(x.dtype).reshape(lead),
    )


def masked_gradient(grad_values: torch.Tensor, values: torch.Tensor, activation: str, inhibition: bool) -> torch.Tensor:
    """dL/da of the winners, (B, K) in the accumulation dtype: the gradient where h > 0 (or h is NaN), else 0.

    Without an activation and without inhibition every winner receives its gradient.
    """
    dtype, k = accumulation_dtype(values.dtype), values.shape[-1]
    grad = grad_values.reshape(-1, k).to(dtype)
    if activation != "relu" and not inhibition:
        return grad
    return torch.where(values.reshape(-1, k) <= 0, torch.zeros_like(grad), grad)


def active_mask(values: torch.Tensor, activation: str, inhibition: bool) -> torch.Tensor:
    """Which winners receive a gradient: (B, K) bool."""
    values = values.reshape(-1, values.shape[-1])
    return torch.ones_like(values, dtype=torch.bool) if activation != "relu" and not inhibition else ~(values <= 0)


def _through_norm(grad: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The gradient of rows, given that of rows / max(||rows||, eps)."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    guarded = norms.clamp_min(EPS)
    unit = rows / guarded
    along = (unit * grad).sum(-1, keepdim=True)
    return torch.where(norms >= EPS, grad - along * unit, grad) / guarded


def backward(
    grad_values: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    activation: str,
    normalize: str,
    inhibition: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x (..., D), weight (R, D) and bias (R,) for dL/dvalues; I and the indices are held fixed.

    With G (B, R) holding dL/da of the winners: grad_x = G W, grad_W = G^T x, grad_bias = sum over the batch of G.
    """
    rows, addresses = _operands(x, weight, normalize)
    grad = masked_gradient(grad_values, values, activation, inhibition)
    dense = grad.new_zeros(len(rows), len(weight))
    dense.scatter_(1, indices.reshape(-1, indices.shape[-1]).long(), grad)
    grad_x, grad_weight, grad_bias = dense @ addresses, dense.T @ rows, dense.sum(0)
    if normalize in ("input", "both"):
        grad_x = _through_norm(grad_x, x.reshape(rows.shape).to(grad.dtype))
    if normalize == "both":
        grad_weight = _through_norm(grad_weight, weight.to(grad.dtype))
    return grad_x.to(x.dtype).reshape(x.shape), grad_weight.to(weight.dtype), grad_bias.to(x.dtype)


def backward_rows(
    grad_values: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    activation: str,
    normalize: str,
    inhibition: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As backward, with grad_W as its active rows: grad_x, rows (U,) int64 ascending, grad_rows (U, D), grad_bias."""
    grad_x, grad_weight, grad_bias = backward(
        grad_values, x, weight, values, indices, activation, normalize, inhibition
    )
    active = active_mask(values, activation, inhibition)
    rows = torch.unique(indices.reshape(active.shape)[active].long())
    return grad_x, rows, grad_weight[rows], grad_bias
