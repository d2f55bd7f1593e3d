"""The `backend` of an operation's tests: the reference, the native kernels at every SIMD level, and Triton's.

The tests pass CPU tensors, so the Triton kernels run in the interpreter; with a GPU at hand tests/ops/test_gpu.py runs
them there. A module with TRITON_APART has the Triton kernels tested elsewhere. `on_emulator` runs the CUDA kernels
thread by thread over the emulator of tests/cpp/cuda.
"""

import importlib.machinery
import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssd_kernels import _backend, _cuda_calls, _native, testing

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The module _cuda with its launchers over the emulator."""
    import pybind11

    folder = tmp_path_factory.mktemp("emulated")
    sources = [ROOT / "tests" / "cpp" / "cuda" / "emulator.cpp", *(ROOT / "csrc" / "bindings").glob("cuda*.cpp"),
               *(ROOT / "csrc" / "cuda").glob("*.cu")]  # fmt: skip
    places = (ROOT / "csrc" / "include", ROOT / "csrc" / "cuda", pybind11.get_include(),
              sysconfig.get_paths()["include"])  # fmt: skip
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DSSD_EMULATOR_TSAN=0"]
    compiler = os.environ.get("CXX", "c++")

    def compiled(source: Path) -> str:
        target = folder / f"{source.name}.o"
        subprocess.run([compiler, *flags, *(f"-I{place}" for place in places), "-x", "c++", "-c", str(source),
                        "-o", str(target)], check=True)  # fmt: skip
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    library = folder / "_cuda.so"
    subprocess.run([compiler, "-shared", *objects, "-o", str(library)], check=True)
    loader = importlib.machinery.ExtensionFileLoader("ssd_kernels._cuda", str(library))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("ssd_kernels._cuda", loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def on_emulator(emulated, monkeypatch):
    """CPU tensors are taken by backend="cuda"."""
    monkeypatch.setattr(_native, "cuda_module", lambda: (emulated, ""))
    monkeypatch.setattr(_cuda_calls, "stream_of", lambda device: (0, 0))
    real = _backend.missing_reason
    monkeypatch.setattr(
        _backend, "missing_reason",
        lambda backend, op, device: "" if backend == "cuda" and op in _backend.CUDA_OPERATIONS
        else real(backend, op, device),
    )  # fmt: skip
