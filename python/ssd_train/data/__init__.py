"""Data sets by the name that `--data` takes, and their split into tasks."""

from __future__ import annotations

from pathlib import Path

from ..errors import bad, reading
from .dataset import Dataset
from .tasks import Tasks, make_tasks

FOLDERS = ("mnist", "cifar10", "cifar100", "tiny-imagenet", "images")
ALLOWED = "digits, FILE.safetensors, FILE.npz, " + ", ".join(f"{name}:DIR" for name in FOLDERS)

__all__ = ["Dataset", "Tasks", "load", "make_tasks"]


def load(spec: str) -> Dataset:
    """The data set named by `spec`, checked.

    Raises:
        BadInput: no such file, not the format its name says, or contents that cannot be trained on.
    """
    if spec == "digits":
        from . import digits

        return digits.load()
    kind, colon, folder = spec.partition(":")
    if colon and kind in FOLDERS:
        return _load_folder(spec, kind, Path(folder))
    path = Path(spec)
    if path.suffix not in (".safetensors", ".npz"):
        raise bad("--data", spec, ALLOWED)
    if "\0" in spec or not path.is_file():
        raise bad("--data", spec, "an existing file")
    if path.suffix == ".npz":
        from . import npz_file

        return npz_file.load(path)
    from . import safetensors_file

    return safetensors_file.load(path)


def _load_folder(spec: str, kind: str, folder: Path) -> Dataset:
    if "\0" in spec or not folder.is_dir():
        raise bad("--data", spec, f"{kind}:DIR with an existing folder")
    with reading(folder, f"not the files of {kind}"):
        match kind:
            case "mnist":
                from . import idx

                return idx.load(folder)
            case "cifar10" | "cifar100":
                from . import cifar

                return cifar.load(folder, int(kind.removeprefix("cifar")))
            case "tiny-imagenet":
                from . import images

                return images.load_tiny_imagenet(folder)
            case _:
                from . import images

                return images.load(folder)
