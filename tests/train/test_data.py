"""Every data format: what it reads, and that damaged files are one clear line, never a traceback or a pickle."""

from __future__ import annotations

import gzip
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from ssd_train import data
from ssd_train.cli import main as cli
from ssd_train.config import recipe_names
from ssd_train.errors import BadInput

RANDOM = np.random.default_rng(0)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", 40), ("t10k", 20)):
        images = RANDOM.integers(0, 256, (n, 5, 7), dtype=np.uint8)
        labels = (np.arange(n) % 4).astype(np.uint8)
        for name, array in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
            content = idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_cifar(folder, classes):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name in names if classes == 10 else ["train.bin", "test.bin"]:
        fine = (np.arange(2 * classes if classes == 100 else 10) % classes).astype(np.uint8)[:, None]
        pixels = RANDOM.integers(0, 256, (len(fine), 3072), dtype=np.uint8)
        labels = fine if classes == 10 else np.concatenate([fine // 5, fine], axis=1)
        (folder / name).write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    return folder


def write_images(folder, classes=3, each=4, side=6):
    for split in ("train", "test"):
        for c in range(classes):
            where = folder / split / f"class{c}"
            where.mkdir(parents=True)
            for i in range(each):
                Image.fromarray(RANDOM.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(where / f"{i}.png")
    return folder


def write_tiny_imagenet(folder, classes=3, each=4):
    names = [f"n0{c}" for c in range(classes)]
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    lines = []
    for c, name in enumerate(names):
        where = folder / "train" / name / "images"
        where.mkdir(parents=True)
        for i in range(each):
            array = np.full((64, 64, 3), 40 * c + i, dtype=np.uint8)
            Image.fromarray(array).save(where / f"{name}_{i}.JPEG")
        Image.fromarray(array).save(folder / "val" / "images" / f"val_{c}.JPEG")
        lines.append(f"val_{c}.JPEG\t{name}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(packed, tmp_path):
    folder = write_mnist(tmp_path / "mnist", packed)
    loaded = data.load(f"mnist:{folder}")
    assert (loaded.x_train.shape, loaded.x_test.shape, loaded.classes) == ((40, 35), (20, 35), 4)
    name = folder / "train-images-idx3-ubyte"
    raw = gzip.decompress(name.with_name(name.name + ".gz").read_bytes()) if packed else name.read_bytes()
    assert torch.equal(loaded.x_train.flatten(), torch.tensor(list(raw[16:]), dtype=torch.float32) / 255)


def test_cifar10(tmp_path):
    folder = write_cifar(tmp_path / "cifar-10-batches-bin", 10)
    loaded = data.load(f"cifar10:{tmp_path}")  # the folder around it works as well
    assert (loaded.x_train.shape, loaded.x_test.shape, loaded.classes) == ((50, 3072), (10, 3072), 10)
    first = (folder / "data_batch_1.bin").read_bytes()
    assert torch.equal(loaded.x_train[0], torch.tensor(list(first[1:3073]), dtype=torch.float32) / 255)


def test_cifar100_has_fine_labels(tmp_path):
    loaded = data.load(f"cifar100:{write_cifar(tmp_path, 100)}")
    assert loaded.classes == 100 and loaded.y_train.tolist() == [i % 100 for i in range(200)]


def test_images_and_tiny_imagenet(tmp_path):
    loaded = data.load(f"images:{write_images(tmp_path / 'images')}")
    assert (loaded.x_train.shape, loaded.y_test.tolist()) == ((12, 108), [0] * 4 + [1] * 4 + [2] * 4)
    loaded = data.load(f"tiny-imagenet:{write_tiny_imagenet(tmp_path / 'tiny')}")
    assert (loaded.x_train.shape, loaded.y_test.tolist()) == ((12, 3 * 32 * 32), [0, 1, 2])
    assert loaded.x_train[5].unique().tolist() == pytest.approx([41 / 255], abs=0.01)


def embeddings(folder, name):
    x, y = torch.rand(40, 6), torch.arange(40) % 4
    arrays = {"x_train": x, "y_train": y, "x_test": x.clone(), "y_test": y.clone()}
    if name.endswith(".npz"):
        np.savez_compressed(folder / name, **{k: v.numpy() for k, v in arrays.items()})
    else:
        save_file(arrays, folder / name)
    return folder / name


class Originals(dict):
    """The files' contents; its short name keeps a failing test's report readable."""

    def __repr__(self):
        return "originals"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Per format: what --data takes, one file of it, and that file's bytes."""
    root = tmp_path_factory.mktemp("data")
    mnist, packed = write_mnist(root / "mnist"), write_mnist(root / "packed", packed=True)
    ten, hundred = write_cifar(root / "ten", 10), write_cifar(root / "hundred", 100)
    images, tiny = write_images(root / "images"), write_tiny_imagenet(root / "tiny")
    files = {
        "idx images": (f"mnist:{mnist}", mnist / "train-images-idx3-ubyte"),
        "idx labels": (f"mnist:{mnist}", mnist / "t10k-labels-idx1-ubyte"),
        "idx.gz": (f"mnist:{packed}", packed / "train-images-idx3-ubyte.gz"),
        "cifar10": (f"cifar10:{ten}", ten / "data_batch_3.bin"),
        "cifar100": (f"cifar100:{hundred}", hundred / "train.bin"),
        "png": (f"images:{images}", images / "train" / "class1" / "2.png"),
        "jpeg": (f"tiny-imagenet:{tiny}", tiny / "train" / "n01" / "images" / "n01_2.JPEG"),
        "annotations": (f"tiny-imagenet:{tiny}", tiny / "val" / "val_annotations.txt"),
        "npz": (str(root / "e.npz"), embeddings(root, "e.npz")),
        "safetensors": (str(root / "e.safetensors"), embeddings(root, "e.safetensors")),
    }
    return Originals({name: (spec, path, path.read_bytes()) for name, (spec, path) in files.items()})


FORMATS = [
    "idx images",
    "idx labels",
    "idx.gz",
    "cifar10",
    "cifar100",
    "png",
    "jpeg",
    "annotations",
    "npz",
    "safetensors",
]
SIZED = ["idx images", "idx labels", "idx.gz", "cifar10", "cifar100", "safetensors"]


def load_damaged(originals, name, content):
    """What loading gives when the file holds `content`: a data set, or the message of the one allowed error."""
    spec, path, original = originals[name]
    path.write_bytes(content)
    try:
        return data.load(spec)
    except BadInput as error:
        return str(error)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("name", FORMATS)
@FEW
@given(st.data())
def test_corrupted_files(originals, name, data):
    """Any number of bytes replaced anywhere: a data set or one line that names the file or its folder."""
    spec, path, original = originals[name]
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are short: half of the positions are drawn from the first bytes.
        last = data.draw(st.sampled_from([min(64, len(content)) - 1, len(content) - 1]))
        content[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    result = load_damaged(originals, name, bytes(content))
    if isinstance(result, str):
        assert str(path.parent) in result or str(path.parent.parent) in result or spec in result
        assert len(" ".join(result.split())) < 600
    else:
        assert torch.isfinite(result.x_train).all() and int(result.y_train.max()) < result.classes


@pytest.mark.parametrize("name", [f for f in FORMATS if f not in ("annotations", "jpeg")])
@FEW
@given(st.floats(0, 1, exclude_max=True))
def test_truncated_files(originals, name, share):
    content = originals[name][2]
    # A PNG without its last chunks still has all its pixels.
    kept = int(len(content) * share * (0.8 if name == "png" else 1))
    if name.startswith("cifar"):
        record = 3073 if name == "cifar10" else 3074
        kept -= kept % record == 0 and kept > 0  # whole records are a smaller data set, not a damaged one
    result = load_damaged(originals, name, content[:kept])
    assert isinstance(result, str) and str(originals[name][1]) in result


@pytest.mark.parametrize("name", SIZED)
def test_oversized_files(originals, name):
    _, path, content = originals[name]
    longer = gzip.compress(gzip.decompress(content) + b"\0") if name == "idx.gz" else content + b"\0"
    result = load_damaged(originals, name, longer)
    assert isinstance(result, str) and str(path) in result


def test_a_header_cannot_ask_for_all_memory(originals):
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    assert "damaged" in load_damaged(originals, "idx images", header + bytes(100))


def test_wrong_magic_and_mislabelled(originals):
    content = originals["idx images"][2]
    assert "magic number 0x00000801" in load_damaged(originals, "idx images", b"\0\0\x08\x01" + content[4:])
    labels = bytearray(originals["cifar10"][2])
    labels[0] = 10
    assert "label 10" in load_damaged(originals, "cifar10", bytes(labels))


def test_pickles_are_refused(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match="pickle"):
        data.load(f"cifar10:{tmp_path}")


def test_missing_folders_and_files_say_what_is_expected(tmp_path):
    for kind, words in (("mnist", "train-images-idx3-ubyte"), ("cifar10", "cifar-10-binary"), ("cifar100", "train.bin"),
                        ("tiny-imagenet", "wnids.txt"), ("images", "train")):  # fmt: skip
        with pytest.raises(BadInput, match="existing folder"):
            data.load(f"{kind}:{tmp_path / 'nowhere'}")
        with pytest.raises(BadInput, match=words):
            data.load(f"{kind}:{tmp_path}")


def test_images_of_two_sizes(tmp_path):
    folder = write_images(tmp_path)
    Image.fromarray(np.zeros((7, 6, 3), dtype=np.uint8)).save(folder / "train" / "class1" / "9.png")
    with pytest.raises(BadInput, match=r"9\.png: 7 x 6 pixels"):
        data.load(f"images:{folder}")


@pytest.mark.parametrize("name", [n for n in recipe_names() if n != "digits"])
def test_every_recipe_runs(name, tmp_path):
    """One epoch on a small stand-in with the recipe's number of classes per task."""
    classes = 40 if "tiny" in name else 10
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(4 * classes, 16, generator=generator), torch.arange(4 * classes) % classes
    path = tmp_path / "stand_in.safetensors"
    save_file({"x_train": x, "y_train": y, "x_test": x.clone(), "y_test": y.clone()}, path)
    argv = ["run", "--recipe", name, "--data", str(path), "--epochs", "1", "--neurons", "100"]
    assert cli.main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert os.path.exists(tmp_path / "run" / "results.json")
