"""What the engine refuses, once per call, before anything changes: settings, model, samples, what is attached, state.

The price is one pass over what is new: samples, teachers and penalties that were looked at and have not changed since
(by torch's version counters) are not looked at again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._types import Rows
from .types import QuadraticPenalty, Settings, Share, Teacher

MOST_THREADS = 1024
MOST_PROCESSES = 255
_TINY = torch.finfo(torch.float32).tiny
_LARGEST = torch.finfo(torch.float32).max
_LONGEST_STEP = 1e38  # of both layers together: beyond it a weight may leave float32
NORM_TOLERANCE = 1e-3  # of the rows of weight
SAMPLE_TOLERANCE = 1e-4


def settings(s: Settings, neurons: int, scan: str, threads: int | None, cache_mb: int) -> None:
    """Refuses settings out of range, in the precision that the kernels hold them in."""
    real, whole, fp32 = _checks.finite, _checks.is_integer, _checks.as_float32
    number = _checks.is_real
    rules = (
        ("k", s.k, whole(s.k) and 1 <= s.k < neurons, f"1 to R - 1 = {neurons - 1}"),
        ("gaba_switch", s.gaba_switch, s.gaba_switch is None or (number(s.gaba_switch) and s.gaba_switch > 0),
         "None or a positive number"),
        ("lr", s.lr, real(s.lr) and 0 < fp32(s.lr) <= _LARGEST, "a positive number of float32"),
        ("momentum", s.momentum, real(s.momentum) and (s.momentum == 0 or _TINY <= fp32(s.momentum) < 1),
         "0 <= momentum < 1 in float32"),
        ("max_grad_norm", s.max_grad_norm, number(s.max_grad_norm) and fp32(s.max_grad_norm) > 0,
         "a positive number of float32"),
        ("alpha", s.alpha, number(s.alpha) and 0 <= s.alpha <= 1, "0 to 1"),
        ("lam", s.lam, number(s.lam) and 0 <= s.lam <= 1, "0 to 1"),
        ("temperature", s.temperature, real(s.temperature) and s.temperature > 0, "a positive number"),
        ("kl", s.kl, s.kl in ("forward", "reverse"), "'forward' or 'reverse'"),
        ("scan", scan, scan in ("auto", "exhaustive"), "'auto' or 'exhaustive'"),
        ("threads", threads, threads is None or (whole(threads) and 1 <= threads <= MOST_THREADS),
         f"None or 1 to {MOST_THREADS}"),
        ("cache_mb", cache_mb, whole(cache_mb) and 0 <= cache_mb < 2**40, "0 or more"),
    )  # fmt: skip
    for name, value, good, allowed in rules:
        if not good:
            raise ValueError(f"{name}={value!r}: allowed is {allowed}")
    if _checks.finite(s.max_grad_norm) and s.lr * s.max_grad_norm > _LONGEST_STEP * (1 - s.momentum):
        raise ValueError(
            f"lr={s.lr!r} with max_grad_norm={s.max_grad_norm!r} and momentum={s.momentum!r}: a step could be longer "
            f"than {_LONGEST_STEP:g}, beyond float32"
        )


def share(share: Share, backend: str, neurons: int) -> None:
    """Refuses a part in a training by several processes that does not fit the model; neurons: R of the weights."""
    if backend != "cpu":
        raise ValueError(f"backend={backend!r}: several processes train one model with backend='cpu' only")
    if not 0 <= share.rank < share.size <= MOST_PROCESSES:
        raise ValueError(f"share has rank {share.rank} of {share.size}: allowed are 1 to {MOST_PROCESSES} processes")
    bounds = share.bounds
    own = bounds[share.rank + 1] - bounds[share.rank] if share.by == "neurons" else share.neurons
    if own != neurons:
        place = f"rank {share.rank} of {share.size}"
        raise ValueError(f"{place} has {own} of {share.neurons} neurons, weight has {neurons}")


def model(weight: Tensor, output_weight: Tensor, counts: Tensor, any_float: bool) -> None:
    """Refuses tensors that are no projected model: weight (R, D), output_weight (C, R), counts (R,)."""
    shapes = f"{tuple(weight.shape)} and {tuple(output_weight.shape)}"
    if weight.dim() != 2 or output_weight.dim() != 2 or output_weight.shape[1] != weight.shape[0]:
        raise ValueError(f"weight must be (R, D) and output_weight (C, R), got {shapes}")
    if weight.shape[1] < 1 or output_weight.shape[0] < 1 or weight.shape[0] >= 2**31:
        raise ValueError(f"weight must be (R, D) and output_weight (C, R) with D, C >= 1 and R < 2^31, got {shapes}")
    if counts.shape != (weight.shape[0],) or counts.dtype != torch.int64:
        raise ValueError(f"counts must be ({weight.shape[0]},) int64, got {tuple(counts.shape)} {counts.dtype}")
    if not any_float:
        for name, tensor in (("weight", weight), ("output_weight", output_weight)):
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} must be float32, got {tensor.dtype}")
    for name, tensor in (("weight", weight), ("output_weight", output_weight), ("counts", counts)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
        on_device(name, tensor, weight.device)
    numbers(weight, output_weight, counts)


@torch.no_grad()
def numbers(weight: Tensor, output_weight: Tensor, counts: Tensor) -> None:
    """Refuses weights that the projection would change, numbers that are not finite, and negative counts."""
    for name, tensor in (("weight", weight), ("output_weight", output_weight)):
        if not tensor.min() >= 0:  # NaN is the least of all
            raise ValueError(f"{name} must not be negative or NaN: apply the projection first")
    if not torch.isfinite(output_weight).all():
        raise ValueError("output_weight must be finite")
    norm = torch.linalg.vector_norm(weight, dim=1)
    if not ((norm - 1).abs() <= NORM_TOLERANCE).logical_or(norm == 0).all():
        raise ValueError("the rows of weight must have norm 1 (or 0): apply the projection first")
    if not (counts >= 0).all():
        raise ValueError(f"counts must be 0 or more, got {int(counts.min())}")


def on_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Refuses a tensor that is elsewhere than the weights."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, as weight is, got {tensor.device}")


class Checker:
    """The checks of a call's arguments against one model; remembers what it has seen."""

    def __init__(self, weight: Tensor, output_weight: Tensor, neurons: int) -> None:
        self.weight, self.output_weight, self.neurons = weight, output_weight, neurons
        # By kind: the tensors last found good, kept alive so that their identity means something, and their versions.
        self._seen: dict[str, tuple[tuple[Tensor, ...], tuple[int, ...]]] = {}

    def _is_new(self, kind: str, *tensors: Tensor) -> bool:
        seen, versions = self._seen.get(kind, ((), ()))
        same = len(seen) == len(tensors) and all(a is b for a, b in zip(seen, tensors))
        return not same or versions != tuple(tensor._version for tensor in tensors)

    def _remember(self, kind: str, *tensors: Tensor) -> None:
        self._seen[kind] = tensors, tuple(tensor._version for tensor in tensors)

    def _on_device(self, name: str, tensor: Tensor) -> None:
        on_device(name, tensor, self.weight.device)

    def samples(self, x: Tensor) -> None:
        """x (N, D): the weights' dtype and device, not negative, rows of norm 1 or 0."""
        _checks.dense("x", x)
        self._on_device("x", x)
        if x.dim() != 2 or x.shape[1] != self.weight.shape[1]:
            raise ValueError(f"x must be (N, {self.weight.shape[1]}), got {tuple(x.shape)}")
        if x.dtype != self.weight.dtype or not x.is_contiguous():
            raise ValueError(f"x must be contiguous {self.weight.dtype}, got {x.dtype}")
        if self._is_new("x", x):
            norm = torch.linalg.vector_norm(x, dim=1)
            if not ((x >= 0).all() and ((norm - 1).abs() <= SAMPLE_TOLERANCE).logical_or(norm == 0).all()):
                raise ValueError("x must be finite, not negative and of unit norm per row: use normalize_inputs")
            self._remember("x", x)

    def epoch(self, x: Tensor, y: Tensor, order: Tensor, batch_size: int) -> None:
        """y (N,) labels and order (count,) samples, both int64 and in range."""
        classes = self.output_weight.shape[0]
        _checks.integers("y", y, torch.int64, f"({x.shape[0]},)")
        _checks.integers("order", order, torch.int64, "(count,)")
        if y.shape != (x.shape[0],) or y.dtype != torch.int64 or not y.is_contiguous():
            raise ValueError(f"y must be contiguous ({x.shape[0]},) int64, got {tuple(y.shape)} {y.dtype}")
        self._on_device("y", y)
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < classes):
            raise ValueError(f"y must be in [0, {classes}), got {int(y.min())} to {int(y.max())}")
        if order.dim() != 1 or order.dtype != torch.int64 or not order.is_contiguous():
            raise ValueError(f"order must be contiguous (count,) int64, got {tuple(order.shape)} {order.dtype}")
        self._on_device("order", order)
        if len(order) and not (int(order.min()) >= 0 and int(order.max()) < len(x)):
            raise ValueError(f"order must be in [0, {len(x)}), got {int(order.min())} to {int(order.max())}")
        if not _checks.is_integer(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: allowed is 1 or more")

    def teacher(self, teacher: Teacher, samples: int) -> None:
        """A Teacher of these N samples: logits (N, C); units ascending; rows of their activations, ascending."""
        _checks.integers("teacher.units", teacher.units, torch.int64, "(n,)")
        parts = (teacher.logits, teacher.units, teacher.values, teacher.indices, teacher.offsets)
        _checks.dense("teacher.logits", teacher.logits)
        classes, neurons = self.output_weight.shape[0], self.neurons
        if len(teacher.logits) != samples:
            raise ValueError(f"teacher was made for {len(teacher.logits)} samples, x has {samples}")
        if teacher.logits.shape != (samples, classes):
            raise ValueError(f"teacher.logits must be ({samples}, {classes}), got {tuple(teacher.logits.shape)}")
        if teacher.units.dim() != 1 or teacher.units.dtype != torch.int64 or len(teacher.units) < 1:
            given = f"{teacher.units.dtype} {tuple(teacher.units.shape)}"
            raise ValueError(f"teacher.units must be int64 (n,) with n >= 1, got {given}")
        rows = Rows(teacher.values, teacher.indices, teacher.offsets, teacher.logits)
        _checks.sparse("teacher", rows, batch=samples, device=self.weight.device)
        for name, tensor in (("logits", teacher.logits), ("values", teacher.values)):
            if tensor.dtype != self.weight.dtype:
                raise ValueError(f"teacher.{name} must be {self.weight.dtype}, got {tensor.dtype}")
        for name in ("logits", "units"):
            self._on_device(f"teacher.{name}", getattr(teacher, name))
        if not self._is_new("teacher", *parts):
            return
        units = teacher.units
        if int(units[0]) < 0 or int(units[-1]) >= neurons or not (units[1:] > units[:-1]).all():
            raise ValueError(f"teacher.units must be distinct, ascending and in [0, {neurons})")
        _checks.contents("teacher", teacher.indices, teacher.offsets, neurons, ascending=True)
        selected = torch.zeros(neurons, dtype=torch.bool, device=units.device)
        selected[units] = True
        if not selected[teacher.indices.long()].all():
            raise ValueError("teacher.indices must be among teacher.units")
        if not torch.isfinite(teacher.logits).all():
            raise ValueError("teacher.logits must be finite")
        if not ((teacher.values >= 0) & torch.isfinite(teacher.values)).all():
            raise ValueError("teacher.values must be finite and not negative")
        self._remember("teacher", *parts)

    def penalty(self, penalty: QuadraticPenalty) -> None:
        """Four finite tensors of the weights' shapes, and a coefficient that float32 can hold twice."""
        if not _checks.finite(penalty.coef) or not 0 <= 2 * _checks.as_float32(penalty.coef) <= _LARGEST:
            raise ValueError(f"penalty.coef={penalty.coef!r}: allowed is 0 or more, finite in float32")
        tensors = []
        for name, like in (("weight", self.weight), ("output", self.output_weight)):
            for part in (f"{name}_importance", f"{name}_anchor"):
                tensor = getattr(penalty, part)
                _checks.dense(f"penalty.{part}", tensor)
                if tensor.shape != like.shape or tensor.dtype != like.dtype or not tensor.is_contiguous():
                    raise ValueError(f"penalty.{part} must be contiguous {tuple(like.shape)} {like.dtype}")
                self._on_device(f"penalty.{part}", tensor)
                tensors.append((part, tensor))
        if self._is_new("penalty", *(tensor for _, tensor in tensors)):
            for part, tensor in tensors:
                if not torch.isfinite(tensor).all():
                    raise ValueError(f"penalty.{part} must be finite")
            self._remember("penalty", *(tensor for _, tensor in tensors))


def state(given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuses a state_dict that is not one of this engine: keys, shapes, numbers. Nothing has been copied yet."""
    if own.keys() != given.keys():
        raise ValueError(f"state has keys {sorted(given)}, expected {sorted(own)}")
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            raise ValueError(f"{name} has shape {tuple(given[name].shape)}, expected {tuple(tensor.shape)}")
        if given[name].dtype.is_floating_point != tensor.dtype.is_floating_point:
            raise ValueError(f"{name} must be {tensor.dtype}, got {given[name].dtype}")
    numbers(given["weight"], given["output_weight"], given["counts"])
    for name in own.keys() - {"weight", "output_weight", "counts"}:
        if not torch.isfinite(given[name]).all():
            raise ValueError(f"{name} must be finite")
