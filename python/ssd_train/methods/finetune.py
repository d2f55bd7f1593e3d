"""Finetune: one task after another with the cross entropy alone. The lower bound."""

from .base import Method


class Finetune(Method):
    """Plain training; on the ReLU MLP it shows catastrophic forgetting."""

    models = ("relu", "sdmlp")
    fused = True
    by_neurons = True
