"""Methods by name: this package's, those of installed packages (entry points), and `package.module:Class`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from ..errors import BadInput, bad
from . import METHODS
from .base import Method

GROUP = "ssd_train.methods"


def find_method(name: str) -> type[Method]:
    """The method that `--method` names: one of this package, an entry point of the group, or `package.module:Class`.

    Raises:
        BadInput: there is none, it cannot be imported, or it is no subclass of `Method`.
    """
    if not isinstance(name, str):  # as a damaged file may say
        raise bad("--method", name, "a name")
    if name in METHODS:
        return METHODS[name]
    module, colon, attribute = name.partition(":")
    if colon and module and attribute:
        return _checked(name, EntryPoint(name, name, GROUP))
    point = _installed().get(name)
    if point is None:
        known = method_names()
        text = ", ".join(known) + ", or package.module:Class"
        raise bad("--method", name, text + did_you_mean(name, known))
    return _checked(name, point)


def method_names() -> list[str]:
    """The methods of this package, then those of installed packages; none is imported for it."""
    return [*METHODS, *sorted(set(_installed()) - set(METHODS))]


def option_names(method: type[Method]) -> list[str]:
    """The names of a method's own options."""
    return [field.name for field in dataclasses.fields(method.Options)]


def methods_with(option: str, among: Iterable[str] = ()) -> list[str]:
    """The methods, by name, that have an option of this name; those that cannot be imported are passed over."""
    found = []
    for name in among or method_names():
        try:
            known = option in option_names(find_method(name))
        except BadInput:
            continue
        if known:
            found.append(name)
    return found


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A last clause of an error message, or nothing where no known name is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _checked(name: str, point: EntryPoint) -> type[Method]:
    """Imports a method from outside. The current folder is searched last, as for a script that lies there."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        importlib.invalidate_caches()
        found = point.load()
    except Exception as error:  # the code is somebody else's: whatever it raises, the method cannot be had
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise BadInput(f"--method: {name!r} cannot be imported ({reason})") from error
    finally:
        if added:
            sys.path.remove(here)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise BadInput(f"--method: {name!r} is {found!r}; expected a subclass of ssd_train.Method")
    return found
