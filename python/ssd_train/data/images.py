"""Image folders (`train/CLASS/*` and `test/CLASS/*`) and Tiny-ImageNet-200 in the layout of its release."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInput, reading
from ..sizes import check_memory, file_size, read_text
from .dataset import Dataset, arrays_sha256, build

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "GIF", "TIFF")  # Pillow knows more, some run programs (EPS)
MAX_PIXELS = 1 << 25
MAX_BYTES = 1 << 27
MAX_LIST = 1 << 26  # bytes of a list of classes or labels
TINY_SIDE = 32
Labelled = list[tuple[Path, int]]


def load(folder: Path) -> Dataset:
    """Pixels / 255 of all images, RGB, which must be of one size. Classes are the sub-folders in alphabetical order."""
    classes = _classes(folder / "train")
    extra = set(_classes(folder / "test")) - set(classes)
    if extra:
        raise BadInput(f"{folder / 'test'}: the class {min(extra)!r} does not occur in train")
    files = {
        split: [(path, label) for label, name in enumerate(classes) for path in _images(folder / split / name)]
        for split in ("train", "test")
    }
    return _build(folder.resolve().name, folder, files, size=None)


def load_tiny_imagenet(folder: Path) -> Dataset:
    """Tiny-ImageNet-200, scaled to 32 x 32 with a box filter; test is the validation split, whose labels are public."""
    inner = folder / "tiny-imagenet-200"
    folder = inner if inner.is_dir() else folder
    names = [line.strip() for line in _text(folder / "wnids.txt").splitlines() if line.strip()]
    label = {name: i for i, name in enumerate(names)}
    if not names or len(label) != len(names):
        raise BadInput(f"{folder / 'wnids.txt'}: expected one class per line, none twice")
    train = [(path, label[name]) for name in names for path in _images(folder / "train" / name / "images")]
    test = []
    annotations = folder / "val" / "val_annotations.txt"
    for number, line in enumerate(_text(annotations).splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in label or Path(fields[0]).name != fields[0]:
            raise BadInput(f"{annotations}: line {number} is not 'file TAB class' with a class of wnids.txt")
        test.append((folder / "val" / "images" / fields[0], label[fields[1]]))
    return _build("Tiny-ImageNet-200", folder, {"train": train, "test": test}, size=TINY_SIDE)


def _text(path: Path) -> str:
    try:
        return read_text(path, MAX_LIST)
    except BadInput as error:
        raise BadInput(f"{error}; expected tiny-imagenet-200.zip, unpacked") from None


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; expected train/CLASS/image and test/CLASS/image")
    return sorted(p.name for p in folder.iterdir() if p.is_dir())


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


def _build(name: str, folder: Path, files: dict[str, Labelled], size: int | None) -> Dataset:
    arrays: dict[str, Tensor] = {}
    shape: tuple[int, ...] | None = None
    for split, labelled in files.items():
        if not labelled:
            raise BadInput(f"{folder}: no images in its {split} split ({', '.join(SUFFIXES)})")
        pixels = read_images([path for path, _ in labelled], size, shape)
        shape = tuple(pixels.shape[1:])
        arrays[f"x_{split}"] = pixels.to(torch.float32).div_(255)
        arrays[f"y_{split}"] = torch.tensor([label for _, label in labelled])
    return build(name, arrays_sha256(arrays), arrays, str(folder))


def read_images(paths: Sequence[Path], size: int | None, shape: tuple[int, ...] | None = None) -> Tensor:
    """The images as (N, 3, height, width) uint8, scaled to `size` x `size` where given.

    Raises:
        BadInput: a file that is no image, or one whose size differs from the others'.
    """
    result: Tensor | None = None
    for i, path in enumerate(paths):
        image = read_image(path, size)
        if result is None:
            shape = shape or tuple(image.shape)
            check_memory(path.parent, 5 * len(paths) * math.prod(shape))  # as bytes and as float32
            result = torch.empty((len(paths), *shape), dtype=torch.uint8)
        if tuple(image.shape) != shape:
            found, wanted = tuple(image.shape)[1:], shape[1:]
            raise BadInput(
                f"{path}: {found[0]} x {found[1]} pixels, the images before it have {wanted[0]} x {wanted[1]}"
            )
        result[i] = image
    return torch.empty(0) if result is None else result


def read_image(path: Path, size: int | None = None) -> Tensor:
    """One image as (3, height, width) uint8."""
    from PIL import Image

    file_size(path, MAX_BYTES)
    with warnings.catch_warnings(), reading(path, "not a whole image"):
        warnings.simplefilter("ignore")  # what matters is raised; Pillow also warns of what it repairs
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(f"{path}: {image.width} x {image.height} pixels, allowed are at most {MAX_PIXELS}")
            image = image.convert("RGB")
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BOX)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
