"""Classifiers on the embeddings themselves, from sums over samples: nothing is trained in steps, nothing forgotten.

All three solve for a linear map from the same sums in fp64: per class the count and the sum of its samples, and the
Gram matrix of all. Sums do not depend on the order of tasks, so the result is that of all data at once: what the
embeddings alone give, beside which a network's number is to be read.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TrainConfig, option
from ..errors import need
from .base import Method
from .context import TaskContext

BATCH = 4096


class Head(Method, ABC):
    """Sums over the samples seen; a subclass solves them for a linear map. A class not seen yet never wins."""

    models = ("relu",)
    trains_network = False
    parts = ()
    ignores = frozenset({
        "epochs", "batch_size", "lr", "momentum", "max_grad_norm", "neurons", "layers", "k", "k_start", "k_epochs",
        "topk", "gaba_switch", "engine", "eval_every",
    })  # fmt: skip

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.counts: Tensor | None = None  # (C,)
        self.sums: Tensor | None = None  # (C, D)
        self.gram: Tensor | None = None  # (D, D)

    @torch.no_grad()
    def after_task(self, context: TaskContext) -> None:
        if self.counts is None:
            sizes = (context.classes,), (context.classes, context.dim), (context.dim, context.dim)
            self.counts, self.sums, self.gram = (
                torch.zeros(size, dtype=torch.float64, device=context.device) for size in sizes
            )
        for x, y in zip(context.x.split(BATCH), context.y.split(BATCH)):
            x = x.double()
            self.counts.index_add_(0, y, torch.ones(len(y), dtype=x.dtype, device=x.device))
            self.sums.index_add_(0, y, x)
            self.gram.addmm_(x.T, x)

    @abstractmethod
    def solve(self) -> tuple[Tensor, Tensor]:
        """The map's weights (C, D) and constants (C,), of the classes seen; what it gives the others is not used."""

    @torch.no_grad()
    def predict(self, context: TaskContext, x: Tensor) -> Tensor:
        if self.counts is None:
            return context.predict(x)
        weight, constant = self.solve()
        scores = torch.cat([part.double() @ weight.T + constant for part in x.split(BATCH)])
        return torch.where(self.counts > 0, scores, -torch.inf)

    def means(self) -> Tensor:
        """(C, D) mean of each class; 0 where none was seen."""
        return self.sums / self.counts.clamp_min(1)[:, None]

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.counts is None else {"counts": self.counts, "sums": self.sums, "gram": self.gram}

    def load_tensors(self, tensors: dict[str, Tensor], context: TaskContext) -> None:
        self.counts, self.sums, self.gram = (tensors.get(name) for name in ("counts", "sums", "gram"))


class NCM(Head):
    """Nearest class mean, Euclidean: the largest of 2 m_c x - |m_c|^2."""

    def solve(self) -> tuple[Tensor, Tensor]:
        means = self.means()
        return 2 * means, -means.square().sum(1)

    def estimator(self) -> str:
        return "nearest class mean of the embeddings, Euclidean"


@dataclass
class SLDAOptions:
    """How the covariance is kept invertible."""

    shrinkage: float = option(1e-4, "weight of the identity against the covariance")

    def __post_init__(self) -> None:
        need(0 < self.shrinkage <= 1, "shrinkage", self.shrinkage, "a number above 0, at most 1")


class SLDA(Head):
    """Streaming linear discriminant analysis (Hayes and Kanan 2020), with the exact covariance within classes.

    With m_c the means and P = ((1 - s) Cov + s 1)^-1, the largest of m_c P x - m_c P m_c / 2.
    """

    Options = SLDAOptions

    def solve(self) -> tuple[Tensor, Tensor]:
        means, s = self.means(), self.options.shrinkage
        within = (self.gram - (means * self.counts[:, None]).T @ means) / self.counts.sum()
        identity = torch.eye(len(within), dtype=within.dtype, device=within.device)
        weight = torch.linalg.solve((1 - s) * within + s * identity, means.T).T
        return weight, -0.5 * (weight * means).sum(1)

    def estimator(self) -> str:
        return f"linear discriminant analysis of the embeddings, shrinkage {self.options.shrinkage:g}"


@dataclass
class RidgeOptions:
    """The penalty of the least squares."""

    penalty: float = option(1e-3, "ridge penalty, as a multiple of the mean squared length of a sample per value")

    def __post_init__(self) -> None:
        need(math.isfinite(self.penalty) and self.penalty > 0, "penalty", self.penalty, "a positive number")


class Ridge(Head):
    """Least squares from the embeddings and a constant to one-hot labels, with a penalty on all but the constant."""

    Options = RidgeOptions

    def solve(self) -> tuple[Tensor, Tensor]:
        total, dim = self.sums.sum(0), len(self.gram)
        matrix = torch.empty(dim + 1, dim + 1, dtype=self.gram.dtype, device=self.gram.device)
        matrix[:dim, :dim] = self.gram
        matrix[:dim, :dim].diagonal().add_(self.options.penalty * self.gram.trace() / dim)
        matrix[dim, :dim] = matrix[:dim, dim] = total
        matrix[dim, dim] = self.counts.sum()
        solved = torch.linalg.solve(matrix, torch.cat([self.sums, self.counts[:, None]], 1).T)
        return solved[:dim].T, solved[dim]

    def estimator(self) -> str:
        return f"least squares on the embeddings, ridge penalty {self.options.penalty:g}"
