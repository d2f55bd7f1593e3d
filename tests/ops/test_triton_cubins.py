"""The Triton kernels of the layers, compiled to cubins without a GPU: tensor cores used, and nothing spilled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
OPERATIONS = ("topk_linear/forward", "topk_linear/backward", "gaba_linear/forward", "gaba_linear/backward",
              "sparse_linear/both")  # fmt: skip
SHAPES = ("small", "middle", "large", "small-fp32")
# Registers per thread and bytes of shared memory that no case exceeds, as compiled by Triton 3.9.
LIMITS = {
    "_inverse_norms_kernel": (48, 1024),
    "_scan_kernel": (255, 131072),
    "_shorten_kernel": (255, 16384),
    "_merge_kernel": (255, 16384),
    "_through_norm_kernel": (96, 1024),
    "_gather_sum_kernel": (128, 4096),
    "_segment_sum_kernel": (192, 32768),
    "_activation_kernel": (255, 131072),
    "_masked_product_kernel": (255, 65536),
    "_entry_dots_kernel": (128, 1024),
}
# What Triton 3.6 needs beyond that.
OLDER_LIMITS = {
    "_merge_kernel": (255, 32768),
    "_gather_sum_kernel": (255, 4096),
    "_entry_dots_kernel": (128, 16384),
}
PRODUCTS = {"_scan_kernel", "_activation_kernel", "_masked_product_kernel"}
TENSOR_CORES = {80: {"HMMA"}, 90: {"HGMMA"}, 100: {"UTCHMMA"}}


def check(cases: list[str], cache: Path) -> None:
    """Compiles the cases and compares each kernel with its limits; skips where Triton has no tools for it."""
    pytest.importorskip("triton")
    from ssd_kernels import _triton

    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, str(HERE / "triton_offline.py"), *cases], text=True, capture_output=True,
                         env=environment, timeout=3000)  # fmt: skip
    if run.returncode == 3:
        pytest.skip("this triton has no ptxas, cuobjdump or nvdisasm")
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines()]
    limits = LIMITS | ({} if _triton.VERSION >= (3, 9) else OLDER_LIMITS)
    assert {report["case"] for report in found} == set(cases)
    for report in found:
        registers, shared = limits[report["kernel"]]
        assert report["spills"] == 0 and report["registers"] <= registers and report["shared"] <= shared, report
        expected = TENSOR_CORES[report["capability"]] if report["kernel"] in PRODUCTS else set()
        assert set(report["tensor_cores"]) == expected, report


def test_the_scan_compiles_within_its_limits(tmp_path):
    check(["topk_linear/forward/small@90"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", (80, 90, 100))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_shape_compiles_within_its_limits(operation, capability, tmp_path):
    check([f"{operation}/{shape}@{capability}" for shape in SHAPES], tmp_path)
