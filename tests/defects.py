"""Tries what once went wrong, each in a process of its own, and prints one line on what happens now.

    python tests/defects.py              all lines
    python tests/defects.py A2 B5        those

One long file on purpose: a list of lines, one function each, that are read one at a time.

A line is a function: it makes its files in the folder it runs in and returns the arguments of `ssd-train`, or, where
nothing of the command takes part, text that says what happened. A line is right where the process ends with its exit
code, without a traceback, with at most one line on stderr, within the time and the memory. Memory is the peak beyond
that of a process that imports torch and does nothing. Long because it is a table.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

SECONDS = 20.0  # of processor time
WALL = 300.0
GIGABYTES = 1.0
SMALL = ["--data", "digits", "--neurons", "40", "--k", "4", "--epochs", "1", "--threads", "1",
         "--plots", "false", "--classes-per-task", "5"]  # fmt: skip
LINES: list[tuple[str, str, int, Callable[[], list[str] | str]]] = []


def line(name: str, what: str, code: int = 2) -> Callable:
    """Adds a line to the table; `code` is the exit code that is right."""

    def add(function: Callable[[], list[str] | str]) -> Callable:
        LINES.append((name, what, code, function))
        return function

    return add


def train(out: str, *options: str) -> str:
    """Trains a small run in this process, silently."""
    from ssd_train.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["run", *SMALL, "--method", "sdmlp", "--out", out, *options]) == 0
    return out


def arrays() -> dict:
    import numpy as np

    chance = np.random.default_rng(0)
    return {"x_train": chance.random((60, 8), dtype=np.float32), "y_train": np.arange(60) % 4,
            "x_test": chance.random((20, 8), dtype=np.float32), "y_test": np.arange(20) % 4}  # fmt: skip


def npz(**changes: object) -> list[str]:
    """data.npz, whose members are arrays or bytes as they are."""
    import numpy as np

    with zipfile.ZipFile("data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in (arrays() | changes).items():
            stream = io.BytesIO()
            if not isinstance(value, bytes):
                np.save(stream, value)
            archive.writestr(f"{key}.npy", value if isinstance(value, bytes) else stream.getvalue())
    return run("data.npz")


def run(data: str, *options: str) -> list[str]:
    return ["run", *SMALL, "--data", data, "--out", "out", *options]


def npy_header(shape: tuple) -> bytes:
    from numpy.lib import format as npy

    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def images() -> Path:
    from PIL import Image

    for split in ("train", "test"):
        for name in "ab":
            Path("images", split, name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(Path("images", split, name, "0.png"))
    return Path("images/train/a/0.png")


def mnist(shape: tuple[int, int, int]) -> None:
    Path("mnist").mkdir()
    for split, n in (("train", shape[0]), ("t10k", 20)):
        content = b"\0\0\x08\1" + struct.pack(">I", n) + bytes(i % 4 for i in range(n))
        Path(f"mnist/{split}-labels-idx1-ubyte").write_bytes(content)
    header = b"\0\0\x08\3" + struct.pack(">3I", 20, *shape[1:])
    Path("mnist/t10k-images-idx3-ubyte").write_bytes(header + bytes(20 * shape[1] * shape[2]))


def rewrite(path: str, **changes: object) -> None:
    """A model's or checkpoint's metadata changed, with a fitting SHA-256; `config` is merged."""
    from ssd_train.checkpoint import read_tensors, write_tensors

    tensors, state = read_tensors(Path(path))
    state |= {"config": state["config"] | changes.pop("config", {})} | changes
    write_tensors(Path(path), tensors, {name: value for name, value in state.items() if value is not ...})


# A2: a checkpoint of another run.


def _mixed(*options: str, seed: str = "0") -> list[str]:
    train("mine")
    train("other", "--seeds", seed, *options)
    shutil.rmtree("mine/seed-0")
    shutil.copytree(f"other/seed-{seed}", "mine/seed-0")
    return ["run", "--resume", "--out", "mine"]


for _options in (["--lr", ".1"], ["--method", "ssd"], ["--neurons", "50"], ["--momentum", ".5"]):
    line("A2", f"a folder of a run with {' '.join(_options)}")(lambda o=_options: _mixed(*o))
line("A2", "another seed's folder")(lambda: _mixed(seed="1"))


@line("A2", "an edited config.yaml")
def _() -> list[str]:
    path = Path(train("mine"), "config.yaml")
    path.write_text(path.read_text().replace("lr: 0.05", "lr: 0.1"))
    return ["run", "--resume", "--out", "mine"]


@line("A2", "a model in a checkpoint's place")
def _() -> list[str]:
    train("mine")
    shutil.copy("mine/seed-0/model.safetensors", max(Path("mine/seed-0/checkpoint").iterdir()))
    return ["run", "--resume", "--out", "mine"]


# B1, B2: options.

for _option in ("--max-grad-norm", "--checkpoint-seconds"):
    line("B1", f"{_option} inf", 0)(lambda o=_option: ["run", *SMALL, o, "inf", "--out", "out"])
for _option, _value in (
    ("--neurons", "1000000000000"), ("--layers", "99999999999"), ("--threads", "99999999999"), ("--threads", "100000"),
    ("--layers", "1000"), ("--neurons", "1" * 400), ("--epochs", "9" * 5000), ("--lr", "1e999"),
):  # fmt: skip
    line("B2", f"{_option} {_value[:20]}")(lambda o=_option, v=_value: ["run", *SMALL, o, v, "--out", "out"])


@line("B2", "--batch-size 9999999999", 0)
def _() -> list[str]:
    return ["run", *SMALL, "--batch-size", "9999999999", "--out", "out"]


@line("B2", "an address space of 64 MB more than torch takes")
def _() -> list[str]:
    from ssd_train.cli.main import main  # noqa: F401 (what follows is the command's own memory)

    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return ["run", *SMALL, "--neurons", "1000000", "--out", "out"]


# B3: eval.

for _device in ("foo", "cuda", "meta", "cuda:-1", "mps"):
    line("B3", f"eval --device {_device}")(lambda d=_device: ["eval", train("run"), "--device", d])


@line("B3", "eval beside a folder seed-x", 0)
def _() -> list[str]:
    shutil.copytree("run/seed-0" if train("run") else "", "run/seed-x")
    return ["eval", "run"]


for _name, _changes in {
    "no gaba_switch": {"gaba_switch": ...}, "gaba_switch -1": {"gaba_switch": -1}, "k 0": {"config": {"k": 0}},
    "method zzz": {"config": {"method": "zzz"}}, "dtype os": {"config": {"dtype": "os"}}, "order [99]": {"order": [99]},
    "order [0]": {"order": [0]}, "neurons 10^12": {"config": {"neurons": 10**12}}, "k []": {"config": {"k": []}},
    "layers 10^9": {"config": {"layers": 10**9}}, "data null": {"data": None}, "config null": {"config": {"k": None}},
    "validation 2": {"config": {"validation": 2}}, "classes 10^12": {"data": {"dim": 64, "classes": 10**12}},
}.items():  # fmt: skip

    def _forged(changes: dict = _changes) -> list[str]:
        rewrite(train("run") + "/seed-0/model.safetensors", **changes)
        return ["eval", "run"]

    line("B3", f"eval of forged metadata: {_name}")(_forged)

# B4: report.

for _name, _value in (("accuracy", ...), ("config", ...), ("data", None), ("seeds", 3), ("accuracy", {"mean": "x"}),
                      ("runs", {}), ("method", ["a"]), ("environment", [])):  # fmt: skip

    def _edited(name: str = _name, value: object = _value) -> list[str]:
        path = Path(train("run"), "results.json")
        changed = json.loads(path.read_text()) | {name: value}
        path.write_text(json.dumps({k: v for k, v in changed.items() if v is not ...}))
        return ["report", "run"]

    line("B4", f"report: {_name} {'missing' if _value is ... else json.dumps(_value)}")(_edited)


@line("B4", "report: deep nesting")
def _() -> list[str]:
    Path(train("run"), "results.json").write_text("[" * 100_000)
    return ["report", "run"]


@line("B4", "report: markup and ESC as the method", 0)
def _() -> list[str]:
    path = Path(train("run"), "results.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"method": "[/red]x\x1b[31m\x07"}))
    return ["report", "run"]


# B5 to B7: data.


@line("B5", "a .npy renamed to .npz")
def _() -> list[str]:
    import numpy as np

    with open("data.npz", "wb") as file:
        np.save(file, arrays()["x_train"])
    return run("data.npz")


@line("B5", "an encrypted member")
def _() -> list[str]:
    npz()
    content = bytearray(Path("data.npz").read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + flags] |= 1
    Path("data.npz").write_bytes(content)
    return run("data.npz")


@line("B5", "longdouble")
def _() -> list[str]:
    import numpy as np

    return npz(x_train=arrays()["x_train"].astype(np.longdouble))


line("B5", "shape (True, 8)")(lambda: npz(x_train=npy_header((True, 8)) + bytes(32)))
line("B5", "header shape 2^40")(lambda: npz(x_train=npy_header((2**40, 8)) + bytes(1920)))


@line("B6", "an npz bomb: 3 MB that expand to 3.3 GB")
def _() -> list[str]:
    shape = (60, 13_750_000)
    with zipfile.ZipFile("data.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for key, value in arrays().items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                member.write(npy_header(shape) if key == "x_train" else b"")
                for _ in range(shape[0]) if key == "x_train" else ():
                    member.write(bytes(4 * shape[1]))
                if key != "x_train":
                    import numpy as np

                    np.save(member, value)
    return run("data.npz")


@line("B6", "an IDX.gz of 3 MB that expands to 2.8 GB")
def _() -> list[str]:
    shape = (175, 4000, 4000)
    mnist(shape)
    block = gzip.compress(bytes(16_000_000), 9)  # a .gz may hold several streams
    header = gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", *shape))
    Path("mnist/train-images-idx3-ubyte.gz").write_bytes(header + block * shape[0])
    return run("mnist:mnist")


@line("B6", "an IDX header of 8 GB")
def _() -> list[str]:
    mnist((100, 28, 28))
    header = b"\0\0\x08\3" + struct.pack(">3I", 100, 8192, 10_000)
    Path("mnist/train-images-idx3-ubyte").write_bytes(header + bytes(100))
    return run("mnist:mnist")


@line("B6", "a sparse CIFAR file of 2.7 GB")
def _() -> list[str]:
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        Path(name).write_bytes(bytes(3073))
    os.truncate("data_batch_1.bin", 3073 * 878_000)
    return run("cifar10:.")


@line("B7", "a FIFO in an image folder")
def _() -> list[str]:
    os.mkfifo(images().with_name("1.png"))
    return run("images:images")


@line("B7", "a FIFO as data")
def _() -> list[str]:
    os.mkfifo("data.npz")
    return run("data.npz")


@line("B7", "an image of 20000 x 20000 pixels in 1 MB")
def _() -> list[str]:
    from PIL import Image

    path = images()
    Image.MAX_IMAGE_PIXELS = None
    Image.new("1", (20_000, 20_000)).save(path)
    Image.MAX_IMAGE_PIXELS = 89_478_485
    return run("images:images")


@line("B7", "a broken TIFF")
def _() -> list[str]:
    from PIL import Image

    path = images()
    Image.new("RGB", (40, 40)).save("a.tif", compression="tiff_lzw")
    path.write_bytes(Path("a.tif").read_bytes()[:-40])
    return run("images:images")


@line("B8", "ESC and BEL in a file's name")
def _() -> list[str]:
    path = images()
    path.rename(path.with_name("\x1b[31m\x07.png"))
    path.with_name("1.png").write_bytes(b"no image")
    path.with_name("\x1b[31m\x07.png").write_bytes(b"no image")
    return run("images:images")


@line("B8", "ESC in the name of a folder of results", 0)
def _() -> list[str]:
    return ["eval", train("a\x1b[31m\x07")]


# B9 to B13: files of a run.


@line("B9", "an alias bomb as config.yaml")
def _() -> list[str]:
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    Path(train("run"), "config.yaml").write_text(text + "lr: *a11\n")
    return ["run", "--resume", "--out", "run"]


@line("B9", "an alias bomb as --config")
def _() -> list[str]:
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    Path("bomb.yaml").write_text(text + "seeds: *a11\n")
    return ["run", *SMALL, "--config", "bomb.yaml", "--out", "out"]


@line("B9", "deep nesting in config.yaml")
def _() -> list[str]:
    Path(train("run"), "config.yaml").write_text("lr: " + "[" * 50_000)
    return ["run", "--resume", "--out", "run"]


@line("B9", "no config.yaml on resume")
def _() -> list[str]:
    Path(train("run"), "config.yaml").unlink()
    return ["run", "--resume", "--out", "run"]


for _how, _right in (("--overwrite", 0), ("--resume", 0)):

    def _stale(how: str = _how) -> list[str]:
        train("run")
        for name in (".results.json.x.tmp", "seed-0/.model.safetensors.y.tmp"):
            Path("run", name).write_bytes(b"half")
        return ["run", *SMALL, "--method", "sdmlp", how, "--out", "run"]

    line("B10", f"half-written files and {_how}", _right)(_stale)


@line("B11", "the out folder is removed during the run")
def _() -> list[str]:
    from ssd_train.checkpoint import CheckpointFolder

    save = CheckpointFolder.save

    def remove(self: object, *rest: object) -> object:
        path = save(self, *rest)
        shutil.rmtree("out", ignore_errors=True)
        return path

    CheckpointFolder.save = remove
    return ["run", *SMALL, "--out", "out"]


@line("B11", "the lock file is removed, a second run starts")
def _() -> list[str]:
    from ssd_train.run.folder import claimed

    train("run")
    first = claimed(Path("run"), resume=True, overwrite=False)
    first.__enter__()
    globals()["_held"] = first
    Path("run/.lock").unlink()
    return ["run", "--resume", "--out", "run"]


@line("B12", "the disk is full")
def _() -> list[str]:
    import errno

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = full
    return ["run", *SMALL, "--out", "out"]


for _number, _code in ((2, 130), (15, 143)):

    def _signal(number: int = _number) -> list[str]:
        class Interrupt:
            def find_spec(self, name: str, *rest: object) -> None:
                if name == "torch":
                    os.kill(os.getpid(), number)

        sys.meta_path.insert(0, Interrupt())
        return ["run", *SMALL, "--out", "out"]

    line("B13", f"signal {_number} while torch is imported", _code)(_signal)


# B14, B15.


@line("B14", "--temperature 1e-10 is blamed on --temperature")
def _() -> list[str]:
    return ["run", *SMALL, "--temperature", "1e-10", "--epochs", "3", "--out", "out"]


@line("B14", "float8 data")
def _() -> list[str]:
    import torch
    from safetensors.torch import save_file

    tensors = {key: torch.from_numpy(value) for key, value in arrays().items()}
    for key in ("x_train", "x_test"):
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)
    save_file(tensors, "data.safetensors")
    return run("data.safetensors")


@line("B14", "a class without test samples")
def _() -> list[str]:
    import numpy as np

    return npz(y_test=np.arange(20) % 2)


line("B15", "a prefix of an option, --dat")(lambda: ["run", "--dat", "digits", "--out", "out"])
line("B15", "--metod")(lambda: ["run", *SMALL, "--metod", "ssd", "--out", "out"])


def child(index: int) -> int:
    """One line, in this process."""
    asked = LINES[index][3]()
    if isinstance(asked, str):
        print(asked)
        return 0
    from ssd_train.__main__ import main

    return main(asked)


def attempt(arguments: list[str]) -> tuple[int, str, str, float, float]:
    """Exit code, stdout, stderr, processor seconds and peak memory in GB of a process in a new folder."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=out, stderr=err,
                                   stdin=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        deadline = time.monotonic() + WALL
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return process.returncode, texts[0], texts[1], usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(int(sys.argv[2]))
    wanted = sys.argv[1:]
    *_, seconds, base = attempt(["-c", "import ssd_train.cli.main, ssd_train.run.runner, numpy"])
    failed = 0
    print("| line | | what happens now | code | s | GB more |\n|---|---|---|---|---|---|")
    print(f"| | importing torch | | | {seconds:.0f} | {base:.1f} |", flush=True)
    for index, (name, what, code, _) in enumerate(LINES):
        if wanted and name not in wanted:
            continue
        ended, out, err, used, peak = attempt([str(Path(__file__).resolve()), "--child", str(index)])
        reply = (err or out).strip().splitlines() or [""]
        right = ended == code and "Traceback" not in err and err.count("\n") <= 1 and used - seconds < SECONDS
        right = right and peak - base < GIGABYTES and not any(c in out + err for c in "\x1b\x07")
        failed += not right
        told = reply[-1].removeprefix("ssd-train: ").replace("|", "\\|")[:160]
        told = told if right else f"WRONG {told}"
        print(f"| {name} | {what} | {told} | {ended} | {used:.0f} | {max(peak - base, 0):.2f} |", flush=True)
    print(f"{failed} of {len(LINES)} lines are wrong" if not wanted else f"{failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
