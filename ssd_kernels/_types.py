"""The one representation of sparse activations, shared by every operation."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

# The values of the public options, for type checkers; every function checks them at run time too.
Backend = Literal["auto", "reference", "cpu", "triton", "cuda"]
Activation = Literal["relu", "none", "abs"]
Normalize = Literal["none", "input", "both"]
Precision = Literal["fp32"]
Divergence = Literal["forward", "reverse"]
Scan = Literal["auto", "exhaustive"]


class TopK(NamedTuple):
    """The K winners of each sample: a fixed number per sample.

    Attributes:
        values: (..., K) float, the activations, largest first; slots without a positive score hold 0.
        indices: (..., K) int32, the neurons; among equal scores the lowest index comes first.
        threshold: (...,) float, the (K+1)-th largest activation of each sample, detached (0 where K equals R).
    """

    values: Tensor
    indices: Tensor
    threshold: Tensor


class Rows(NamedTuple):
    """The active neurons of each sample: a variable number per sample, stored one after another.

    Sample b owns the entries offsets[b] to offsets[b + 1] - 1, in ascending order of neurons.

    Attributes:
        values: (nnz,) float, the activations, all positive.
        indices: (nnz,) int32, the neurons.
        offsets: (B + 1,) int64, where each sample begins; offsets[0] is 0 and offsets[B] is nnz.
        threshold: (B,) float, the (K+1)-th largest activation of each sample, detached.
    """

    values: Tensor
    indices: Tensor
    offsets: Tensor
    threshold: Tensor
