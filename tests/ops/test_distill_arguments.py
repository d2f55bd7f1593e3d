"""What distill_loss refuses, and that it names the argument."""

import pytest
import torch

from ssd_kernels import Rows, TopK, distill_hidden, distill_loss


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("labels", torch.tensor([0, 10]), "labels must be from 0 to 9, got 10"),
        ("labels", torch.tensor([-1, 1]), "labels must be from 0 to 9, got -1"),
        ("labels", torch.tensor([0.0, 1.0]), "labels must be int64"),
        ("teacher_logits", torch.ones(2, 9), "teacher_logits must be"),
        ("old_classes", torch.tensor([1, 10]), "old_classes must be from 0 to 9, got 10"),
        ("old_classes", torch.tensor([1, 1]), "old_classes must be distinct"),
        ("units", torch.tensor([1, 41]), "units must be from 0 to 40, got 41"),
        ("units", torch.tensor([1, 1]), "units must be distinct"),
        ("units", torch.tensor([], dtype=torch.int64), "units must name at least one neuron"),
        ("units", None, "units must be a Tensor, got NoneType"),
        ("temperature", 0.0, "temperature must be positive"),
        ("temperature", float("inf"), "temperature must be positive and finite, got inf"),
        ("temperature", float("nan"), "temperature must be positive and finite, got nan"),
        ("temperature", 1e-200, "temperature must be from 1e-150 to 1e150, got 1e-200"),
        ("alpha", float("nan"), "alpha must be from 0 to 1, got nan"),
        ("alpha", 1.5, "alpha must be from 0 to 1, got 1.5"),
        ("lam", -0.1, "lam must be from 0 to 1, got -0.1"),
        ("lam", float("nan"), "lam must be from 0 to 1, got nan"),
        ("logits", torch.ones(2, 10, dtype=torch.float8_e4m3fn), "logits must be floating point"),
        ("logits", torch.ones(2, 10).numpy(), "logits must be a Tensor, got ndarray"),
        ("labels", torch.tensor([0, 1], device="meta"), "labels must be on cpu, got meta"),
        ("teacher_logits", torch.ones(2, 10, device="meta"), "teacher_logits must be on cpu, got meta"),
        ("hidden", torch.ones(2, 41, device="meta"), "hidden must be on cpu, got meta"),
        ("hidden", torch.ones(2, 41).to_sparse(), "hidden must be a dense tensor"),
        ("units", torch.arange(5, device="meta"), "units must be on cpu, got meta"),
        ("teacher_hidden", torch.ones(2, 42), "teacher_hidden must be"),
        ("kl", "both", "kl must be 'forward' or 'reverse', got 'both'"),
        ("hidden", torch.ones(3, 41), "hidden must hold B = 2 samples"),
        ("teacher_hidden", "h", "teacher_hidden must be a Tensor, TopK or Rows"),
        ("units", (torch.arange(3), torch.arange(3)), "one entry per hidden layer, got 1, 1, 2"),
        ("backend", "fast", "there is no such backend"),
    ],
)
def test_errors_name_the_argument_and_what_is_allowed(name, value, message):
    arguments = {
        "logits": torch.ones(2, 10),
        "labels": torch.tensor([0, 1]),
        "hidden": torch.ones(2, 41),
        "teacher_logits": torch.ones(2, 10),
        "teacher_hidden": torch.ones(2, 41),
        "units": torch.arange(5),
    } | {name: value}
    with pytest.raises(ValueError, match=message):
        distill_loss(**arguments)


GOOD = {
    "values": torch.ones(6),
    "indices": torch.tensor([1, 2, 3, 0, 2, 4], dtype=torch.int32),
    "offsets": torch.tensor([0, 3, 6]),
    "threshold": torch.zeros(2),
}
DENSE = torch.rand(2, 5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("teacher", [False, True], ids=["student", "teacher"])
@pytest.mark.parametrize(
    "name, value, error, message",
    [
        ("offsets", torch.tensor([0, 10**8, 6]), ValueError, "begin with 0, ascend and end with nnz = 6, got 6"),
        ("offsets", torch.tensor([0, 3, 7]), ValueError, "got 7"),
        ("offsets", torch.tensor([-3, 3, 6]), ValueError, "got -3"),
        ("offsets", torch.tensor([0, 5, 3]), ValueError, "got 3"),
        ("offsets", torch.tensor([0, 3, 6], dtype=torch.int32), ValueError, "offsets .B . 1,. int64"),
        ("offsets", torch.tensor([0.0, 3.0, 6.0]), ValueError, "offsets .B . 1,. int64"),
        ("offsets", torch.tensor([0, 3, 6], device="meta"), ValueError, "offsets of .* must be on cpu, got meta"),
        ("offsets", torch.tensor([], dtype=torch.int64), ValueError, "offsets .B . 1,. int64|hold B"),
        ("offsets", torch.tensor([0, 6]), ValueError, "must hold B = "),
        ("indices", torch.tensor([1, 2, 3, 0, 2, 5], dtype=torch.int32), IndexError, "0 to R - 1 = 4, got 5"),
        ("indices", torch.tensor([-1, 2, 3, 0, 2, 4], dtype=torch.int32), IndexError, "got -1"),
        ("indices", torch.tensor([1, 2, 3, 0, 2, 4]), ValueError, "must be int32"),
        ("indices", torch.tensor([1, 2], dtype=torch.int32), ValueError, "must be int32"),
        ("values", torch.ones(6, device="meta"), ValueError, "on (cpu|meta), got"),
        ("values", torch.ones(6, dtype=torch.int32), ValueError, "must be floating point"),
    ],
)  # fmt: skip
def test_malformed_rows_are_refused(name, value, error, message, teacher, backend):
    rows = Rows(**(GOOD | {name: value}))
    pair = (DENSE, rows) if teacher else (rows, DENSE)
    with pytest.raises(error, match=message):
        distill_hidden(*pair, torch.arange(4), backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [-1, 5])
def test_malformed_winners_are_refused(bad, backend):
    top = TopK(torch.ones(2, 3), torch.tensor([[0, 1, 2], [3, 4, bad]], dtype=torch.int32), torch.zeros(2))
    with pytest.raises(IndexError, match=f"indices of hidden must be from 0 to R - 1 = 4, got {bad}"):
        distill_hidden(top, DENSE, torch.arange(4), backend=backend)
    with pytest.raises(ValueError, match="indices of hidden must be on cpu, got meta"):
        distill_hidden(top._replace(indices=top.indices.to("meta")), DENSE, torch.arange(4), backend=backend)


def test_the_number_of_a_unit_costs_no_memory():
    """Units and indices near 2^31: the scratch follows what is active, and the numbers do not matter."""
    high = 2**31 - 1

    def loss(shift: int, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.tensor([0.5, 1.0, 0.25, 0.75]).requires_grad_()
        rows = Rows(values, torch.tensor([shift - 4, shift - 1, shift - 3, shift], dtype=torch.int32),
                    torch.tensor([0, 2, 4]), torch.zeros(2))  # fmt: skip
        teacher = Rows(torch.ones(2), torch.tensor([shift - 4, shift - 2], dtype=torch.int32), torch.tensor([0, 1, 2]),
                       torch.zeros(2))  # fmt: skip
        units = torch.tensor([shift - 1, shift - 4, shift, shift - 2])
        kd = distill_hidden(rows, teacher, units, temperature=2.0, backend=backend)
        kd.backward()
        return kd.detach(), values.grad

    expected = loss(4, "reference")
    for shift in (4, 10**6, high):
        torch.testing.assert_close(loss(shift, "cpu"), expected, rtol=1e-12, atol=1e-12 if shift == 4 else 1e-9)
    with pytest.raises(ValueError, match=f"units must be distinct, {high} is given twice"):
        rows = Rows(torch.ones(1), torch.tensor([high], dtype=torch.int32), torch.tensor([0, 1]), torch.zeros(1))
        distill_hidden(rows, rows, torch.tensor([high, 3, high]), backend="cpu")
