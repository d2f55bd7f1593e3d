"""torch.library registration of batch_topk_linear."""

from __future__ import annotations

from torch import Tensor

from .._library import register
from ..threshold_linear.ops import backward, rows_fake, setup
from . import cpu, reference


def _fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, k: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    match backend:
        case "cpu":
            return cpu.forward(x, weight, bias, scale, k)
        case "triton":
            from . import triton_kernel

            return triton_kernel.forward(x, weight, bias, scale, k)
        case _:
            return reference.forward(x, weight, bias, scale, k)


def _fwd_fake(x, weight, bias, scale, k, backend):
    return rows_fake(x)


register(
    "batch_topk_linear_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, int k, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fwd,
    _fwd_fake,
    setup_context=setup,
    backward=backward,
)
