"""Everything that wants a GPU, in one script of at most 8 minutes: tests, sanitizers, benchmarks by graph replay.

python benchmarks/gpu_suite.py --data embeddings.safetensors --out gpu_suite.json

Needs torch, triton, numpy, safetensors and pytest, and the package installed with
`pip install --no-deps --no-build-isolation .`. Every section is a process of its own with a time budget, so a hang or a
CUDA error costs that section alone; what it had measured is kept. The JSON is written after every section.
Exit status: 0 done, 1 a section failed, 2 no GPU or bad arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TOTAL_SECONDS = 480.0


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of the suite.

    Attributes:
        name: in the JSON.
        seconds: its budget; less where the whole suite has less left.
        command: its process, given the file that it appends JSON lines to and its budget.
        missing: why it cannot run here; empty when it can.
    """

    name: str
    seconds: float
    command: Callable[[Path, float], Sequence[str]]
    missing: str = ""


def run_section(section: Section, seconds: float) -> dict:
    """Runs one section; its status, its records and the end of its output."""
    if section.missing:
        return {"name": section.name, "status": "not run", "reason": section.missing, "records": []}
    with tempfile.TemporaryDirectory() as folder:
        records, output = Path(folder) / "records", Path(folder) / "output"
        start = time.monotonic()
        with output.open("w") as log:
            process = subprocess.Popen(
                list(section.command(records, seconds)), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(seconds)
                status = "passed" if code == 0 else "failed"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code, status = process.wait(), "out of time"
        lines = records.read_text().splitlines() if records.exists() else []
        return {
            "name": section.name, "status": status, "exit": code, "seconds": round(time.monotonic() - start, 2),
            "budget": round(seconds, 2), "records": [line for text in lines if (line := _parsed(text)) is not None],
            "output_tail": output.read_text(errors="replace")[-4000:],
        }  # fmt: skip


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # the process was killed while it wrote
        return None


def run_sections(sections: Sequence[Section], out: Path, environment: dict, total: float = TOTAL_SECONDS) -> dict:
    """Runs the sections in order within `total` seconds and writes the JSON after each."""
    end = time.monotonic() + total
    result: dict = {"schema": 1, "environment": environment, "total_seconds": total, "sections": []}
    for section in sections:
        left = end - time.monotonic()
        if left < 1:
            report = {"name": section.name, "status": "not run", "reason": "no time was left", "records": []}
        else:
            report = run_section(section, min(section.seconds, left))
        result["sections"].append(report)
        write(out, result)
        print(f"{section.name}: {report['status']}", flush=True)
    return result


def write(path: Path, content: dict) -> None:
    """Replaces the file at once, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def environment() -> dict:
    """Device, versions, commit."""
    import importlib.metadata

    import torch

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def run(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}", "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"), "cuda": torch.version.cuda,
        "commit": run("git", "-C", str(ROOT), "rev-parse", "HEAD"), "python": sys.version.split()[0],
        **{name: version(name) for name in ("torch", "triton", "numpy", "ssd-kernels", "flashlib", "flashinfer-python",
                                            "eai-sparsify")},
    }  # fmt: skip


def sections(data: str | None) -> list[Section]:
    """What the suite runs, the most telling first."""
    python = [sys.executable, "-P"]

    def bench(part: str) -> Callable[[Path, float], Sequence[str]]:
        def command(records: Path, seconds: float) -> list[str]:
            extra = ["--data", data] if data else []
            return [
                *python,
                str(HERE / "gpu_bench.py"),
                part,
                "--records",
                str(records),
                "--seconds",
                str(seconds),
                *extra,
            ]

        return command

    def tests(records: Path, seconds: float) -> list[str]:
        return [
            *python,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "-p",
            "no:cacheprovider",
            *(str(ROOT / "tests" / "ops" / name) for name in ("test_gpu.py", "test_sdmlp_triton.py")),
        ]

    def sanitizer(tool: str) -> Callable[[Path, float], Sequence[str]]:
        # With torch's memory cache, tensors lie side by side in one allocation: no address between them is a wrong one.
        # Captures need the cache: racecheck, which watches shared memory alone, sees the graphs.
        cache = [] if tool == "racecheck" else ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]

        def command(records: Path, seconds: float) -> list[str]:
            check = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
            return [*cache, *check, *bench("small")(records, seconds)]

        return command

    no_sanitizer = "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not on the PATH"
    return [
        Section("tests", 130, tests),
        Section("bench layer", 120, bench("layer")),
        Section("bench training", 50, bench("training")),
        Section("bench engine", 60, bench("engine")),
        *(
            Section(f"sanitizer {tool}", 40, sanitizer(tool), no_sanitizer)
            for tool in ("memcheck", "racecheck", "initcheck")
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="embeddings with x_train and y_train, .safetensors; random clusters without it")
    parser.add_argument("--out", type=Path, default=Path("gpu_suite.json"))
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for everything together")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="sections whose name holds one of these words")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("gpu_suite needs a CUDA device, and torch sees none.", file=sys.stderr)
        return 2
    if options.data and not Path(options.data).is_file():
        print(f"--data {options.data}: there is no such file.", file=sys.stderr)
        return 2
    chosen = [s for s in sections(options.data) if not options.only or any(word in s.name for word in options.only)]
    result = run_sections(chosen, options.out, environment(), options.seconds)
    return int(any(report["status"] in ("failed", "out of time") for report in result["sections"]))


if __name__ == "__main__":
    sys.exit(main())
