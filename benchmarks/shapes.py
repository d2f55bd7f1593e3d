"""Problem sizes that the benchmarks share: (B, D, R, K), each with where it comes from."""

from __future__ import annotations

from ssd_kernels.testing import Shape

SDMLP_10K = Shape(128, 256, 10_000, 10)  # the paper's Split CIFAR-10 layer
SDMLP_1K = Shape(128, 256, 1_000, 10)
SDMLP_100K = Shape(128, 256, 100_000, 10)
SAE = Shape(512, 768, 32_768, 32)  # a sparse autoencoder on a small language model
SMOKE = Shape(32, 64, 1_000, 10)
