"""Exact, fast Top-K sparse layers. (being built)"""

from ._types import Rows, TopK
from .activation_counts import activation_counts, top_n
from .distill import DistillLoss, distill_loss
from .gaba_linear import gaba_linear
from .normalize import normalize_inputs
from .sparse_linear import sparse_linear
from .sparse_update import sparse_update_
from .topk_linear import topk_linear

__all__ = [
    "DistillLoss",
    "Rows",
    "TopK",
    "activation_counts",
    "distill_loss",
    "gaba_linear",
    "normalize_inputs",
    "sparse_linear",
    "sparse_update_",
    "top_n",
    "topk_linear",
]
