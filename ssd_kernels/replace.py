"""replace_topk: nn.Linear modules of a model become SparseTopKLinear, and nothing changes without a word."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._winners import UnknownActivations
from .nn import SparseTopKLinear, check_k

# How far outputs may lie apart, of their largest entry: sums in another order, and nothing more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def replace_topk(model: nn.Module, k: Mapping[str, int], *, check: Any = None, **options: Any) -> nn.Module:
    """Swaps named nn.Linear modules of a model for SparseTopKLinear, in place, sharing their Parameters.

    The layer gives 0 for all but its K winners. A model that then selects its own K largest (after relu) computes what
    it computed before, as long as **nothing else reads the pre-activations**: no loss on dead neurons, no threshold, no
    selection over the batch, no larger K. A model without a Top-K of its own becomes one with a Top-K.

    With `check`, the model must be of the first kind, and that is verified: one batch before and after, in eval mode
    and without gradients; random state and buffers are restored. From then on, whatever reads more than the winners
    raises. Without it, such a reader is warned about once, and so is a model whose first forward pass did not call the
    new layer (one that multiplies by `encoder.weight` itself, say).

    A second call changes K, and the options that are given.

    Args:
        model: any module.
        k: the winners per row of each layer, by its name in `model.named_modules()`: {"encoder": 32}. A module with
            several names is replaced under all of them: name them all, with the same K.
        check: what to run: a tensor is the model's only argument, a tuple its arguments, a mapping its keyword
            arguments, a function is called with the model. None: nothing is run.
        options: keyword arguments of SparseTopKLinear, for all of them.

    Returns:
        The model itself.

    Raises:
        ValueError: no module has that name, k is out of range, a module has hooks or another name, or the check failed:
            says what differs and why. TypeError: it is no plain nn.Linear. Either way the model is left as it was.
        RuntimeError: later, from a checked model: something reads activations that are not computed.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 1024), torch.nn.ReLU())
        >>> replace_topk(model, {"0": 8})[0]
        SparseTopKLinear(in_features=16, out_features=1024, k=8, bias=True, output='dense')
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    swapped = {}
    for name, winners in k.items():
        if name not in modules or name == "":
            linear = [other for other, module in modules.items() if other and isinstance(module, nn.Linear)]
            raise ValueError(f"replace_topk: the model has no module {name!r}; its linear layers: {', '.join(linear)}")
        _check_names(name, modules, k)
        swapped[name] = _replacement(name, modules[name], winners, options, "raise" if check is not None else "warn")
    shared = {id(modules[name]): layer for name, layer in swapped.items()}
    new = {name: shared[id(modules[name])] for name in swapped}
    old = {name: modules[name] for name in swapped}
    if check is None:
        _place(model, new)
        _Watch(model, list(shared.values()))
        return model
    before = {name: _linear(module) for name, module in old.items()}
    try:
        _verify(model, before, new, check)
    except BaseException:
        _place(model, old)
        raise
    return model


def _check_names(name: str, modules: Mapping[str, nn.Module], k: Mapping[str, int]) -> None:
    """Refuses a module that would stay in use under a name that was not given."""
    others = [other for other, module in modules.items() if module is modules[name] and other != name]
    for other in others:
        if k.get(other, None) != k[name] and not _same_place(name, other, modules):
            raise ValueError(
                f"replace_topk: {name!r} is also the module {other!r}: name all of {', '.join([name, *others])}, with "
                "the same K"
            )


def _same_place(one: str, other: str, modules: Mapping[str, nn.Module]) -> bool:
    (parent, _, child), (parent_2, _, child_2) = one.rpartition("."), other.rpartition(".")
    return child == child_2 and modules[parent] is modules[parent_2]


def _replacement(name: str, module: nn.Module, k: int, options: Mapping[str, Any], guard: str) -> SparseTopKLinear:
    if isinstance(module, SparseTopKLinear):  # a second call: the same Parameters, another K
        check_k(k, module.out_features)
        options = {**module.options(), **options}
        module = _linear(module)
    hooks = [kind for kind, found in vars(module).items() if kind.endswith("_hooks") and found and "state" not in kind]
    if hooks:
        raise ValueError(
            f"replace_topk: the module {name!r} has hooks ({', '.join(sorted(hooks))}), which the new layer would not "
            "call: remove them first and register them on it afterwards"
        )
    layer = SparseTopKLinear.from_linear(module, k, **options)  # type: ignore[arg-type]  # it refuses others
    layer.guard, layer.name = guard, name
    return layer


def _linear(module: nn.Module) -> nn.Module:
    """The nn.Linear with the Parameters of a Top-K layer; any other module itself."""
    if not isinstance(module, SparseTopKLinear):
        return module
    linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    linear.weight = module.weight
    linear.bias = module.bias
    return linear.train(module.training)


def _place(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


class _Watch:
    """Warns, after the model's first forward pass, of new layers that it did not call. Copies and pickles."""

    def __init__(self, model: nn.Module, layers: list[SparseTopKLinear]) -> None:
        self.waiting = {layer.name for layer in layers}
        self.handles = [layer.register_forward_hook(self.called) for layer in layers]
        self.handles.append(model.register_forward_hook(self.passed))

    def called(self, layer: SparseTopKLinear, args: tuple[Any, ...], output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.waiting.discard(layer.name)

    def passed(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for handle in self.handles:
            handle.remove()
        if self.waiting:
            warnings.warn(_never_called(self.waiting), stacklevel=2)


def _never_called(names: set[str]) -> str:
    return (
        f"replace_topk: the model's forward pass never calls {', '.join(sorted(names))}: it uses the weight in another "
        "way, and nothing has become faster; ssd_kernels.sae.accelerate knows some such models"
    )


def _verify(model: nn.Module, before: Mapping[str, nn.Module], new: Mapping[str, SparseTopKLinear], check: Any) -> None:
    """Runs the model before and after, and leaves it after. Raises ValueError where that changes it."""
    _place(model, before)
    expected = _run(model, check)
    _place(model, new)
    called: set[str] = set()
    handles = [layer.register_forward_hook(lambda layer, *_: called.add(layer.name)) for layer in new.values()]
    try:
        difference = _difference(expected, _run(model, check))
        if missing := {layer.name for layer in new.values()} - called:
            raise ValueError(_never_called(missing))
        if difference:
            # Scores of the new kernel differ in rounding, so winners that tie within it may be others.
            with _selecting_from_all_scores(new):
                difference = _difference(expected, _run(model, check))
    except UnknownActivations as error:
        raise ValueError(str(error)) from error
    finally:
        for handle in handles:
            handle.remove()
    if difference:
        raise ValueError(
            f"replace_topk: with Top-K in {', '.join(new)} the model's output is another: {difference}. Its own "
            "selection differs from these K winners (another K, no Top-K, one over the batch, a threshold), or "
            "something else reads the pre-activations"
        )


@contextlib.contextmanager
def _selecting_from_all_scores(layers: Mapping[str, SparseTopKLinear]) -> Iterator[None]:
    for layer in layers.values():
        layer.eager = True
    try:
        yield
    finally:
        for layer in layers.values():
            layer.eager = False


def _run(model: nn.Module, check: Any) -> list[Any]:
    """The outputs of one pass in eval mode, without gradients; modes, buffers and random state as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, name, buffer, buffer.clone()) for module, name, buffer in _buffers(model)]
    states = random.getstate(), torch.get_rng_state(), _device_random_states()
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(check, Tensor):
                output = model(check)
            elif isinstance(check, Mapping):
                output = model(**check)
            elif isinstance(check, tuple):
                output = model(*check)
            elif callable(check):
                output = check(model)
            else:
                raise TypeError(
                    f"replace_topk: check={type(check).__name__}: allowed are a tensor, a tuple, a mapping, a function "
                    "of the model, or None"
                )
        return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in _leaves(output)]
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer.copy_(content)
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        for device, state in states[2]:
            torch.cuda.set_rng_state(state, device)


def _buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    return [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def _device_random_states() -> list[tuple[int, Tensor]]:
    if not torch.cuda.is_initialized():
        return []
    return [(device, torch.cuda.get_rng_state(device)) for device in range(torch.cuda.device_count())]


def _leaves(output: Any) -> Iterator[Any]:
    """The tensors and numbers in nested containers and dataclasses."""
    if isinstance(output, Tensor):
        yield output.as_subclass(Tensor).detach()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _leaves(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _leaves(value)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from _leaves(getattr(output, field.name))
    elif isinstance(output, int | float):
        yield torch.tensor(output, dtype=torch.float64)


def _difference(expected: list[Any], found: list[Any]) -> str:
    """What sets two outputs apart; empty where they agree."""
    if not expected:
        return "it holds no tensor that could be compared"
    if len(expected) != len(found):
        return f"{len(expected)} tensors before, {len(found)} after"
    for place, (one, other) in enumerate(zip(expected, found)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"tensor {place} was {one.dtype} {tuple(one.shape)}, is {other.dtype} {tuple(other.shape)}"
        if one.is_sparse or other.is_sparse:
            one, other = one.to_dense(), other.to_dense()
        if not one.is_floating_point():
            # Winners in another order are the same winners: compared are sets, where a last dimension exists.
            same = torch.equal(one, other) or (one.dim() and torch.equal(one.sort(-1).values, other.sort(-1).values))
            if not same:
                return f"tensor {place}, {one.dtype} {tuple(one.shape)}, has other entries"
            continue
        largest = one[torch.isfinite(one)].abs().max().item() if torch.isfinite(one).any() else 0.0
        close = torch.isclose(other, one, rtol=0, atol=TOLERANCE.get(one.dtype, 5e-2) * largest, equal_nan=True)
        if not close.all():
            gap = (one - other).abs()[~close].nan_to_num(float("inf")).max().item()
            return f"tensor {place}, {tuple(one.shape)}, differs in {int((~close).sum())} entries, by up to {gap:.3g}"
    return ""
