"""The fused multi-step SDMLP / SSD trainer."""

from .api import SDMLPEngine
from .types import EpochStats, NonFiniteStep, QuadraticPenalty, Teacher

__all__ = ["EpochStats", "NonFiniteStep", "QuadraticPenalty", "SDMLPEngine", "Teacher"]
