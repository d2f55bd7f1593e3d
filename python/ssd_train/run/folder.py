"""The output folder of a run: refused when it holds something else or a live run uses it, and the signals to stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from ..checkpoint import remove_stale
from ..errors import BadInput, bad

LOCK = ".lock"
COMMANDS = "commands.txt"
OWN = ("config.yaml", COMMANDS, "results.json", "metrics.csv", "plots", "checkpoint", "extractor.safetensors", LOCK)

STALE = re.compile(r"\.(.+\.(yaml|json|csv|npz|png|txt|safetensors))\.[^.]+\.tmp")


def contents(out: Path) -> list[str]:
    """What the folder holds, the lock file and what a crash left half-written aside."""
    names = [p.name for p in out.iterdir()] if out.is_dir() else []
    return sorted(name for name in names if name != LOCK and not STALE.fullmatch(name))


class Claim:
    """The lock on an output folder: on a file in it, which other programs see, and on the folder itself.

    A lock file can be deleted, and then locked anew by a second run; the folder's own lock goes with the folder.
    """

    def __init__(self, out: Path, handle: int) -> None:
        self.out, self._handle = out, handle

    def check(self) -> None:
        """Whether the folder is still the one that was claimed. Asked before anything is written to it.

        Raises:
            BadInput: it was removed, renamed or replaced.
        """
        held = os.fstat(self._handle)
        try:
            found = self.out.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            raise BadInput(f"--out: {self.out} was removed or replaced during the run, which stops")


class Claimed(Claim):
    """A folder that another process of the same run has claimed."""

    def __init__(self, out: Path) -> None:
        super().__init__(out, -1)

    def check(self) -> None:
        """The process that claimed it looks."""


@contextlib.contextmanager
def claimed(out: Path, *, resume: bool, overwrite: bool) -> Iterator[Claim]:
    """Creates and locks the folder; with `overwrite` removes the earlier run in it, and nothing else.

    Raises:
        BadInput: the folder is a file, not empty, in use, not writable, or holds files that no run wrote.
    """
    if out.exists() and not out.is_dir():
        raise bad("--out", str(out), "a folder, this is a file")
    found = contents(out)
    with contextlib.ExitStack() as stack:
        if found and not (resume or overwrite):
            _refuse_if_locked(out)
            raise bad("--out", str(out), "a new or empty folder, or --resume or --overwrite beside it")
        out.mkdir(parents=True, exist_ok=True)
        claim = Claim(out, _lock_folder(out, stack))
        try:
            stack.enter_context(FileLock(out / LOCK, timeout=0))
        except Timeout:
            raise _in_use(out) from None
        for folder in (out, *(out / name for name in found if is_seed(name) or name in ("plots", "checkpoint"))):
            for inner in (folder, folder / "checkpoint"):
                for stale in {m.group(1) for p in inner.glob(".*.tmp") if (m := STALE.fullmatch(p.name))}:
                    remove_stale(inner, stale)
        if overwrite:
            _remove_run(out, found)
        yield claim


def _lock_folder(out: Path, stack: contextlib.ExitStack) -> int:
    """Opens and locks the folder itself; some network file systems have no such locks, there the file's must do."""
    handle = os.open(out, os.O_RDONLY)
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(out) from None
    except OSError:
        pass
    return handle


def _refuse_if_locked(out: Path) -> None:
    with contextlib.ExitStack() as stack:
        _lock_folder(out, stack)
        if (out / LOCK).exists():
            try:
                stack.enter_context(FileLock(out / LOCK, timeout=0))
            except Timeout:
                raise _in_use(out) from None


def _in_use(out: Path) -> BadInput:
    return bad("--out", str(out), "a folder that no live run is using; wait for it or choose another")


def is_seed(name: str) -> bool:
    return name.startswith("seed-") and re.fullmatch("[0-9]+", name.removeprefix("seed-"), re.ASCII) is not None


def _remove_run(out: Path, found: list[str]) -> None:
    foreign = [name for name in found if name not in OWN and not is_seed(name)]
    if foreign:
        raise bad("--out", str(out), f"a folder with nothing but a run in it; it also holds {foreign[0]!r}")
    for name in found:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is remembered instead of raised; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.received is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
