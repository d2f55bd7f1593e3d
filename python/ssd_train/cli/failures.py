"""The one place that turns whatever ends a command into one line on stderr and an exit code.

2: bad input, or more than this machine can do. 130, 143: SIGINT, SIGTERM. 1: another process of the same run was lost,
or a fault of this program; then the line says where, and `python -X dev -m ssd_train ...` shows all of it. Nothing
heavy is imported here: it is there before torch is.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from types import FrameType

from ..errors import BadInput, LostProcess, reason, say

FAULTS = (TypeError, AttributeError, LookupError, NameError, AssertionError)
NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "failed to map segment")


class Terminated(KeyboardInterrupt):
    """SIGTERM came while nothing was there to save."""


def describe(error: BaseException) -> tuple[str, int]:
    """The line for an error that ends a command, without its beginning, and the exit code."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    if isinstance(error, BadInput | argparse.ArgumentError):
        return text, 2
    if isinstance(error, LostProcess):
        return text, 1
    if isinstance(error, MemoryError) or any(words in text.lower() for words in NO_MEMORY):
        return f"not enough memory for this ({reason(error)})", 2
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names[:1], error.strerror]), 2
    if isinstance(error, RecursionError):
        return f"something given is nested too deeply ({reason(error)})", 2
    if isinstance(error, OverflowError):
        return f"a number given is too large ({reason(error)})", 2
    if isinstance(error, FAULTS):
        frames = traceback.extract_tb(error.__traceback__)
        where = f" in {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""
        return f"a fault of this program, please report it: {type(error).__name__}{where} ({reason(error)})", 1
    return f"{type(error).__name__}: {reason(error)}", 2


def report(error: BaseException) -> int:
    """Prints the line and returns the exit code."""
    if isinstance(error, BrokenPipeError) and error.filename is None:  # the reader of our output went, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    line, code = describe(error)
    if sys.flags.dev_mode:
        traceback.print_exception(error)
    beginning = "" if isinstance(error, KeyboardInterrupt) else "error: "
    say("ssd-train: " + beginning + line, file=sys.stderr)
    return code


def leave_at_once(number: int, _frame: FrameType | None) -> None:
    """Handler of signals while there is nothing to save: an exception could be swallowed by what is being imported."""
    os.write(2, b"ssd-train: interrupted\n")
    os._exit(128 + number)


def raise_terminated(_number: int, _frame: FrameType | None) -> None:
    """Handler of SIGTERM: as Ctrl-C, so that files are closed and temporary ones removed."""
    raise Terminated
