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
from ..gaba_linear.reference import accumulation_dtype

DENSE, TOPK, ROWS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
MATCHED = tl.constexpr(16)  # entries of a TopK row that are compared at once
_HUGE = tl.constexpr(600.0)  # beyond, exp needs the shift by the largest
_SPARSE_BLOCK, _DENSE_BLOCK, _SUM_BLOCK = 128, 512, 1024
_REGISTERS = 128  # of a thread: at four warps, four programs fit on a multiprocessor and nothing spills


# ---- Numbers.
@triton.jit
def wide(value):
    """fp64 of any float."""
    return value if value.dtype == tl.float64 else value.to(tl.float32).to(tl.float64)


@triton.jit
def narrow(value, ptr):
    """An fp64 number in the dtype that `ptr` points to; the 16-bit ones by way of fp32."""
    return value if ptr.dtype.element_ty == tl.float64 else value.to(tl.float32).to(ptr.dtype.element_ty)


@triton.jit
def whole(high, low):
    """The fp64 number that `_triton.split_double` took apart."""
    return tl.full([], high, tl.float64) + tl.full([], low, tl.float64)


# ---- Activations of one sample, dense, TopK or Rows.
@triton.jit
def _extent(offsets_ptr, row, units, width, KIND: tl.constexpr):
    """Where the entries of a sample begin and how many there are."""
    if KIND == ROWS:
        first = tl.load(offsets_ptr + row)
        count = (tl.load(offsets_ptr + row + 1) - first).to(tl.int32)
    else:
        first = row * width
        count = units if KIND == DENSE else width
    return first, count


@triton.jit
def _bisect(sorted_ptr, first, count, wanted, searching):
    """Places of `wanted` in `count` ascending integers, and whether they are there."""
    low = tl.zeros_like(wanted)
    high = low + count
    left = count
    while left > 0:
        middle = (low + high) // 2
        open_ = searching & (low < high)
        seen = tl.load(sorted_ptr + first + middle, mask=open_, other=0).to(tl.int32)
        low = tl.where(open_ & (seen < wanted), middle + 1, low)
        high = tl.where(open_ & (seen >= wanted), middle, high)
        left = left // 2
    inside = searching & (low < count)
    found = inside & (tl.load(sorted_ptr + first + low, mask=inside, other=0).to(tl.int32) == wanted)
    return low, found


@triton.jit
def _entries(values_ptr, indices_ptr, units_ptr, row, first, at, count, units, width, stride, KIND: tl.constexpr):
    """Some entries of a sample: activation in fp64, neuron, and whether it is a selected one."""
    inside = at < count
    if KIND == DENSE:
        neuron = tl.load(units_ptr + at, mask=inside, other=0).to(tl.int32)
        real = (neuron >= 0) & (neuron < width)
        value = wide(tl.load(values_ptr + row * stride + neuron, mask=inside & real, other=0.0))
        value = tl.where(real, value, float("nan"))  # a unit that does not exist shows
        selected = inside
    else:
        neuron = tl.load(indices_ptr + first + at, mask=inside, other=0)
        value = wide(tl.load(values_ptr + first + at, mask=inside, other=0.0))
        _, selected = _bisect(units_ptr, 0, units, neuron, inside)
    return value, neuron, selected


@triton.jit
def _lookup(values_ptr, indices_ptr, row, first, count, width, stride, neuron, asked, KIND: tl.constexpr):
    """What a sample holds for some neurons: activation in fp64 (0 where absent), and whether it has an entry."""
    if KIND == DENSE:
        real = asked & (neuron >= 0) & (neuron < width)
        value = wide(tl.load(values_ptr + row * stride + neuron, mask=real, other=0.0))
        found = asked
    elif KIND == ROWS:
        place, found = _bisect(indices_ptr, first, count, neuron, asked)
        value = wide(tl.load(values_ptr + first + place, mask=found, other=0.0))
    else:
        value = tl.zeros(neuron.shape, tl.float64)
        matches = tl.zeros(neuron.shape, tl.int32)
        for start in range(0, count, MATCHED):
            at = start + tl.arange(0, MATCHED)
            other = tl.load(indices_ptr + first + at, mask=at < count, other=-1)
            held = wide(tl.load(values_ptr + first + at, mask=at < count, other=0.0))
            match = (other[None, :] == neuron[:, None]) & asked[:, None]
            value += tl.sum(tl.where(match, held[None, :], 0.0), 1)
            matches += tl.sum(match.to(tl.int32), 1)
        found = matches > 0
    return value, found


@triton.jit
def _log_mean(
    values_ptr, indices_ptr, offsets_ptr, units_ptr, row, units, width, stride, inverse,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """log(Z / n), Z the sum of exp(h / T) over n units: log1p(sum of expm1(h / T) / n), or shifted by the largest."""
    first, count = _extent(offsets_ptr, row, units, width, KIND)
    largest = tl.full([], float("-inf"), tl.float64)
    present = tl.full([], 0, tl.int32)
    total = tl.zeros([], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        h, _, selected = _entries(values_ptr, indices_ptr, units_ptr, row, first, at, count, units, width, stride, KIND)
        x = h * inverse
        u = tl.exp(x)
        # expm1: the rounding of u is divided out; log(u) is 0 where u is 1, and u - 1 is -1 where u vanishes.
        y = u - 1.0
        plain = (u == 1.0) | (y == -1.0)
        terms = tl.where(plain, tl.where(u == 1.0, x, -1.0), y * x / tl.where(plain, 1.0, tl.log(u)))
        total += tl.sum(tl.where(selected, terms, 0.0), 0)
        largest = tl.maximum(largest, tl.max(tl.where(selected, x, float("-inf")), 0))
        present += tl.sum(selected.to(tl.int32), 0)
    absent = (units - present).to(tl.float64)
    largest = tl.where(absent > 0, tl.maximum(largest, 0.0), largest)
    n = tl.full([], 0, tl.float64) + units
    mean = total / n
    u = 1.0 + mean  # log1p, the rounding of u divided out
    log_mean = tl.where(u == 1.0, mean, tl.log(u) * mean / tl.where(u == 1.0, 1.0, u - 1.0))
    if (largest > _HUGE) | (largest < -1.0):
        total = absent * tl.exp(-largest)
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            h, _, selected = _entries(
                values_ptr, indices_ptr, units_ptr, row, first, at, count, units, width, stride, KIND
            )
            total += tl.sum(tl.where(selected, tl.exp(h * inverse - largest), 0.0), 0)
        log_mean = largest + tl.log(total / n)
    return log_mean, first, count


@triton.jit
def hidden_sample(
    z_ptr, z_indices_ptr, z_offsets_ptr, q_ptr, q_indices_ptr, q_offsets_ptr, units_ptr, grad_ptr, row, teacher_row,
    units, z_width, q_width, stride_z, stride_q, temperature, gradient_scale,
    STUDENT: tl.constexpr, TEACHER: tl.constexpr, REVERSE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """KL of one sample over the selected units; stores gradient_scale T dKL/dz of every student entry."""
    inverse = 1.0 / temperature
    log_s, first_s, count_s = _log_mean(
        z_ptr, z_indices_ptr, z_offsets_ptr, units_ptr, row, units, z_width, stride_z, inverse, STUDENT, BLOCK_S
    )
    log_t, first_t, count_t = _log_mean(
        q_ptr, q_indices_ptr, q_offsets_ptr, units_ptr, teacher_row, units, q_width, stride_q, inverse, TEACHER, BLOCK_T
    )
    gap = log_s - log_t  # log n has cancelled
    n = tl.full([], 0, tl.float64) + units
    out = row * units if STUDENT == DENSE else first_s
    moment = tl.zeros([], tl.float64)  # n times the mean of (z - q) / T under one of the two
    for start in range(0, count_s, BLOCK_S):
        at = start + tl.arange(0, BLOCK_S)
        z, neuron, selected = _entries(
            z_ptr, z_indices_ptr, units_ptr, row, first_s, at, count_s, units, z_width, stride_z, STUDENT
        )
        q, _ = _lookup(
            q_ptr, q_indices_ptr, teacher_row, first_t, count_t, q_width, stride_q, neuron, selected, TEACHER
        )
        share_s, share_t = tl.exp(z * inverse - log_s), tl.exp(q * inverse - log_t)
        share = share_s if REVERSE else share_t
        moment += tl.sum(tl.where(selected, share * (z - q) * inverse, 0.0), 0)
        if not REVERSE:
            gradient = tl.where(selected, gradient_scale / n * (share_s - share_t), 0.0)
            tl.store(grad_ptr + out + at, narrow(gradient, grad_ptr), mask=at < count_s)
    if STUDENT != DENSE:  # dense students have an entry for every unit
        for start in range(0, count_t, BLOCK_T):
            at = start + tl.arange(0, BLOCK_T)
            q, neuron, selected = _entries(
                q_ptr, q_indices_ptr, units_ptr, teacher_row, first_t, at, count_t, units, q_width, stride_q, TEACHER
            )
            _, shared = _lookup(
                z_ptr, z_indices_ptr, row, first_s, count_s, z_width, stride_z, neuron, selected, STUDENT
            )
            share = tl.exp(-log_s if REVERSE else q * inverse - log_t)
            moment -= tl.sum(tl.where(selected & ~shared, share * q * inverse, 0.0), 0)
    kl = moment / n - gap if REVERSE else gap - moment / n
    if REVERSE:  # this gradient needs the divergence
        for start in range(0, count_s, BLOCK_S):
            at = start + tl.arange(0, BLOCK_S)
            z, neuron, selected = _entries(
                z_ptr, z_indices_ptr, units_ptr, row, first_s, at, count_s, units, z_width, stride_z, STUDENT
            )
            q, _ = _lookup(
                q_ptr, q_indices_ptr, teacher_row, first_t, count_t, q_width, stride_q, neuron, selected, TEACHER
            )  # fmt: skip
            gradient = tl.exp(z * inverse - log_s) * ((z - q) * inverse - gap - kl)
            gradient = tl.where(selected, gradient_scale / n * gradient, 0.0)
            tl.store(grad_ptr + out + at, narrow(gradient, grad_ptr), mask=at < count_s)
    return kl


@triton.jit
def _distill_hidden_kernel(
    z_ptr, z_indices_ptr, z_offsets_ptr, q_ptr, q_indices_ptr, q_offsets_ptr, units_ptr, grad_ptr, kl_ptr,
    B, units, z_width, q_width, stride_z, stride_q, t_high, t_low,
    STUDENT: tl.constexpr, TEACHER: tl.constexpr, REVERSE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    temperature = whole(t_high, t_low)
    kl = hidden_sample(
        z_ptr, z_indices_ptr, z_offsets_ptr, q_ptr, q_indices_ptr, q_offsets_ptr, units_ptr, grad_ptr, row, row,
        units, z_width, q_width, stride_z, stride_q, temperature, temperature / B,
        STUDENT, TEACHER, REVERSE, BLOCK_S, BLOCK_T,
    )  # fmt: skip
    tl.store(kl_ptr + row, temperature * temperature * kl)


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
        _distill_hidden_kernel, (batch,),
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
