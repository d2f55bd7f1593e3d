"""distill_loss against the dense form: hidden distillation alone, and the whole loss; forward and gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from ssd_kernels import Rows, distill_hidden, distill_loss, testing

TEMPERATURE = 8.0


def rows_of(batch: int, neurons: int, active: int, seed: int) -> tuple[Rows, torch.Tensor]:
    """`active` neurons per sample, out of the first tenth (some neurons are frequent); the same dense."""
    generator = torch.Generator().manual_seed(seed)
    most = max(neurons // 10, active)
    chosen = torch.rand(batch, most, generator=generator).topk(active).indices.sort(1).values
    values = 0.3 * testing.make(batch, active, values="uniform", seed=seed)
    rows = Rows(values.flatten(), chosen.flatten().int(), torch.arange(batch + 1) * active, torch.zeros(batch))
    return rows, torch.zeros(batch, neurons).scatter(1, chosen, values)


def dense_kd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_student = log_softmax(student / TEMPERATURE, 1)
    return TEMPERATURE**2 * kl_div(log_student, softmax(teacher / TEMPERATURE, 1), reduction="batchmean")


@pytest.mark.parametrize("active", (10, 31))
def bench_distill(active: int, compare: Callable, smoke: bool) -> None:
    batch, neurons, classes, n = (32, 1000, 10, 100) if smoke else (128, 10_000, 10, 1000)
    (student, student_dense), (teacher, teacher_dense) = (rows_of(batch, neurons, active, seed) for seed in (1, 2))
    units = torch.randperm(max(neurons // 10, n), generator=torch.Generator().manual_seed(0))[:n]
    logits, teacher_logits = testing.make(batch, classes, seed=3), testing.make(batch, classes, seed=4)
    labels = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(1))
    student = student._replace(values=student.values.requires_grad_())
    selected, teacher_selected = student_dense[:, units].requires_grad_(), teacher_dense[:, units]
    student_dense.requires_grad_()
    logits.requires_grad_()

    def hidden() -> torch.Tensor:
        return distill_hidden(student, teacher, units, temperature=TEMPERATURE)

    def dense_hidden() -> torch.Tensor:
        return dense_kd(student_dense[:, units], teacher_dense[:, units])

    def whole() -> torch.Tensor:
        return distill_loss(logits, labels, student, teacher_logits, teacher, units=units).loss

    def dense_whole() -> torch.Tensor:
        kd = 0.1 * dense_hidden() + 0.9 * dense_kd(logits, teacher_logits)
        return 0.7 * cross_entropy(logits, labels) + 0.3 * kd

    def gate() -> None:
        gold = dense_kd(student_dense[:, units].double(), teacher_dense[:, units].double())
        torch.testing.assert_close(hidden().double(), gold, rtol=1e-5, atol=0)
        torch.testing.assert_close(whole(), dense_whole(), rtol=1e-4, atol=1e-5)

    def gradient(loss: Callable[[], torch.Tensor], *inputs: torch.Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), inputs)

    compare(
        f"hidden distillation, B {batch}, R {neurons}, n {n}, {active} active per sample, fp32, loss and gradient",
        {
            "dense: h[:, J], log_softmax, kl_div": gradient(dense_hidden, student_dense),
            "dense, h[:, J] at hand": gradient(lambda: dense_kd(selected, teacher_selected), selected),
            "O(active), one call gives loss and gradient": lambda: hidden_raw(student, teacher, units),
            "O(active), through autograd": gradient(hidden, student.values),
        },
        baseline="dense: h[:, J], log_softmax, kl_div",
        gate=gate,
        targets=dict.fromkeys(
            ("O(active), one call gives loss and gradient", "O(active), through autograd"),
            ("dense: h[:, J], log_softmax, kl_div", 10.0),
        ),
        seconds=5,
        rounds=200,
    )
    compare(
        f"the whole SSD loss, B {batch}, R {neurons}, C {classes}, n {n}, {active} active, fp32, loss and gradient",
        {
            "dense": gradient(dense_whole, logits, student_dense),
            "distill_loss": gradient(whole, logits, student.values),
        },
        baseline="dense",
        gate=gate,
        seconds=5,
        rounds=200,
    )


def hidden_raw(student: Rows, teacher: Rows, units: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.ops.ssd_kernels.distill_hidden(*student[:3], *teacher[:3], units, TEMPERATURE, False, "cpu")[0]
