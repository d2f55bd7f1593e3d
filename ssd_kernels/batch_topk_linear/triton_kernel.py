"""batch_topk_linear in Triton, by the kernels of threshold_linear."""

from ..threshold_linear.triton_kernel import batch_forward as forward

__all__ = ["forward"]
