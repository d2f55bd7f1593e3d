"""Drives CMake for the native modules; everything else is in pyproject.toml.

SSD_CUDA=0|1 forces the CUDA module off or on; unset, it is built when nvcc is found. The list of
sources is CMakeLists.txt.
"""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent


def record_commit(tree: Path) -> None:
    """Writes the commit of this source tree into a copy of it: results.json names it."""
    source = runpy.run_path(str(ROOT / "ssd_kernels" / "_source.py"))
    target = tree / "ssd_kernels" / source["RECORD"]
    target.unlink(missing_ok=True)  # an sdist's files may be hard links to the source tree's
    if commit := source["commit_of"](ROOT):
        target.write_text(f"{commit}\n")


class RecordedBuild(build_py):
    """Copies the Python files, and records the commit beside them; an editable install asks its checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            record_commit(Path(self.build_lib))


class RecordedSource(sdist):
    """An sdist has no .git, so it records the commit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        record_commit(Path(base_dir))


class CleanBuild(build):
    """Starts from an empty build folder: files that have left the source tree must not reach a wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Builds every native module with one CMake run, and installs each as a binary inside `ssd_kernels`."""

    def run(self) -> None:
        import pybind11

        cuda = os.environ.get("SSD_CUDA") or "auto"
        if cuda not in ("0", "1", "auto"):
            raise SystemExit(f"SSD_CUDA={cuda!r}: allowed are 0, 1 or unset")
        build = Path(self.build_temp).resolve() / "cmake"
        package = ROOT / "ssd_kernels" if self.inplace else Path(self.build_lib).resolve() / "ssd_kernels"
        # A cache of an earlier run may name the ninja of an isolated environment that is gone.
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        package.mkdir(parents=True, exist_ok=True)
        for stale in [*package.glob("_cpu.*.so"), *package.glob("_cuda.*.so")]:
            stale.unlink()
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSSD_CUDA={cuda}",
            f"-DSSD_MODULE_DIR={package}",
        ]  # fmt: skip
        for command in (configure, ["cmake", "--build", str(build), "--target", "install"]):
            # One stream, so that the compiler's message stands right above the error.
            if subprocess.run(command, stderr=subprocess.STDOUT).returncode:
                raise SystemExit("building the native modules failed: CMake's messages are above")
        if list(package.glob("_cuda.*.so")):
            self.extensions.append(Extension("ssd_kernels._cuda", sources=[]))


setup(
    packages=[*find_packages(include=["ssd_kernels", "ssd_kernels.*"]),
              *find_packages("python", include=["ssd_train", "ssd_train.*"])],
    package_dir={"": ".", "ssd_train": "python/ssd_train"},
    package_data={"ssd_kernels": ["README.md", "*/README.md", "*.pyi", "py.typed"],
                  "ssd_train": ["recipes/*.yaml", "*.md", "py.typed"]},
    ext_modules=[Extension("ssd_kernels._cpu", sources=[])],
    cmdclass={"build": CleanBuild, "build_py": RecordedBuild, "build_ext": CMakeBuild, "sdist": RecordedSource},
    zip_safe=False,
)  # fmt: skip
