"""Files that are refused before they are expanded, hang nothing, and print nothing but one line."""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import ssd_train
import torch
from numpy.lib import format as npy
from PIL import Image
from safetensors.torch import save_file
from ssd_train import data, sizes
from ssd_train.errors import BadInput, printable, reading, say

ARRAYS = {
    "x_train": np.random.default_rng(0).random((60, 8), dtype=np.float32),
    "y_train": np.arange(60) % 4,
    "x_test": np.random.default_rng(1).random((20, 8), dtype=np.float32),
    "y_test": np.arange(20) % 4,
}


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header_bytes(shape, dtype="<f4"):
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def write_npz(path, how=zipfile.ZIP_STORED, **changes):
    """An .npz whose members are arrays, or bytes as they are."""
    with zipfile.ZipFile(path, "w", how) as archive:
        for key, value in (ARRAYS | changes).items():
            archive.writestr(f"{key}.npy", value if isinstance(value, bytes) else npy_bytes(value))
    return path


def refused(spec, *words):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(BadInput) as error:
            data.load(str(spec))
    assert not seen
    for word in words:
        assert word in str(error.value)
    return str(error.value)


def test_npz_headers_that_lie(tmp_path):
    path = tmp_path / "data.npz"
    for shape in ((2**40, 8), (60, 2**40), (2**62, 2**62)):
        refused(write_npz(path, x_train=header_bytes(shape) + bytes(1920)), "x_train", "the file holds")
    refused(write_npz(path, x_train=header_bytes((True, 8)) + bytes(32)), "(True, 8)")
    refused(write_npz(path, x_train=header_bytes((-60, -8)) + bytes(1920)), "x_train")
    deep = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 4000 + b"}"
    refused(write_npz(path, x_train=b"\x93NUMPY\1\0" + struct.pack("<H", len(deep)) + deep), "data.npz")
    refused(write_npz(path, x_train=ARRAYS["x_train"].astype(np.longdouble)), "x_train", "64 bits")
    refused(write_npz(path, x_train=npy_bytes(ARRAYS["x_train"]) + b"more"), "x_train", "the file holds")


def test_npz_archives_that_are_none(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(npy_bytes(ARRAYS["x_train"]))
    refused(path, "one .npy?")
    write_npz(path)
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the bit that says "encrypted", in both headers
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    refused(path, "x_train", "encrypted")
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(30_000):
            archive.writestr(f"{i}", b"")
    refused(path, "list of members")


def test_npz_bomb_is_not_expanded(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "data.npz", zipfile.ZIP_DEFLATED,
                     x_train=np.zeros((60, 2**19), np.float32), x_test=np.zeros((20, 2**19), np.float32))  # fmt: skip
    monkeypatch.setattr(npy, "read_array", lambda *a, **k: pytest.fail("expanded"))
    refused(path, "x_train", "expand")


def test_what_compresses_well_but_is_small_is_read(tmp_path):
    zeros = {"x_train": np.zeros((60, 2**14), np.float32), "x_test": np.zeros((20, 2**14), np.float32)}
    assert data.load(str(write_npz(tmp_path / "data.npz", zipfile.ZIP_DEFLATED, **zeros))).dim == 2**14


def write_mnist(folder, images, train=(60, 28, 28)):
    """MNIST with the given bytes as the training images, packed where they are."""
    for split, n in (("train", train[0]), ("t10k", 20)):
        labels = bytes(i % 4 for i in range(n))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1" + struct.pack(">I", n) + labels)
    content = b"\0\0\x08\3" + struct.pack(">3I", 20, *train[1:]) + bytes(20 * train[1] * train[2])
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(images)
    return f"mnist:{folder}"


def test_idx_bomb_is_not_expanded(tmp_path):
    shape = (60, 2000, 2000)
    packer = zlib.compressobj(9, wbits=31)
    content = packer.compress(b"\0\0\x08\3" + struct.pack(">3I", *shape))
    content += b"".join(packer.compress(bytes(2000 * 2000)) for _ in range(60)) + packer.flush()
    refused(write_mnist(tmp_path, content, shape), "train-images", "expand")


def test_idx_header_of_more_than_the_file(tmp_path):
    spec = write_mnist(tmp_path, gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 60, 28, 28) + bytes(60 * 784)))
    assert data.load(spec).dim == 784
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\3" + struct.pack(">3I", 2_000_000, 64, 64) + bytes(100))  # 8 GB, the file has 116 bytes
    refused(spec, "8192000000", "100", "damaged")


def test_sparse_cifar_file_is_not_read(tmp_path, monkeypatch):
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (tmp_path / name).write_bytes(bytes(10) + bytes(3063))
    os.truncate(tmp_path / "data_batch_2.bin", 3073 * 900_000)
    monkeypatch.setattr(np, "fromfile", lambda *a, **k: pytest.fail("read"))
    refused(f"cifar10:{tmp_path}", "data_batch_2.bin", "900000 samples")


def write_images(folder):
    for split in ("train", "test"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / split / name / "0.png")
    return folder / "train" / "a" / "0.png"


def png_of(width, height):
    """A PNG whose header promises that size and whose pixels compress to next to nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("width, height", [(20_000, 20_000), (9_500, 9_500), (6_000, 6_000)])
def test_image_bombs(width, height, tmp_path, capfd):
    """Above Pillow's limit, above the size it warns at, and below both."""
    path = write_images(tmp_path)
    path.write_bytes(png_of(width, height))
    refused(f"images:{tmp_path}", str(path), f"{width} x {height} pixels" if width < 20_000 else "400000000 pixels")
    assert capfd.readouterr() == ("", "")


def test_broken_tiff_prints_nothing(tmp_path, capfd):
    path = write_images(tmp_path)
    stream = io.BytesIO()
    Image.new("RGB", (40, 40)).save(stream, "TIFF", compression="tiff_lzw")
    content = stream.getvalue()
    for damaged in (content[:-40], content[:200], content.replace(b"\x03\x01\x03\x00", b"\x03\x01\xff\x00")):
        path.write_bytes(damaged)
        refused(f"images:{tmp_path}", str(path))
    assert capfd.readouterr() == ("", "")


def test_pipes_and_folders_are_not_opened(tmp_path):
    path = write_images(tmp_path)
    os.mkfifo(path.parent / "1.png")
    refused(f"images:{tmp_path}", "1.png", "not a regular file")
    os.unlink(path.parent / "1.png")
    (path.parent / "1.png").mkdir()
    refused(f"images:{tmp_path}", "1.png", "not a regular file")
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        os.mkfifo(tmp_path / name)
    refused(f"cifar10:{tmp_path}", "data_batch_1.bin", "not a regular file")
    mnist = write_mnist(tmp_path, b"")
    os.unlink(tmp_path / "train-images-idx3-ubyte.gz")
    os.mkfifo(tmp_path / "train-images-idx3-ubyte.gz")
    refused(mnist, "train-images-idx3-ubyte.gz", "not a regular file")


def test_no_program_is_run_for_an_image(tmp_path):
    """Pillow gives PostScript to Ghostscript, whatever the file's name ends with."""
    path = write_images(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    path.write_bytes((tmp_path / "a.eps").read_bytes())
    refused(f"images:{tmp_path}", str(path), "cannot identify image file")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_is_refused(dtype, tmp_path):
    tensors = {key: torch.from_numpy(value) for key, value in ARRAYS.items()}
    for key in ("x_train", "x_test"):
        tensors[key] = tensors[key].to(getattr(torch, dtype))
    save_file(tensors, tmp_path / "data.safetensors")
    refused(tmp_path / "data.safetensors", "x_train", "F8_E")


def test_safetensors_header_of_gigabytes(tmp_path):
    path = tmp_path / "data.safetensors"
    path.write_bytes(struct.pack("<Q", 90_000_000))
    os.truncate(path, 100_000_000)
    refused(path, "90000000")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_class_without_test_samples_is_refused(suffix, tmp_path):
    arrays = ARRAYS | {"y_test": np.arange(20) % 2}
    path = tmp_path / f"data.{suffix}"
    if suffix == "npz":
        write_npz(path, **arrays)
    else:
        save_file({key: torch.from_numpy(value) for key, value in arrays.items()}, path)
    refused(path, "y_test", "class 2")


def test_a_stray_label_is_refused(tmp_path):
    refused(write_npz(tmp_path / "data.npz", y_test=np.arange(20) % 5), "y_test", "label 4", "0 .. 3")
    refused(write_npz(tmp_path / "data.npz", y_train=np.arange(60) % 4 - 1), "y_train", "label -1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    x = ARRAYS["x_test"].copy()
    x[7, 3] = value
    refused(write_npz(tmp_path / "data.npz", x_test=x), "x_test", "1 rows", "row 7")


def test_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "memory_limit", lambda: 1000)
    refused(write_npz(tmp_path / "data.npz"), "2560 bytes", "1000 bytes")


def test_text_is_safe_for_a_terminal():
    assert printable("a\x1b[31mb\x07\r\x9b\u202e\udcff") == r"a\x1b[31mb\x07\r\x9b\u202e\udcff"
    assert printable("Größe\n\tµ 学") == "Größe\n\tµ 学"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("x" * 5000), KeyError("k"), MemoryError(), RecursionError("deep"), OverflowError("big"),
     OSError("half"), OSError(5, "Input/output error")],
)  # fmt: skip
def test_any_failure_of_a_decoder_names_the_file(error):
    with pytest.raises(BadInput, match=r"^folder/file: ") as caught, reading("folder/file", "not whole"):
        raise error
    assert len(str(caught.value)) < 500


def test_all_that_is_printed_is_safe_for_a_terminal(capsys):
    """One function prints, and it writes control characters out; rich's table has its cells written out."""
    root = Path(ssd_train.__file__).parent
    found = [f"{path.name}: {line.strip()}" for path in root.rglob("*.py") for line in path.read_text().splitlines()
             if re.search(r"(?<![\w.])print\(|\.print\(|stdout\.write|stderr\.write", line)]  # fmt: skip
    assert len(found) == 2 and found[0].split(":")[0] != found[1].split(":")[0], found
    assert {line.split(":")[0] for line in found} == {"errors.py", "formats.py"}
    say("a\x1b[31m\x07\n\tb")
    assert capsys.readouterr().out == "a\\x1b[31m\\x07\n\tb\n"
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    say("Größe", file=ascii_only)
    ascii_only.flush()
    assert ascii_only.buffer.getvalue() == b"Gr\\xf6\\xdfe\n"
