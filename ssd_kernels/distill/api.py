"""The public function distill_loss: validation and choice of backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._backend import resolve
from .._library import direct, refuse_transforms
from .._types import Backend, Divergence, Rows, TopK
from . import ops  # noqa: F401  registers the operations
from .eager import DirectHidden, DirectLoss, Settings

Hidden = Tensor | TopK | Rows


class DistillLoss(NamedTuple):
    """The loss and its parts, each a differentiable scalar.

    Attributes:
        loss: alpha ce + (1 - alpha) (lam kd_hidden + (1 - lam) kd_logits); ce alone without a teacher.
        ce: the cross-entropy.
        kd_hidden: the distillation of the selected units, summed over hidden layers; 0 without a teacher.
        kd_logits: the distillation of the logits; 0 without a teacher.
    """

    loss: Tensor
    ce: Tensor
    kd_hidden: Tensor
    kd_logits: Tensor


def distill_loss(
    logits: Tensor,
    labels: Tensor,
    hidden: Hidden | tuple[Hidden, ...] | None = None,
    teacher_logits: Tensor | None = None,
    teacher_hidden: Hidden | tuple[Hidden, ...] | None = None,
    *,
    units: Tensor | tuple[Tensor, ...] | None = None,
    alpha: float = 0.7,
    lam: float = 0.1,
    temperature: float = 8.0,
    kl: Divergence = "forward",
    old_classes: Tensor | None = None,
    backend: Backend = "auto",
) -> DistillLoss:
    """The SSD loss: alpha CE + (1 - alpha) [lam KD_hidden + (1 - lam) KD_logits] (arXiv 2512.15267).

    KD is T^2 KL(softmax(q/T) || softmax(z/T)), the mean over the batch, z student and q teacher (kl="forward", the
    paper's Eq. 9; "reverse" swaps them, Eq. 2-3). KD_hidden is over the selected units h[J] of each hidden layer, in
    float64: for |z| << T it is near 1e-9 to 1e-6, below what a float32 log-softmax resolves. For sparse activations
    it costs the active entries only. Without teacher_logits the loss is plain CE; without teacher_hidden KD_hidden
    is 0. The teacher receives no gradient. An empty batch has loss 0.

    Args:
        logits: (B, C) float.
        labels: (B,) int64 in [0, C).
        hidden: the student's activations: (B, R) float, TopK or Rows, or a tuple with one per hidden layer. Entries
            of TopK and Rows receive their exact gradient; absent ones have none to receive.
        teacher_logits: (B, C) float.
        teacher_hidden: the teacher's activations, in the form of `hidden` (a layer may differ in kind).
        units: (n,) int64, the selected neurons J, distinct; one per hidden layer where `hidden` is a tuple.
        alpha: weight of CE.
        lam: weight of KD_hidden within the distillation.
        temperature: T.
        kl: "forward" or "reverse".
        old_classes: (n_old,) int64, distinct; KD_logits is over these classes only.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        DistillLoss(loss, ce, kd_hidden, kd_logits), scalars of float32 (float64 for float64 logits).

    Raises:
        ValueError: a shape, dtype, device, option or backend that is not allowed; a label, unit or class out of
            range, or given twice; offsets that do not ascend from 0 to nnz (contents are checked on CPUs).
        IndexError: an index of TopK or Rows that is negative, or R or more where another argument tells R.

    Examples:
        >>> distill_loss(torch.zeros(2, 4), torch.tensor([0, 3])).loss
        tensor(1.3863)
    """
    _check(logits, labels, teacher_logits, temperature, kl, old_classes)
    for name, share in (("alpha", alpha), ("lam", lam)):
        if not _checks.is_real(share) or not 0 <= share <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {share!r}")
    reverse = kl == "reverse"
    refuse_transforms("distill_loss", logits)
    name = resolve(backend, "distill", logits.device)
    teacher_logits = _detached(teacher_logits)
    layers: list[Any] = []  # values, indices, offsets of the student, those of the teacher, units
    if teacher_logits is not None and teacher_hidden is not None:
        layers = [
            (*_parts(student), *map(_detached, _parts(teacher)), layer_units)
            for student, teacher, layer_units in _layers(hidden, teacher_hidden, units, logits)
        ]
    if (
        teacher_logits is not None
        and name == "cpu"
        and direct(logits, labels, teacher_logits, old_classes, *(tensor for layer in layers for tensor in layer))
        and all((layer[0].dtype == torch.float64) == (logits.dtype == torch.float64) for layer in layers)
    ):
        settings = Settings(labels, teacher_logits, old_classes, layers, alpha, lam, temperature, reverse)
        return DistillLoss(*DirectLoss.apply(settings, logits, *(layer[0] for layer in layers)))
    ce, kd_logits, _, _ = torch.ops.ssd_kernels.distill_logits(
        logits, labels, teacher_logits, old_classes, temperature, reverse, name
    )
    kd_hidden = torch.zeros_like(ce)
    if teacher_logits is None:
        return DistillLoss(ce, ce, kd_hidden, kd_logits)
    for layer in layers:
        kd, _ = torch.ops.ssd_kernels.distill_hidden(*layer, temperature, reverse, name)
        kd_hidden = kd_hidden + kd
    loss = alpha * ce + (1 - alpha) * (lam * kd_hidden + (1 - lam) * kd_logits)
    return DistillLoss(loss, ce, kd_hidden, kd_logits)


def distill_hidden(
    hidden: Hidden,
    teacher_hidden: Hidden,
    units: Tensor,
    *,
    temperature: float = 8.0,
    kl: Divergence = "forward",
    backend: Backend = "auto",
) -> Tensor:
    """KD_hidden of one layer alone: T^2 KL(softmax(q/T) || softmax(z/T)) over the selected units, z student, q teacher.

    The mean over the batch, as in distill_loss (arXiv 2512.15267): float64 inside, O(active) for sparse
    activations, 0 for an empty batch. The teacher receives no gradient.

    Args:
        hidden: the student's activations, (B, R) float, TopK or Rows.
        teacher_hidden: the teacher's activations, likewise; it may differ in kind.
        units: (n,) int64, the selected neurons J, distinct.
        temperature: T.
        kl: "forward" or "reverse".
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        A differentiable scalar of float32 (float64 for float64 activations).

    Raises:
        ValueError: a shape, dtype, device, option or backend that is not allowed; a unit out of range or given
            twice; offsets that do not ascend from 0 to nnz (contents are checked on CPUs).
        IndexError: an index of TopK or Rows that is negative, or R or more where another argument tells R.

    Examples:
        >>> distill_hidden(torch.eye(2), torch.zeros(2, 2), torch.tensor([0, 1]), temperature=1.0)
        tensor(0.1201)
    """
    _check_options(temperature, kl)
    if not isinstance(hidden, Tensor | TopK | Rows):
        raise ValueError(f"hidden must be a Tensor, TopK or Rows, got {type(hidden).__name__}")
    values, indices, offsets = _parts(hidden)
    for part in (values,) if offsets is None else (values, offsets):
        _checks.strided("hidden", part)
    if values.dim() < 1 or (offsets is not None and offsets.dim() < 1):
        raise ValueError(f"hidden must hold B samples, got values {tuple(values.shape)}")
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    _check_layer(hidden, teacher_hidden, units, batch, values.device)
    refuse_transforms("distill_hidden", values)
    name = resolve(backend, "distill", values.device)
    layer = (values, indices, offsets, *map(_detached, _parts(teacher_hidden)), units)
    if name == "cpu" and direct(*layer):
        return DirectHidden.apply(values, layer, temperature, kl == "reverse")
    return torch.ops.ssd_kernels.distill_hidden(*layer, temperature, kl == "reverse", name)[0]


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _parts(hidden: Hidden) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values, indices (None for dense) and offsets (None for dense and TopK)."""
    if isinstance(hidden, Rows):
        return hidden.values, hidden.indices, hidden.offsets
    if isinstance(hidden, TopK):
        return hidden.values, hidden.indices, None
    return hidden, None, None


def _layers(hidden: Any, teacher_hidden: Any, units: Any, logits: Tensor) -> list[tuple[Hidden, Hidden, Tensor]]:
    """One (student, teacher, units) per hidden layer."""

    def listed(value: Any) -> list[Any]:
        several = isinstance(value, tuple | list) and not isinstance(value, TopK | Rows)
        return list(value) if several else [value]

    layers = list(map(listed, (hidden, teacher_hidden, units)))
    if len({len(each) for each in layers}) != 1:
        counts = ", ".join(str(len(each)) for each in layers)
        raise ValueError(f"hidden, teacher_hidden and units must have one entry per hidden layer, got {counts}")
    for student, teacher, chosen in zip(*layers):
        _check_layer(student, teacher, chosen, logits.shape[0], logits.device)
    return list(zip(*layers))


def _check_layer(student: Hidden, teacher: Hidden, units: Tensor, batch: int, device: torch.device) -> None:
    _check_hidden("hidden", student, batch, device)
    _check_hidden("teacher_hidden", teacher, batch, device)
    if isinstance(student, Tensor) and isinstance(teacher, Tensor) and student.shape != teacher.shape:
        raise ValueError(f"teacher_hidden must be {tuple(student.shape)} as hidden is, got {tuple(teacher.shape)}")
    _checks.integers("units", units, torch.int64, "(n,)")
    if units.shape[0] < 1:
        raise ValueError("units must name at least one neuron, got none")
    _checks.on_device("units", units, device)


def _check_hidden(name: str, hidden: Hidden, batch: int, device: torch.device) -> None:
    if isinstance(hidden, TopK | Rows):
        _checks.sparse(name, hidden, batch=batch, device=device)
        return
    if not isinstance(hidden, Tensor):
        raise ValueError(f"{name} must be a Tensor, TopK or Rows, got {type(hidden).__name__}")
    _checks.dense(name, hidden)
    if hidden.dim() != 2 or hidden.shape[0] != batch:
        raise ValueError(f"{name} must hold B = {batch} samples, (B, R), got {tuple(hidden.shape)}")
    _checks.on_device(name, hidden, device)


def _check(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    temperature: float,
    kl: str,
    old_classes: Tensor | None,
) -> None:
    _checks.dense("logits", logits)
    if logits.dim() != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be floating point (B, C), got {logits.dtype} {tuple(logits.shape)}")
    _checks.integers("labels", labels, torch.int64, f"({logits.shape[0]},)")
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(f"labels must be int64 ({logits.shape[0]},), got {labels.dtype} {tuple(labels.shape)}")
    _checks.on_device("labels", labels, logits.device)
    if teacher_logits is not None:
        _checks.dense("teacher_logits", teacher_logits)
        if teacher_logits.shape != logits.shape:
            raise ValueError(f"teacher_logits must be {tuple(logits.shape)}, got {tuple(teacher_logits.shape)}")
        _checks.on_device("teacher_logits", teacher_logits, logits.device)
    _check_options(temperature, kl)
    if old_classes is not None:
        _checks.integers("old_classes", old_classes, torch.int64, "(n,)")
        if not old_classes.shape[0]:
            raise ValueError("old_classes must name at least one class, got none")
        _checks.on_device("old_classes", old_classes, logits.device)


def _check_options(temperature: float, kl: str) -> None:
    if not _checks.finite(temperature) or temperature <= 0:
        raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
    if not 1e-150 <= temperature <= 1e150:  # its square would leave float64
        raise ValueError(f"temperature must be from 1e-150 to 1e150, got {temperature!r}")
    if kl not in ("forward", "reverse"):
        raise ValueError(f"kl must be 'forward' or 'reverse', got {kl!r}")
