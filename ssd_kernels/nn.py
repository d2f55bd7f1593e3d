"""SparseTopKLinear: nn.Linear, relu and Top-K in one module that never computes what it throws away."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ._library import transforms
from ._types import Activation, Backend, Normalize, Precision, TopK
from ._winners import Winners
from .topk_linear import topk_linear

OUTPUTS = ("dense", "topk")


class SparseTopKLinear(nn.Module):
    """The K largest activations of a linear layer: y = TopK(relu(x W^T + b)), all other neurons 0.

    Parameters, their initialisation and the state_dict are those of torch.nn.Linear(in_features, out_features), so
    weights move between the two in both directions. Forward never holds the R scores of a row, and backward touches
    active neurons only. Ties and NaN are those of `ssd_kernels.topk_linear`, which also documents the options.

    Args:
        in_features: D.
        out_features: R neurons.
        k: winners per row, 1 <= k <= R.
        bias: add a learnable bias (R,).
        output: "dense" gives (..., R) with at most K non-zeros per row; "topk" gives the TopK itself, for
            `ssd_kernels.sparse_linear` and other consumers that should not pay for the zeros.
        activation: "relu", or "none" to select among the raw scores.
        normalize: "none", "input" (x / ||x||) or "both" (and the rows of the weight).
        inhibition: subtract the (K+1)-th largest activation.
        sparse_grad: give the weight a row-sparse gradient, for `ssd_kernels.clip_grad_norm_` and
            `ssd_kernels.SparseSGD`. Not under torch.compile, nor in DistributedDataParallel, which takes sparse
            gradients from nn.Embedding alone.
        precision: as in `topk_linear`.
        backend: "auto", "reference", "cpu", "triton" or "cuda".
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: k or output is not allowed; names the value and what is.

    Examples:
        >>> layer = SparseTopKLinear(16, 1024, k=8)
        >>> int((layer(torch.randn(4, 16)) != 0).sum(-1).max())
        8
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int,
        bias: bool = True,
        *,
        output: Literal["dense", "topk"] = "dense",
        activation: Activation = "relu",
        normalize: Normalize = "none",
        inhibition: bool = False,
        sparse_grad: bool = False,
        precision: Precision = "fp32",
        backend: Backend = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_k(k, out_features)
        if output not in OUTPUTS:
            raise ValueError(f"SparseTopKLinear: output={output!r}: allowed are {', '.join(OUTPUTS)}")
        self.in_features, self.out_features, self.k, self.output = in_features, out_features, k, output
        self.activation, self.normalize, self.inhibition = activation, normalize, inhibition
        self.sparse_grad, self.precision, self.backend = sparse_grad, precision, backend
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.guard: str | None = None  # set by replace_topk: what happens to who reads more than winners
        self.name, self.warned, self.eager = "", False, False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws what torch.nn.Linear draws: the same seed gives the same parameters."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_linear(cls, linear: nn.Linear, k: int, **options: Any) -> SparseTopKLinear:
        """The same layer with Top-K: it shares the Parameters of `linear`, so optimizers keep working.

        Args:
            linear: a plain nn.Linear; one with a forward of its own or with parametrized weights is refused.
            k: winners per row.
            options: keyword arguments of the constructor, as output="topk".

        Raises:
            TypeError: `linear` is no plain nn.Linear.
        """
        if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
            raise TypeError(f"from_linear takes a plain torch.nn.Linear, got {type(linear).__name__}")
        if not isinstance(linear.weight, nn.Parameter):
            raise TypeError("from_linear takes a torch.nn.Linear whose weight is a Parameter, not a parametrization")
        bias = linear.bias is not None
        layer = cls(linear.in_features, linear.out_features, k, bias, device="meta", **options)
        layer.weight = linear.weight
        if bias:
            layer.bias = linear.bias
        return layer.train(linear.training)

    def options(self) -> dict[str, object]:
        """The constructor's keyword options."""
        names = ("output", "activation", "normalize", "inhibition", "sparse_grad", "precision", "backend")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor) -> Tensor | TopK:
        top = self._from_all_scores(x) if self.eager else self._top(x)
        if self.output == "topk":
            return top
        dense = top.values.new_zeros(*top.values.shape[:-1], self.out_features)
        dense = dense.scatter_(-1, top.indices.long(), top.values)
        if self.guard is None or torch.compiler.is_compiling() or transforms() is not None:
            return dense
        return Winners.of(dense, top.values, self)

    def _from_all_scores(self, x: Tensor) -> TopK:
        """The winners as nn.Linear and torch.topk give them: what `replace_topk` compares with."""
        scores = nn.functional.linear(x, self.weight, self.bias)
        values, indices = (torch.relu(scores) if self.activation == "relu" else scores).topk(self.k, dim=-1)
        return TopK(values, indices.int(), values[..., -1])

    def _top(self, x: Tensor) -> TopK:
        return topk_linear(
            x,
            self.weight,
            self.k,
            self.bias,
            activation=self.activation,
            normalize=self.normalize,
            inhibition=self.inhibition,
            sparse_grad=self.sparse_grad,
            precision=self.precision,
            backend=self.backend,
        )

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script asks of a module."""
        raise NotImplementedError(
            "SparseTopKLinear: torch.jit.script compiles no registered operation; allowed are torch.compile and "
            "torch.export"
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, k={self.k}, "
            f"bias={self.bias is not None}, output={self.output!r}"
        )


def check_k(k: int, neurons: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"SparseTopKLinear: k={k!r}: allowed are whole numbers from 1 to R = {neurons}")
    if not 1 <= k <= neurons:
        raise ValueError(f"SparseTopKLinear: k={k}: allowed are whole numbers from 1 to R = {neurons}")
