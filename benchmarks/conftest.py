"""Benchmarks: a correctness gate before every timing, tables at the end, results as JSON on request.

pytest benchmarks -k topk_linear            all sizes
pytest benchmarks --smoke                   small sizes, a few rounds: that the benchmarks run
pytest benchmarks --save --check-targets           keep the figures; fail where a target is missed
pytest benchmarks --benchmark-autosave             pytest-benchmark's records, one of each contender, and later
pytest benchmarks --benchmark-compare --benchmark-compare-fail=median:50%    fail where one has become slower

A table is printed when it is finished.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))  # the modules of this folder, which is no package

import measure
import peers
import records
from report import Table, save

_TABLES = pytest.StashKey[list[Table]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="small sizes and few rounds")
    parser.addoption("--save", action="store_true", help="write benchmarks/results/<machine>-<commit>.json")
    parser.addoption("--check-targets", action="store_true", help="fail where a target is missed")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLES] = []


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether only small sizes are wanted."""
    return request.config.getoption("--smoke")


@pytest.fixture
def compare(request: pytest.FixtureRequest, smoke: bool) -> Callable[..., Table]:
    """compare(title, contenders, baseline=..., gate=..., targets=...): gate, time, keep the table, and return it.

    `gate` raises where a result is wrong; nothing is timed then. `targets` maps a contender to (baseline, ratio). `by`:
    what ratios are of, "median" or "mean". `work`: of contenders, for their share of the bound in the records.
    Other options are those of measure.interleaved.
    """

    def run(
        title: str,
        contenders: Mapping[str, Callable[[], object]],
        *,
        baseline: str,
        gate: Callable[[], None],
        targets: Mapping[str, tuple[str, float]] | None = None,
        seconds: float = 20.0,
        rounds: int = 60,
        notes: list[str] | None = None,
        by: str = "median",
        work: Mapping[str, measure.Work] | None = None,
        **options: object,
    ) -> Table:
        gate()
        if smoke:
            targets, seconds, rounds = None, 1.0, 5
        times = measure.samples(contenders, seconds=seconds, rounds=rounds, **options)
        timings = {name: measure.timing(seconds) for name, seconds in times.items()}
        table = Table(title, baseline, timings, dict(targets or {}), list(notes or []), by)
        request.config.stash[_TABLES].append(table)
        records.add(request, table, times, work or {})
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n\n{table.text()}", flush=True)
        if request.config.getoption("--check-targets"):
            assert not table.missed(), "; ".join(table.missed())
        return table

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tables = config.stash[_TABLES]
    if not tables:
        return
    environment = {**measure.environment(), "peers": peers.versions()}
    terminalreporter.section("benchmarks")
    terminalreporter.write_line(", ".join(f"{key} {value}" for key, value in environment.items()))
    if config.getoption("--save"):
        path = save(Path(__file__).resolve().parent / "results", environment, tables)
        terminalreporter.write_line(f"\nwritten: {path.relative_to(Path(__file__).resolve().parent.parent)}")
