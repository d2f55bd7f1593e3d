"""Compiles Triton kernels to cubins without a GPU and reads what the assembler made of them.

Run as a process of its own, without TRITON_INTERPRET: `python tests/ops/triton_offline.py CASE...` prints one JSON
object per line. A case is a name of CASES with a compute capability, `topk_linear/forward/small@90`: a call of an
operation on meta tensors. Its launches are recorded as they would go to a GPU, with the constants that the shape
heuristics pick and the argument specialisation that Triton's own launcher would see, and compiled for that GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

# Multiprocessors of an A100, an H100 or H200 and a B200.
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}


@dataclasses.dataclass(frozen=True)
class Report:
    """One compiled kernel.

    Attributes:
        kernel: its name.
        capability: 80, 90 or 100.
        registers: per thread.
        spills: bytes of local memory per thread; 0 where its SASS neither loads from nor stores to any.
        shared: bytes of shared memory per program.
        tensor_cores: how many tensor-core instructions of each kind its SASS holds.
    """

    kernel: str
    capability: int
    registers: int
    spills: int
    shared: int
    tensor_cores: dict[str, int]


def tools() -> Path | None:
    """The folder of the disassembler inside the triton package, or None; the assembler is beside it."""
    import triton.backends.nvidia as nvidia

    folder = Path(nvidia.__file__).parent / "bin"
    return folder if all((folder / name).exists() for name in ("ptxas", "cuobjdump", "nvdisasm")) else None


def _specialised(launch: object) -> tuple[dict[str, str], dict[tuple[int, ...], object], dict[tuple[int, ...], list]]:
    """Signature, constants and attributes of a launch: pointers and sizes that 16 divides are known as such."""
    names = launch.kernel.arg_names
    values = {**dict(zip(names, launch.arguments)), **launch.constants}
    assert set(values) == set(names), f"{launch.kernel.__name__}: {set(values) ^ set(names)} do not fit its arguments"
    types = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32",
             torch.int64: "i64", torch.bool: "i1", torch.float64: "fp64", torch.uint8: "u8"}  # fmt: skip
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(names):
        value = values[name]
        if name in launch.constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[(position,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + types[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    return signature, constants, attributes


def compile_launch(launch: object, capability: int) -> Report:
    """The report of one recorded launch.

    Args:
        launch: from `ssd_kernels._triton.recording`.
        capability: 80, 90 or 100.

    Raises:
        Whatever Triton's compiler or the assembler raises.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = _specialised(launch)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "maxnreg": launch.registers}
    options["enable_fp_fusion"] = launch.fusion
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    folder = tools()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run(folder / "cuobjdump", "--dump-resource-usage", file.name)
        listing = _run(folder / "nvdisasm", "-c", file.name)
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups())
    spills = stack + local if re.search(r"\b(STL|LDL)\b", listing) else 0
    kinds = re.findall(r"\b(HMMA|HGMMA|UTC\w*MMA|IMMA|QGMMA|DMMA)\b", listing)
    return Report(
        launch.kernel.__name__, capability, registers, spills, compiled.metadata.shared,
        {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    )  # fmt: skip


def _run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, text=True, stdout=subprocess.PIPE).stdout


def reports(call: Callable[[], object], capability: int) -> Iterator[Report]:
    """Compiles every distinct launch that `call` makes on meta tensors."""
    from ssd_kernels import _triton

    with _triton.recording(_triton.Machine(capability, MULTIPROCESSORS[capability])) as launches:
        call()
    seen = set()
    for launch in launches:
        key = str((launch.kernel.__name__, _specialised(launch), launch.num_warps, launch.num_stages, launch.registers))
        if key not in seen:
            seen.add(key)
            yield compile_launch(launch, capability)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


# The shapes of the design's targets, and the first one in fp32.
SHAPES = {
    "small": (512, 256, 10_000, 10, torch.bfloat16),
    "middle": (4096, 768, 32_768, 32, torch.bfloat16),
    "large": (8192, 4096, 131_072, 64, torch.bfloat16),
    "small-fp32": (512, 256, 10_000, 10, torch.float32),
}


CLASSES = 1024  # outputs of sparse_linear: an autoencoder decodes to D, a classifier to fewer


def _operands(name: str) -> tuple:
    b, d, r, k, dtype = SHAPES[name]
    x, weight = _meta(b, d, dtype=dtype), _meta(r, d, dtype=dtype)
    return x, weight, k, _meta(b, k, dtype=dtype), _meta(b, k, dtype=torch.int32)


def _topk_linear_forward(name: str) -> None:
    from ssd_kernels.topk_linear import triton_kernel

    x, weight, k, _, _ = _operands(name)
    triton_kernel.forward(x, weight, None, k, "relu", "both", True)


def _topk_linear_backward(name: str) -> None:
    from ssd_kernels.topk_linear import triton_backward

    x, weight, _, values, indices = _operands(name)
    tensors = (values, x, weight, values, indices)
    triton_backward.backward(*tensors, "relu", "both", True, True, True, True, as_rows=False)
    triton_backward.backward(*tensors, "relu", "none", True, True, True, True, as_rows=False)


def _gaba_linear_forward(name: str) -> None:
    from ssd_kernels.gaba_linear import triton_kernel

    x, weight, k, values, indices = _operands(name)
    passes = triton_kernel._Passes(x, weight, _meta(len(weight), dtype=torch.float64), k)
    starts = _meta(len(x), passes.tiles, dtype=torch.int64)
    passes.run(triton_kernel.DENSE, _meta(len(x), len(weight), dtype=x.dtype))
    passes.run(triton_kernel.COUNT, values, None, starts)
    passes.run(triton_kernel.FILL, values, indices, starts)


def _gaba_linear_backward(name: str) -> None:
    from ssd_kernels.gaba_linear import triton_kernel

    x, weight, _, values, indices = _operands(name)
    h = _meta(len(x), len(weight), dtype=x.dtype)
    triton_kernel.dense_backward(h, h, x, weight, True, True)
    flat, offsets = values.flatten(), _meta(len(x) + 1, dtype=torch.int64)
    triton_kernel.rows_backward(flat, flat, indices.flatten(), offsets, x, weight, True, True)


def _sparse_linear(name: str) -> None:
    from ssd_kernels.sparse_linear import triton_kernel

    _, neurons, _, values, indices = _operands(name)
    for weight in (
        _meta(CLASSES, len(neurons), dtype=values.dtype),
        _meta(len(neurons), CLASSES, dtype=values.dtype).t(),
    ):
        y = triton_kernel.forward(values, indices, None, weight)
        triton_kernel.backward(y, values, indices, None, weight, values, torch.empty_like(weight))


# Each case: a call on meta tensors, named `operation/direction/shape`.
CASES: dict[str, Callable[[], object]] = {
    f"{case}/{name}": functools.partial(call, name)
    for name in SHAPES
    for case, call in (
        ("topk_linear/forward", _topk_linear_forward),
        ("topk_linear/backward", _topk_linear_backward),
        ("gaba_linear/forward", _gaba_linear_forward),
        ("gaba_linear/backward", _gaba_linear_backward),
        ("sparse_linear/both", _sparse_linear),
    )
}


def main(names: list[str]) -> None:
    if tools() is None:
        sys.exit(3)  # the tests skip
    for name in names:
        case, _, capability = name.partition("@")
        for report in reports(CASES[case], int(capability)):
            print(json.dumps({"case": name, **dataclasses.asdict(report)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
