"""What the callers of the CUDA module share: calls by keyword, row norms, weighted sums over pairs.

The kernels run in the C++ tests' emulator (tests/cpp/cuda); none of them has been run on a GPU yet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _native
from ._pointers import DTYPES, row_stride


def stream_of(device: torch.device) -> tuple[int, int]:
    """The number of a device, and the address of its current stream."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(index).cuda_stream


def call(name: str, device: torch.device, **arguments: Any) -> Any:
    """A function of the module on the current stream of `device`: tensors become addresses, None becomes 0."""
    index, stream = stream_of(device)
    plain = {
        key: value.data_ptr() if isinstance(value, Tensor) else 0 if value is None else value
        for key, value in arguments.items()
    }
    return getattr(_native.cuda_module()[0], name)(**plain, device=index, stream=stream)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def norms(matrix: Tensor, inverse: bool = False) -> Tensor:
    """(M,) L2 norms of the rows of a matrix with adjacent columns, or 1 / max(norm, 1e-12); accumulation dtype."""
    out = torch.empty(len(matrix), dtype=accumulation_dtype(matrix.dtype), device=matrix.device)
    call(
        "row_norms", matrix.device, dtype=DTYPES[matrix.dtype], x=matrix, rows=len(matrix), cols=matrix.shape[1],
        stride=row_stride(matrix), inverse=inverse, norms=out,
    )  # fmt: skip
    return out


def through_norm(sums: Tensor, matrix: Tensor, inverse: Tensor, numbers: Tensor | None) -> Tensor:
    """The gradient of rows of `matrix`, given that of row / max(||row||, eps).

    Args:
        sums: (U, D) contiguous, accumulation dtype.
        matrix: (M, D) float.
        inverse: (M,), from `norms`.
        numbers: (U,) int64, which rows; None where all are.

    Returns:
        (U, D) of matrix's dtype.
    """
    out = torch.empty(sums.shape, dtype=matrix.dtype, device=matrix.device)
    call(
        "through_norm", matrix.device, dtype=DTYPES[matrix.dtype], rows=len(sums), cols=sums.shape[1], sum=sums,
        x=matrix, stride=row_stride(matrix), numbers=numbers, inverse=inverse, out=out,
    )  # fmt: skip
    return out


class Segments(NamedTuple):
    """Pairs grouped by neuron, in their order within each.

    Attributes:
        order: (P,) int64, pair numbers; those that are left out come last.
        starts: (R + 1,) int64, where each neuron's pairs begin.
    """

    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, indices: Tensor, neurons: int, inactive: Tensor | None = None) -> Segments:
        """Groups the pairs by index (P,) int32; those marked `inactive` belong to no neuron."""
        indices = indices.reshape(-1)
        if inactive is not None:
            indices = torch.where(inactive.reshape(-1), neurons, indices)
        keys, order = torch.sort(indices.to(torch.int32), stable=True)
        ends = torch.arange(neurons + 1, dtype=torch.int32, device=indices.device)
        return cls(order, torch.searchsorted(keys, ends))

    def rows(self) -> tuple[Tensor, Segments]:
        """The neurons that have pairs, (U,) int64 ascending, and the segments of those alone. Waits for the GPU."""
        rows = (self.starts[1:] > self.starts[:-1]).nonzero().flatten()
        return rows, Segments(self.order, torch.cat([self.starts[rows], self.starts[-1:]]))


def weighted_sums(
    out: Tensor,
    values: Tensor,
    matrix: Tensor | None,
    *,
    offsets: Tensor | None = None,
    per_sum: int = 0,
    segments: Segments | None = None,
    indices: Tensor | None = None,
    samples: Tensor | None = None,
    per_row: int = 1,
    mask: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """out[n, :] = sum over the pairs of n, in their order, of value * scale[row] * matrix[row, :].

    Args:
        out: (N, C), any strides; of the values' dtype or of the accumulation dtype.
        values: (P,) or (B, K) contiguous.
        matrix: (M, C), any strides; None for ones.
        offsets: (N + 1,) int64, where the pairs of each sum begin; or
        per_sum: how many each has; or
        segments: which they are.
        indices: (P,) int32, the row of each pair; or
        samples: (P,) int64; or
        per_row: the row of pair p is p // per_row.
        mask: as values; pairs where it is <= 0 are left out.
        scale: (M,) of the accumulation dtype.
    """
    order, starts = (None, offsets) if segments is None else segments
    call(
        "weighted_sums", values.device, dtype=DTYPES[values.dtype], wide_out=out.dtype != values.dtype, sums=len(out),
        columns=out.shape[1], starts=starts, per_sum=per_sum, order=order, factors=values, mask=mask, indices=indices,
        samples=samples, per_row=per_row, row_scale=scale, rows=matrix,
        row_stride=0 if matrix is None else matrix.stride(0), column_stride=0 if matrix is None else matrix.stride(1),
        places=None, out=out, out_row_stride=out.stride(0), out_column_stride=out.stride(1),
    )  # fmt: skip


def samples_of(count: int, offsets: Tensor | None) -> Tensor | None:
    """(nnz,) int64, the sample of each entry; None where each sample has K of them. No synchronisation."""
    if offsets is None:
        return None
    return torch.searchsorted(offsets, torch.arange(count, device=offsets.device), right=True) - 1
