"""What a struct must hold before a kernel reads it: sparse activations, and numbers that become float32.

Types, dtypes, shapes and devices are looked at everywhere. Contents (offsets, indices) are looked at where the tensors
are on the CPU, in one pass over the active entries; a look at a GPU's would be a synchronisation.
"""

from __future__ import annotations

import math
import numbers
import sys
from typing import TypeGuard

import torch
from torch import Tensor

from . import _native
from ._types import Rows, TopK

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_OFFSETS, _INDEX, _ORDER = 1, 2, 3  # ssd::cpu::RowsFault


def is_integer(value: object) -> bool:
    """Whether it is a whole number; True and False are not."""
    return isinstance(value, int | numbers.Integral | torch.SymInt) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether it is a number; True and False are not."""
    return isinstance(value, float | int | numbers.Real) and not isinstance(value, bool)


def as_float32(value: float) -> float:
    """What a kernel that holds it in float32 will see: 0 or infinite where it is out of range."""
    return torch.tensor(float(value), dtype=torch.float32).item()


def strided(name: str, tensor: object) -> None:
    """Refuses what is no dense tensor, whatever its dtype.

    Raises:
        ValueError: it is another object, or sparse.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got {tensor.layout}")


def dense(name: str, tensor: object) -> None:
    """Refuses what is not a dense tensor of a float dtype that the kernels know.

    Raises:
        ValueError: it is another object, sparse, or of another dtype.
    """
    strided(name, tensor)
    assert isinstance(tensor, Tensor)
    if tensor.dtype not in FLOATS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ValueError(f"{name} must be floating point ({known}), got {tensor.dtype} {tuple(tensor.shape)}")


def integers(name: str, tensor: object, dtype: torch.dtype, shape: str) -> None:
    """Refuses what is not a dense vector of this integer dtype; `shape` says how its length is called.

    Raises:
        ValueError: it is another object, sparse, of another dtype or no vector.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.dtype != dtype or tensor.dim() != 1:
        wanted = str(dtype).removeprefix("torch.")
        layout = "" if tensor.layout == torch.strided else f"{tensor.layout} "
        raise ValueError(f"{name} must be {wanted} {shape}, got {layout}{tensor.dtype} {tuple(tensor.shape)}")


def on_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Refuses a tensor that is elsewhere.

    Raises:
        ValueError: it is.
    """
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def sparse(
    name: str, activations: TopK | Rows, *, batch: int | None = None, device: torch.device | None = None
) -> None:
    """Refuses TopK and Rows whose parts do not fit each other; contents are `contents`' business.

    Args:
        name: of the argument.
        activations: what was given.
        batch: B where it is known; for TopK the first dimension of two.
        device: where it must be; None: where the values are.

    Raises:
        ValueError: a type, dtype, shape or device that is not allowed.
    """
    values, indices = activations.values, activations.indices
    dense(f"values of {name}", values)
    device = values.device if device is None else device
    parts = [("values", values), ("indices", indices)]
    if not isinstance(indices, Tensor) or indices.dtype != torch.int32 or indices.shape != values.shape:
        given = f"{indices.dtype} {tuple(indices.shape)}" if isinstance(indices, Tensor) else type(indices).__name__
        raise ValueError(f"indices of {name} must be int32 {tuple(values.shape)}, got {given}")
    if isinstance(activations, Rows):
        offsets = activations.offsets
        parts.append(("offsets", offsets))
        good = isinstance(offsets, Tensor) and offsets.dtype == torch.int64 and offsets.dim() == 1
        if not good or values.dim() != 1 or offsets.shape[0] < 1:
            given = f"{offsets.dtype} {tuple(offsets.shape)}" if isinstance(offsets, Tensor) else type(offsets).__name__
            raise ValueError(
                f"{name} must have values (nnz,) and offsets (B + 1,) int64, got {tuple(values.shape)} and {given}"
            )
        samples = offsets.shape[0] - 1
    elif values.dim() < 1 or values.shape[-1] < 1:
        raise ValueError(f"values of {name} must be (..., K) with K >= 1, got {tuple(values.shape)}")
    else:
        samples = values.shape[0] if values.dim() == 2 else -1
    if batch is not None and samples != batch:
        raise ValueError(f"{name} must hold B = {batch} samples, got {samples} in values {tuple(values.shape)}")
    for part, tensor in parts:
        if tensor.layout != torch.strided:
            raise ValueError(f"{part} of {name} must be a dense tensor, got {tensor.layout}")
        on_device(f"{part} of {name}", tensor, device)


def contents(name: str, indices: Tensor, offsets: Tensor | None, neurons: int = 2**31, ascending: bool = False) -> None:
    """Refuses offsets and indices, on the CPU, that lead outside the tensors. One pass over them.

    Args:
        name: of the argument.
        indices: (nnz,) or (..., K) int32.
        offsets: (B + 1,) int64; None for TopK.
        neurons: R; indices are from 0 to R - 1.
        ascending: also refuse indices that do not strictly ascend within a sample; only with offsets.

    Raises:
        ValueError: offsets that are not 0, ascending, nnz; indices that are not ascending.
        IndexError: an index outside [0, R).
    """
    if indices.device.type != "cpu":
        return
    module = _native.cpu_module()[0]
    indices = indices.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    if module is None:
        fault, value = _contents_in_torch(indices, offsets, neurons, ascending)
    else:
        samples = 0 if offsets is None else offsets.shape[0] - 1
        address = 0 if offsets is None else offsets.data_ptr()
        fault, value = module.check_rows(address, samples, indices.data_ptr(), indices.numel(), neurons, ascending)
    if fault == _INDEX:
        raise IndexError(f"indices of {name} must be from 0 to R - 1 = {neurons - 1}, got {value}")
    if fault == _OFFSETS:
        raise ValueError(
            f"offsets of {name} must begin with 0, ascend and end with nnz = {indices.numel()}, got {value}"
        )
    if fault == _ORDER:
        raise ValueError(f"indices of {name} must ascend within a sample, each once; {value} does not")


def _contents_in_torch(indices: Tensor, offsets: Tensor | None, neurons: int, ascending: bool) -> tuple[int, int]:
    """What `check_rows` of the native module finds, where that is missing."""
    if offsets is not None:
        for bad in (offsets[:1] != 0, torch.diff(offsets) < 0, offsets[-1:] != indices.numel()):
            if bad.any():
                at = int(bad.nonzero()[0]) if len(bad) > 1 else (0 if offsets[0] != 0 else len(offsets) - 1)
                return _OFFSETS, int(offsets[at])
    flat = indices.reshape(-1)
    outside = (flat < 0) | (flat > neurons - 1)
    if outside.any():
        return _INDEX, int(flat[outside][0])
    if ascending and offsets is not None and len(flat) > 1:
        falls = flat[1:] <= flat[:-1]
        starts = offsets[1:-1]
        falls[starts[(starts > 0) & (starts < len(flat))] - 1] = False
        if falls.any():
            return _ORDER, int(flat[1:][falls][0])
    return 0, 0


def exportable(operation: str) -> None:
    """Refuses the export to ONNX, which knows none of these operations.

    Raises:
        NotImplementedError: torch.onnx.export is at work.
    """
    onnx = sys.modules.get("torch.onnx")  # loaded by those who export
    if onnx is not None and not torch.compiler.is_dynamo_compiling() and onnx.is_in_onnx_export():
        raise NotImplementedError(
            f"{operation}: ONNX has no such operation; allowed are torch.export and torch.compile. For ONNX, export "
            "the eager model: weights and state_dict are the same"
        )


def sparse_gradient(operation: str) -> None:
    """Refuses sparse_grad=True where nothing would take the gradient.

    Raises:
        ValueError: inside DistributedDataParallel, which takes sparse gradients from nn.Embedding alone.
    """
    if torch.compiler.is_compiling() or "torch.nn.parallel.distributed" not in sys.modules:
        return
    if getattr(torch.nn.parallel.distributed.DistributedDataParallel, "_active_ddp_module", None) is not None:
        raise ValueError(
            f"{operation}: sparse_grad=True in DistributedDataParallel, which takes sparse gradients from nn.Embedding "
            "alone: allowed is False"
        )


def overlaps(matrix: Tensor) -> bool:
    """Whether two places of a matrix may share memory, as `expand` and `as_strided` make them."""
    (rows, columns), (far, near) = matrix.shape, matrix.stride()
    if rows * columns <= 1:
        return False
    if rows == 1 or columns == 1:
        return (near if rows == 1 else far) == 0
    return not (near >= 1 and far > (columns - 1) * near) and not (far >= 1 and near > (rows - 1) * far)


def finite(value: object) -> bool:
    """Whether it is a number and neither NaN nor infinite."""
    return is_real(value) and -math.inf < value < math.inf  # math.isfinite cannot be compiled
