"""The specification of the SSD loss in plain torch, computed in float64 (arXiv 2512.15267)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ..gaba_linear.reference import accumulation_dtype
from ..sparse_linear.reference import sample_of_entry


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """CE: the mean over the batch of -log softmax(y)[label]; 0 for an empty batch. Differentiable."""
    picked = log_softmax(logits.double(), 1).gather(1, labels[:, None])
    return -picked.sum() / max(logits.shape[0], 1)


def divergence(student: Tensor, teacher: Tensor, temperature: float, reverse: bool) -> Tensor:
    """KD: the mean over the batch of T^2 KL(softmax(q/T) || softmax(z/T)), or of the reverse. Differentiable.

    Args:
        student: (B, n) float, z.
        teacher: (B, n) float, q.
        temperature: T.
        reverse: T^2 KL(softmax(z/T) || softmax(q/T)) instead.

    Returns:
        A float64 scalar; 0 for an empty batch.
    """
    log_s = log_softmax(student.double() / temperature, 1)
    log_t = log_softmax(teacher.double() / temperature, 1)
    terms = log_s.exp() * (log_s - log_t) if reverse else log_t.exp() * (log_t - log_s)
    return temperature**2 * terms.sum() / max(student.shape[0], 1)


def divergence_gradient(student: Tensor, teacher: Tensor, temperature: float, reverse: bool) -> Tensor:
    """dKD/dz = T (p_s - p_t) / B, or for the reverse T p_s (log p_s - log p_t - KL(p_s || p_t)) / B; (B, n) float64."""
    log_s = log_softmax(student.double() / temperature, 1)
    log_t = log_softmax(teacher.double() / temperature, 1)
    scale = temperature / max(student.shape[0], 1)
    if not reverse:
        return scale * (log_s.exp() - log_t.exp())
    ratio = log_s - log_t
    return scale * log_s.exp() * (ratio - (log_s.exp() * ratio).sum(1, keepdim=True))


def select_units(values: Tensor, indices: Tensor | None, offsets: Tensor | None, units: Tensor) -> Tensor:
    """h[J]: the dense (B, n) form of the selected units of dense, Top-K or row-sparse activations."""
    if indices is None:
        return values[:, units]
    sample, position, chosen = _positions(values, indices, offsets, units)
    batch = values.shape[0] if offsets is None else offsets.shape[0] - 1
    dense = torch.zeros(batch, units.shape[0], dtype=values.dtype, device=values.device)
    return dense.index_put((sample[chosen], position[chosen]), values.reshape(-1)[chosen])


def _positions(values: Tensor, indices: Tensor, offsets: Tensor | None, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each entry its sample, its place in `units`, and whether its neuron is selected at all."""
    flat = indices.reshape(-1).long()
    order = torch.argsort(units)
    place = torch.searchsorted(units[order], flat).clamp_max(units.shape[0] - 1)
    position = order[place]
    return sample_of_entry(values, offsets), position, units[position] == flat


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
    """KD_hidden on h[J] and its gradient: (B, n) for dense activations, else of the shape of the values."""
    student = select_units(values, indices, offsets, units)
    teacher = select_units(teacher_values, teacher_indices, teacher_offsets, units)
    kd = divergence(student, teacher, temperature, reverse)
    gradient = divergence_gradient(student, teacher, temperature, reverse)
    if indices is not None:
        sample, position, chosen = _positions(values, indices, offsets, units)
        entries = torch.where(chosen, gradient[sample, position], 0.0)
        gradient = entries.reshape(values.shape)
    return kd.to(accumulation_dtype(values.dtype)), gradient.to(values.dtype)


def distill_logits(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    old_classes: Tensor | None,
    temperature: float,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CE, KD_logits and their gradients, both (B, C); without a teacher KD is 0 and its gradient is empty."""
    dtype = accumulation_dtype(logits.dtype)
    one_hot = torch.zeros_like(logits, dtype=torch.float64).scatter_(1, labels[:, None], 1.0)
    grad_ce = (log_softmax(logits.double(), 1).exp() - one_hot) / max(logits.shape[0], 1)
    ce = cross_entropy(logits, labels).to(dtype)
    if teacher is None:
        return ce, ce.new_zeros(()), grad_ce.to(logits.dtype), logits.new_zeros(0)
    classes = torch.arange(logits.shape[1], device=logits.device) if old_classes is None else old_classes
    student, teacher = logits[:, classes], teacher[:, classes]
    kd = divergence(student, teacher, temperature, reverse).to(dtype)
    grad_kd = torch.zeros_like(grad_ce)
    grad_kd[:, classes] = divergence_gradient(student, teacher, temperature, reverse)
    return ce, kd, grad_ce.to(logits.dtype), grad_kd.to(logits.dtype)
