"""The public function threshold_linear: validation and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _autocast, _checks
from .._backend import resolve
from .._library import refuse_transforms, transforms
from .._types import Backend, Rows
from . import ops  # noqa: F401  registers the operations


def threshold_linear(
    x: Tensor,
    weight: Tensor,
    threshold: float | Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    backend: Backend = "auto",
) -> Rows:
    """The activations a = relu(scale (x W^T + bias)) above a threshold, without ever holding all R of them.

    A neuron with a_j > threshold_j is active with the value a_j (nothing is subtracted): JumpReLU, and the inference
    form of a Top-K over batches. The threshold is a constant. NaN counts as above every threshold. Activations are
    compared before they are rounded to a 16-bit type; one that rounds to 0 is left out.

    Gradients: each active entry passes its own on, to x, weight, bias and scale; nothing else receives any.

    Args:
        x: (..., D) float32, float64, bfloat16 or float16.
        weight: (R, D), the dtype and device of x. The transpose of a contiguous (D, R) tensor is used as it is on a
            CPU, and its gradient has its layout.
        threshold: a number >= 0, or (R,) floats >= 0 without a gradient, rounded to the accumulation dtype.
        bias: (R,) or None.
        scale: (R,) > 0 or None, differentiable: multiplies the scores.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        `Rows` over the flattened batch; neurons ascend within a sample, its threshold is the least one. The number of
        entries depends on the data: one host synchronisation on a GPU.

    Raises:
        ValueError: a shape, dtype, device, threshold or backend that is not allowed.
        NotImplementedError: under torch.func's derivatives or forward mode.

    Source: JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435), its forward pass.

    Examples:
        >>> rows = threshold_linear(torch.tensor([[1.0, 3.0]]), torch.eye(2), 2.0)
        >>> rows.values.tolist(), rows.indices.tolist(), rows.offsets.tolist()
        ([3.0], [1], [0, 1])
    """
    x, weight, bias, scale = checked("threshold_linear", x, weight, bias, scale)
    threshold = _threshold(threshold, weight)
    name = resolve(backend, "threshold_linear", x.device)
    flat = x.reshape(-1, x.shape[-1])
    return Rows(*torch.ops.ssd_kernels.threshold_linear_fwd(flat, weight, bias, scale, threshold, name))


def _readable(tensor: Tensor) -> bool:
    """Whether looking at its values costs no synchronisation and is possible at all."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and transforms() is None


def checked(
    operation: str, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The operands in the autocast dtype, refused where they do not fit each other."""
    _checks.exportable(operation)
    for argument, tensor in (("x", x), ("weight", weight), ("bias", bias), ("scale", scale)):
        if tensor is not None or argument in ("x", "weight"):
            _checks.dense(f"{operation}: {argument}", tensor)
    x, weight, bias, scale = _autocast.cast(x, weight, bias, scale)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"{operation}: x must be (..., D) with D >= 1, got {tuple(x.shape)}")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or not 1 <= weight.shape[0] < 2**31:
        raise ValueError(f"{operation}: weight must be (R, D) with D = {x.shape[-1]} as x, got {tuple(weight.shape)}")
    for name, tensor, shape in (("weight", weight, weight.shape), ("bias", bias, weight.shape[:1]),
                                ("scale", scale, weight.shape[:1])):  # fmt: skip
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(
                f"{operation}: {name} must be {x.dtype} {tuple(shape)} on {x.device}, as x and R say, got "
                f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
    if scale is not None and _readable(scale) and not bool(((scale.detach() > 0) & scale.detach().isfinite()).all()):
        raise ValueError(f"{operation}: scale must be positive and finite, got entries that are not")
    refuse_transforms(operation, x, weight, bias, scale)
    return x, weight, bias, scale


def _threshold(threshold: float | Tensor, weight: Tensor) -> Tensor:
    """() or (R,) float64."""
    if not isinstance(threshold, Tensor):
        if not _checks.is_real(threshold) or not threshold >= 0:
            raise ValueError(f"threshold_linear: threshold must be a number >= 0 or a tensor (R,), got {threshold!r}")
        return torch.full((), float(threshold), dtype=torch.float64, device=weight.device)
    _checks.dense("threshold_linear: threshold", threshold)
    if tuple(threshold.shape) not in ((), (weight.shape[0],)) or threshold.device != weight.device:
        raise ValueError(
            f"threshold_linear: threshold must be () or (R,) = ({weight.shape[0]},) on {weight.device}, got "
            f"{tuple(threshold.shape)} on {threshold.device}"
        )
    if threshold.requires_grad and torch.is_grad_enabled():
        raise ValueError("threshold_linear: threshold requires a gradient and has none here: give threshold.detach()")
    if _readable(threshold) and not bool((threshold >= 0).all()):
        raise ValueError("threshold_linear: threshold must be >= 0, got entries that are not")
    return threshold.detach().to(torch.float64)
