"""The fused multi-step SDMLP / SSD trainer."""

from .api import SDMLPEngine
from .types import EpochStats, QuadraticPenalty, Teacher

__all__ = ["EpochStats", "QuadraticPenalty", "SDMLPEngine", "Teacher"]
