"""No file over 400 lines and no function over 60, unless its first lines say that it is long because of something."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NATIVE = (".h", ".inl", ".cpp", ".cu", ".cuh")
FILE, FUNCTION = 400, 60
REASON = re.compile(r"\b[Ll]ong (file )?(because|on purpose:) \S+")
HEAD = re.compile(r"\)( const| noexcept| override| ->.*)*$|\) ?: ?[^: ].*$")  # of a function in C++


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, check=True,
                             stdout=subprocess.PIPE).stdout  # fmt: skip
    paths = [ROOT / name for name in listing.splitlines()]
    return [path for path in paths if path.suffix in (".py", *NATIVE) and path.exists()]


def python_functions(text: str) -> list[tuple[str, int, int]]:
    """(name, first line, lines without the docstring) of every function, those inside others too."""
    kinds, found = (ast.FunctionDef, ast.AsyncFunctionDef), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds):
            words = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            documented = 0 if words is None else words.end_lineno - words.lineno + 1
            found.append((node.name, node.lineno, node.end_lineno - node.lineno + 1 - documented))
    return found


def native_functions(text: str) -> list[tuple[str, int, int]]:
    """The same for C++, by its braces; what lies inside a function counts as part of it."""
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731  lines stay where they are
    text = re.sub(r"//[^\n]*|/\*[\s\S]*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", blank, text)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.MULTILINE)
    found, depth, start, head = [], 0, None, 0
    for brace in re.finditer(r"[{};]", text):
        at = brace.start()
        if brace[0] == "{":
            before, name = text[head:at], " ".join(text[head:at].split())
            if start is None and HEAD.search(name):
                first = text.count("\n", 0, head + len(before) - len(before.lstrip())) + 1
                start = (name[:60], first, depth)
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if start is not None and depth == start[2]:
                found.append((*start[:2], text.count("\n", 0, at) + 2 - start[1]))
                start = None
        head = at + 1
    return found


def too_long(path: Path, text: str) -> list[str]:
    """What in a file is too long and gives no reason."""
    lines = text.splitlines()
    found = []
    if len(lines) > FILE and not REASON.search("\n".join(lines[:20])):
        found.append(f"{path}: {len(lines)} lines")
    for name, first, length in python_functions(text) if path.suffix == ".py" else native_functions(text):
        if length > FUNCTION and not REASON.search("\n".join(lines[max(0, first - 6) : first + 8])):
            found.append(f"{path}:{first}: {name}: {length} lines")
    return found


def test_files_and_functions_are_short_or_say_why_not():
    found = [line for path in tracked() for line in too_long(path.relative_to(ROOT), path.read_text())]
    assert not found, "too long, and no 'long because ...' in the first lines:\n" + "\n".join(found)


def test_what_is_too_long_is_found():
    body = "    a = 1\n"
    long = f"def f():\n{body * 60}"
    assert not too_long(Path("a.py"), f"def f():\n{body * 59}") and len(too_long(Path("a.py"), long)) == 1
    assert not too_long(Path("a.py"), "# It is long because it is one table.\n" + long)
    assert too_long(Path("a.py"), "# Long because\n" + long)
    assert too_long(Path("a.py"), "# Long because f is.\n" + "\n" * 8 + long)
    assert not too_long(Path("a.py"), long.replace(body, '    """One\n    two.\n    """\n', 1).replace(body, "", 1))
    assert too_long(Path("a.py"), "a = 1\n" * 401) == ["a.py: 401 lines"]
    native = "namespace a {\nstruct B {\n  int f() const {\n" + '    g("}{");  // {\n' * 59 + "  }\n};\n}\n"
    assert too_long(Path("a.h"), native) == ["a.h:3: int f() const: 61 lines"]
    assert not too_long(Path("a.h"), native.replace('    g("}{");  // {\n', "", 1))
    assert native_functions("B::B(int x)\n    : x_(x) {\n}\nconst int t[] = {1};\nauto f = [] { return 1; };\n") == [
        ("B::B(int x) : x_(x)", 1, 3)
    ]
