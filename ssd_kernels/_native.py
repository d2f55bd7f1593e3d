"""Loads the native modules. Importing this never raises: a module that is missing leaves its reason behind."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch  # first: the native core shares the OpenMP runtime that torch has loaded


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    """The module and an empty string, or None and why it cannot be loaded."""
    try:
        return importlib.import_module(f"ssd_kernels.{name}"), ""
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"


def cpu_module() -> tuple[ModuleType | None, str]:
    """The native CPU core, or None and the reason."""
    return _load("_cpu")


def cuda_module() -> tuple[ModuleType | None, str]:
    """The CUDA module, or None and the reason. It is loaded only when torch sees a GPU."""
    if not torch.cuda.is_available():
        return None, "torch sees no CUDA device"
    return _load("_cuda")


def simd_level() -> str:
    """The instruction-set level asked for through SSD_SIMD; empty means the best of this processor."""
    return os.environ.get("SSD_SIMD", "")
