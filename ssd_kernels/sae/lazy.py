"""Tensors that are computed when somebody reads them: scores that feed a Top-K, and codes that feed a decoder.

An eager autoencoder writes `scores.topk(k)` and `decoder(code)`. On these tensors such calls run `topk_linear` and
`sparse_linear`; any other call computes the dense tensor first and goes on as usual. So every program gives what it
gave on dense tensors, and is fast where it needs no more than winners.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import _autocast
from .._types import TopK
from ..sparse_linear import sparse_linear
from ..topk_linear import topk_linear

_SHAPE = frozenset(
    {Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.__len__, Tensor.is_floating_point,
     torch.is_floating_point, Tensor.element_size, Tensor.new_zeros, Tensor.new_empty, Tensor.new_ones, Tensor.new_full,
     Tensor.new_tensor}
    | {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_sparse", "is_cuda")}
)  # fmt: skip


class LazyTensor(Tensor):
    """A tensor that is computed at the first call that needs its entries, and is an ordinary one from then on."""

    _value: Tensor | None

    @staticmethod
    def __new__(cls, *args: Any, shape: torch.Size, like: Tensor, **kwargs: Any) -> LazyTensor:
        lazy = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        lazy._value = None
        return lazy

    def compute(self) -> Tensor:
        raise NotImplementedError

    def handler(self, func: Any) -> Callable[..., Any] | None:
        """The short way of a call, given its own arguments; it returns NotImplemented where it does not apply."""
        return None

    def dense(self) -> Tensor:
        """The whole tensor, with its derivative."""
        if self._value is None:
            self._value = self.compute()
        return self._value

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _SHAPE:
                return func(*args, **kwargs)
            for lazy in (a for a in (*args, *kwargs.values()) if isinstance(a, LazyTensor) and a._value is None):
                short = lazy.handler(func)
                if short is not None and (found := short(*args, **kwargs)) is not NotImplemented:
                    return found
            args, kwargs = _dense(args), _dense(kwargs)
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"ssd_kernels.sae: {func} reads a tensor that is not computed yet: call .clone() on it before"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.dense().__deepcopy__(memo)


def _dense(value: Any) -> Any:
    if isinstance(value, LazyTensor):
        return value.dense()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_dense, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_dense, value))
    if isinstance(value, dict):
        return {key: _dense(entry) for key, entry in value.items()}
    return value


class Scores(LazyTensor):
    """(..., R): act(scale (x W^T + bias)), act relu or none. `topk` in the last dimension is `topk_linear`."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        relu: bool = False,
        shape: torch.Size,
        like: Tensor,
    ) -> None:
        self.operands, self.rectify = (x, weight, bias, scale), relu
        self.grad_mode = torch.is_grad_enabled()
        self.versions = self._state()

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None) -> Scores:
        x, weight, bias, scale = _autocast.cast(x, weight, bias, scale)
        return cls(x, weight, bias, scale=scale, shape=torch.Size((*x.shape[:-1], len(weight))), like=x)

    def _state(self) -> list[Any]:
        return [None if t is None else (t._version, t.data_ptr()) for t in self.operands]

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        if self._state() != self.versions:
            raise RuntimeError(
                "ssd_kernels.sae: pre-activations are read after the weights or inputs that they depend on have "
                "changed: read them before the optimizer's step"
            )
        return self.operands

    def compute(self) -> Tensor:
        x, weight, bias, scale = self._operands()
        with torch.set_grad_enabled(self.grad_mode):
            scores = functional.linear(x, weight, bias)
            scores = scores if scale is None else scores * scale
            return torch.relu(scores) if self.rectify else scores

    def handler(self, func: Any) -> Callable[..., Any] | None:
        return _SCORES.get(func)

    def rectified(self, inplace: bool = False) -> Any:
        if inplace:
            return NotImplemented
        x, weight, bias, scale = self.operands
        return Scores(x, weight, bias, scale=scale, relu=True, shape=self.shape, like=x)

    def largest(
        self, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True, *, rows: Tensor | None = None
    ) -> Any:
        if dim not in (-1, self.dim() - 1) or not largest:
            return NotImplemented
        x, weight, bias, scale = self._operands()
        activation: Any = "relu" if self.rectify else "none"
        with torch.set_grad_enabled(self.grad_mode and torch.is_grad_enabled()):
            top = topk_linear(x, weight, int(k), bias, activation=activation, scale=scale, rows=rows)
        return torch.return_types.topk((top.values, top.indices.long()))

    def empty_code(self, **options: Any) -> Any:
        return NotImplemented if options else Code(None, None, shape=self.shape, like=self.operands[0])


class Chosen(LazyTensor):
    """The scores of some neurons, -inf elsewhere: what the loss that revives dead neurons selects from."""

    def __init__(self, scores: Scores, mask: Tensor, *, shape: torch.Size, like: Tensor) -> None:
        self.scores, self.mask = scores, mask

    @classmethod
    def of(cls, condition: Any, scores: Any, other: Any) -> Any:
        """torch.where(mask, scores, -inf), or NotImplemented."""
        if not isinstance(scores, Scores) or not isinstance(condition, Tensor) or condition.dtype != torch.bool:
            return NotImplemented
        if condition.numel() != scores.shape[-1] or condition.shape[-1] != scores.shape[-1]:
            return NotImplemented
        if isinstance(other, Tensor) or other != float("-inf"):
            return NotImplemented
        return cls(scores, condition.reshape(-1), shape=scores.shape, like=scores.operands[0])

    def compute(self) -> Tensor:
        return torch.where(self.mask, self.scores.dense(), float("-inf"))

    def handler(self, func: Any) -> Callable[..., Any] | None:
        return _CHOSEN.get(func)

    def largest(self, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        rows = self.mask.nonzero().flatten()
        if int(k) > len(rows) or self.scores._value is not None:
            return NotImplemented
        return self.scores.largest(k, dim, largest, sorted, rows=rows)


class Code(LazyTensor):
    """(..., R) with K entries per sample, the rest 0. Products with a matrix are `sparse_linear`."""

    def __init__(self, values: Tensor | None, indices: Tensor | None, *, shape: torch.Size, like: Tensor) -> None:
        self.values_at, self.places = values, indices

    def compute(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        if self.values_at is None or self.places is None:
            return dense
        return dense.scatter(-1, self.places, self.values_at)

    def handler(self, func: Any) -> Callable[..., Any] | None:
        return _CODE.get(func)

    def fill(self, dim: int, index: Tensor, src: Any, **options: Any) -> Any:
        """zeros_like(scores).scatter_(-1, index, src)."""
        if self.values_at is not None or options or dim not in (-1, self.dim() - 1) or not isinstance(src, Tensor):
            return NotImplemented
        if index.shape != src.shape or index.shape[:-1] != self.shape[:-1] or src.dtype != self.dtype:
            return NotImplemented
        self.values_at, self.places = src, index
        return self

    def times_matrix(self, matrix: Any) -> Any:
        return self.linear(matrix.t()) if isinstance(matrix, Tensor) and matrix.dim() == 2 else NotImplemented

    def linear(self, weight: Any, bias: Tensor | None = None) -> Any:
        if self.values_at is None or isinstance(weight, LazyTensor) or self.places is None:
            return NotImplemented
        top = TopK(self.values_at, self.places.to(torch.int32), self.values_at[..., 0].detach())
        y = sparse_linear(top, weight)
        return y if bias is None else y + bias

    def scaled(self, factor: Any) -> Any:
        """code * (R,), as a decoder's inverse norms."""
        if self.values_at is None or self.places is None or not isinstance(factor, Tensor):
            return NotImplemented
        if isinstance(factor, LazyTensor) or factor.dim() != 1 or len(factor) != self.shape[-1]:
            return NotImplemented
        return Code(self.values_at * factor[self.places], self.places, shape=self.shape, like=self.values_at)


def _from_left(method: Callable[..., Any], kind: type[LazyTensor]) -> Callable[..., Any]:
    """The method, where the lazy tensor is the first operand."""
    return lambda *args, **kwargs: method(*args, **kwargs) if args and isinstance(args[0], kind) else NotImplemented


_SCORES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((functional.relu, torch.relu, Tensor.relu), _from_left(Scores.rectified, Scores)),
    **dict.fromkeys((torch.topk, Tensor.topk), _from_left(Scores.largest, Scores)),
    torch.zeros_like: _from_left(Scores.empty_code, Scores),
    torch.where: lambda *args, **kwargs: Chosen.of(*args) if len(args) == 3 and not kwargs else NotImplemented,
}
_CHOSEN = dict.fromkeys((torch.topk, Tensor.topk), _from_left(Chosen.largest, Chosen))
_CODE: dict[Any, Callable[..., Any]] = {
    Tensor.scatter_: _from_left(Code.fill, Code),
    functional.linear: _from_left(Code.linear, Code),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _from_left(Code.times_matrix, Code)),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__), _from_left(Code.scaled, Code)),
}
