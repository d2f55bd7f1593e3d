"""Autotuning: only on request, each shape once, and the same winners in every schedule that it may choose."""

from __future__ import annotations

import pytest
import torch

from ssd_kernels import _tuning
from ssd_kernels.testing import make

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_measured_yet(monkeypatch):
    monkeypatch.setattr(_tuning, "_fastest", {})
    monkeypatch.setenv("SSD_TRITON_TUNE", "1")


def test_the_fastest_is_measured_once_and_what_cannot_run_is_left_out(monkeypatch):
    times, runs = {"first": 3.0, "broken": 0.0, "good": 1.0, "slow": 2.0}, []

    def run(schedule):
        runs.append(schedule)
        if schedule == "broken":
            raise RuntimeError("out of shared memory")

    def seconds(run, device):
        run()
        return times[runs[-1]]

    monkeypatch.setattr(_tuning, "_seconds", seconds)
    for _ in range(2):
        assert _tuning.fastest("key", list(times), run, CPU) == "good"
    assert runs == list(times)
    with pytest.raises(RuntimeError, match="shared memory"):
        _tuning.fastest("other key", ["broken", "good"], run, CPU)


def test_a_schedule_is_timed_after_the_run_that_compiles_it():
    runs = []
    assert _tuning._seconds(lambda: runs.append(1), CPU) >= 0
    assert len(runs) == _tuning.REPEATS + 1


@pytest.mark.interpreter
def test_every_schedule_of_the_scan_finds_the_same_winners(monkeypatch):
    """Products and sums of small whole numbers are exact in any order."""
    pytest.importorskip("triton")
    from ssd_kernels.topk_linear import reference, triton_kernel

    x, weight = make(20, 4, values="ties", seed=1), make(500, 4, values="ties", seed=2)
    call = (x, weight, None, 5, "relu", "none", True)
    expected, chosen = reference.forward(*call), []
    schedules = triton_kernel.scan_configs(20, 4, 500, 6, x.dtype, triton_kernel._triton.machine_of(x.device))
    assert len(schedules) >= 6
    # The interpreter knows neither warps nor stages.
    for schedule in {(s.block_b, s.tiles): s for s in schedules}.values():

        def seconds(run, device, wanted=schedule):
            run()
            return float((chosen[-1].block_b, chosen[-1].tiles) != (wanted.block_b, wanted.tiles))

        scan = triton_kernel.scan

        def recorded(*arguments, scan=scan):
            chosen.append(arguments[-1])
            return scan(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(_tuning, "_fastest", {})
            patch.setattr(_tuning, "_seconds", seconds)
            patch.setattr(triton_kernel, "scan", recorded)
            patch.setattr(triton_kernel, "scan_configs", lambda *shape, one=schedule: [schedules[0], one])
            got = triton_kernel.forward(*call)
        assert (chosen[-1].block_b, chosen[-1].tiles) == (schedule.block_b, schedule.tiles)
        for result, wanted in zip(got, expected):
            assert torch.equal(result, wanted)


@pytest.mark.interpreter
def test_without_the_request_nothing_is_measured(monkeypatch):
    pytest.importorskip("triton")
    from ssd_kernels.topk_linear import triton_kernel

    monkeypatch.delenv("SSD_TRITON_TUNE")
    monkeypatch.setattr(_tuning, "_seconds", lambda run, device: pytest.fail("measured"))
    triton_kernel.forward(make(4, 8), make(50, 8), None, 3, "relu", "none", True)
