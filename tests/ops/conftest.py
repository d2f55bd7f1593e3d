"""The `backend` of an operation's tests: the reference, the native kernels at every SIMD level, and Triton's.

The tests pass CPU tensors, so the Triton kernels run in the interpreter; with a GPU at hand tests/ops/test_gpu.py runs
them there. A module with TRITON_APART has the Triton kernels tested elsewhere.
"""

import importlib.util
import os

import pytest

from ssd_kernels import _backend, testing


def _interpreted() -> bool:
    return importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"


def pytest_generate_tests(metafunc):
    operation = getattr(metafunc.module, "OPERATION", None)
    if operation and "backend" in metafunc.fixturenames:
        native = [f"cpu-{level}" for level in testing.simd_levels()] if operation in _backend.CPU_OPERATIONS else []
        apart = getattr(metafunc.module, "TRITON_APART", False)
        triton = [pytest.param("triton", marks=pytest.mark.interpreter)]
        triton = triton if operation in _backend.TRITON_OPERATIONS and _interpreted() and not apart else []
        metafunc.parametrize("backend", ["reference", *native, *triton], indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    """A backend's name; for the native kernels SSD_SIMD holds the level."""
    name, _, level = request.param.partition("-")
    if level:
        monkeypatch.setenv("SSD_SIMD", level)
    return name


@pytest.fixture
def whole_table(backend, request):
    """Whether a test goes through all of its table: for Triton's interpreter, which is slow, with --runslow alone."""
    return backend != "triton" or request.config.getoption("--runslow")
