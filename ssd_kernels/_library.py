"""Registration of operations with torch.library, in the namespace `ssd_kernels`.

Autocast is applied by each api.py; _autocast.py says why torch.library.register_autocast does not serve.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("ssd_kernels", "FRAGMENT")
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))

# How many dispatch modes (fake tensors, tracing, counting) and which functorch transform are active. torch has no
# public name for either; where these are gone, every call takes the dispatcher.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
transforms = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)
_stack = getattr(torch._C._functorch, "get_interpreter_stack", lambda: ())


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


def direct(*tensors: torch.Tensor | None) -> bool:
    """Whether a call may go straight to its CPU implementation: eager, plain tensors, nothing that watches operations.

    The dispatcher would add nothing then but time: 4 us a call with warm caches, 15 us and more with cold ones, and
    tens of microseconds for the derivative of an operation that torch.library registers.
    """
    if torch.compiler.is_compiling() or _modes() or transforms() is not None:
        return False
    return _PLAIN.issuperset(map(type, tensors))


def derivative_of_transform(*tensors: torch.Tensor | None) -> str:
    """The transform that takes a derivative of these tensors in a way that registered operations do not know; else "".

    torch.func.grad, vjp, jacrev and the like refuse them without naming them; forward-mode derivatives (jvp, jacfwd,
    dual tensors) would be 0 without a word. torch.vmap alone is none of these: it calls an operation sample by sample.
    """
    if torch.compiler.is_compiling():
        return ""
    if transforms() is not None and any(level.key().name != "Vmap" for level in _stack()):
        return "torch.func"
    if forward_ad._current_level < 0:
        return ""
    dual = any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    return "forward-mode derivatives" if dual else ""


def refuse_transforms(operation: str, *tensors: torch.Tensor | None) -> None:
    """For operations without a form in plain torch that such a transform could differentiate."""
    if found := derivative_of_transform(*tensors):
        raise NotImplementedError(
            f"{operation}: {found}: allowed is torch.autograd (backward, torch.autograd.grad), and torch.vmap"
        )


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
