"""The ground that the Triton kernels share: choice of backend, ordered keys, the launch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from ssd_kernels import _backend, testing

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from ssd_kernels import _triton  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPECIAL = (float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, 3.4e38)


@triton.jit
def _keys_kernel(score_ptr, index_ptr, key_ptr, score_out_ptr, index_out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    key = _triton.ordered_key(tl.load(score_ptr + at, mask=inside), tl.load(index_ptr + at, mask=inside))
    tl.store(key_ptr + at, key, mask=inside)
    tl.store(score_out_ptr + at, _triton.key_score(key), mask=inside)
    tl.store(index_out_ptr + at, _triton.key_index(key), mask=inside)


@triton.jit
def _smallest_kernel(key_ptr, out_ptr, count, wanted, BLOCK: tl.constexpr):
    key = tl.load(key_ptr + tl.arange(0, BLOCK))[None, :]
    used = tl.full([1], 0, tl.int32) + count
    tl.store(out_ptr + tl.arange(0, 1), _triton.smallest_of_largest(key, used, wanted))


@pytest.mark.interpreter
@pytest.mark.parametrize(("keys", "gold"), [([5, -3, 9, 7], None), ([4, 4, 4, 4], 4)])
def test_the_search_among_keys_ends_also_where_keys_are_equal(keys, gold):
    """Equal keys break its contract; it gives a bound of them, and does not run forever."""
    out = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    key = torch.tensor(keys, device=DEVICE)
    _triton.launch(_smallest_kernel, (1,), key, out, len(keys), 2, BLOCK=4)
    bound = int(out)
    assert bound == gold if gold else sum(k >= bound for k in keys) == 2


@pytest.mark.interpreter
def test_ordered_keys_sort_as_the_stable_sort_of_torch():
    pairs = list(itertools.product(SPECIAL, (0, 1, 7, 2**31 - 1)))
    score = torch.tensor([s for s, _ in pairs], device=DEVICE)
    index = torch.tensor([i for _, i in pairs], dtype=torch.int32, device=DEVICE)
    key = torch.empty(len(pairs), dtype=torch.int64, device=DEVICE)
    score_out, index_out = torch.empty_like(score), torch.empty_like(index)
    _triton.launch(_keys_kernel, (2,), score, index, key, score_out, index_out, len(pairs), BLOCK=32)
    by_index = index.long().argsort(stable=True)  # then by score: what a stable sort of the scores gives
    expected = by_index[score[by_index].sort(descending=True, stable=True).indices]
    got = key.argsort(descending=True, stable=True)
    assert testing.same_bits(score[got], score[expected]) and torch.equal(index[got], index[expected])
    assert testing.same_bits(score_out, score) and torch.equal(index_out, index)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_gpu_and_interpreter_it_fails_with_one_clear_sentence(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_backend, "TRITON_OPERATIONS", frozenset({"topk_linear"}))
    with pytest.raises(ValueError) as error:
        _backend.resolve("triton", "topk_linear", torch.device("cpu"))
    assert str(error.value) == (
        "backend='triton' cannot run topk_linear: it takes CUDA tensors; CPU tensors only in its interpreter "
        "(TRITON_INTERPRET=1 from the start)"
    )


@pytest.mark.parametrize(
    ("triton_version", "numpy_version", "reason"),
    [
        ("3.6.0", "2.4.6", "the interpreter of triton 3.6.0 needs numpy below 2.4, this is 2.4.6"),
        ("3.6.0", "2.3.5", ""),
        ("3.7.0+git1", "2.10.0rc1", ""),
    ],
)
def test_an_interpreter_that_its_numpy_breaks_is_named(triton_version, numpy_version, reason, monkeypatch):
    versions = {"triton": triton_version, "numpy": numpy_version}
    monkeypatch.setattr(_backend.importlib.metadata, "version", versions.__getitem__)
    found = _backend._interpreter_reason.__wrapped__()
    assert found == reason
    monkeypatch.setattr(_backend, "_interpreter_reason", lambda: found)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _backend.missing_reason("triton", "topk_linear", torch.device("cpu")) == reason


def test_a_cpu_never_picks_triton_by_itself():
    for op in _backend.CPU_OPERATIONS | _backend.TRITON_OPERATIONS:
        assert _backend.resolve("auto", op, torch.device("cpu")) != "triton"


def test_fp64_is_refused_by_name():
    with pytest.raises(ValueError, match=r"topk_linear: backend='triton' has no kernel for torch.float64: allowed are"):
        _triton.check_dtype("topk_linear", torch.zeros(1, dtype=torch.float64))


OFFLINE = """
import sys, torch, triton, triton.language as tl
sys.path.insert(0, sys.argv[1])
import triton_offline
from ssd_kernels import _triton

@triton.jit
def _product_kernel(x_ptr, w_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    square = at[:, None] * BLOCK + at[None, :]
    y = tl.dot(tl.load(x_ptr + square), tl.load(w_ptr + square))
    tl.store(y_ptr + square, y, mask=square < n)

def call():
    x = torch.empty(64, 64, dtype=torch.bfloat16, device="meta")
    _triton.launch(_product_kernel, (1,), x, x, torch.empty(64, 64, device="meta"), 4096, BLOCK=64)

if triton_offline.tools() is None:
    print("no tools")
else:
    for capability in (80, 90, 100):
        for report in triton_offline.reports(call, capability):
            print(report.kernel, report.capability, report.registers > 0, report.spills, *report.tensor_cores)
"""


def test_kernels_compile_without_a_gpu(tmp_path):
    """The offline compiler itself, on a small matrix product: cubins for three generations, with tensor cores."""
    script = tmp_path / "offline.py"  # Triton reads the source of a kernel from its file
    script.write_text(OFFLINE)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, str(script), os.path.dirname(__file__)], text=True, capture_output=True,
                         env=environment, timeout=600)  # fmt: skip
    assert run.returncode == 0, run.stderr
    if run.stdout.strip() == "no tools":
        pytest.skip("this triton has no ptxas, cuobjdump or nvdisasm")
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [(kernel, int(capability)) for kernel, capability, *_ in lines] == [
        ("_product_kernel", 80), ("_product_kernel", 90), ("_product_kernel", 100)
    ]  # fmt: skip
    for line, instruction in zip(lines, ("HMMA", "HGMMA", "UTCHMMA")):
        assert line[2:] == ["True", "0", instruction]
