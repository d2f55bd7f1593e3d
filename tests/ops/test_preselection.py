"""Certified preselection changes no bit: bf16 names candidates, the canonical product decides."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

import ssd_kernels
from ssd_kernels import gaba_linear, testing, topk_linear
from ssd_kernels.testing import make, same_bits


def nearly_equal_rows(r: int, d: int) -> torch.Tensor:
    """Rows that bf16 cannot tell apart: differences far below its resolution decide every winner."""
    return 1 + make(1, d, values="uniform", seed=1) + make(r, d, seed=2) * 1e-5


def mixed_norms(r: int, d: int) -> torch.Tensor:
    """A few rows are a million times longer, so their blocks' bounds are loose."""
    return make(r, d, seed=2) * torch.where(torch.arange(r) % 97 == 0, 1e6, 1.0)[:, None]


def rising(r: int, d: int) -> torch.Tensor:
    """Every neuron beats all before it: all of them are candidates, and the plain scan takes over."""
    return make(1, d, values="uniform", seed=1) * torch.linspace(0.5, 1.5, r)[:, None]


PRESELECTED: dict[str, Callable[[int, int], torch.Tensor]] = {
    **{values: functools.partial(make, values=values, seed=2) for values in testing.VALUES},
    "unit": lambda r, d: torch.nn.functional.normalize(make(r, d, values="uniform", seed=2)),
    "huge": lambda r, d: make(r, d, seed=2) * 1e18,
    "overflowing": lambda r, d: make(r, d, seed=2) * 3e37,
    "tiny": lambda r, d: make(r, d, seed=2) * 1e-30,
    "nearly_equal_rows": nearly_equal_rows,
    "mixed_norms": mixed_norms,
    "rising": rising,
}


@pytest.mark.parametrize("kind", PRESELECTED)
def test_topk_linear(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if testing.simd_levels()[-1] != "avx512bf16":
        pytest.skip("this processor has no avx512bf16")

    def run(simd: str, *arguments: object, **options: object) -> ssd_kernels.TopK:
        monkeypatch.setenv("SSD_SIMD", simd)
        return topk_linear(*arguments, backend="cpu", **options)

    for (b, d, r, k), normalize, dtype in (
        ((37, 100, 1500, 10), "none", torch.float32),
        ((64, 256, 2100, 65), "both", torch.float32),
        ((17, 33, 700, 1), "input", torch.float32),
        ((33, 70, 900, 300), "none", torch.bfloat16),
        ((20, 64, 999, 7), "both", torch.float16),
    ):
        weight = PRESELECTED[kind](r, d).to(dtype)
        for values in ("uniform", kind if kind in testing.VALUES else "normal"):
            x, bias = make(b, d, values=values, dtype=dtype, seed=3), make(r, dtype=dtype, seed=4)
            for options in ({"activation": "none"}, {"inhibition": True}):
                for arguments in ((x, weight, k), (x, weight, k, bias)):
                    plain = run("avx512", *arguments, normalize=normalize, **options)
                    preselected = run("avx512bf16", *arguments, normalize=normalize, **options)
                    assert all(same_bits(ours, theirs) for ours, theirs in zip(preselected, plain))


def coefficients(kind: str, r: int) -> torch.Tensor:
    """Coefficients for bf16 preselection: within (0, 1] everywhere, in some of its panels, or with few inactive."""
    g = 1 - 0.02 * make(r, values="uniform")
    match kind:
        case "within":
            return g
        case "low":
            return 0.1 * g
        case "excited at the end":
            return torch.cat([g[:700], -g[700:]])
        case "some are zero":
            return torch.where(torch.arange(r) % 600 == 599, 0.0, g)
        case "beyond one":
            return torch.where(torch.arange(r) % 600 == 599, 1.5, g)


@pytest.mark.parametrize("values", ("uniform", "normal", "unit", "rising", "huge", "tiny", *testing.VALUES))
@pytest.mark.parametrize("kind", ("within", "low", "excited at the end", "some are zero", "beyond one"))
def test_gaba_linear(kind: str, values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if testing.simd_levels()[-1] != "avx512bf16":
        pytest.skip("this processor has no avx512bf16")
    for (b, d, r, k), dtype in (
        ((37, 100, 1500, 10), torch.float32),
        ((64, 256, 1400, 65), torch.float32),
        ((33, 70, 900, 300), torch.bfloat16),
        ((20, 64, 1999, 7), torch.float16),
    ):
        match values:
            case "unit":
                weight = torch.nn.functional.normalize(make(r, d, values="uniform", seed=2))
            case "rising":  # every neuron beats all before it
                weight = make(1, d, values="uniform", seed=1) * torch.linspace(0.5, 1.5, r)[:, None]
            case "huge" | "tiny":
                weight = make(r, d, seed=2) * (3e37 if values == "huge" else 1e-30)
            case _:
                weight = make(r, d, values=values, seed=2)
        weight, g = weight.to(dtype), coefficients(kind, r)
        for x in (make(b, d, values="uniform", dtype=dtype, seed=3), make(b, d, dtype=dtype, seed=4)):
            results = []
            for level in ("avx512", "avx512bf16"):
                monkeypatch.setenv("SSD_SIMD", level)
                dense = gaba_linear(x, weight, k, g, backend="cpu")
                results.append((dense, *gaba_linear(x, weight, k, g, output="rows", backend="cpu")))
            for plain, preselected in zip(*results):
                assert same_bits(preselected, plain)
