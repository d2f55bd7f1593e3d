"""The output folder of a run: refused when it holds something else or a live run uses it, and the signals to stop."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from ..errors import BadInput, bad

LOCK = ".lock"
OWN = ("config.yaml", "results.json", "metrics.csv", "plots", "checkpoint", "extractor.safetensors", LOCK)


def contents(out: Path) -> list[str]:
    """What the folder holds, the lock file left out."""
    return sorted(p.name for p in out.iterdir() if p.name != LOCK) if out.is_dir() else []


@contextlib.contextmanager
def claimed(out: Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
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
        try:
            stack.enter_context(FileLock(out / LOCK, timeout=0))
        except Timeout:
            raise _in_use(out) from None
        if overwrite:
            _remove_run(out, found)
        yield out


def _refuse_if_locked(out: Path) -> None:
    if not (out / LOCK).exists():
        return
    try:
        with FileLock(out / LOCK, timeout=0):
            pass
    except Timeout:
        raise _in_use(out) from None


def _in_use(out: Path) -> BadInput:
    return bad("--out", str(out), "a folder that no live run is using; wait for it or choose another")


def _is_seed(name: str) -> bool:
    return name.startswith("seed-") and name.removeprefix("seed-").isdigit()


def _remove_run(out: Path, found: list[str]) -> None:
    foreign = [name for name in found if name not in OWN and not _is_seed(name)]
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
