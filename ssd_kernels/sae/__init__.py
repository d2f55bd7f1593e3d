"""Top-K autoencoders: `accelerate` makes models of four public packages fast."""

from .accelerate import accelerate

__all__ = ["accelerate"]
