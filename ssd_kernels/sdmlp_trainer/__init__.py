"""The fused multi-step SDMLP / SSD trainer."""

from .api import SDMLPEngine
from .types import EpochStats, NonFiniteStep, QuadraticPenalty, Share, Teacher, neuron_bounds

__all__ = ["EpochStats", "NonFiniteStep", "QuadraticPenalty", "SDMLPEngine", "Share", "Teacher", "neuron_bounds"]
