"""SDMLP layer with GABA inhibition, from all neurons active to K active."""

from .api import gaba_linear

__all__ = ["gaba_linear"]
