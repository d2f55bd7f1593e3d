"""SDMLP: the sparse network trained with the cross entropy alone."""

from .base import Method


class SDMLPMethod(Method):
    """What it retains, it retains by its structure."""

    fused = True
    by_neurons = True
