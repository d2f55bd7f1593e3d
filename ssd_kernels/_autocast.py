"""Autocast as torch.nn.Linear has it: operations call this on their inputs before they check them.

torch.library.register_autocast (the same in torch 2.11 and 2.13) would cast to one dtype per device, fixed when the
operation is registered, and only after the public function has compared dtypes. torch.nn.Linear gives the dtype of the
autocast region, bfloat16 or float16, and mixes a float32 weight with the bfloat16 output of the layer before; so does
this.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def cast(x: Tensor, weight: Tensor, /) -> tuple[Tensor, Tensor]: ...
@overload
def cast(x: Tensor, weight: Tensor, bias: Tensor | None, /) -> tuple[Tensor, Tensor, Tensor | None]: ...
@overload
def cast(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, /
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]: ...
def cast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The floating-point tensors in the autocast dtype where autocast is on for the first one's device.

    fp64 tensors stay as they are, as torch's own autocast leaves them.
    """
    first = tensors[0]
    assert first is not None
    device = first.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )
