"""Writes the stub of a native module from the signatures that pybind11 puts into its docstrings.

    python tests/native_stub.py [_cpu|_cuda]    writes ssd_kernels/_cpu.pyi of this checkout from the installed module
"""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

STUBS = Path(__file__).resolve().parents[1] / "ssd_kernels"

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

    for name in sys.argv[1:] or ["_cpu"]:
        (STUBS / f"{name}.pyi").write_text(stub(importlib.import_module(f"ssd_kernels.{name}")))
