"""The commit that results name: recorded when a wheel or an sdist is made, asked of git in a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import ssd_kernels
from ssd_kernels import _source

ROOT = Path(__file__).resolve().parents[1]
BUILT = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CMakeLists.txt", "ssd_kernels", "python")

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(tree), *identity, *arguments], check=True, text=True,
                          capture_output=True).stdout.strip()  # fmt: skip


def setup(tree: Path, *arguments: str) -> None:
    """Runs a command of setup.py that compiles nothing."""
    done = subprocess.run([sys.executable, "setup.py", "-q", *arguments], cwd=tree, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def recorded(tree: Path) -> str | None:
    path = tree / "ssd_kernels" / _source.RECORD
    return path.read_text().strip() if path.exists() else None


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of its own with what setup.py needs of this one."""
    tree = tmp_path / "checkout"
    tree.mkdir()
    drop = shutil.ignore_patterns("*.so", "__pycache__", _source.RECORD)
    for name in BUILT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=drop)
        else:
            shutil.copy2(ROOT / name, tree / name)
    (tree / ".gitignore").write_text("/build/\n*.egg-info/\n__pycache__/\n")
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "all")
    return tree


def test_a_build_records_the_commit_and_whether_the_tree_was_dirty(checkout, tmp_path):
    head = git(checkout, "rev-parse", "HEAD")
    setup(checkout, "build_py", "--build-lib", str(tmp_path / "clean"))
    assert recorded(tmp_path / "clean") == head
    assert recorded(checkout) is None, "nothing is written into the checkout"
    (checkout / "notes.txt").write_text("not part of the build")
    assert _source.commit_of(checkout) == head
    (checkout / "ssd_kernels" / "extra.py").write_text("")
    setup(checkout, "build_py", "--build-lib", str(tmp_path / "new"))
    assert recorded(tmp_path / "new") == f"{head}-dirty"
    (checkout / "ssd_kernels" / "extra.py").unlink()
    (checkout / "CMakeLists.txt").write_text("")
    assert _source.commit_of(checkout) == f"{head}-dirty"
    assert (_source.short(head), _source.short(f"{head}-dirty"), _source.short(None)) == (
        head[:10], f"{head[:10]}-dirty", "-")  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to give the tree away")
def test_a_tree_of_another_user_has_its_commit(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    os.chown(checkout, 12345, 12345)
    os.chown(checkout / ".git", 12345, 12345)
    assert _source.commit_of(checkout) == head


def test_an_sdist_carries_the_commit_to_what_is_built_from_it(checkout, tmp_path):
    head = git(checkout, "rev-parse", "HEAD")
    setup(checkout, "sdist", "--dist-dir", str(tmp_path))
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(tmp_path.glob("ssd_kernels-*/"))
    assert recorded(unpacked) == head
    setup(unpacked, "build_py", "--build-lib", str(tmp_path / "built"))
    assert recorded(tmp_path / "built") == head
    # Below another repository, as a vendored copy lies: the sdist's own commit counts.
    shutil.move(unpacked, checkout / "vendored")
    assert _source.commit_of(checkout / "vendored") == head
    (checkout / "vendored" / "ssd_kernels" / _source.RECORD).unlink()
    assert _source.commit_of(checkout / "vendored") is None


def test_an_installed_package_knows_its_commit(tmp_path):
    shutil.copytree(Path(ssd_kernels.__file__).parent, tmp_path / "ssd_kernels", ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / "ssd_kernels" / _source.RECORD).write_text("0123abc\n")
    code = "import ssd_kernels, ssd_kernels._source as c; print(ssd_kernels.__file__, c.commit())"
    done = subprocess.run([sys.executable, "-P", "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)},
                          text=True, capture_output=True, check=True)  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / "ssd_kernels" / "__init__.py"), "0123abc"]


def test_results_name_the_commit_of_the_package(tmp_path, monkeypatch):
    from ssd_train.cli.main import main

    monkeypatch.setattr(_source, "commit", lambda: "4567def-dirty")
    options = ["--data", "digits", "--epochs", "1", "--neurons", "50", "--k", "5", "--seeds", "0"]
    assert main(["run", *options, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["environment"]["commit"] == "4567def-dirty"
