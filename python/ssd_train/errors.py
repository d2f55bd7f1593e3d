"""The one error that means "the input is at fault": the command line prints it as one line and exits with 2."""

from __future__ import annotations


class BadInput(ValueError):
    """Something the user gave cannot be used. The message names it, what was given and what is allowed."""


def bad(argument: str, given: object, allowed: str) -> BadInput:
    """A `BadInput` in the wording that every check of this package uses."""
    return BadInput(f"{argument}: got {given!r}, allowed is {allowed}")
