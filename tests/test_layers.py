"""The arrows of the design: csrc/include <- csrc/{cpu,cuda} <- csrc/bindings <- ops.py <- api.py <- ssd_train.

Static checks over the checkout: what a file includes or imports, and where files lie.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
KERNELS = ROOT / "ssd_kernels"
TRAIN = ROOT / "python" / "ssd_train"
SUFFIXES = {".h", ".inl", ".cpp", ".cu", ".cuh"}

native_files = sorted(path for path in CSRC.rglob("*") if path.suffix in SUFFIXES)
kernel_modules = sorted(KERNELS.rglob("*.py"))
train_modules = sorted(TRAIN.rglob("*.py"))
# sae holds adapters and models on top of the operations.
operation_folders = sorted(path.parent for path in KERNELS.glob("*/__init__.py") if path.parent.name != "sae")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', path.read_text(), re.MULTILINE)


def compiled_per_level() -> list[Path]:
    """The .inl files, and every header of csrc/ that they include."""
    found: set[Path] = set()
    ahead = [path for path in native_files if path.suffix == ".inl"]
    while ahead:
        path = ahead.pop()
        found.add(path)
        places = [folder / header for header in includes(path) for folder in (CSRC / "cpu", CSRC / "include")]
        ahead += [place for place in places if place.exists() and place not in found]
    return sorted(found)


simd_files = compiled_per_level()


def imports(path: Path, source: str | None = None) -> Iterator[str]:
    """The absolute names of the modules that a file, or `source` in its place, imports anywhere in it."""
    base = KERNELS.parent if KERNELS in path.parents else TRAIN.parent
    package = path.relative_to(base).parent.parts
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.partition(".")[0]


def test_the_checks_see_the_tree():
    assert len(native_files) > 10 and len(kernel_modules) > 3 and train_modules and simd_files


@pytest.mark.parametrize("path", native_files, ids=name_of)
def test_the_native_core_knows_no_torch_and_only_bindings_know_python(path):
    for header in includes(path):
        assert not re.match(r"(torch|ATen|c10|caffe2)\b", header), f"{name_of(path)} includes {header}"
        if "bindings" not in path.parts:
            assert not re.match(r"(pybind11|bindings)\b|Python\.h", header), f"{name_of(path)} includes {header}"


@pytest.mark.parametrize("path", native_files, ids=name_of)
def test_native_includes_point_downwards(path):
    layer = path.relative_to(CSRC).parts[0]
    allowed = {"include": {"include"}, "cpu": {"include", "cpu"}, "cuda": {"include", "cuda"},
               "bindings": {"include", "bindings"}}[layer]  # fmt: skip
    for header in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
        places = [folder for folder in sorted(allowed) if (CSRC / folder / header).exists()]
        assert places or (path.parent / header).exists(), f"{name_of(path)} includes {header}, which lies above it"


@pytest.mark.parametrize("path", simd_files, ids=name_of)
def test_simd_files_hold_no_std_templates(path):
    """An inline function or a template of std:: compiled with AVX-512 could be linked into the plain path."""
    standard = set(re.findall(r"^\s*#\s*include\s*<([^>]+)>", path.read_text(), re.MULTILINE))
    assert standard <= {"cstddef", "cstdint", "cstdlib", "cstring", "immintrin.h"}
    code = re.sub(r"//.*", "", path.read_text())
    assert set(re.findall(r"std::(\w+)", code)) <= {
        "memcpy",
        "memset",
        "memmove",
        "malloc",
        "realloc",
        "free",
    }  # plain C functions


def outside_levels(code: str) -> list[str]:
    """The heads of the functions and templates of a C++ text that lie in no namespace SSD_LEVEL."""
    code = re.sub(r"^[ \t]*#(?:.*\\\n)*.*|//.*|/\*[\s\S]*?\*/|\"[^\"\n]*\"", "", code, flags=re.MULTILINE)
    found, levels, head = [], [], ""
    for token in re.split(r"([{};])", code):
        if token == "{":
            inside = bool(levels and levels[-1])
            is_level = bool(re.search(r"\bnamespace\s+([\w:]+::)?SSD_LEVEL\s*$", head))
            is_function = re.search(r"\)\s*(const|noexcept|override|->.*|\s)*$|\)\s*:[^:].*$", head, re.DOTALL)
            if not inside and not is_level and (is_function or re.search(r"\btemplate\b", head)):
                found.append(" ".join(head.split()))
            levels.append(inside or is_level)
        elif token == "}":
            levels.pop()
        head = "" if token in ("{", "}", ";") else token
    return found


@pytest.mark.parametrize("path", simd_files, ids=name_of)
def test_functions_of_simd_files_lie_in_a_namespace_of_their_level(path):
    """Of a function without a name of its own per level, the linker keeps one copy: perhaps the one with AVX-512."""
    assert not outside_levels(path.read_text())


FLOORS = {"simd": 0, "threads": 0, "rows": 1, "select": 2, "ops": 3, "engine": 3}  # the rooms of csrc/cpu


@pytest.mark.parametrize("path", [path for path in native_files if CSRC / "cpu" in path.parents], ids=name_of)
def test_rooms_of_the_cpu_core_include_downwards(path):
    room, *inside = path.relative_to(CSRC / "cpu").parts
    assert room in FLOORS and inside, f"{name_of(path)} lies in no room"
    for header in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
        to, *rest = Path(header).parts
        if to == "ssd":
            continue
        same = to == room and (room != "ops" or rest[0] == inside[0])
        assert same or FLOORS[to] < FLOORS[room], f"{name_of(path)} includes {header}, which lies beside or above it"


def test_cmake_lists_every_native_source():
    text = (ROOT / "CMakeLists.txt").read_text()
    operations = re.search(r"set\(SSD_CPU_OPERATIONS\s*([^)]*)\)", text)[1].split()
    listed = set(re.findall(r"csrc/[\w/]+\.(?:cpp|cu|inl)\b", text))
    for operation in operations:
        listed |= {f"csrc/cpu/ops/{operation}/{operation}.inl", f"csrc/cpu/ops/{operation}/{operation}.cpp",
                   f"csrc/bindings/{operation}.cpp"}  # fmt: skip
    sources = {name_of(path) for path in native_files if path.suffix in (".cpp", ".cu", ".inl")}
    assert sources - listed == set(), "these are in no target"
    assert listed - sources == set(), "these are listed, but missing"


@pytest.mark.parametrize("path", kernel_modules, ids=name_of)
def test_kernels_never_import_the_training_layer(path):
    allowed = {"ssd_kernels", "torch", "numpy"}
    if path.name in ("_triton.py", "triton_kernel.py", "triton_hidden.py", "triton_norms.py", "triton_schedule.py"):
        allowed.add("triton")
    for module in imports(path):
        assert top(module) != "ssd_train", f"{name_of(path)} imports {module}"
        standard = top(module) in sys.stdlib_module_names
        assert standard or top(module) in allowed, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("folder", operation_folders, ids=name_of)
def test_an_operation_is_one_folder_with_the_same_files(folder):
    # The trainer is no torch operation but an object with state: native.py stands where others register theirs.
    binding = "native.py" if folder.name == "sdmlp_trainer" else "ops.py"
    for name in ("api.py", binding, "reference.py", "README.md"):
        assert (folder / name).exists(), f"{name_of(folder)}/{name} is missing"
    above = {"reference": ("ops", "api"), "ops": ("api",)}
    for stem, forbidden in above.items():
        if not (folder / f"{stem}.py").exists():
            continue
        for module in imports(folder / f"{stem}.py"):
            parts = module.split(".")
            assert not (parts[:2] == ["ssd_kernels", folder.name] and parts[2:3] and parts[2] in forbidden), (
                f"{name_of(folder)}/{stem}.py imports {module}, which lies above it"
            )


@pytest.mark.parametrize("path", train_modules, ids=name_of)
def test_the_training_layer_uses_public_functions_only(path):
    for module in imports(path):
        assert top(module) not in ("triton", "pybind11"), f"{name_of(path)} imports {module}: kernels live below"
        parts = module.split(".")
        private = parts[0] == "ssd_kernels" and ("ops" in parts[2:] or any(part.startswith("_c") for part in parts))
        assert not private, f"{name_of(path)} imports {module}, which is no public interface"


# The floors of ssd_train, ground up: a file may import what lies below its own floor, and its own folder.
TRAIN_FLOORS = (
    {"errors"}, {"records", "sizes"}, {"board", "checkpoint"}, {"curves"}, {"data"}, {"config"}, {"model"},
    {"parallel"}, {"distill", "importance", "metrics", "pretrained"}, {"methods"}, {"options"}, {"validate"},
    {"engines"}, {"trainer"}, {"plots"}, {"run"}, {"jobs"}, {"embed", "report"}, {"api"}, {"cli"}, {"__main__"},
)  # fmt: skip
TRAIN_FLOOR_OF = {room: i for i, rooms in enumerate(TRAIN_FLOORS) for room in rooms}


def train_room(path: Path) -> str:
    """The folder or file directly under ssd_train that a file belongs to."""
    return path.relative_to(TRAIN).parts[0].removesuffix(".py")


def upward_imports(path: Path, source: str | None = None) -> list[str]:
    """What a file imports from a higher floor of ssd_train, or from another room of its own; types count too."""
    own, found = train_room(path), []
    for module in imports(path, source):
        parts = module.split(".")
        room = parts[1] if parts[0] == "ssd_train" and len(parts) > 1 and parts[1] in TRAIN_FLOOR_OF else own
        if room != own and TRAIN_FLOOR_OF[room] >= TRAIN_FLOOR_OF[own]:
            found.append(module)
    return found


floor_modules = [path for path in train_modules if path.parent != TRAIN or path.name != "__init__.py"]


@pytest.mark.parametrize("path", floor_modules, ids=name_of)
def test_the_training_layer_imports_downwards(path):
    assert train_room(path) in TRAIN_FLOOR_OF, f"{name_of(path)} stands on no floor: name it in TRAIN_FLOORS"
    assert not upward_imports(path), f"{name_of(path)} imports {upward_imports(path)}, on its own floor or above"


@pytest.mark.parametrize("line", ["from ..trainer import Trainer", "from ssd_train.run import runner",
                                  "import ssd_train.cli.main", "from .. import engines"])  # fmt: skip
def test_an_upward_import_is_found(line):
    """Also where only a type checker sees it."""
    path = TRAIN / "methods" / "ssd.py"
    planted = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {line}\n"
    assert len(upward_imports(path, planted)) == 1
    assert not upward_imports(path, "from ..model import SDMLP\nfrom .base import Method\n")


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, check=True, stdout=subprocess.PIPE).stdout
    return listing.splitlines()


def test_no_generated_files_are_tracked():
    suffixes = re.compile(r"\.(so|o|a|py[cod]|whl|egg|cubin|ptx|pkl|pt)$")
    folders = re.compile(r"(^|/)(build|dist|__pycache__|runs|plots|[^/]*\.egg-info)/|CMakeCache")
    assert not [name for name in tracked() if suffixes.search(name) or folders.search(name)]


def test_the_top_level_is_that_of_the_design():
    expected = {
        ".ci", ".clang-format", ".gitignore", "CHANGELOG.md", "CITATION.cff", "CMakeLists.txt", "CONTRIBUTING.md",
        "LICENSE", "MANIFEST.in", "README.md", "benchmarks", "conftest.py", "constraints.txt", "csrc", "docs",
        "examples", "mkdocs.yml", "pyproject.toml", "python", "results", "setup.py", "ssd_kernels", "tests",
    }  # fmt: skip
    assert {name.partition("/")[0] for name in tracked()} <= expected
