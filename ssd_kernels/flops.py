"""FLOP formulas for torch.utils.flop_counter: what the operations compute, multiplications and additions.

    FlopCounterMode(custom_mapping=ssd_kernels.flop_formulas())

They are not registered at import, because importing torch's counter imports triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

Shape = Any  # of a tensor; None where the argument is


def _dense(x: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    """All scores of a layer: 2 B D R."""
    return 2 * math.prod(x) * weight[0]


def _topk_forward(x: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    # Behind bias, k, activation, normalize, inhibition, sparse_grad, backend and scale.
    chosen = rest[8] if len(rest) > 8 else None
    return 2 * math.prod(x) * (weight[0] if chosen is None else chosen[0])


def _topk_backward(grad_values: Shape, x: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    need_x, need_weight = rest[5:7]  # values, indices, activation, normalize, inhibition
    return 2 * math.prod(grad_values) * x[-1] * (need_x + need_weight)


def _sparse_forward(values: Shape, indices: Shape, offsets: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(values) * weight[0]


def _sparse_backward(
    grad_y: Shape, values: Shape, indices: Shape, offsets: Shape, weight: Shape, need_values: bool, need_weight: bool,
    *rest: Any, **_: Any,
) -> int:  # fmt: skip
    return 2 * math.prod(values) * grad_y[-1] * (need_values + need_weight)


def _table_forward(values: Shape, indices: Shape, offsets: Shape, table: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(values) * table[1]


def _table_backward(grad_y: Shape, values: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(values) * grad_y[-1] * (1 + rest[3])  # indices, offsets, table, need_values


def _rows_backward(
    grad_values: Shape, values: Shape, indices: Shape, offsets: Shape, x: Shape, *rest: Any, **_: Any
) -> int:  # fmt: skip
    """need_x and need_weight stand at the same place in both operations, behind the weight (and the scale)."""
    needs = [flag for flag in rest if isinstance(flag, bool)][:2]
    return 2 * math.prod(values) * x[-1] * sum(needs)


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """The operations' formulas, for the custom_mapping of torch.utils.flop_counter.FlopCounterMode.

    Products of sparse activations count their entries alone, padded zeros of a TopK included; comparisons, norms and
    the bf16 products of a preselection count nothing, so a forward pass counts 2 B D R.

    Examples:
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
        ...     top = ssd_kernels.topk_linear(torch.ones(2, 3), torch.ones(5, 3), 1)
        >>> counter.get_total_flops()
        60
    """
    ops = torch.ops.ssd_kernels
    return {
        ops.topk_linear_fwd: _topk_forward,
        ops.topk_linear_bwd: _topk_backward,
        ops.topk_linear_bwd_rows: _topk_backward,
        ops.gaba_linear_dense_fwd: _dense,
        ops.gaba_linear_rows_fwd: _dense,
        ops.gaba_linear_rows_bwd: _rows_backward,
        ops.threshold_linear_fwd: _dense,
        ops.batch_topk_linear_fwd: _dense,
        ops.threshold_linear_bwd: _rows_backward,
        ops.sparse_linear_fwd: _sparse_forward,
        ops.sparse_linear_bwd: _sparse_backward,
        ops.sparse_linear_table_fwd: _table_forward,
        ops.sparse_linear_table_bwd: _table_backward,
    }
