"""Data sets by the name that `--data` takes, and their split into tasks."""

from __future__ import annotations

from pathlib import Path

from ..errors import BadInput, bad
from .dataset import Dataset
from .tasks import Tasks, make_tasks

ALLOWED = "digits, FILE.safetensors or FILE.npz"

__all__ = ["Dataset", "Tasks", "load", "make_tasks"]


def load(spec: str) -> Dataset:
    """The data set named by `spec`, checked.

    Raises:
        BadInput: no such file, not the format its name says, or contents that cannot be trained on.
    """
    if spec == "digits":
        from . import digits

        return digits.load()
    path = Path(spec)
    if path.suffix not in (".safetensors", ".npz"):
        raise bad("--data", spec, ALLOWED)
    if not path.is_file():
        raise bad("--data", spec, "an existing file")
    try:
        if path.suffix == ".npz":
            from . import npz_file

            return npz_file.load(path)
        from . import safetensors_file

        return safetensors_file.load(path)
    except OSError as error:
        raise BadInput(f"--data: {path} cannot be read ({error.strerror or error})") from None
