"""The rounds of a comparison as pytest-benchmark's records, one of each contender.

pytest-benchmark times one function per test. Here contenders take turns within a test, so their rounds are handed to
its session as they were measured: --benchmark-autosave, --benchmark-json, --benchmark-compare and
--benchmark-compare-fail work on them. extra_info holds the ratio to the baseline and, where the work is known, its
FLOPs, bytes and share of the bound; with versions, threads and the processor.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import measure
import peers
import pytest
from report import Table

try:
    from pytest_benchmark.stats import Metadata
except ImportError:  # the tables do without it
    Metadata = None


@dataclasses.dataclass
class Contender:
    """What pytest-benchmark's Metadata takes from its fixture."""

    name: str
    fullname: str
    group: str
    extra_info: dict[str, Any]
    param: str | None = None
    params: dict[str, Any] | None = None
    cprofile_stats: Any = None
    has_error: bool = False


def add(
    request: pytest.FixtureRequest, table: Table, times: Mapping[str, list[float]], work: Mapping[str, measure.Work]
) -> None:
    """Adds the contenders' rounds to pytest-benchmark's session, where it is installed."""
    session = getattr(request.config, "_benchmarksession", None)
    if Metadata is None or session is None:
        return
    environment = {**measure.environment(), "peers": peers.versions()}
    for name, seconds in times.items():
        extra = {"ratio": table.ratio(name), "baseline": table.baseline, **environment}
        if name in work:
            least = measure.bound(work[name])
            extra |= {**dataclasses.asdict(work[name]), "share_of_bound": least / table.timings[name].median}
        label = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name)
        contender = Contender(f"{request.node.name}:{label}", f"{request.node.nodeid}:{label}", table.title, extra)
        record = Metadata(contender, iterations=1, options={"interleaved": True})
        for second in seconds:
            record.stats.update(second)
        session.benchmarks.append(record)
