"""The public function batch_topk_linear: validation and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._backend import resolve
from .._types import Backend, Rows
from ..threshold_linear.api import checked
from . import ops  # noqa: F401  registers the operation


def batch_topk_linear(
    x: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    backend: Backend = "auto",
) -> Rows:
    """The B K largest activations a = relu(scale (x W^T + bias)) of a whole batch, without ever holding all B R.

    A sample has as many of them as fall to it, K on average. Activations that are 0 are left out, so there are fewer
    than B K entries where fewer are positive. Among equal activations the lowest sample, then the lowest neuron, wins;
    NaN sorts as largest. They are selected before they are rounded to a 16-bit type; one that rounds to 0 is left out.

    Gradients: each entry passes its own on, to x, weight, bias and scale; nothing else receives any.

    Args:
        x: (..., D) float32, float64, bfloat16 or float16; B is the product of the leading dimensions.
        weight: (R, D), the dtype and device of x. The transpose of a contiguous (D, R) tensor is used as it is on a
            CPU, and its gradient has its layout.
        k: 1 <= k <= R, the winners per sample on average.
        bias: (R,) or None.
        scale: (R,) > 0 or None, differentiable: multiplies the scores.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        `Rows` over the flattened batch; neurons ascend within a sample. The threshold, the same for every sample, is
        the largest activation that is not among the B K, 0 where K = R: at inference `threshold_linear` takes such
        a number. The number of entries depends on the data: one host synchronisation on a GPU.

    Raises:
        ValueError: a shape, dtype, device, k or backend that is not allowed.
        NotImplementedError: under torch.func's derivatives or forward mode.

    Source: BatchTopK (Bussmann et al. 2024, arXiv 2412.06410).

    Examples:
        >>> rows = batch_topk_linear(torch.tensor([[1.0, 3.0], [2.0, 0.5]]), torch.eye(2), 1)
        >>> rows.values.tolist(), rows.indices.tolist(), rows.offsets.tolist(), rows.threshold.tolist()
        ([3.0, 2.0], [1, 0], [0, 1, 2], [1.0, 1.0])
    """
    x, weight, bias, scale = checked("batch_topk_linear", x, weight, bias, scale)
    if not _checks.is_integer(k) or k < 1 or k > weight.shape[0]:
        raise ValueError(f"batch_topk_linear: k must be from 1 to R = {weight.shape[0]}, got {k!r}")
    name = resolve(backend, "batch_topk_linear", x.device)
    flat = x.reshape(-1, x.shape[-1])
    return Rows(*torch.ops.ssd_kernels.batch_topk_linear_fwd(flat, weight, bias, scale, k, name))
