"""Which implementation runs. A name is an implementation and never changes semantics."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import warnings

import torch

from . import _native

BACKENDS = ("reference", "cpu", "triton", "cuda")

# Every operation, one folder each.
OPERATIONS = ("activation_counts", "batch_topk_linear", "distill", "gaba_linear", "relu_fisher", "sdmlp_trainer",
              "sparse_linear", "sparse_update", "threshold_linear", "topk_linear")  # fmt: skip

# The files of an operation's folder that make it one of a backend.
_FILES = {"cpu": ("cpu.py", "native.py"), "triton": ("triton_kernel.py",), "cuda": ("cuda.py",)}


def _implemented_by(backend: str) -> frozenset[str]:
    folder = os.path.dirname(__file__)
    held = {op: set(os.listdir(os.path.join(folder, op))) for op in OPERATIONS}
    return frozenset(op for op in OPERATIONS if held[op].intersection(_FILES[backend]))


# What exists today: the operations that each compiled backend implements. CUDA has run in the emulator of the C++
# tests only, not yet on a GPU: "auto" prefers Triton.
CPU_OPERATIONS, TRITON_OPERATIONS, CUDA_OPERATIONS = map(_implemented_by, ("cpu", "triton", "cuda"))


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _interpreter_reason() -> str:
    """Why Triton's interpreter cannot run here; empty when it can.

    Before 3.7 it makes numbers of arrays with one element (triton-lang/triton issue 9171), which numpy 2.4 refuses.
    """
    try:
        found = {name: importlib.metadata.version(name) for name in ("triton", "numpy")}
    except importlib.metadata.PackageNotFoundError:  # a build under another name: nothing is known
        return ""
    triton, numpy = (tuple(map(int, re.findall(r"\d+", version)[:2])) for version in found.values())
    if triton < (3, 7) and numpy >= (2, 4):
        return f"the interpreter of triton {found['triton']} needs numpy below 2.4, this is {found['numpy']}"
    return ""


def missing_reason(backend: str, op: str, device: torch.device) -> str:
    """Why `backend` cannot run `op` on `device`; empty when it can."""
    match backend:
        case "reference":
            return ""
        case "cpu":
            module, reason = _native.cpu_module()
            if device.type != "cpu":
                return f"it takes CPU tensors, these are on {device}"
            if module is None:
                return f"the native CPU module is not loaded ({reason})"
            return "" if op in CPU_OPERATIONS else f"it has no kernel for {op} yet"
        case "triton":
            if op not in TRITON_OPERATIONS:
                return f"it has no kernel for {op} yet"
            if not _has_triton():
                return "triton is not installed"
            if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
                return "it takes CUDA tensors; CPU tensors only in its interpreter (TRITON_INTERPRET=1 from the start)"
            return _interpreter_reason() if device.type == "cpu" else ""
        case "cuda":
            if op not in CUDA_OPERATIONS:
                return f"it has no kernel for {op} yet"
            if device.type != "cuda":
                return f"it takes CUDA tensors, these are on {device}"
            module, reason = _native.cuda_module()
            return "" if module is not None else reason
        case _:
            allowed = ", ".join(("auto", *BACKENDS))
            return f"there is no such backend (allowed: {allowed})"


@functools.cache
def _warn_of_the_reference() -> None:
    """Once in a process: without its native module the package works, but slowly."""
    warnings.warn(
        f"ssd_kernels: the native CPU module is not loaded ({_native.cpu_module()[1]}): backend='auto' takes the slow "
        "reference; `python -m ssd_kernels` says more, SSD_BACKEND=reference asks for it in silence",
        RuntimeWarning,
        stacklevel=4,
    )


def resolve(backend: str, op: str, device: torch.device) -> str:
    """The backend that runs `op` on `device`: the one named, or for "auto" the fastest one present.

    An explicit choice, by argument or by SSD_BACKEND, never falls back. "auto" warns once where CPU tensors take the
    reference because the native module cannot be loaded.

    Raises:
        ValueError: the named backend cannot run it; says why.
    """
    if backend == "auto":
        backend = os.environ.get("SSD_BACKEND", "auto")
    if backend == "auto":
        if device.type == "cpu":  # looked at first: it comes before every short call
            if op in CPU_OPERATIONS:
                if _native.cpu_module()[0] is not None:
                    return "cpu"
                _warn_of_the_reference()
            return "reference"
        order = ("triton", "cuda", "cpu") if device.type == "cuda" else ("cpu",)
        return next((name for name in order if not missing_reason(name, op, device)), "reference")
    if reason := missing_reason(backend, op, device):
        raise ValueError(f"backend={backend!r} cannot run {op}: {reason}")
    return backend


# torch.compile runs it instead of tracing it: what torch.compiler.assume_constant_result does, which would import
# torch._dynamo and with it triton.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]
