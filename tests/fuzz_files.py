"""Damages every kind of file that the command reads, and counts what the readers make of it.

    python tests/fuzz_files.py --cases 10000          every kind, minutes
    python tests/fuzz_files.py --cases 20 npz idx     those; the test suite runs a few of each

A case is a small valid file with one to four changes: bytes, numbers in its header, lengths, text. What a reader may do
is give what it read or raise one `BadInput` of one line that names the file or its folder. "deep" is the share of cases
that passed the first validation, the one of the container: they were read, or refused by their contents. Metadata and
checkpoints get a SHA-256 that fits, else nearly all cases would end there.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import json
import random
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save
from ssd_train import data
from ssd_train.checkpoint import CheckpointFolder, write_tensors
from ssd_train.config import TrainConfig, as_dict, read_config
from ssd_train.errors import BadInput
from ssd_train.report.compare import compare
from ssd_train.run import results
from ssd_train.run.evaluate import load_model
from ssd_train.trainer import Trainer
from ssd_train.validate import check

CHANCE = np.random.default_rng(0)
ARRAYS = {"x_train": CHANCE.random((40, 6), dtype=np.float32), "y_train": np.arange(40) % 4,
          "x_test": CHANCE.random((20, 6), dtype=np.float32), "y_test": np.arange(20) % 4}  # fmt: skip
# What a reader says that refused the container itself: everything else got further.
SHALLOW = ("not a whole", "truncated", "another kind", "cannot be read", "not JSON", "not text", "no such", "magic",
           "multiple of", "too short")  # fmt: skip
ODD = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e300, float("nan"), float("inf"), "", "x", "1", [], [1], {},
       {"a": 1})  # fmt: skip


def changed_bytes(content: bytes, chance: random.Random, spare: int = 0) -> bytes:
    """One to four bytes replaced, inserted or left out, after the first `spare`."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(spare, len(changed) - 1), len(changed))
        match chance.randrange(8):
            case 0:
                del changed[at]
            case 1:
                changed.insert(at, chance.randrange(256))
            case 2:
                changed[at] ^= 1 << chance.randrange(8)
            case _:
                changed[at] = chance.randrange(256)
    return bytes(changed)


def changed_values(value: Any, chance: random.Random) -> Any:
    """A JSON document with one to three of its values replaced or left out."""
    changed = json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 3)):
        place = changed
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
                place = place[key]
                continue
            if chance.random() < 0.2:
                del place[key]
            else:
                place[key] = copy.deepcopy(chance.choice(ODD))
            break
    return changed


def npz(folder: Path, chance: random.Random) -> Callable[[], Any]:
    """Headers and bytes of the members in a zip that is whole; one case in eight breaks the zip itself."""
    stream, hurt = io.BytesIO(), chance.choice(list(ARRAYS))
    with zipfile.ZipFile(stream, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, array in ARRAYS.items():
            member = io.BytesIO()
            np.save(member, array)
            content = member.getvalue()
            if key == hurt:
                content = changed_bytes(content, chance, chance.choice((10, 128, 128)))
            archive.writestr(f"{key}.npy", content)
    content = stream.getvalue()
    (folder / "f.npz").write_bytes(changed_bytes(content, chance) if chance.random() < 0.125 else content)
    return lambda: data.load(str(folder / "f.npz"))


def safetensors(folder: Path, chance: random.Random) -> Callable[[], Any]:
    content = save({key: torch.from_numpy(value) for key, value in ARRAYS.items()})
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    if chance.random() < 0.5:
        rest = changed_bytes(rest, chance)[: len(rest)].ljust(len(rest), b"\0")
    else:
        key = chance.choice(list(ARRAYS))
        match chance.randrange(3):
            case 0:
                header[key]["dtype"] = chance.choice(("F32", "F64", "I64", "U8", "BOOL", "F8_E4M3", "Q3", ""))
            case 1:
                header[key]["shape"] = chance.choice(([240], [40, 6], [6, 40], [2, 20, 6], [2**62, 2], [0], [-1]))
            case _:
                header = changed_values(header, chance)
    packed = json.dumps(header).encode()
    (folder / "f.safetensors").write_bytes(struct.pack("<Q", len(packed)) + packed + rest)
    return lambda: data.load(str(folder / "f.safetensors"))


def idx(folder: Path, chance: random.Random) -> Callable[[], Any]:
    shapes = {"train-images-idx3-ubyte": (40, 3, 2), "train-labels-idx1-ubyte": (40,),
              "t10k-images-idx3-ubyte": (20, 3, 2), "t10k-labels-idx1-ubyte": (20,)}  # fmt: skip
    hurt = chance.choice(list(shapes))
    for path in folder.glob("*ubyte*"):
        path.unlink()
    for name, shape in shapes.items():
        body = bytes(i % 4 for i in range(shape[0])) if len(shape) == 1 else CHANCE.bytes(int(np.prod(shape)))
        content = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body
        if name == hurt:
            content = changed_bytes(content, chance, chance.choice((0, 4, 4 + 4 * len(shape))))
        packed = chance.random() < 0.3
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return lambda: data.load(f"mnist:{folder}")


def cifar(folder: Path, chance: random.Random) -> Callable[[], Any]:
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        content = b"".join(bytes([label]) + bytes(3072) for label in range(10))
        if number == chance.randrange(6):
            records = bytearray(content)
            for _ in range(chance.randint(1, 4)):
                records[3073 * chance.randrange(10)] = chance.choice((*range(10), 10, 255))
            content = bytes(records) if chance.random() < 0.8 else changed_bytes(bytes(records), chance)
        (folder / name).write_bytes(content)
    return lambda: data.load(f"cifar10:{folder}")


def images(folder: Path, chance: random.Random) -> Callable[[], Any]:
    hurt = (chance.choice(("train", "test")), chance.choice("ab"))
    for split in ("train", "test"):
        for name in "ab":
            stream, where = io.BytesIO(), folder / split / name
            where.mkdir(parents=True, exist_ok=True)
            kind = chance.choice(("PNG", "BMP", "PPM", "JPEG", "GIF", "TIFF", "WEBP"))
            Image.fromarray(CHANCE.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(stream, kind)
            content = stream.getvalue()
            if (split, name) == hurt:
                spared = chance.choice((0, 54, len(content) // 2, len(content) - 8, len(content) - 8))
                content = changed_bytes(content, chance, spared)
            (where / "0.png").write_bytes(content)
    return lambda: data.load(f"images:{folder}")


def commands_txt(folder: Path, chance: random.Random) -> Callable[[], Any]:
    """The commands that worked on a run: odd characters in the text; one case in four breaks its bytes."""
    path = folder / "commands.txt"
    text = list("ssd-train run --data digits --neurons 50 --out 'a b'\nssd-train run --resume --out 'a b'\n" * 3)
    odd = ("", "\n", "\0", "\x1b[2J", "\r", "\u2028", "\x85", "\ufeff", "e" * 999)
    for _ in range(chance.randint(1, 4)):
        text[chance.randrange(len(text))] = chance.choice(odd)
    content = "".join(text).encode()
    path.write_bytes(changed_bytes(content, chance) if chance.random() < 0.25 else content)

    def note() -> None:
        command = "ssd-train run --resume"
        first, again = (results.note_command(folder, command.split()[1:]) for _ in range(2))
        assert first == again and first.count(command) == 1 and json.dumps(first).isprintable()

    return note


class Trained:
    """A small trained run, made once: what checkpoints, models and results are damaged copies of."""

    def __init__(self, folder: Path) -> None:
        self.config = TrainConfig(data="digits", method="ssd", neurons=20, k=3, epochs=1, probe_size=0,
                                  classes_per_task=5, out=str(folder), threads=1,
                                  options={"n_distill": 10})  # fmt: skip
        self.data = data.load("digits")
        trainer = Trainer(self.config, self.data, 0, folder / "seed-0")
        trainer.fit()
        self.identity = trainer.identity
        self.tensors, self.state = trainer.checkpoints.load()
        model = folder / "seed-0" / "model.safetensors"
        self.model = load_model(model)[0].state_dict(), load_model(model)[1]
        self.results = json.loads(json.dumps(results.summary(self.config, self.data, [trainer], ["run"])))

    def checkpoint(self, folder: Path, chance: random.Random) -> Callable[[], Any]:
        tensors, state = dict(self.tensors), self.state
        if chance.random() < 0.5:
            state = self.state | {part: changed_values(self.state[part], chance) for part in ("progress", "sums")}
        else:
            name = chance.choice(list(tensors))
            tensors[name] = chance.choice((torch.zeros(0), torch.zeros(3), tensors[name].double(), tensors[name][:-1]))
        where = folder / "seed-0" / "checkpoint"
        where.mkdir(parents=True, exist_ok=True)
        write_tensors(where / "000000.safetensors", tensors, state)
        if chance.random() < 0.1:
            path = where / "000000.safetensors"
            path.write_bytes(changed_bytes(path.read_bytes(), chance))

        def resume() -> None:
            trainer = Trainer(self.config, self.data, 0, folder / "seed-0")
            assert CheckpointFolder(where).files()
            trainer._resume()

        return resume

    def metadata(self, folder: Path, chance: random.Random) -> Callable[[], Any]:
        tensors, state = self.model
        path = folder / "model.safetensors"
        write_tensors(path, tensors, changed_values(state, chance))
        return lambda: load_model(path)

    def results_json(self, folder: Path, chance: random.Random) -> Callable[[], Any]:
        path = folder / "results.json"
        text = json.dumps(changed_values(self.results, chance))
        path.write_bytes(changed_bytes(text.encode(), chance) if chance.random() < 0.2 else text.encode())

        def report() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                compare([folder], "markdown")

        return report

    def config_yaml(self, folder: Path, chance: random.Random) -> Callable[[], Any]:
        path = folder / "config.yaml"
        text = yaml.safe_dump(changed_values(as_dict(self.config), chance))
        path.write_bytes(changed_bytes(text.encode(), chance) if chance.random() < 0.3 else text.encode())

        def read() -> None:
            from ssd_train.options import parse_run

            read_config(path)
            check(parse_run(["--config", str(path)]))

        return read


def fuzz(name: str, make: Callable[[Path, random.Random], Callable[[], Any]], cases: int, seed: int) -> tuple[int, str]:
    """Runs the cases of one kind; returns how many went wrong, and the table's line."""
    begin, deep, read, wrong = time.process_time(), 0, 0, []
    with tempfile.TemporaryDirectory() as root:
        for number in range(cases):
            call = make(Path(root), random.Random(f"{seed} {name} {number}"))
            try:
                call()
                deep, read = deep + 1, read + 1
            except BadInput as error:
                text = str(error)
                deep += not any(words in text for words in SHALLOW)
                if len(" ".join(text.split())) > 1000 or (root not in text and "--" not in text):
                    wrong.append(f"{name} {number}: {text[:200]}")
            except BaseException as error:
                wrong.append(f"{name} {number}: {type(error).__name__}: {str(error)[:200]}")
    seconds = time.process_time() - begin
    line = f"| {name} | {cases} | {seconds:.0f} | {deep / cases:.0%} | {read / cases:.0%} | {len(wrong)} |"
    return len(wrong), "\n".join([line, *wrong[:5]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="by default all")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run").mkdir()
        trained = Trained(Path(folder) / "run")
        kinds = {"npz": npz, "safetensors": safetensors, "idx": idx, "cifar": cifar, "images": images,
                 "checkpoint": trained.checkpoint, "metadata": trained.metadata, "results": trained.results_json,
                 "config": trained.config_yaml, "commands": commands_txt}  # fmt: skip
        print("| files | cases | s of processor | deep | read | wrong |\n|---|---|---|---|---|---|")
        failed = 0
        for name in options.kinds or kinds:
            count, line = fuzz(name, kinds[name], options.cases, options.seed)
            failed += count
            print(line, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
