"""The `backend` of an operation's tests: the reference, and the native kernels at every SIMD level."""

import pytest

from ssd_kernels import _backend, testing


def pytest_generate_tests(metafunc):
    operation = getattr(metafunc.module, "OPERATION", None)
    if operation and "backend" in metafunc.fixturenames:
        native = [f"cpu-{level}" for level in testing.simd_levels()] if operation in _backend.CPU_OPERATIONS else []
        metafunc.parametrize("backend", ["reference", *native, *(["triton"] if operation in _backend.TRITON_OPERATIONS else [])], indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    """A backend's name; for the native kernels SSD_SIMD holds the level."""
    name, _, level = request.param.partition("-")
    if level:
        monkeypatch.setenv("SSD_SIMD", level)
    return name
