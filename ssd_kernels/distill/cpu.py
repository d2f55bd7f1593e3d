"""Calls the native CPU kernels of the SSD loss: allocates the outputs and passes addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._pointers import DTYPES, address, adjacent, row_stride
from ..gaba_linear.reference import accumulation_dtype

_DONE, _OUT_OF_RANGE = 0, 2  # ssd::cpu::DistillStatus


def distill_logits(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    old_classes: Tensor | None,
    temperature: float,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As reference.distill_logits."""
    batch, classes = logits.shape
    logits, labels = adjacent(logits), labels.contiguous()
    dtype = accumulation_dtype(logits.dtype)
    ce, kd = torch.empty((), dtype=dtype), torch.empty((), dtype=dtype)
    grad_ce = torch.empty(batch, classes, dtype=logits.dtype)
    grad_kd = torch.empty(0, dtype=logits.dtype)
    old, teacher_dtype, teacher_stride = classes, logits.dtype, 0
    if teacher is not None:
        grad_kd = torch.empty(batch, classes, dtype=logits.dtype)
        teacher = adjacent(teacher)
        teacher_dtype, teacher_stride = teacher.dtype, row_stride(teacher)
    if old_classes is not None:
        old_classes = old_classes.contiguous()
        old = old_classes.shape[0]
    status, bad = _native.cpu_module()[0].distill_logits(
        DTYPES[logits.dtype], DTYPES[teacher_dtype], batch, classes, old, logits.data_ptr(), row_stride(logits),
        address(teacher), teacher_stride, labels.data_ptr(), address(old_classes), temperature, reverse, ce.data_ptr(),
        kd.data_ptr(), grad_ce.data_ptr(), grad_kd.data_ptr(), torch.get_num_threads(), "",
    )  # fmt: skip
    if status != _DONE:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {bad}")
    return ce, kd, grad_ce, grad_kd


def distill_hidden(
    values: Tensor,
    indices: Tensor | None,
    offsets: Tensor | None,
    teacher_values: Tensor,
    teacher_indices: Tensor | None,
    teacher_offsets: Tensor | None,
    units: Tensor,
    temperature: float,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """As reference.distill_hidden."""
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    student, keep = _form(values, indices, offsets)
    teacher, keep_teacher = _form(teacher_values, teacher_indices, teacher_offsets)
    units = units.contiguous()
    kd = torch.empty((), dtype=accumulation_dtype(values.dtype))
    neurons = 2**31
    if indices is None:
        neurons = values.shape[1]
    if teacher_indices is None:
        neurons = min(neurons, teacher_values.shape[1])
    # Entries of neurons that are not selected stay 0.
    grad = torch.zeros((batch, units.shape[0]) if indices is None else values.shape, dtype=values.dtype)
    status, bad = _native.cpu_module()[0].distill_hidden(
        batch, units.shape[0], neurons, student, teacher, units.data_ptr(), temperature, reverse,
        kd.data_ptr(), grad.data_ptr(), torch.get_num_threads(), "",
    )  # fmt: skip
    del keep, keep_teacher
    if status == _OUT_OF_RANGE:
        raise ValueError(f"units must be from 0 to {neurons - 1}, got {bad}")
    if status != _DONE:
        raise ValueError(f"units must be distinct, {bad} is given twice")
    return kd, grad


def _form(values: Tensor, indices: Tensor | None, offsets: Tensor | None) -> tuple[tuple, tuple]:
    """What the kernel reads, and the tensors behind its addresses.

    That is: ssd::cpu::Form, dtype, values, row stride, indices, offsets, k.
    """
    if indices is None:
        values = adjacent(values)
        return (0, DTYPES[values.dtype], values.data_ptr(), row_stride(values), 0, 0, 0), (values,)
    values, indices = values.contiguous(), indices.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    k = values.shape[1] if offsets is None else 0
    kind = 1 if offsets is None else 2
    form = (kind, DTYPES[values.dtype], values.data_ptr(), 0, indices.data_ptr(), address(offsets), k)
    return form, (values, indices, offsets)
