"""A fixed number of the fuzz cases, in every run of the suite; tests/fuzz/operations.py runs as many as one likes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import operations

CASES = 120


@pytest.mark.parametrize("target", operations.TARGETS)
def test_random_calls_end_in_a_result_or_a_clear_error(target: str) -> None:
    cases = 40 if target in ("engine", "distill_loss") else CASES
    passed = sum(operations.run(target, number) for number in range(cases))
    assert passed >= cases / 2, "too few cases pass the first validation to say anything"
