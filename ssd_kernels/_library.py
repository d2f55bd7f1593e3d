"""Registration of operations with torch.library, in the namespace `ssd_kernels`.

Autocast is applied by each api.py, because its dtype is a setting of the caller and not a constant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("ssd_kernels", "FRAGMENT")


def register(
    schema: str,
    implementation: Callable,
    fake: Callable,
    *,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> None:
    """Defines one operation: its schema, implementation, fake and derivative.

    Args:
        schema: `name(arguments) -> returns`, without a namespace.
        implementation: runs on real tensors of any device, below autograd.
        fake: shapes and dtypes of the outputs, for torch.compile and torch.export.
        setup_context: saves what `backward` needs; None where the operation has no derivative.
        backward: the derivative.
    """
    LIBRARY.define(schema)
    name = "ssd_kernels::" + schema.split("(", 1)[0]
    LIBRARY.impl(name, _outside_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=LIBRARY)


def _outside_autocast(implementation: Callable) -> Callable:
    """The implementation with autocast off: it has chosen its precision already."""

    @functools.wraps(implementation)
    def run(*arguments):
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return implementation(*arguments)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return implementation(*arguments)

    return run


def register_backward(schema: str, implementation: Callable, fake: Callable) -> None:
    """Defines the derivative of an operation as an operation of its own, which cannot be differentiated again."""
    name = schema.split("(", 1)[0]

    def refuse(ctx, *grads):
        raise NotImplementedError(f"ssd_kernels::{name} has no derivative: double backward is not supported")

    register(schema, implementation, fake, setup_context=lambda ctx, inputs, output: None, backward=refuse)
