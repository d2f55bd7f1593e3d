"""The specification of gaba_linear in plain torch, for any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Masked(torch.autograd.Function):
    """The value h, with dh/ds = 1 where h > 0 (or h is NaN), else 0."""

    @staticmethod
    def forward(ctx, s: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        return torch.where(h <= 0, torch.zeros_like(grad), grad), None


def gaba_linear(x: Tensor, weight: Tensor, g: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """s = x W^T, a = relu(s), I = the (K+1)-th largest of a, h_j = relu(a_j - g_j I). Differentiable.

    Args:
        x: (B, D) float.
        weight: (R, D) float.
        g: (R,) float.
        k: K, with K + 1 <= R.

    Returns:
        h: (B, R) of x's dtype, and I: (B,), detached. The mask of the gradient is h > 0 alone: a neuron that only
        inhibition excites (g < 0, a = 0) receives one too.
    """
    dtype = accumulation_dtype(x.dtype)
    s = x.to(dtype) @ weight.to(dtype).t()
    a = torch.relu(s.detach())
    threshold = torch.topk(a, k + 1).values[:, k].clone()
    h = torch.relu(a - g.to(dtype) * threshold[:, None])
    rounded = h.to(x.dtype)
    return _Masked.apply(s, rounded.to(dtype)).to(x.dtype), threshold.to(x.dtype)


def gaba_linear_backward(grad_h: Tensor, h: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """ds = dh where h > 0 (or h is NaN), else 0; dx = ds W; dW = ds^T x.

    Args:
        grad_h: (B, R) float.
        h: (B, R) float, the output.
        x: (B, D) float.
        weight: (R, D) float.

    Returns:
        dx: (B, D) and dW: (R, D).
    """
    dtype = accumulation_dtype(x.dtype)
    grad_s = torch.where(h <= 0, torch.zeros((), dtype=grad_h.dtype, device=h.device), grad_h).to(dtype)
    return (grad_s @ weight.to(dtype)).to(x.dtype), (grad_s.t() @ x.to(dtype)).to(weight.dtype)


def dense_to_rows(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of h (B, R) that are not <= 0 (NaN stays visible): values, indices int32, offsets int64."""
    active = ~(h <= 0)
    sample, neuron = active.nonzero(as_tuple=True)
    offsets = torch.zeros(h.shape[0] + 1, dtype=torch.int64, device=h.device)
    torch.cumsum(active.sum(1), 0, out=offsets[1:])
    return h[sample, neuron], neuron.to(torch.int32), offsets


def rows_to_dense(values: Tensor, indices: Tensor, offsets: Tensor, width: int) -> Tensor:
    """The dense (B, width) form of sparse rows."""
    batch = offsets.shape[0] - 1
    sample = torch.repeat_interleave(torch.arange(batch, device=offsets.device), offsets.diff())
    dense = torch.zeros(batch, width, dtype=values.dtype, device=values.device)
    return dense.index_put((sample, indices.long()), values)
