"""A run goes on from its own checkpoints alone, in a folder of its own, and says so in one line otherwise."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from filelock import FileLock
from ssd_train import checkpoint
from ssd_train.checkpoint import read_tensors, write_atomic, write_tensors
from ssd_train.cli import main as cli
from ssd_train.run import runner
from ssd_train.run.folder import claimed

TINY = ["run", "--data", "digits", "--neurons", "50", "--k", "5", "--epochs", "1", "--n-distill", "20",
        "--classes-per-task", "5", "--plots", "false", "--method", "finetune", "--engine", "autograd"]  # fmt: skip


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A finished run; each test copies it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main([*TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(started, tmp_path):
    return shutil.copytree(started, tmp_path / "run")


def refused(capsys, argv, *words, code=2):
    capsys.readouterr()
    assert cli.main([*map(str, argv)]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err, captured.err
    return captured.err


def newest(out, seed=0):
    return max((out / f"seed-{seed}" / "checkpoint").glob("*.safetensors"))


def tree(out):
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize("changed, words", [
    (["--seeds", "1"], ["seed is 1", "0"]),
    (["--lr", ".07"], ["lr is 0.07", "0.05"]),
    (["--neurons", "60"], ["neurons is 60", "50"]),
    (["--method", "sdmlp"], ["method is 'sdmlp'", "'finetune'"]),
    (["--momentum", "0.5"], ["momentum is 0.5", "0.0"]),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(changed, words, run, capsys, tmp_path):
    other = tmp_path / "other"
    assert cli.main([*TINY, *changed, "--out", str(other)]) == 0
    shutil.rmtree(run / "seed-0")
    shutil.copytree(next(other.glob("seed-*")), run / "seed-0")
    before = tree(run)
    refused(capsys, ["run", "--resume", "--out", run], "another run", *words)
    assert tree(run) == before


def test_an_edited_config_is_refused(run, capsys):
    for name, value in (("lr", 0.06), ("method", "sdmlp"), ("neurons", 70), ("epochs", 5), ("momentum", 0.9)):
        settings = yaml.safe_load((run / "config.yaml").read_text())
        before = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(yaml.safe_dump(settings | {name: value}))
        refused(capsys, ["run", "--resume", "--out", run], "another run", f"its {name} is {settings[name]!r}")
        (run / "config.yaml").write_text(before)
    assert cli.main(["run", "--resume", "--out", str(run)]) == 0


def test_other_data_and_another_version_are_refused(run, capsys, monkeypatch):
    tensors, state = read_tensors(newest(run))
    for name, value in (("version", "0.0.9"), ("data's SHA-256", "0" * 64)):
        write_tensors(newest(run), tensors, state | {"run": state["run"] | {name: value}})
        refused(capsys, ["run", "--resume", "--out", run], "another run", name, value)
    state.pop("run")
    write_tensors(newest(run), tensors, state)
    refused(capsys, ["run", "--resume", "--out", run], "no checkpoint of this version")


def test_a_checkpoint_of_all_seeds_is_looked_at_before_the_first_is_trained(run, capsys, tmp_path):
    shutil.copytree(run / "seed-0", run / "seed-7")
    before = tree(run)
    refused(capsys, ["run", "--resume", "--out", run, "--seeds", "1,7"], "another run", "seed is 0", "7")
    assert tree(run) == before


def test_a_model_or_broken_state_in_a_checkpoints_place(run, capsys):
    path = newest(run)
    content = path.read_bytes()
    shutil.copy(run / "seed-0" / "model.safetensors", path)
    refused(capsys, ["run", "--resume", "--out", run], str(path), "no checkpoint")
    path.write_bytes(content)
    tensors, state = read_tensors(path)
    for broken in ({"progress": {}}, {"progress": None}, {"sums": {"samples": "x", "more": 1}}):
        write_tensors(path, tensors, state | broken)
        refused(capsys, ["run", "--resume", "--out", run], "does not hold the state of this run")
    write_tensors(path, {**tensors, "model.output_weight": torch.zeros(3, 3)}, state)
    refused(capsys, ["run", "--resume", "--out", run], "does not hold the state of this run")
    os.unlink(path)
    os.mkfifo(path)
    refused(capsys, ["run", "--resume", "--out", run], str(path), "not a regular file")


def test_resume_without_its_config(run, capsys):
    os.unlink(run / "config.yaml")
    refused(capsys, ["run", "--resume", "--out", run], "config.yaml", "no such file")
    assert cli.main([*TINY, "--resume", "--out", str(run)]) == 0, "all settings typed again"


@pytest.mark.parametrize("text, words", [
    ("a: &a [x, x]\nb: &b [*a, *a]\nlr: 1\n", "aliases"),
    ("lr: " + "[" * 5000 + "]" * 5000, "nested"),
    ("lr: {" * 3000, "nested"),
    ("- 1\n", "mapping"),
    ("1: 2\n", "mapping"),
    ("lr: \x07\n", "YAML"),
    (b"lr: \xff\n", "UTF-8"),
    ("lr: 1 # " + "x" * (1 << 21), "allowed are at most"),
    ("lr: !!python/object/apply:os.system ['true']\n", "YAML"),
])  # fmt: skip
def test_config_files_that_are_none(text, words, run, capsys):
    """As a run's own, and as --config."""
    (run / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(capsys, ["run", "--resume", "--out", run], "config.yaml", words)
    refused(capsys, ["run", "--config", run / "config.yaml", "--out", run / "new"], "config.yaml", words)


def test_a_config_that_is_a_pipe(run, capsys):
    os.unlink(run / "config.yaml")
    os.mkfifo(run / "config.yaml")
    refused(capsys, ["run", "--resume", "--out", run], "config.yaml", "not a regular file")
    refused(capsys, ["run", "--config", run / "config.yaml", "--out", run / "new"], "config.yaml", "not a regular file")


STALE = [".results.json.x1.tmp", ".config.yaml.x2.tmp", "seed-0/.model.safetensors.x3.tmp",
         "seed-0/checkpoint/.000001.safetensors.x4.tmp"]  # fmt: skip


@pytest.mark.parametrize("how", ["--resume", "--overwrite"])
def test_what_a_crash_left_is_removed(how, run, capsys):
    for name in STALE:
        (run / name).write_bytes(b"half")
    assert cli.main([*TINY, how, "--out", str(run)]) == 0
    assert not [p for p in run.rglob(".*") if p.name != ".lock"]


def test_leftovers_alone_are_an_empty_folder(tmp_path):
    (tmp_path / ".config.yaml.x.tmp").write_bytes(b"half")
    assert cli.main([*TINY, "--out", str(tmp_path)]) == 0
    assert not (tmp_path / ".config.yaml.x.tmp").exists()


def test_only_what_is_stale_is_removed(tmp_path):
    """What a live process is writing has its lock; files of others have other names."""
    names = [".a.json.1.tmp", ".ab.json.1.tmp", ".b.json.1.tmp", "a.json.1.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with checkpoint._temporary(tmp_path / "a.json") as (_, live):
        write_atomic(tmp_path / "a.json", b"new")
        assert os.path.exists(live)
    assert sorted(os.listdir(tmp_path)) == sorted(["a.json", *names[1:]])


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_goes_during_the_run_is_an_error(again, capsys, tmp_path, monkeypatch):
    """Removed, or removed and made anew: the run stops, and writes nothing to what is there now."""
    out, train = tmp_path / "run", runner._train

    def remove(*arguments):
        shutil.rmtree(out)
        if again:
            out.mkdir()
        return train(*arguments)

    monkeypatch.setattr(runner, "_train", remove)
    line = refused(capsys, [*TINY, "--epochs", "2", "--out", out], str(out))
    assert "removed" in line and "written" not in line
    assert list(tmp_path.rglob("*")) == ([out] if again else [])


def test_a_deleted_lock_file_lets_no_second_run_in(run, capsys):
    with claimed(run, resume=True, overwrite=False):
        os.unlink(run / ".lock")
        for how in (["--resume"], ["--overwrite"], []):
            refused(capsys, [*TINY, *how, "--out", run], "--out", "live run")
    with FileLock(run / ".lock"):
        refused(capsys, [*TINY, "--resume", "--out", run], "--out", "live run")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO])
def test_a_disk_that_is_full_is_named_with_the_file(number, run, capsys, monkeypatch):
    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    refused(capsys, ["run", "--resume", "--out", run, "--seeds", "1"], "config.yaml: " + os.strerror(number))
    monkeypatch.undo()
    assert not list(run.rglob(".*.tmp"))
    assert cli.main(["run", "--resume", "--out", str(run)]) == 0


@pytest.mark.parametrize("option", ["max_grad_norm", "checkpoint_seconds"])
@pytest.mark.parametrize("value", ["inf", "Infinity", "null"])
def test_no_limit_is_written_as_null(option, value, tmp_path):
    out = tmp_path / "run"
    assert cli.main([*TINY, "--" + option.replace("_", "-"), value, "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["config"][option] is None
    assert yaml.safe_load((out / "config.yaml").read_text())[option] is None
    assert cli.main(["run", "--resume", "--out", str(out), "--seeds", "0-1"]) == 0


@pytest.mark.parametrize("module", ["torch", "jsonargparse"])
@pytest.mark.parametrize("number, code", [(2, 130), (15, 143)])
def test_a_signal_during_the_imports_is_one_line(module, number, code, tmp_path):
    program = f"""
import os, sys
class Interrupt:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Interrupt())
from ssd_train.__main__ import main
sys.exit(main(["run", "--data", "digits"]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "ssd-train: interrupted\n")
