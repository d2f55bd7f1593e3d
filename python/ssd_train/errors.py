"""Errors that mean "the input is at fault", and how they read: one line each, safe to print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LONGEST = 300  # characters of another library's message


class BadInput(ValueError):
    """Something the user gave cannot be used. The message names it, what was given and what is allowed."""


class LostProcess(RuntimeError):
    """Another process of the same run ended, or did not answer in time."""


def bad(argument: str, given: object, allowed: str) -> BadInput:
    """A `BadInput` in the wording that every check of this package uses."""
    return BadInput(f"{argument}: got {given!r}, allowed is {allowed}")


def printable(text: str) -> str:
    """The text with every character that could steer a terminal written out, as \\x1b; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode() if character != "\xa0" else " "


def say(text: str, file: TextIO | None = None) -> None:
    """Prints text that may hold names from outside: nothing in it steers the terminal, nothing cannot be encoded."""
    file = sys.stdout if file is None else file
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=file)


def reason(error: BaseException) -> str:
    """Another library's message on one line, cut where it quotes a whole damaged file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


@contextlib.contextmanager
def reading(path: Path | str, problem: str) -> Iterator[None]:
    """Whatever a decoder raises on untrusted bytes is the file's fault: one `BadInput` that names the file.

    Args:
        problem: what is then wrong with the file, as in "not a whole .npz file".
    """
    try:
        yield
    except BadInput:
        raise
    except OSError as error:
        detail = error.strerror or reason(error)
        raise BadInput(f"{path}: {'cannot be read' if error.errno else problem} ({detail})") from None
    except MemoryError:
        raise BadInput(f"{path}: {problem}, or larger than the memory at hand") from None
    except Exception as error:
        raise BadInput(f"{path}: {problem} ({reason(error)})") from None


def need(ok: bool, name: str, given: object, allowed: str) -> None:
    """Refuses the option `name` unless `ok`.

    Raises:
        BadInput: names the option as the command line spells it, what was given and what is allowed.
    """
    if not ok:
        raise bad("--" + name.replace("_", "-"), given, allowed)
