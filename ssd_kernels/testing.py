"""Case tables, input factories and the tolerance rule: one oracle for the tests and the benchmarks of every operation.

Letters: B batch, D inputs, R neurons, K winners. Nothing here imports pytest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch

from . import _native

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "transposed", "strided", "expanded", "unaligned")
SCALES = (1e-3, 1.0, 50.0)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One problem size; its `str` is the test id."""

    b: int
    d: int
    r: int
    k: int

    def __str__(self) -> str:
        return f"B{self.b}-D{self.d}-R{self.r}-K{self.k}"


# Odd sizes on purpose: B 0, 1, 2, odd and large; R not a multiple of 8, 16 or 64; K 1, R - 1 and R; D 1.
SHAPES = (
    Shape(0, 16, 20, 3),
    Shape(1, 1, 1, 1),
    Shape(1, 256, 1000, 10),
    Shape(2, 1, 9, 4),
    Shape(2, 7, 33, 1),
    Shape(3, 16, 17, 16),
    Shape(5, 31, 70, 70),
    Shape(7, 33, 101, 100),
    Shape(13, 65, 257, 5),
    Shape(32, 64, 1000, 10),
    Shape(129, 48, 515, 8),
    Shape(300, 20, 130, 33),
)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _normal(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _integers(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Small whole numbers: every dot product is exact in any order, so ties are real and results are bitwise."""
    return torch.randint(-2, 3, tuple(shape), generator=generator).double()


def _equal_rows(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return _integers((1, *shape[1:]), generator).expand(*shape).clone()


def _zeros(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Zeros of both signs."""
    return torch.where(_uniform(shape, generator) < 0.5, 0.0, -0.0).double()


def _negative(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """At most a few positive entries: with non-negative partners, fewer than K positive scores."""
    return _uniform(shape, generator) - 0.98


def _denormal(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Entries whose products are denormal in fp32 (about 1e-40)."""
    return _normal(shape, generator) * 1e-20


def _with(value: float) -> Callable[[Sequence[int], torch.Generator], torch.Tensor]:
    def fill(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        out = _integers(shape, generator)
        return torch.where(_uniform(shape, generator) < 0.02, value, out)

    return fill


VALUES: dict[str, Callable[[Sequence[int], torch.Generator], torch.Tensor]] = {
    "uniform": _uniform,
    "normal": _normal,
    "ties": _integers,
    "equal_rows": _equal_rows,
    "zeros": _zeros,
    "negative": _negative,
    "denormal": _denormal,
    "nan": _with(float("nan")),
    "inf": _with(float("inf")),
    "negative_inf": _with(float("-inf")),
}
FINITE_VALUES = ("uniform", "normal", "ties", "equal_rows", "zeros", "negative", "denormal")


def seed_of(*key: object) -> int:
    """A seed that depends on the case alone, the same in every process."""
    return functools.reduce(lambda seed, char: (seed * 31 + ord(char)) % (2**31 - 1), repr(key), 7)


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another memory layout ("expanded" repeats the first row of a matrix, with stride 0)."""
    match layout:
        case "contiguous":
            return tensor.contiguous()
        case "transposed":
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        case "strided":
            wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"), dtype=tensor.dtype)
            view = wide[..., : 2 * tensor.shape[-1] : 2]
            view.copy_(tensor)
            return view
        case "expanded":
            return tensor[:1].expand_as(tensor) if len(tensor) else tensor
        case "unaligned":
            flat = torch.full((tensor.numel() + 1,), float("nan"), dtype=tensor.dtype)
            flat[1:] = tensor.flatten()
            return flat[1:].view(tensor.shape)
        case _:
            raise ValueError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}")


def make(
    *shape: int,
    values: str = "normal",
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    seed: int = 0,
) -> torch.Tensor:
    """A tensor of one row of the case tables, reproducible from its arguments."""
    generator = torch.Generator().manual_seed(seed_of(shape, values, seed))
    return lay_out((VALUES[values](shape, generator) * scale).to(dtype), layout)


def id_of(value: object) -> str:
    """A readable test id: `float32`, `B2-D7-R33-K1`, `1e-03`."""
    match value:
        case torch.dtype():
            return str(value).removeprefix("torch.")
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def simd_levels() -> list[str]:
    """The SIMD levels that this processor runs, lowest first.

    Raises:
        RuntimeError: the native module is missing. A test that asks must fail then, not skip.
    """
    module, reason = _native.cpu_module()
    if module is None:
        raise RuntimeError(f"the native CPU module is not loaded: {reason}")
    names = ["generic", "avx2", "avx512", "avx512bf16"]
    return names[: names.index(module.best_simd_level()) + 1]


def assert_accurate(
    kernel: torch.Tensor, gold: torch.Tensor, low: torch.Tensor, *, factor: float = 2.0, tol: float | None = None
) -> None:
    """The tolerance rule: |kernel - gold| <= 2 |low - gold| + tol, in the Frobenius norm and in the maximum.

    Args:
        kernel: what is tested, any dtype.
        gold: the reference in fp64, from the same inputs.
        low: the reference in the kernel's own precision.
        factor: how many times the reference's own error is allowed.
        tol: absolute slack; by default 4 units of the kernel dtype's resolution at the largest gold entry, per
            element (so times the root of the count in the Frobenius norm).

    Raises:
        AssertionError: says both errors and the bound.
    """
    assert kernel.shape == gold.shape == low.shape, f"shapes {kernel.shape}, {gold.shape}, {low.shape}"
    if gold.numel() == 0:
        return
    kernel, low, resolution = kernel.double(), low.double(), torch.finfo(kernel.dtype)
    odd = ~torch.isfinite(gold)
    if odd.any():
        same = (kernel[odd] == gold[odd]) | (kernel[odd].isnan() & gold[odd].isnan())
        assert same.all(), f"{int((~same).sum())} non-finite entries differ from the gold ones"
        kernel, low, gold = kernel[~odd], low[~odd], gold[~odd]
        if gold.numel() == 0:
            return
    assert torch.isfinite(kernel).all(), "a non-finite entry where the gold one is finite"
    if tol is None:
        tol = 4 * resolution.eps * float(gold.abs().max()) + 4 * resolution.tiny
    worst, allowed = float((kernel - gold).abs().max()), factor * float((low - gold).abs().max()) + tol
    assert worst <= allowed, f"largest error {worst:.3g} > {factor:g} x reference's + tol = {allowed:.3g}"
    norm = float((kernel - gold).norm())
    allowed = factor * float((low - gold).norm()) + tol * gold.numel() ** 0.5
    assert norm <= allowed, f"Frobenius error {norm:.3g} > {factor:g} x reference's + tol = {allowed:.3g}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """torch.equal, with NaN equal to NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point():
        return tensor.fill_(float("nan"))
    return tensor.fill_(torch.iinfo(tensor.dtype).min) if tensor.dtype != torch.bool else tensor


@contextlib.contextmanager
def poisoned_empty() -> Iterator[None]:
    """Inside, torch.empty, torch.empty_like and Tensor.new_empty return NaN (or the smallest integer) everywhere."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty
    with (
        mock.patch.object(torch, "empty", lambda *a, **k: _poison(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: _poison(empty_like(*a, **k))),
        mock.patch.object(torch.Tensor, "new_empty", lambda *a, **k: _poison(new_empty(*a, **k))),
    ):
        yield


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """torch.set_num_threads(count) inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def combinations(**axes: Sequence[object]) -> list[dict[str, object]]:
    """Every combination of the named axes, for tests that loop rather than parametrise."""
    return [dict(zip(axes, chosen)) for chosen in itertools.product(*axes.values())]
