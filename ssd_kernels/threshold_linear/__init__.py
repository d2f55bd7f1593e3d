"""Activations of a linear layer above a threshold."""

from .api import threshold_linear

__all__ = ["threshold_linear"]
