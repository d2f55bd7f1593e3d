"""Gates on what nvcc makes of the CUDA kernels, without a GPU: no spills, registers, tensor cores and asynchronous
copies where they are meant. Takes minutes: --runslow."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
# At most so many registers a thread: with its block's threads, what leaves room for the blocks that are meant.
REGISTERS = {
    "topk_scan_kernel": 168,
    "threshold_select_kernel": 96,
    "sparse_update_kernel": 64,
    "weighted_sums_kernel": 64,
    "entry_dots_kernel": 64,
    "row_norms_kernel": 64,
    "through_norm_kernel": 64,
    "topk_merge_kernel": 64,
    "count_columns_kernel": 64,
    "count_entries_kernel": 64,
    "top_n_kernel": 64,
    "sdmlp_scan_kernel": 128,
    "sdmlp_sample_kernel": 128,
    "sdmlp_gradient_kernel": 128,
    "sdmlp_update_kernel": 64,
    "sdmlp_frequency_kernel": 64,
    "sdmlp_advance_kernel": 64,
}


def disassembler() -> str | None:
    """cuobjdump, of the toolkit or of the triton package."""
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    places = [Path(place) / "backends" / "nvidia" / "bin" / "cuobjdump" for place in ((spec and spec.origin) and
              [Path(spec.origin).parent]) or []]  # fmt: skip
    return next((str(place) for place in places if place.exists()), None)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc"),
    pytest.mark.skipif(disassembler() is None, reason="needs cuobjdump, of the CUDA toolkit or of triton"),
]


def cubin(source: Path, architecture: str, folder: Path, *flags: str) -> Path:
    target = folder / f"{source.stem}.{architecture}.cubin"
    command = ["nvcc", "-cubin", f"-arch={architecture}", "-std=c++17", "-O3", "-fmad=false", *flags,
               f"-I{ROOT / 'csrc' / 'include'}", str(source), "-o", str(target)]  # fmt: skip
    subprocess.run(command, check=True)
    return target


def functions(target: Path) -> Iterator[tuple[str, str, dict[str, int]]]:
    """The name of each kernel, its instructions, and its use of registers and stack."""
    tool = disassembler()
    assert tool
    usage = subprocess.run([tool, "-res-usage", str(target)], text=True, check=True, capture_output=True)
    resources = {}
    for name, line in re.findall(r"Function (\S+):\s*\n\s*(.*)", usage.stdout + usage.stderr):
        resources[name] = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
    sass = subprocess.run([tool, "-sass", str(target)], text=True, check=True, capture_output=True).stdout
    for part in re.split(r"\n\s*Function : ", sass)[1:]:
        name, _, code = part.partition("\n")
        yield name.strip(), code, resources[name.strip()]


def complaints(name: str, code: str, resources: dict[str, int]) -> list[str]:
    """What is wrong with a kernel."""
    kernel = next((known for known in REGISTERS if known in name), None)
    if kernel is None:
        return [f"{name} has no line in REGISTERS"]
    found = [f"{word} in {kernel}" for word in ("STL", "LDL") if re.search(rf"\b{word}\b", code)]
    if resources["STACK"]:
        found.append(f"{kernel} has a stack of {resources['STACK']}")
    if resources["REG"] > REGISTERS[kernel]:
        found.append(f"{kernel} uses {resources['REG']} registers")
    if kernel in ("topk_scan_kernel", "sdmlp_scan_kernel"):
        wide = "Lb1E" in name  # its copies are asynchronous where rows are aligned
        found += [f"no {word} in {name}" for word in ("HMMA", *(["LDGSTS"] if wide else [])) if word not in code]
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_kernels_pass_the_gates(source, architecture, tmp_path):
    found = list(functions(cubin(source, architecture, tmp_path)))
    assert found
    assert [complaint for function in found for complaint in complaints(*function)] == []


def test_a_kernel_with_too_few_registers_fails(tmp_path):
    """The negative control."""
    source = ROOT / "csrc" / "cuda" / "topk_linear.cu"
    found = list(functions(cubin(source, "sm_90a", tmp_path, "-DSSD_MOST_REGISTERS=64")))
    failed = [name for name, code, resources in found if any("STL" in c for c in complaints(name, code, resources))]
    assert any("topk_scan_kernel" in name for name in failed)
