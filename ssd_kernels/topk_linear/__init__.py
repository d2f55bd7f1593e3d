"""Fused matmul + Top-K + inhibition; see README.md of this folder."""

from .api import topk_linear

__all__ = ["topk_linear"]
