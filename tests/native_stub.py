"""Writes the stub of a native module from the signatures that pybind11 puts into its docstrings.

    python tests/native_stub.py _cpu     writes ssd_kernels/_cpu.pyi of this checkout from the installed module
    python tests/native_stub.py _cuda    likewise; its bindings are compiled here, without CUDA and without a kernel

With --print it writes to the output instead: a process that has loaded those bindings must load no other `_cuda`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]

# What pybind11 3 accepts for an argument is written as what callers pass.
PLAIN = {
    r"typing\.SupportsInt( \| typing\.SupportsIndex)?": "int",
    r"typing\.SupportsFloat( \| typing\.SupportsIndex)?": "float",
    r"\b(Tuple|List|Dict)\[": lambda found: found[0].lower(),
    r"\bdict\b(?!\[)": "dict[str, Any]",
    r"\btuple\b(?!\[)": "tuple[Any, ...]",
    r"\bssd_kernels\._\w+\.": "",
}


def stub(module: ModuleType) -> str:
    """The text of the stub: functions by name, then classes, then constants."""
    functions, classes, constants = [], [], []
    for name, value in sorted(vars(module).items()):
        if name.startswith("__"):
            continue
        if isinstance(value, type):
            classes += ["", "", f"class {name}:", *_members(value)]
        elif callable(value):
            functions.append(_signature(name, value.__doc__))
        else:
            constants.append(f"{name}: {type(value).__name__}")
    head = f'"""The native functions of {module.__name__}: addresses, sizes, strides; results behind the addresses.\n'
    head += '\nWritten and checked by tests/native_stub.py; what the arguments are stands in csrc/bindings."""\n'
    body = "\n".join([*constants, *([""] if constants else []), *functions, *classes]) + "\n"
    return "\n".join([head, *(["from typing import Any", ""] if "Any" in body else []), body])


def cuda_bindings(folder: Path) -> ModuleType:
    """The module _cuda without its launchers: it can be looked at, and called it would find nothing."""
    import pybind11

    sources = sorted(map(str, (ROOT / "csrc" / "bindings").glob("cuda*.cpp")))
    library = folder / "_cuda.so"
    includes = [f"-I{path}" for path in (ROOT / "csrc" / "include", pybind11.get_include(), _python_headers())]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++17", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,lazy", *includes,
                    *sources, "-o", str(library)], check=True)  # fmt: skip
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        loader = importlib.machinery.ExtensionFileLoader("ssd_kernels._cuda", str(library))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("ssd_kernels._cuda", loader))
        loader.exec_module(module)
    finally:
        sys.setdlopenflags(flags)
    return module


def _python_headers() -> str:
    import sysconfig

    return sysconfig.get_paths()["include"]


def _members(value: type) -> list[str]:
    lines = []
    for name, member in vars(value).items():
        if isinstance(member, property):
            lines += ["    @property", f"    def {name}(self) -> {_plain(_returned(member.fget.__doc__))}: ..."]
        elif name == "__init__" and not (member.__doc__ or "").startswith("__init__("):
            continue  # made by other functions alone
        elif callable(member) and (name == "__init__" or not name.startswith("_")):
            lines.append(_signature(name, member.__doc__, indent=4))
    return lines


def _returned(doc: str | None) -> str:
    found = re.search(r"-> (.+)", doc or "")
    return found[1] if found else "Any"


def _signature(name: str, doc: str | None, indent: int = 0) -> str:
    found = re.match(rf"{name}\((.*)\) -> (.+)", (doc or "").splitlines()[0] if doc else "")
    if not found:
        raise ValueError(f"{name} has no signature in its docstring: {doc!r}")
    arguments = re.sub(r"\bself: [\w.]+", "self", _plain(found[1]))
    if re.search(r"\barg\d+:", arguments):
        arguments += ", /"
    line = " " * indent + f"def {name}({arguments}) -> {_plain(found[2])}: ..."
    if len(line) <= 120:
        return line
    kept = re.sub(r"(?<=:) |(?<=,) (?=[^\[]*\])", "\0", arguments)  # an argument and its type stay on one line
    inner = textwrap.fill(kept, 116 - indent, break_long_words=False, break_on_hyphens=False).replace("\0", " ")
    return textwrap.indent(f"def {name}(\n{textwrap.indent(inner, '    ')}\n) -> {_plain(found[2])}: ...", " " * indent)


def _plain(text: str) -> str:
    for pattern, replacement in PLAIN.items():
        text = re.sub(pattern, replacement, text)
    return text


if __name__ == "__main__":
    import torch  # noqa: F401  the native core shares the OpenMP runtime that torch has loaded

    shown = "--print" in sys.argv
    for name in [argument for argument in sys.argv[1:] if argument != "--print"]:
        with tempfile.TemporaryDirectory() as folder:
            module = cuda_bindings(Path(folder)) if name == "_cuda" else importlib.import_module(f"ssd_kernels.{name}")
            if shown:
                sys.stdout.write(stub(module))
            else:
                (ROOT / "ssd_kernels" / f"{name}.pyi").write_text(stub(module))
