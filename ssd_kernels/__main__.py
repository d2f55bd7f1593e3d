"""`python -m ssd_kernels`: what is installed, what `backend="auto"` picks on each device, and why not the rest."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from . import __version__, _backend, _native, _source


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_lines() -> list[str]:
    """The versions that decide what runs here."""
    return [
        f"ssd-kernels  {__version__}  ({Path(__file__).resolve().parent})",
        f"commit       {_source.commit() or 'not known'}",
        f"python       {platform.python_version()}  ({platform.system()} {platform.machine()})",
        f"torch        {torch.__version__}",
        f"triton       {_version('triton') or 'not installed'}",
        f"numpy        {_version('numpy') or 'not installed'}",
    ]


def simd_line() -> str:
    """The best instruction-set level of this processor, and the one that SSD_SIMD asks for."""
    module, reason = _native.cpu_module()
    if module is None:
        return f"unknown: the native CPU module is not loaded ({reason})"
    best, asked = module.best_simd_level(), _native.simd_level()
    if not asked:
        return f"{best}  (the best of this processor; SSD_SIMD is not set)"
    try:
        return f"{module.simd_level(asked)}  (set by SSD_SIMD; the best of this processor is {best})"
    except ValueError as error:
        return f"every native call will fail: {error}"


def native_lines() -> list[str]:
    """Which native modules are loaded, from where, or why not."""
    lines = []
    for name, (module, reason) in (("_cpu", _native.cpu_module()), ("_cuda", _native.cuda_module())):
        if module is None:
            built = "built, not loaded" if importlib.util.find_spec(f"{__package__}.{name}") else "not built"
            lines.append(f"{name:<6} {built}: {reason}")
            continue
        threads = f", threads: {'OpenMP, shared with torch' if module.openmp else 'own pool'}" if name == "_cpu" else ""
        lines.append(f"{name:<6} {module.__file__}{threads}")
    return lines


def devices() -> list[torch.device]:
    """The CPU, the GPUs that torch sees, and a GPU that is only asked about where there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(max(count, 1)))]


def picked(op: str, device: torch.device) -> str:
    """What `auto` picks; the reasons are printed below it, so no warning is needed here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return _backend.resolve("auto", op, device)


def device_lines(device: torch.device) -> list[str]:
    """What `auto` picks for every operation on one device, with the reason for each backend that it cannot pick."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return ["cuda: no GPU, torch.cuda.is_available() is False"]
        lines = [f"{device}: {torch.cuda.get_device_name(device)}"]
    else:
        lines = [f"{device}: {torch.get_num_threads()} threads"]
    for op in _backend.OPERATIONS:
        try:
            lines.append(f"  {op:<20} auto = {picked(op, device)}")
        except ValueError as error:  # SSD_BACKEND names one that cannot run it
            lines.append(f"  {op:<20} {error}")
        for backend in _backend.BACKENDS:
            if reason := _backend.missing_reason(backend, op, device):
                lines.append(f"  {'':<20}   not {backend}: {reason}")
    return lines


def simd_level() -> str | None:
    """The level that native calls use; None where they cannot run."""
    module, _ = _native.cpu_module()
    try:
        return module.simd_level(_native.simd_level()) if module else None
    except ValueError:  # SSD_SIMD names one that this processor has not
        return None


def modules() -> dict[str, dict[str, str | None]]:
    """The file of each native module, or why it is not loaded."""
    found = {}
    for name, (module, reason) in (("_cpu", _native.cpu_module()), ("_cuda", _native.cuda_module())):
        found[name] = {"file": module.__file__ if module else None, "reason": reason or None}
    return found


def operation(op: str, here: list[torch.device]) -> dict[str, Any]:
    """What `auto` picks, on a GPU where there is one, and each backend's reason not to run here, or None."""
    device = here[min(1, len(here) - 1)]
    try:
        auto = picked(op, device)
    except ValueError:  # SSD_BACKEND names one that cannot run it
        auto = None
    backends = {}
    for backend in _backend.BACKENDS:
        runs = any(not _backend.missing_reason(backend, op, other) for other in here)
        backends[backend] = None if runs else _backend.missing_reason(backend, op, device)
    return {"auto": auto, "backends": backends}


def report() -> dict[str, Any]:
    """All of it for a program to read."""
    here = devices() if torch.cuda.is_available() else [torch.device("cpu")]
    return {
        "version": __version__,
        "commit": _source.commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "simd": simd_level(),
        "modules": modules(),
        "devices": [str(device) for device in here],
        "operations": {op: operation(op, here) for op in _backend.OPERATIONS},
    }


def text() -> str:
    """All of it for a person to read."""
    lines = [*version_lines(), f"SIMD level   {simd_line()}"]
    lines += [f"SSD_BACKEND  {os.environ.get('SSD_BACKEND') or 'not set'}"]
    lines += ["", "Native modules", *(f"  {line}" for line in native_lines())]
    lines += ["", 'What backend="auto" picks']
    return "\n".join([*lines, *(f"  {line}" for device in devices() for line in device_lines(device))])


def main(argv: list[str] | None = None) -> int:
    """Prints it and returns the exit code."""
    parser = argparse.ArgumentParser("python -m ssd_kernels", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object; a reason of null: it can run here")
    options = parser.parse_args(argv)
    try:
        print(json.dumps(report(), indent=1) if options.json else text(), flush=True)
    except BrokenPipeError:  # the reader has gone, as `| head` does; what is left must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def installed_elsewhere() -> bool:
    """Whether this is a checkout's bare source, found because it is the current folder, beside an installation."""
    here = Path(__file__).resolve().parent
    if sys.flags.safe_path or here.parent != Path.cwd() or any(here.glob("_cpu*.so")):
        return False
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != here.parent]
    return any(True for _ in importlib.metadata.distributions(name="ssd-kernels", path=others))


if __name__ == "__main__":
    if installed_elsewhere():
        os.execv(sys.executable, [sys.executable, "-P", "-m", "ssd_kernels", *sys.argv[1:]])
    sys.exit(main())
