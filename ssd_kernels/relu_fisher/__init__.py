"""The diagonal Fisher information, sample by sample, of an MLP with one ReLU layer. Internal: ssd_train uses it."""

from .api import relu_fisher_, relu_mlp

__all__ = ["relu_fisher_", "relu_mlp"]
