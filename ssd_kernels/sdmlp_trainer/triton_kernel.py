"""The Triton kernels of one training step of the engine. Nothing in them waits for the host.

A step's kernels, in order: gather the batch; the K + 1 winners (topk_linear's scan); all scores, (B, R); the thresholds
and the inhibition; logits; losses with their gradients; both weight gradients, for the touched neurons, with their
squares; the clip coefficient and the statistics; the update of the touched rows. Where a step's batch begins is a
number in device memory that the last but one kernel advances, so every step is the same sequence of launches, and a
step beyond the end of the epoch does nothing. Determinism: every output has one owner, and partial sums are added in a
fixed order; no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import whole
from ..distill import triton_hidden
from ..distill.triton_hidden import hidden_sample
from ..distill.triton_kernel import cross_entropy_sample, logits_divergence_sample

DENSE, ROWS = triton_hidden.DENSE, triton_hidden.ROWS
STEP, COUNT = tl.constexpr(0), tl.constexpr(1)  # of the int64 progress
GO, SCALE = tl.constexpr(0), tl.constexpr(1)  # of the fp64 verdict on a step
CE, KD_HIDDEN, KD_LOGITS, ACTIVE, NORM, TOUCHED, BAD = (tl.constexpr(i) for i in range(7))  # of the fp64 totals
FAILURES = ("", "score", "loss", "norm of the gradient")  # what BAD means in the totals: the first that is not finite


@triton.jit
def _gather_kernel(x_ptr, order_ptr, progress_ptr, batch_ptr, sample_ptr, B, D, BLOCK_D: tl.constexpr):
    """The samples of this step, zeros beyond the end of the order; sample is -1 there."""
    b = tl.program_id(0).to(tl.int64)
    position = tl.load(progress_ptr + STEP) * B + b
    valid = position < tl.load(progress_ptr + COUNT)
    sample = tl.where(valid, tl.load(order_ptr + tl.where(valid, position, 0)), -1)
    tl.store(sample_ptr + b, sample)
    width = tl.where(valid, D, 0)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + sample * D + d, mask=d < width, other=0.0)
        tl.store(batch_ptr + b * D + d, x, mask=d < D)


@triton.jit
def _scores_kernel(
    x_ptr, w_ptr, s_ptr, B, D, R, BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """a = relu(x W^T), one tile."""
    b = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    acc = tl.zeros([BLOCK_B, BLOCK_R], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + b[:, None] * D + d[None, :], mask=(b < B)[:, None] & (d < D)[None, :], other=0.0)
        w = tl.load(w_ptr + j[:, None] * D + d[None, :], mask=(j < R)[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
    place = s_ptr + b[:, None] * R + j[None, :]
    tl.store(place, tl.where(acc <= 0, 0.0, acc), mask=(b < B)[:, None] & (j < R)[None, :])


@triton.jit
def _threshold_kernel(s_ptr, winners_ptr, threshold_ptr, R, winners, BLOCK: tl.constexpr):
    """I of one sample: the least stored score of its K + 1 winners, so that the last of them is inactive at g = 1."""
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    neuron = tl.load(winners_ptr + b * winners + k, mask=k < winners, other=0)
    score = tl.load(s_ptr + b * R + neuron, mask=k < winners, other=float("inf"))
    bad = tl.max(((score != score) & (k < winners)).to(tl.int32), 0)
    tl.store(threshold_ptr + b, tl.where(bad > 0, float("nan"), tl.min(score, 0)))


@triton.jit
def _inhibit_kernel(
    s_ptr, counts_ptr, threshold_ptr, B, R, switch_high, switch_low, GABA: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """h = relu(a - g I) in place; g = clip(-1 + 2 c / S, -1, 1) in fp64, then rounded; 1 without a switch."""
    b = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (b < B)[:, None] & (j < R)[None, :]
    place = s_ptr + b[:, None] * R + j[None, :]
    limit = tl.load(threshold_ptr + b, mask=b < B, other=0.0)
    h = tl.load(place, mask=inside, other=0.0)
    if GABA:
        count = tl.load(counts_ptr + j, mask=j < R, other=0).to(tl.float64)
        g = -1.0 + 2.0 * count / whole(switch_high, switch_low)
        g = tl.minimum(tl.maximum(g, -1.0), 1.0).to(tl.float32)
        h = h - g[None, :] * limit[:, None]
    else:
        h = h - limit[:, None]
    tl.store(place, tl.where(h <= 0, 0.0, h), mask=inside)


@triton.jit
def _logits_part_kernel(
    h_ptr, v_ptr, part_ptr, B, R, C, neurons_per_part, BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The share of some neurons in the logits of some samples; v is V transposed, (R, C)."""
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    part = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    first = part * neurons_per_part
    for start in range(0, neurons_per_part, BLOCK_R):
        j = first + start + tl.arange(0, BLOCK_R)
        h = tl.load(h_ptr + b[:, None] * R + j[None, :], mask=(b < B)[:, None] & (j < R)[None, :], other=0.0)
        v = tl.load(v_ptr + j[:, None] * C + c[None, :], mask=(j < R)[:, None] & (c < C)[None, :], other=0.0)
        acc = tl.dot(h, v, acc, input_precision=PRECISION)
    place = part_ptr + (part * B + b[:, None]) * C + c[None, :]
    tl.store(place, acc, mask=(b < B)[:, None] & (c < C)[None, :])


@triton.jit
def _logits_kernel(part_ptr, logits_ptr, entries, parts, BLOCK: tl.constexpr):
    """The sum of the shares, in order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(0, parts):
        total += tl.load(part_ptr + tl.full([], part, tl.int64) * entries + at, mask=at < entries, other=0.0)
    tl.store(logits_ptr + at, total, mask=at < entries)


@triton.jit
def _loss_kernel(
    logits_ptr, h_ptr, labels_ptr, sample_ptr, progress_ptr, q_ptr, values_ptr, indices_ptr, offsets_ptr, units_ptr,
    grad_logits_ptr, grad_hidden_ptr, parts_ptr, B, C, R, units,
    alpha_high, alpha_low, lam_high, lam_low, t_high, t_low,
    TEACHER: tl.constexpr, REVERSE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Losses of one sample, and their gradient in its logits and its selected units; 0 where there is no sample."""
    b = tl.program_id(0).to(tl.int64)
    sample = tl.load(sample_ptr + b)
    position = tl.load(progress_ptr + STEP) * B
    valid = tl.minimum(tl.load(progress_ptr + COUNT) - position, B)  # samples of this batch
    if sample < 0:
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            tl.store(grad_logits_ptr + b * C + c, 0.0, mask=c < C)
        tl.store(parts_ptr + CE * B + b, 0.0)
        if TEACHER:
            for start in range(0, units, BLOCK_S):
                at = start + tl.arange(0, BLOCK_S)
                tl.store(grad_hidden_ptr + b * units + at, 0.0, mask=at < units)
            tl.store(parts_ptr + KD_HIDDEN * B + b, 0.0)
            tl.store(parts_ptr + KD_LOGITS * B + b, 0.0)
    else:
        label = tl.load(labels_ptr + sample)
        ce, largest, log_sum = cross_entropy_sample(logits_ptr, b, label, C, C, BLOCK_C)
        tl.store(parts_ptr + CE * B + b, ce)
        alpha = whole(alpha_high, alpha_low) if TEACHER else tl.full([], 1.0, tl.float64)
        temperature = whole(t_high, t_low)
        inverse = 1.0 / temperature
        if TEACHER:
            lam = whole(lam_high, lam_low)
            kl, top_s, sum_s, top_t, sum_t = logits_divergence_sample(
                logits_ptr, q_ptr, None, b, sample, C, C, C, C, inverse, REVERSE, BLOCK_C
            )
            tl.store(parts_ptr + KD_LOGITS * B + b, temperature * temperature * kl)
            hidden = hidden_sample(
                h_ptr, None, None, values_ptr, indices_ptr, offsets_ptr, units_ptr, grad_hidden_ptr, b, sample,
                units, R, 0, R, 0, temperature, (1.0 - alpha) * lam * temperature / valid,
                DENSE, ROWS, REVERSE, BLOCK_S, BLOCK_T,
            )  # fmt: skip
            tl.store(parts_ptr + KD_HIDDEN * B + b, temperature * temperature * hidden)
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            z = tl.load(logits_ptr + b * C + c, mask=c < C, other=0.0).to(tl.float64)
            gradient = alpha * (tl.exp(z - largest - log_sum) - tl.where(c == label, 1.0, 0.0))
            if TEACHER:
                q = tl.load(q_ptr + sample * C + c, mask=c < C, other=0.0).to(tl.float64)
                log_s, log_t = z * inverse - top_s - sum_s, q * inverse - top_t - sum_t
                share = tl.exp(log_s)
                slope = share * (log_s - log_t - kl) if REVERSE else share - tl.exp(log_t)
                gradient += (1.0 - alpha) * (1.0 - lam) * temperature * slope
            tl.store(grad_logits_ptr + b * C + c, (gradient / valid).to(tl.float32), mask=c < C)


@triton.jit
def _pull(parameter, importance_ptr, anchor_ptr, place, mask, coef):
    """The gradient of coef importance (theta - anchor)^2."""
    importance = tl.load(importance_ptr + place, mask=mask, other=0.0)
    return 2.0 * coef * importance * (parameter - tl.load(anchor_ptr + place, mask=mask, other=0.0))


@triton.jit
def _weight_gradient(
    h_ptr, x_ptr, v_ptr, w_ptr, grad_logits_ptr, grad_hidden_ptr, place_ptr, grad_w_ptr, active_ptr, partial_ptr,
    importance_ptr, anchor_ptr, block, strip, B, D, R, C, units, partials, coef,
    TEACHER: tl.constexpr, PENALTY: tl.constexpr, EVERY_ROW: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dh = dy V masked by h > 0; dW = dh^T x, a strip of columns. The first strip writes the counts."""
    j = block * BLOCK_R + tl.arange(0, BLOCK_R)
    d = strip * BLOCK_D + tl.arange(0, BLOCK_D)
    grad = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    active = tl.zeros([BLOCK_R], tl.int32)
    bad = tl.zeros([BLOCK_R], tl.int32)
    if TEACHER:
        unit = tl.load(place_ptr + j, mask=j < R, other=-1)
    for start in range(0, B, BLOCK_B):
        row = (start + tl.arange(0, BLOCK_B))[:, None].to(tl.int64)
        h = tl.load(h_ptr + row * R + j[None, :], mask=(row < B) & (j < R)[None, :], other=0.0)
        on = h > 0
        active += tl.sum(on.to(tl.int32), 0)
        bad += tl.sum(((h - h) != 0.0).to(tl.int32), 0)
        if tl.max(tl.max(on.to(tl.int32), 1), 0) > 0:  # few neurons of many are active in few samples
            dh = tl.zeros([BLOCK_B, BLOCK_R], tl.float32)
            for first in range(0, C, BLOCK_C):
                c = first + tl.arange(0, BLOCK_C)
                v = tl.load(v_ptr + j[:, None] * C + c[None, :], mask=(j < R)[:, None] & (c < C)[None, :], other=0.0)
                dy = tl.load(grad_logits_ptr + row * C + c[None, :], mask=(row < B) & (c < C)[None, :], other=0.0)
                dh = tl.dot(dy, tl.trans(v), dh, input_precision=PRECISION)
            if TEACHER:
                held = (row < B) & (unit >= 0)[None, :]
                dh += tl.load(grad_hidden_ptr + row * units + unit[None, :], mask=held, other=0.0)
            dh = tl.where(on, dh, 0.0)
            x = tl.load(x_ptr + row * D + d[None, :], mask=(row < B) & (d < D)[None, :], other=0.0)
            grad = tl.dot(tl.trans(dh), x, grad, input_precision=PRECISION)
    at = j[:, None] * D + d[None, :]
    inside = (j < R)[:, None] & (d < D)[None, :]
    if PENALTY:
        grad += _pull(tl.load(w_ptr + at, mask=inside, other=0.0), importance_ptr, anchor_ptr, at, inside, coef)
    kept = active >= 0 if EVERY_ROW else active > 0
    tl.store(grad_w_ptr + at, grad, mask=inside & kept[:, None])
    if strip == 0:
        tl.store(active_ptr + j, active, mask=j < R)
        tl.store(partial_ptr + ACTIVE * partials + block, tl.sum(active, 0).to(tl.float64))
        tl.store(partial_ptr + TOUCHED * partials + block, tl.sum((active > 0).to(tl.int32), 0).to(tl.float64))
        tl.store(partial_ptr + BAD * partials + block, tl.sum(bad, 0).to(tl.float64))
    return tl.sum(tl.sum(grad.to(tl.float64) * grad.to(tl.float64), 1), 0)


@triton.jit
def _output_gradient(
    h_ptr, v_ptr, grad_logits_ptr, grad_v_ptr, importance_ptr, anchor_ptr, block, strip, B, R, C, coef,
    PENALTY: tl.constexpr, EVERY_ROW: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dV = h^T dy, a strip of classes."""
    j = block * BLOCK_R + tl.arange(0, BLOCK_R)
    c = strip * BLOCK_C + tl.arange(0, BLOCK_C)
    grad = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    active = tl.zeros([BLOCK_R], tl.int32)
    for start in range(0, B, BLOCK_B):
        row = (start + tl.arange(0, BLOCK_B))[:, None].to(tl.int64)
        h = tl.load(h_ptr + row * R + j[None, :], mask=(row < B) & (j < R)[None, :], other=0.0)
        on = (h > 0).to(tl.int32)
        active += tl.sum(on, 0)
        if tl.max(tl.max(on, 1), 0) > 0:
            dy = tl.load(grad_logits_ptr + row * C + c[None, :], mask=(row < B) & (c < C)[None, :], other=0.0)
            grad = tl.dot(tl.trans(h), dy, grad, input_precision=PRECISION)
    at = j[:, None] * C + c[None, :]
    inside = (j < R)[:, None] & (c < C)[None, :]
    if PENALTY:
        grad += _pull(tl.load(v_ptr + at, mask=inside, other=0.0), importance_ptr, anchor_ptr, at, inside, coef)
    kept = active >= 0 if EVERY_ROW else active > 0
    tl.store(grad_v_ptr + at, grad, mask=inside & kept[:, None])
    return tl.sum(tl.sum(grad.to(tl.float64) * grad.to(tl.float64), 1), 0)


@triton.jit
def _gradient_kernel(
    h_ptr, x_ptr, v_ptr, w_ptr, grad_logits_ptr, grad_hidden_ptr, place_ptr, grad_w_ptr, grad_v_ptr, active_ptr,
    partial_ptr, w_importance_ptr, w_anchor_ptr, v_importance_ptr, v_anchor_ptr, B, D, R, C, units, partials, coef,
    TEACHER: tl.constexpr, PENALTY: tl.constexpr, EVERY_ROW: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of neurons and their squares.

    Programs along the second axis share the neurons: first the strips of D, then those of C. Classes are taken BLOCK_C
    at a time, so any number of them fits.
    """
    block = tl.program_id(0).to(tl.int64)
    strip = tl.program_id(1)
    strips_d = tl.cdiv(D, BLOCK_D)
    if strip < strips_d:
        squares = _weight_gradient(
            h_ptr, x_ptr, v_ptr, w_ptr, grad_logits_ptr, grad_hidden_ptr, place_ptr, grad_w_ptr, active_ptr,
            partial_ptr, w_importance_ptr, w_anchor_ptr, block, strip, B, D, R, C, units, partials, coef,
            TEACHER, PENALTY, EVERY_ROW, BLOCK_B, BLOCK_R, BLOCK_D, BLOCK_C, PRECISION,
        )  # fmt: skip
    else:
        squares = _output_gradient(
            h_ptr, v_ptr, grad_logits_ptr, grad_v_ptr, v_importance_ptr, v_anchor_ptr, block, strip - strips_d, B, R, C,
            coef, PENALTY, EVERY_ROW, BLOCK_B, BLOCK_R, BLOCK_C, PRECISION,
        )  # fmt: skip
    tl.store(partial_ptr + NORM * partials + block * tl.num_programs(1) + strip, squares)


@triton.jit
def _total(ptr, entries, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, entries, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(ptr + at, mask=at < entries, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def _finish_kernel(
    partial_ptr, parts_ptr, progress_ptr, verdict_ptr, totals_ptr, B, partials, blocks, strips, limit_high, limit_low,
    TEACHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The clip coefficient; the statistics; the next step, unless a number was not finite or there was no sample."""
    bad_scores = _total(partial_ptr + BAD * partials, blocks, BLOCK)
    norm = tl.sqrt(_total(partial_ptr + NORM * partials, blocks * strips, BLOCK))
    loss = _total(parts_ptr + CE * B, B, BLOCK)
    if TEACHER:
        loss += _total(parts_ptr + KD_HIDDEN * B, B, BLOCK) + _total(parts_ptr + KD_LOGITS * B, B, BLOCK)
    failure = tl.where((norm - norm) != 0.0, 3.0, 0.0)
    failure = tl.where((loss - loss) != 0.0, 2.0, failure)
    failure = tl.where(bad_scores > 0.0, 1.0, failure).to(tl.float64)
    step = tl.load(progress_ptr + STEP)
    go = (failure == 0.0) & (step * B < tl.load(progress_ptr + COUNT))
    tl.store(verdict_ptr + GO, go.to(tl.float64))
    tl.store(verdict_ptr + SCALE, tl.minimum(1.0, whole(limit_high, limit_low) / (norm + 1e-6)))
    tl.store(totals_ptr + BAD, failure)
    if go:
        tl.store(totals_ptr + NORM, tl.load(totals_ptr + NORM) + norm)
        active = _total(partial_ptr + ACTIVE * partials, blocks, BLOCK)
        tl.store(totals_ptr + ACTIVE, tl.load(totals_ptr + ACTIVE) + active)
        touched = _total(partial_ptr + TOUCHED * partials, blocks, BLOCK)
        tl.store(totals_ptr + TOUCHED, tl.load(totals_ptr + TOUCHED) + touched)
        tl.store(totals_ptr + CE, tl.load(totals_ptr + CE) + _total(parts_ptr + CE * B, B, BLOCK))
        if TEACHER:
            hidden, logits = _total(parts_ptr + KD_HIDDEN * B, B, BLOCK), _total(parts_ptr + KD_LOGITS * B, B, BLOCK)
            tl.store(totals_ptr + KD_HIDDEN, tl.load(totals_ptr + KD_HIDDEN) + hidden)
            tl.store(totals_ptr + KD_LOGITS, tl.load(totals_ptr + KD_LOGITS) + logits)
        tl.store(progress_ptr + STEP, step + 1)


@triton.jit
def _stepped(
    parameter_ptr, gradient_ptr, velocity_ptr, at, mask, scale, lr, momentum, MOMENTUM: tl.constexpr, KEEP: tl.constexpr
):
    """max(theta - lr (scale gradient, or the velocity with it), 0)."""
    gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0) * scale
    if MOMENTUM:
        gradient = momentum * tl.load(velocity_ptr + at, mask=mask, other=0.0) + gradient
        if KEEP:
            tl.store(velocity_ptr + at, gradient, mask=mask)
    new = tl.load(parameter_ptr + at, mask=mask, other=0.0) - lr * gradient
    return tl.where(new <= 0, 0.0, new)


@triton.jit
def _update_kernel(
    w_ptr, v_ptr, counts_ptr, grad_w_ptr, grad_v_ptr, active_ptr, velocity_w_ptr, velocity_v_ptr, verdict_ptr,
    R, D, C, lr, momentum,
    MOMENTUM: tl.constexpr, EVERY_ROW: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Clip, SGD and the projection on the touched rows, and their counters."""
    j = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    active = tl.load(active_ptr + j, mask=j < R, other=0)
    moved = (j < R) & (active >= 0 if EVERY_ROW else active > 0)
    if (tl.load(verdict_ptr + GO) > 0) & (tl.max(moved.to(tl.int32), 0) > 0):
        scale = tl.load(verdict_ptr + SCALE).to(tl.float32)
        count = tl.load(counts_ptr + j, mask=j < R, other=0)
        tl.store(counts_ptr + j, count + active, mask=(j < R) & (active > 0))
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            at_v = j[:, None] * C + c[None, :]
            mask_v = moved[:, None] & (c < C)[None, :]
            new_v = _stepped(v_ptr, grad_v_ptr, velocity_v_ptr, at_v, mask_v, scale, lr, momentum, MOMENTUM, True)
            tl.store(v_ptr + at_v, new_v, mask=mask_v)
        squares = tl.zeros([BLOCK_R], tl.float64)
        for start in range(0, D, BLOCK_D):  # nothing is stored here: threads may not own the same numbers below
            d = start + tl.arange(0, BLOCK_D)
            at = j[:, None] * D + d[None, :]
            mask = moved[:, None] & (d < D)[None, :]
            new = _stepped(w_ptr, grad_w_ptr, velocity_w_ptr, at, mask, scale, lr, momentum, MOMENTUM, False)
            squares += tl.sum(new.to(tl.float64) * new.to(tl.float64), 1)
        norm = tl.sqrt(squares)
        norm = tl.where(norm > 0, norm, 1.0).to(tl.float32)[:, None]
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            at = j[:, None] * D + d[None, :]
            mask = moved[:, None] & (d < D)[None, :]
            new = _stepped(w_ptr, grad_w_ptr, velocity_w_ptr, at, mask, scale, lr, momentum, MOMENTUM, True)
            tl.store(w_ptr + at, tl.div_rn(new, tl.broadcast_to(norm, new.shape)), mask=mask)
