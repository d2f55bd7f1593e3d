"""The dense output of a layer that replaced an nn.Linear, watching that nobody reads what was never computed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Their result is the same tensor as far as winners go: it stays watched.
_KEEP = frozenset(
    {functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, Tensor.clone, torch.clone, Tensor.contiguous,
     Tensor.detach, torch.detach, Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.cpu,
     Tensor.data.__get__}
)  # fmt: skip
# They read no value, or belong to autograd.
_NO_VALUES = frozenset(
    {torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like, torch.randn_like,
     torch.numel, torch.is_tensor, torch.is_floating_point, torch.result_type, Tensor.size, Tensor.dim, Tensor.numel,
     Tensor.stride, Tensor.nelement, Tensor.element_size, Tensor.new_zeros, Tensor.new_empty, Tensor.new_full,
     Tensor.new_ones, Tensor.new_tensor, Tensor.is_floating_point, Tensor.is_contiguous, Tensor.requires_grad_,
     Tensor.retain_grad, Tensor.register_hook, Tensor.backward, Tensor.type, Tensor.get_device, Tensor.__len__,
     Tensor.is_complex, Tensor.is_inference, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage_offset}
)  # fmt: skip
_TOPK = frozenset({torch.topk, Tensor.topk})
# In a model that had no Top-K before, reading all values is the purpose; these operations look for neurons.
_SELECT = frozenset(
    {torch.sort, Tensor.sort, torch.argsort, Tensor.argsort, torch.kthvalue, Tensor.kthvalue, torch.where, Tensor.where,
     torch.gather, Tensor.gather, torch.index_select, Tensor.index_select, torch.masked_select, Tensor.masked_select,
     torch.masked_fill, Tensor.masked_fill, torch.flatten, Tensor.flatten, Tensor.unflatten, torch.gt, torch.ge,
     torch.lt, torch.le, Tensor.gt, Tensor.ge, Tensor.lt, Tensor.le, Tensor.__gt__, Tensor.__ge__, Tensor.__lt__,
     Tensor.__le__, Tensor.__getitem__, torch.quantile, Tensor.quantile}
)  # fmt: skip


class Winners(Tensor):
    """(..., R): the winners of a `replace_topk` layer at their places and 0 elsewhere, and who may read it.

    A model that selects its own Top-K from this tensor gets what it got from all scores, as long as it takes no more
    than K of them and reads nothing else. What reads more, as the loss that revives dead neurons does, is an error
    where `replace_topk` was to check the model, else a warning, once for each layer.
    """

    layer: Any  # the SparseTopKLinear
    k: int
    signed: bool  # some winner is negative, so a zero would be chosen before it

    @classmethod
    def of(cls, dense: Tensor, values: Tensor, layer: Any) -> Winners:
        watched = dense.as_subclass(cls)
        watched.layer, watched.k = layer, values.shape[-1]
        watched.signed = layer.activation != "relu" and bool((values.detach() < 0).any())
        return watched

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        source = next(a for a in (*args, *kwargs.values(), *_inside(args)) if isinstance(a, cls))
        _judge(source, func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if func in _KEEP and isinstance(result, Tensor) and result is not source:
            result = result.as_subclass(cls)
            result.layer, result.k, result.signed = source.layer, source.k, source.signed
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def _inside(args: tuple[Any, ...]) -> list[Any]:
    """The members of lists and tuples among the arguments, as torch.cat has them."""
    return [member for a in args if isinstance(a, list | tuple) for member in a]


def _judge(source: Winners, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    name = getattr(func, "__name__", str(func))
    if func in _KEEP or func in _NO_VALUES:
        return
    if name == "__get__":  # an attribute: shape, dtype, grad_fn
        return
    if func in _TOPK:
        k = int(kwargs["k"] if "k" in kwargs else args[1])
        dim = kwargs["dim"] if "dim" in kwargs else args[2] if len(args) > 2 else -1
        largest = kwargs["largest"] if "largest" in kwargs else args[3] if len(args) > 3 else True
        if k <= source.k and dim in (-1, source.dim() - 1) and largest and not source.signed:
            return
        what = f"torch.topk with k={k}, dim={dim}" + (", and some winners are negative" if source.signed else "")
    elif source.layer.guard == "raise" or func in _SELECT:
        what = f"Tensor.{name}"
    else:
        return
    message = (
        f"replace_topk: the model reads more of layer {source.layer.name!r} than its K = {source.k} winners ({what}): "
        "the other activations were never computed and read as 0. Allowed are relu and torch.topk of at most K in the "
        "last dimension; ssd_kernels.sae.accelerate and topk_linear(..., rows=) are for models that need more"
    )
    if source.layer.guard == "raise":
        raise UnknownActivations(message)
    if not source.layer.warned:
        source.layer.warned = True
        warnings.warn(message, stacklevel=4)


class UnknownActivations(RuntimeError):
    """Something read activations that a Top-K layer does not compute."""
