"""Rules for device code, which keep the emulator of tests/cpp/cuda able to see what a kernel does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
MACHINE = {"device.h", "device_model.h"}  # the one place that may name the machine
sources = sorted(path for path in CUDA.iterdir() if path.suffix in (".h", ".cuh", ".cu") and path.name not in MACHINE)

FORBIDDEN = {
    r"\basm\b": "raw asm: add a primitive to device.h",
    r"\b__shared__": "shared memory comes from shared_memory<T>()",
    r"\bstatic\b(?!_)(?!\s+(constexpr|SSD_DEVICE))": "a static variable is shared by all threads of the emulator",
    r"\b__(?!CUDACC__)\w+": "an intrinsic or attribute: device.h has one name for each",
    r"\batomic(Add|Sub|Max|Min|And|Or|Xor|Exch|CAS|Inc|Dec)\b": "atomics are atomic_* of device.h",
    r"<<<": "launches go through launch() of device.h",
    r"\bthread_local\b": "threads are fibers in the emulator",
    r"cuda(Malloc|Free|\w*Synchronize|Memcpy(?!Async))": "a launcher allocates nothing and never synchronises",
}


def complaints(text: str) -> list[str]:
    code = re.sub(r"//.*|/\*.*?\*/", "", text)
    return [reason for pattern, reason in FORBIDDEN.items() if re.search(pattern, code)]


@pytest.mark.parametrize("path", sources, ids=lambda path: path.name)
def test_device_code_names_the_machine_through_device_h(path):
    assert complaints(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        'asm volatile("bar.sync 0;");',
        "__shared__ float x[32];",
        "static int calls = 0;",
        "int v = __shfl_sync(mask, v, 0);",
        "atomicAdd(p, 1.f);",
        "kernel<<<grid, block>>>(p);",
        "cudaDeviceSynchronize();",
        "cudaMalloc(&p, 4);",
    ],
)
def test_a_breach_is_seen(line):
    assert complaints(line)


def test_what_is_allowed_is_not_seen():
    assert not complaints("// __shared__ in words\nstatic constexpr int kWidth = 4;\nstatic_assert(kWidth == 4);")


def test_every_launcher_runs_in_the_emulator():
    """A .cu that no C++ test compiles would run first on a GPU."""
    listed = (CUDA.parents[1] / "tests" / "cpp" / "cuda" / "CMakeLists.txt").read_text()
    for path in sources:
        if path.suffix == ".cu":
            assert re.search(rf"^ssd_cuda_test\(.*\b{path.stem}\b", listed, re.MULTILINE), f"{path.name} has no test"
