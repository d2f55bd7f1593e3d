"""What distill_loss refuses, and that it names the argument."""

import pytest
import torch

from ssd_kernels import distill_loss


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
        ("units", None, "units must be int64"),
        ("temperature", 0.0, "temperature must be positive"),
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
