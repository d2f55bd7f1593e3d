"""Exact, fast Top-K sparse layers. (being built)"""

from ._types import Rows, TopK
from .topk_linear import topk_linear

__all__ = ["Rows", "TopK", "topk_linear"]
