"""The hidden side of the SSD loss in Triton: the divergence of one sample's selected units, and its gradient.

Whether a neuron is selected, and what the other side holds for it, is found by bisection (units and Rows are sorted) or
by comparison with all K entries (TopK).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import narrow, whole, wide

DENSE, TOPK, ROWS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
MATCHED = tl.constexpr(16)  # entries of a TopK row that are compared at once
_HUGE = tl.constexpr(600.0)  # beyond, exp needs the shift by the largest


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
        total = tl.where(absent > 0, absent * tl.exp(-largest), 0.0)  # 0 x inf is NaN
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
def distill_hidden_kernel(
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
