"""Linear layer on sparse activations."""

from .api import sparse_linear

__all__ = ["sparse_linear"]
