"""What a teacher's softened outputs are to the native engines: float64, evaluated once per teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .types import Teacher


def softened(teacher: Teacher, temperature: float, reverse: bool, neurons: int) -> dict[str, Tensor]:
    """A teacher's tensors under the names of the native records, on its device.

    Returns:
        targets: (N, C) q = softmax(logits / T), log q where the KL is reversed; neg_entropy: (N,) sum q log q;
        in_units: (R,) uint8; offsets, indices, values: its activations; hidden_log_z: (N,) the hidden softmax's log Z.
    """
    log_q = torch.log_softmax(teacher.logits.double() / temperature, 1)
    q = log_q.exp()
    in_units = torch.zeros(neurons, dtype=torch.uint8, device=q.device)
    in_units[teacher.units] = 1
    return {
        "targets": (log_q if reverse else q).contiguous(),
        "neg_entropy": (q * log_q).sum(1).contiguous(),
        "in_units": in_units,
        "offsets": teacher.offsets.contiguous(),
        "indices": teacher.indices.contiguous(),
        "values": teacher.values.contiguous(),
        "hidden_log_z": _log_normaliser(teacher, temperature),
    }


def _log_normaliser(teacher: Teacher, temperature: float) -> Tensor:
    """log Z of softmax(h / T) over the selected units, of which all that are absent hold exp(0); (N,) float64."""
    z, units = teacher.values.double() / temperature, float(len(teacher.units))
    sample = torch.repeat_interleave(torch.arange(len(teacher.logits), device=z.device), teacher.offsets.diff())
    largest = z.new_zeros(len(teacher.logits)).scatter_reduce_(0, sample, z, "amax")
    largest = torch.where(largest > 600, largest, 0.0)  # taken out only where exp would overflow
    # expm1(z) with nothing taken out: log1p keeps its digits then
    above = torch.where(largest[sample] > 0, (z - largest[sample]).exp() - (-largest[sample]).exp(), torch.expm1(z))
    sums = torch.zeros_like(largest).index_add_(0, sample, above)  # in order: sums of samples may differ by 1e300
    shift = torch.where(largest > 0, torch.log((-largest).exp() + sums / units), torch.log1p(sums / units))
    return (largest + math.log(units) + shift).contiguous()
