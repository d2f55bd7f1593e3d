"""The Triton kernels of the SSD loss: per sample, the loss and its gradient from one launch, in fp64.

Work per program: one sample. Logits: three passes over its C classes. Hidden units: passes over the active entries of
student and teacher; the n - m units that are zero in both enter the partition sums in closed form. Whether a neuron is
selected, and what the other side holds for it, is found by bisection (units and Rows are sorted) or by comparison with
all K entries (TopK), so the cost is O(active log active), never O(n), unless an operand is dense. Traffic: the entries,
a few times from L1, and their gradient once. Determinism: a sample has one owner, and one program adds the samples in a
fixed order; no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _triton
from .._pointers import adjacent, row_stride
from .._triton import narrow, whole, wide
from ..gaba_linear.reference import accumulation_dtype
from .triton_hidden import distill_hidden_kernel

_SPARSE_BLOCK, _DENSE_BLOCK, _SUM_BLOCK = 128, 512, 1024
_REGISTERS = 128  # of a thread: at four warps, four programs fit on a multiprocessor and nothing spills


# ---- Logits of one sample.
@triton.jit
def _logit(ptr, classes_ptr, row, at, count, C, stride, inverse):
    """Some of a sample's logits times `inverse`, of all classes or of the listed ones; -inf beyond."""
    inside = at < count
    column = at
    if classes_ptr is not None:
        column = tl.load(classes_ptr + at, mask=inside, other=0).to(tl.int32)
    real = (column >= 0) & (column < C)
    value = wide(tl.load(ptr + row * stride + column, mask=inside & real, other=float("nan"))) * inverse
    return tl.where(inside, value, float("-inf")), column, inside & real


@triton.jit
def _log_sum(ptr, classes_ptr, row, count, C, stride, inverse, BLOCK: tl.constexpr):
    """The largest y of a sample's logits and log of the sum of exp(y - largest): kept apart, log p loses less."""
    largest = tl.full([], float("-inf"), tl.float64)
    for start in range(0, count, BLOCK):
        value, _, _ = _logit(ptr, classes_ptr, row, start + tl.arange(0, BLOCK), count, C, stride, inverse)
        largest = tl.maximum(largest, tl.max(value, 0))
    total = tl.zeros([], tl.float64)
    for start in range(0, count, BLOCK):
        value, _, inside = _logit(ptr, classes_ptr, row, start + tl.arange(0, BLOCK), count, C, stride, inverse)
        total += tl.sum(tl.where(inside, tl.exp(value - largest), 0.0), 0)
    return largest, tl.log(total)


@triton.jit
def cross_entropy_sample(ptr, row, label, C, stride, BLOCK: tl.constexpr):
    """-log softmax(y)[label] of one sample, and the parts of its log-sum; NaN for a label that is no class."""
    largest, log_sum = _log_sum(ptr, None, row, C, C, stride, 1.0, BLOCK)
    real = (label >= 0) & (label < C)
    picked = wide(tl.load(ptr + row * stride + label, mask=real, other=float("nan")))
    return log_sum - (picked - largest), largest, log_sum


@triton.jit
def logits_divergence_sample(
    z_ptr, q_ptr, classes_ptr, row, teacher_row, count, C, stride_z, stride_q, inverse,
    REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """KL of one sample over the classes, and the parts of the two log-sums."""
    top_s, sum_s = _log_sum(z_ptr, classes_ptr, row, count, C, stride_z, inverse, BLOCK)
    top_t, sum_t = _log_sum(q_ptr, classes_ptr, teacher_row, count, C, stride_q, inverse, BLOCK)
    kl = tl.zeros([], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z, _, inside = _logit(z_ptr, classes_ptr, row, at, count, C, stride_z, inverse)
        q, _, _ = _logit(q_ptr, classes_ptr, teacher_row, at, count, C, stride_q, inverse)
        log_s, log_t = z - top_s - sum_s, q - top_t - sum_t
        term = tl.exp(log_s) * (log_s - log_t) if REVERSE else tl.exp(log_t) * (log_t - log_s)
        kl += tl.sum(tl.where(inside, term, 0.0), 0)
    return kl, top_s, sum_s, top_t, sum_t


@triton.jit
def _distill_logits_kernel(
    z_ptr, q_ptr, labels_ptr, classes_ptr, grad_ce_ptr, grad_kd_ptr, ce_ptr, kl_ptr,
    B, C, count, stride_z, stride_q, t_high, t_low, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    ce, largest, log_sum = cross_entropy_sample(z_ptr, row, label, C, stride_z, BLOCK)
    tl.store(ce_ptr + row, ce)
    for start in range(0, C, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z, _, inside = _logit(z_ptr, None, row, at, C, C, stride_z, 1.0)
        gradient = (tl.exp(z - largest - log_sum) - tl.where(at == label, 1.0, 0.0)) / B
        tl.store(grad_ce_ptr + row * C + at, narrow(gradient, grad_ce_ptr), mask=inside)
    if q_ptr is not None:
        temperature = whole(t_high, t_low)
        inverse = 1.0 / temperature
        kl, top_s, sum_s, top_t, sum_t = logits_divergence_sample(
            z_ptr, q_ptr, classes_ptr, row, row, count, C, stride_z, stride_q, inverse, REVERSE, BLOCK
        )
        tl.store(kl_ptr + row, temperature * temperature * kl)
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z, column, inside = _logit(z_ptr, classes_ptr, row, at, count, C, stride_z, inverse)
            q, _, _ = _logit(q_ptr, classes_ptr, row, at, count, C, stride_q, inverse)
            log_s, log_t = z - top_s - sum_s, q - top_t - sum_t
            share = tl.exp(log_s)
            gradient = share * (log_s - log_t - kl) if REVERSE else share - tl.exp(log_t)
            gradient = temperature / B * gradient
            tl.store(grad_kd_ptr + row * C + column, narrow(gradient, grad_kd_ptr), mask=inside)


@triton.jit
def _mean_kernel(parts_ptr, mean_ptr, B, BLOCK: tl.constexpr):
    """mean[i] = sum over b of parts[i, b] / B, in a fixed order; 0 for no samples."""
    which = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, B, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(parts_ptr + which.to(tl.int64) * B + at, mask=at < B, other=0.0)
    mean = tl.sum(total, 0) / tl.maximum(B, 1)
    tl.store(mean_ptr + which, narrow(mean, mean_ptr))


# ---- Launchers.
def _means(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean of each row of (P, B) float64; (P,) of dtype."""
    means = torch.empty(parts.shape[0], dtype=dtype, device=parts.device)
    _triton.launch(_mean_kernel, (parts.shape[0],), parts, means, parts.shape[1], BLOCK=_SUM_BLOCK)
    return means


def distill_logits(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    old_classes: Tensor | None,
    temperature: float,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As reference.distill_logits; on a GPU a label that is no class gives a loss of NaN."""
    batch, classes = logits.shape
    logits, labels = adjacent(logits), labels.contiguous()
    parts = logits.new_zeros((2, batch), dtype=torch.float64)
    grad_ce = logits.new_empty((batch, classes))
    grad_kd, count = logits.new_empty(0), classes
    if teacher is not None:
        teacher, grad_kd = adjacent(teacher), logits.new_zeros((batch, classes))
    if old_classes is not None:
        old_classes, count = old_classes.contiguous(), old_classes.shape[0]
    block = min(triton.next_power_of_2(classes), _DENSE_BLOCK)
    _triton.launch(
        _distill_logits_kernel, (batch,),
        logits, teacher, labels, old_classes, grad_ce, None if teacher is None else grad_kd, parts[0], parts[1],
        batch, classes, count, row_stride(logits), 0 if teacher is None else row_stride(teacher),
        *_triton.split_double(temperature), REVERSE=reverse, BLOCK=block, num_warps=1 if block <= 128 else 4,
        registers=_REGISTERS,
    )  # fmt: skip
    ce, kd = _means(parts, accumulation_dtype(logits.dtype)).unbind()
    return ce.clone(), kd.clone(), grad_ce, grad_kd  # an op's outputs may not share memory


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
    """As reference.distill_hidden; on a GPU a unit that is no neuron of a dense operand gives a loss of NaN."""
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    student, teacher = _form(values, indices, offsets), _form(teacher_values, teacher_indices, teacher_offsets)
    sparse = indices is not None or teacher_indices is not None
    warps = 8 if indices is None or teacher_indices is None else 4
    if sparse and indices is not None:  # bisection wants them sorted; a dense student's gradient keeps their order
        units = torch.sort(units).values
    order = None
    if sparse and indices is None:
        units, order = torch.sort(units)
    units = units.contiguous()
    grad = values.new_empty((batch, units.shape[0]) if indices is None else values.shape)
    kl = values.new_empty((1, batch), dtype=torch.float64)
    _triton.launch(
        distill_hidden_kernel, (batch,),
        *student[0], *teacher[0], units, grad, kl, batch, units.shape[0],
        student[1], teacher[1], student[2], teacher[2],
        *_triton.split_double(temperature), STUDENT=student[3], TEACHER=teacher[3], REVERSE=reverse,
        BLOCK_S=student[4], BLOCK_T=teacher[4], num_warps=warps, registers=_REGISTERS,
    )  # fmt: skip
    if order is not None:
        grad = torch.empty_like(grad).index_copy_(1, order, grad)
    return _means(kl, accumulation_dtype(values.dtype))[0].clone(), grad


def _form(values: Tensor, indices: Tensor | None, offsets: Tensor | None) -> tuple:
    """Pointers, neurons or K, row stride, kind and block of one side."""
    if indices is None:
        values = adjacent(values)
        return (values, None, None), values.shape[1], row_stride(values), 0, _DENSE_BLOCK
    values, indices = values.contiguous(), indices.contiguous()
    if offsets is None:
        return (values, indices, None), values.shape[1], 0, 1, _SPARSE_BLOCK
    return (values, indices, offsets.contiguous()), 0, 0, 2, _SPARSE_BLOCK
