"""How often each neuron is active, and the most frequent ones."""

from .api import activation_counts, top_n

__all__ = ["activation_counts", "top_n"]
