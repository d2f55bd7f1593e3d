"""Nothing is lost: whatever interrupts a run, resuming it gives bitwise the uninterrupted result."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from ssd_train import checkpoint, data
from ssd_train.checkpoint import CheckpointFolder, read_tensors, write_atomic, write_tensors
from ssd_train.errors import BadInput
from ssd_train.methods import METHODS
from ssd_train.options import config_of
from ssd_train.records import Interrupted
from ssd_train.trainer import Trainer

SMALL = ["run", "--data", "digits", "--neurons", "100", "--epochs", "3", "--n-distill", "40", "--threads", "1",
         "--checkpoint-seconds", "0"]  # fmt: skip


def command(*options):
    return [sys.executable, "-m", "ssd_train", *SMALL, *map(str, options)]


def outcome(out, seed=0):
    """Everything a run computed: weights and counters, curves, and results without times and places."""
    return load_file(out / f"seed-{seed}" / "model.safetensors"), (out / "metrics.csv").read_text()


def assert_same(a, b):
    assert a[0].keys() == b[0].keys()
    for name in a[0]:
        assert torch.equal(a[0][name], b[0][name]), name
    assert a[1] == b[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command("--out", out), check=True, capture_output=True)
    return outcome(out)


# The command, in a process that sends itself a signal right after its N-th checkpoint: nothing waits for a time.
STOPPING = """
import os, sys
from ssd_train import checkpoint
from ssd_train.__main__ import main

number, left, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
save = checkpoint.CheckpointFolder.save

def stopping(*arguments):
    global left
    path = save(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)
    return path

checkpoint.CheckpointFolder.save = stopping
sys.exit(main(argv))
"""


def stopped(number, after, out, *options):
    """Runs the command up to the signal; it must have come."""
    argv = [sys.executable, "-c", STOPPING, str(int(number)), str(after), *command(*options, "--out", out)[3:]]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == (-9 if number == signal.SIGKILL else 128 + number), done.stderr
    return done.stderr


def test_killed_after_any_checkpoint(uninterrupted, tmp_path):
    """At other moments, inside a write too: tests/drill.py."""
    out = tmp_path / "run"
    for after in (1, 4, 6):
        stopped(signal.SIGKILL, after, out, "--resume")
    subprocess.run(command("--out", out, "--resume"), check=True, capture_output=True)
    assert_same(outcome(out), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_then_stop(number, uninterrupted, tmp_path):
    out = tmp_path / "run"
    # Checkpoints only after a task and by the signal: what it saves is what is resumed from.
    stderr = stopped(number, 1, out, "--checkpoint-seconds", "inf")
    assert stderr.count("\n") == 1 and "--resume" in stderr and "Traceback" not in stderr
    assert [p.stem for p in CheckpointFolder(out / "seed-0" / "checkpoint").files()] == ["000000", "000001"]
    subprocess.run(command("--out", out, "--resume"), check=True, capture_output=True)
    assert_same(outcome(out), uninterrupted)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("sdmlp", "flymodel", "ncm", "slda", "ridge")])
@pytest.mark.parametrize("engine, momentum", [("fused", 0.0), ("fused", 0.9), ("autograd", 0.0), ("autograd", 0.9)])
def test_stop_again_and_again(method, engine, momentum, tmp_path):
    """Also in the middle of an epoch, and with momentum. (The fused engine asks less often than every step.)

    ssd does all that sdmlp does; flymodel and the heads have no steps.
    """
    digits = data.load("digits")
    config = config_of(data="digits", method=method, neurons=60, k=5, n_distill=30, epochs=4, momentum=momentum,
                         classes_per_task=5, engine=engine)  # fmt: skip
    whole = Trainer(config, digits, 3, tmp_path / "whole")
    whole.fit()
    calls = 0

    def now_and_then():
        nonlocal calls
        calls += 1
        return calls % (5 if part.engine.name == "autograd" else 3) == 0

    stops = 0
    while True:
        part = Trainer(config, digits, 3, tmp_path / "parts", interrupted=now_and_then)
        try:
            part.fit()
            break
        except Interrupted:
            stops += 1
    assert stops >= 3
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, part.model.state_dict()[name]), name
    curves = [torch.tensor(t.history, dtype=torch.float64).nan_to_num(-9) for t in (whole, part)]
    assert torch.equal(*curves)
    for field in ("matrix", "matrix_taw", "initial", "accuracy", "loss_parts"):
        assert getattr(whole.progress, field) == getattr(part.progress, field), field


def test_keeps_the_last_two_and_no_leftovers(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoint")
    assert folder.load() is None
    folder.folder.mkdir()
    (folder.folder / ".000000.safetensors.x.tmp").write_bytes(b"half")
    for i in range(4):
        folder.save({"i": torch.tensor(i)}, {"i": i})
    assert sorted(p.name for p in folder.folder.iterdir()) == ["000002.safetensors", "000003.safetensors"]
    tensors, state = folder.load()
    assert tensors["i"].item() == 3 and state == {"i": 3}


@pytest.mark.parametrize("damage", ["truncate", "flip", "metadata", "empty", "other"])
def test_damaged_checkpoint_is_named_and_the_older_one_kept(damage, tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save({"w": torch.arange(100.0)}, {"epoch": 1})
    path = folder.save({"w": torch.arange(100.0) + 1}, {"epoch": 2})
    content = bytearray(path.read_bytes())
    match damage:
        case "truncate":
            content = content[:-40]
        case "flip":
            content[-5] ^= 1
        case "metadata":
            content = content.replace(b'epoch\\": 2', b'epoch\\": 3')
        case "empty":
            content = bytearray()
        case "other":
            content = bytearray(b"PK\x03\x04" * 100)
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"000001.*000000\.safetensors"):
        folder.load()
    path.unlink()
    tensors, state = folder.load()
    assert state == {"epoch": 1} and torch.equal(tensors["w"], torch.arange(100.0))


def test_no_checkpoint_is_ever_unpickled(tmp_path):
    path = tmp_path / "000000.safetensors"
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(BadInput, match="damaged or of another kind"):
        read_tensors(path)


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_read_only_folder(tmp_path):
    write_tensors(tmp_path / "a", {}, {})
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError):
        write_tensors(tmp_path / "a", {"w": torch.ones(1)}, {})
    tmp_path.chmod(stat.S_IRWXU)
    assert read_tensors(tmp_path / "a") == ({}, {})
