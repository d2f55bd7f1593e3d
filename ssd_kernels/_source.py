"""The commit that a copy of this project was made from. Imports the standard library alone: setup.py runs this file."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

RECORD = "_commit.txt"  # in the package: written into a wheel and an sdist, never into a checkout
BUILT_FROM = ("ssd_kernels", "python", "csrc", "CMakeLists.txt", "setup.py", "pyproject.toml")


def commit_of(root: Path) -> str | None:
    """The commit of a source tree: git's where it is a checkout, else the recorded one; None where neither is known.

    A checkout whose files of the build differ from the commit, new files included, gives "<commit>-dirty".
    """
    if (root / ".git").exists():
        return _of_checkout(root)
    record = root / "ssd_kernels" / RECORD
    return record.read_text().strip() or None if record.exists() else None


@functools.cache
def commit() -> str | None:
    """The commit of the package that runs: recorded when it was built; of an editable install, that of its checkout."""
    return commit_of(Path(__file__).resolve().parents[1])


def short(commit: str | None) -> str:
    """For tables: ten digits, and whether the tree was dirty; "-" where it is not known."""
    if commit is None:
        return "-"
    digits, dash, dirty = commit.partition("-")
    return digits[:10] + dash + dirty


def _of_checkout(root: Path) -> str | None:
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "--no-optional-locks", "status", "--porcelain", "--", *BUILT_FROM)
    if not head or changes is None:
        return None
    return f"{head}-dirty" if changes else head


def _git(root: Path, *arguments: str) -> str | None:
    # Inside a hook these variables name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # In a container the tree may belong to another user; its code runs already.
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
