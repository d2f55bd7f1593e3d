"""The kernels around the layers, compiled to cubins without a GPU: registers, shared memory, spills within limits."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Registers per thread and bytes of shared memory, as compiled by Triton 3.6 and 3.9 with some room.
LIMITS = {
    "_sparse_update_kernel": (96, 4096),
    "_count_columns_kernel": (64, 4096),
    "_count_entries_kernel": (64, 16384),
    "_sort_blocks_kernel": (200, 16384),
    "_merge_ranks_kernel": (64, 16384),
    "distill_hidden_kernel": (128, 8192),
    "_distill_logits_kernel": (112, 8192),
    "_mean_kernel": (64, 1024),
    # The engine's step; the scan of topk_linear has limits of its own.
    "_gather_kernel": (64, 1024),
    "_scores_kernel": (255, 65536),
    "_threshold_kernel": (64, 1024),
    "_inhibit_kernel": (128, 8192),
    "_logits_part_kernel": (255, 65536),
    "_logits_kernel": (64, 1024),
    "_loss_kernel": (255, 16384),
    "_gradient_kernel": (255, 65536),
    "_finish_kernel": (128, 4096),
    "_update_kernel": (255, 16384),
}
PRODUCTS = {"_scores_kernel", "_logits_part_kernel", "_gradient_kernel"}


def reports(cases: list[str], cache: Path) -> list[dict]:
    """What the offline compiler says of the launches of these cases; skips where its tools are missing."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, str(HERE / "triton_offline_training.py"), *cases],
        text=True, capture_output=True, env=environment, timeout=1200,
    )  # fmt: skip
    if run.returncode == 3:
        pytest.skip("this triton has no ptxas, cuobjdump or nvdisasm")
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def cases() -> list[str]:
    spec = importlib.util.spec_from_file_location("triton_offline_training", HERE / "triton_offline_training.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.CASES)


def check(found: list[dict]) -> None:
    for report in found:
        registers, shared = LIMITS[report["kernel"]]
        assert report["spills"] == 0 and report["registers"] <= registers and report["shared"] <= shared, report


def test_every_kernel_compiles_within_its_limits(tmp_path):
    pytest.importorskip("triton")
    first = {case.partition("/")[0]: case for case in reversed(cases())}
    found = reports([f"{case}@90" for case in first.values()], tmp_path)
    assert {report["kernel"] for report in found} == set(LIMITS)
    assert all(report["tensor_cores"] for report in found if report["kernel"] in PRODUCTS)
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("capability", (80, 90, 100))
def test_every_case_compiles_within_its_limits(capability, tmp_path):
    pytest.importorskip("triton")
    check(reports([f"{case}@{capability}" for case in cases()], tmp_path))
