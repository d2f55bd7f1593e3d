"""A few of the random trainings of stress_engine.py, and one with more samples than certificates look at together."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("stress_engine", Path(__file__).with_name("stress_engine.py"))
stress_engine = importlib.util.module_from_spec(_spec)
sys.modules["stress_engine"] = stress_engine  # where dataclasses look a class's module up
_spec.loader.exec_module(stress_engine)


@pytest.fixture(autouse=True)
def one_torch_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("number", range(10))
def test_certificates_leave_every_bit_of_a_random_training(number: int) -> None:
    stress_engine.check(stress_engine.configuration(number))


def test_certificates_leave_every_bit_with_a_teacher_on_many_samples() -> None:
    """The engine looks at certificates in windows of 1024 rows: a task of one window and a half."""
    config = dataclasses.replace(
        stress_engine.configuration(0),
        neurons=400, inputs=24, k=5, classes=3, samples=1500, epochs=5, batch=50, switch=None, lr=0.02, momentum=0.0,
        norm=1.0, teacher=True, penalty=False, cache_mb=1024, spread=0.3, levels=0, duplicates=False, change="",
        reload=False, threads=2,
    )  # fmt: skip
    certified, rows = stress_engine.check(config)
    assert certified > rows / 2, "certificates should have been at work"
