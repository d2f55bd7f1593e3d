"""The native CPU kernel of batch_topk_linear, which is one with threshold_linear's."""

from ..threshold_linear.cpu import batch_forward as forward

__all__ = ["forward"]
