"""Trains SDMLP and SSD: model, methods, data, metrics, command line. Kernels live in ssd_kernels.

The names below are the Python interface; they are imported when they are first used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Result, load_model, train
    from .config import TrainConfig, option
    from .data import Dataset
    from .errors import BadInput
    from .methods import Batch, Loss, Method, TaskContext

__version__ = version("ssd-kernels")
__all__ = ["BadInput", "Batch", "Dataset", "Loss", "Method", "Result", "TaskContext", "TrainConfig", "load_model",
           "option", "train"]  # fmt: skip

_HOME = {"train": "api", "load_model": "api", "Result": "api", "TrainConfig": "config", "option": "config",
         "Dataset": "data", "BadInput": "errors", "Batch": "methods", "Loss": "methods", "Method": "methods",
         "TaskContext": "methods"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
