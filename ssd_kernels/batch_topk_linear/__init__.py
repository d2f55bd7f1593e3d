"""The largest activations of a linear layer over a whole batch."""

from .api import batch_topk_linear

__all__ = ["batch_topk_linear"]
