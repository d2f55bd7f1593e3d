"""Exact, fast Top-K sparse layers for PyTorch.

Importing this package imports torch and nothing heavier, builds nothing, and works without the native modules: what is
missing is said by `python -m ssd_kernels`, and by the operation that needs it.
"""

from ._types import Rows, TopK
from .activation_counts import activation_counts, top_n
from .batch_topk_linear import batch_topk_linear
from .distill import DistillLoss, distill_hidden, distill_loss
from .flops import flop_formulas
from .gaba_linear import gaba_linear
from .nn import SparseTopKLinear
from .normalize import normalize_inputs
from .optim import SparseSGD, clip_grad_norm_
from .replace import replace_topk
from .sdmlp_trainer import EpochStats, NonFiniteStep, QuadraticPenalty, SDMLPEngine, Share, Teacher, neuron_bounds
from .sparse_linear import sparse_linear
from .sparse_update import sparse_update_
from .threshold_linear import threshold_linear
from .topk_linear import topk_linear

__version__ = "0.1.0"

__all__ = [
    "DistillLoss",
    "EpochStats",
    "NonFiniteStep",
    "QuadraticPenalty",
    "Rows",
    "SDMLPEngine",
    "Share",
    "SparseSGD",
    "SparseTopKLinear",
    "Teacher",
    "TopK",
    "activation_counts",
    "batch_topk_linear",
    "clip_grad_norm_",
    "distill_hidden",
    "distill_loss",
    "flop_formulas",
    "gaba_linear",
    "neuron_bounds",
    "normalize_inputs",
    "replace_topk",
    "sparse_linear",
    "sparse_update_",
    "threshold_linear",
    "top_n",
    "topk_linear",
]
