"""Top-K autoencoders: a model on these operations, and `accelerate`, which makes those of public packages fast."""

from .accelerate import accelerate
from .autoencoder import Output, TopKAutoencoder
from .convert import from_client, to_client

__all__ = ["Output", "TopKAutoencoder", "accelerate", "from_client", "to_client"]
