"""What the kernels are measured against. Each peer is used as installed; one that is missing is left out by name."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from types import ModuleType

import torch


def eager_layer(x: torch.Tensor, weight: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The eager Top-K layer with a threshold: relu, topk(K + 1), as training code writes it."""
    values, indices = torch.relu(x @ weight.T).topk(k + 1)
    return values[:, :k], indices[:, :k]


@functools.cache
def compiled_layer() -> Callable:
    """The eager layer under torch.compile, with its default backend; the first call for a shape compiles."""
    return torch.compile(eager_layer)


def sparsify_fused_encoder() -> Callable | None:
    """eai-sparsify's fused encoder, without Triton; only that file of the package is loaded."""
    try:
        file = next(f for f in importlib.metadata.files("eai-sparsify") or () if f.match("sparsify/fused_encoder.py"))
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        return None
    spec = importlib.util.spec_from_file_location("sparsify_fused_encoder", file.locate())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fused_encoder


def faiss() -> ModuleType | None:
    """faiss-cpu, forward only."""
    return importlib.import_module("faiss") if importlib.util.find_spec("faiss") else None


def versions() -> dict[str, str]:
    """The peers that are installed."""
    found = {}
    for name in ("eai-sparsify", "faiss-cpu", "flashlib", "flashinfer-python", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
