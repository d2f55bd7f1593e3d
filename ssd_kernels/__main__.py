"""`python -m ssd_kernels`: what is installed, what `backend="auto"` picks on each device, and why not the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pkgutil
import platform
import sys
from pathlib import Path

import torch

from . import __version__, _backend, _native


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def version_lines() -> list[str]:
    """The versions that decide what runs here."""
    return [
        f"ssd-kernels  {__version__}  ({Path(__file__).resolve().parent})",
        f"python       {platform.python_version()}  ({platform.system()} {platform.machine()})",
        f"torch        {torch.__version__}",
        f"triton       {_version('triton')}",
        f"numpy        {_version('numpy')}",
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


def operations() -> list[str]:
    """The operations of the package: one folder each."""
    return [module.name for module in pkgutil.iter_modules(sys.modules[__package__].__path__) if module.ispkg]


def devices() -> list[torch.device]:
    """The CPU, the GPUs that torch sees, and a GPU that is only asked about where there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(max(count, 1)))]


def device_lines(device: torch.device) -> list[str]:
    """What `auto` picks for every operation on one device, with the reason for each backend that it cannot pick."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return ["cuda: no GPU, torch.cuda.is_available() is False"]
        lines = [f"{device}: {torch.cuda.get_device_name(device)}"]
    else:
        lines = [f"{device}: {torch.get_num_threads()} threads"]
    for op in operations():
        try:
            lines.append(f"  {op:<20} auto = {_backend.resolve('auto', op, device)}")
        except ValueError as error:  # SSD_BACKEND names one that cannot run it
            lines.append(f"  {op:<20} {error}")
        for backend in _backend.BACKENDS:
            if reason := _backend.missing_reason(backend, op, device):
                lines.append(f"  {'':<20}   not {backend}: {reason}")
    return lines


def main() -> int:
    print("\n".join(version_lines()))
    print(f"SIMD level   {simd_line()}")
    print(f"SSD_BACKEND  {os.environ.get('SSD_BACKEND') or 'not set'}")
    print("\nNative modules\n  " + "\n  ".join(native_lines()))
    print('\nWhat backend="auto" picks')
    for device in devices():
        print("  " + "\n  ".join(device_lines(device)))
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
