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

TINY = ["run", "--data", "digits", "--neurons", "50", "--k", "5", "--epochs", "1",
        "--classes-per-task", "5", "--plots", "false", "--method", "sdmlp", "--engine", "autograd"]  # fmt: skip


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
    (["--method", "ssd"], ["method is 'ssd'", "'sdmlp'"]),
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
    for name, value in (("lr", 0.06), ("method", "ssd"), ("neurons", 70), ("epochs", 5), ("momentum", 0.9)):
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


# Records that no run writes, one at a time: each is named.
FORGED = [
    ("seed", 1), ("seed", "0"), ("stage", -1), ("stage", 99), ("stage", 1.0), ("started", True), ("started", 1),
    ("epoch", -1), ("epoch", 1), ("epoch", 10**30), ("position", -1), ("finished", 1), ("matrix", None),
    ("matrix", [[0.5]]), ("matrix", [[2.0] * 5]), ("matrix", [[0.5] * 5] * 9), ("matrix_taw", []), ("accuracy", "x"),
    ("accuracy", float("nan")), ("accuracy_taw", 1.5), ("initial", [0.5]), ("loss_parts", [1]),
    ("loss_parts", [{"loss": "x"}]), ("path_length", [-1.0]), ("rows", {}), ("rows", {"certified": -1}),
    ("phases", {"scan": float("inf")}), ("activity", {"all active": {}}), ("seconds", {"train": 1.0}),
    ("samples", -1), ("parts", {"loss": None}), ("parts", []),
]  # fmt: skip


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
    for name, value in FORGED:
        part = "sums" if name in ("samples", "parts") else "progress"
        write_tensors(path, tensors, state | {part: state[part] | {name: value}})
        refused(capsys, ["run", "--resume", "--out", run], "does not hold the state of this run", f"its {name} is")
    write_tensors(path, {**tensors, "epoch_order": torch.tensor([0, 2])}, state)
    refused(capsys, ["run", "--resume", "--out", run], "does not hold the state of this run", "position")
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


def test_too_little_address_space_is_one_line(tmp_path):
    """OpenBLAS would end the process itself, in the middle of an import."""
    argv = ["bash", "-c", 'ulimit -v 600000; exec "$0" -m ssd_train run --data digits', sys.executable]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "ulimit -v" in done.stderr


@pytest.mark.parametrize("name, value", [
    ("accuracy", ...), ("accuracy", None), ("accuracy", {"mean": "x", "std": 0, "per_seed": []}), ("bwt", {"mean": 1}),
    ("config", ...), ("config", {"neurons": 3}), ("data", None), ("seeds", 3), ("runs", {}), ("runs", [1]),
    ("method", ["a"]), ("estimator", None),
])  # fmt: skip
def test_report_of_damaged_results(name, value, run, capsys):
    path = run / "results.json"
    changed = json.loads(path.read_text()) | {name: value}
    path.write_text(json.dumps({key: item for key, item in changed.items() if item is not ...}))
    refused(capsys, ["report", run], str(path), name)


@pytest.mark.parametrize("text, words", [("[" * 100_000, "not JSON"), ("\xff", "UTF-8"), ("{}", "schema 1")])
def test_report_of_what_is_no_results(text, words, run, capsys):
    (run / "results.json").write_bytes(text.encode("latin-1"))
    refused(capsys, ["report", run], "results.json", words)


@pytest.mark.parametrize("kind", ["table", "markdown", "json"])
def test_report_prints_markup_as_it_is(kind, run, capsys):
    path = run / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"method": "[/red]a|b\x1b[31m\x07"}))
    capsys.readouterr()
    assert cli.main(["report", str(run), "--format", kind]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert {"table": "[/red]a", "markdown": "[/red]a\\|b", "json": "[/red]a|b"}[kind] in out


@pytest.mark.parametrize("changes", [
    {"gaba_switch": ...}, {"gaba_switch": -1}, {"gaba_switch": "x"}, {"order": [99]}, {"order": [0]}, {"order": None},
    {"data": None}, {"data": {"dim": 64, "classes": 10**12}}, {"data": {"dim": True, "classes": 10}},
    {"config": {"k": 0}}, {"config": {"k": None}}, {"config": {"method": "zzz"}}, {"config": {"dtype": "os"}},
    {"config": {"neurons": 10**12}}, {"config": {"layers": 10**9}}, {"config": {"neurons": []}},
    {"config": {"validation": 2}}, {"config": {"unheard": 1}}, {"config": {"data": 5}},
], ids=str)  # fmt: skip
def test_eval_of_forged_metadata(changes, run, capsys):
    """With a SHA-256 that fits."""
    path = run / "seed-0" / "model.safetensors"
    tensors, state = read_tensors(path)
    state |= changes | {"config": state["config"] | changes.get("config", {})}
    write_tensors(path, tensors, {key: value for key, value in state.items() if value is not ...})
    refused(capsys, ["eval", run], str(path))


def test_eval_of_forged_weights(run, capsys):
    path = run / "seed-0" / "model.safetensors"
    tensors, state = read_tensors(path)
    name = next(iter(sorted(tensors)))
    for forged in (tensors[name] * float("nan"), tensors[name][:-1], tensors[name].double()):
        write_tensors(path, tensors | {name: forged}, state)
        refused(capsys, ["eval", run], str(path), name)


def test_eval_of_folders_and_devices(run, capsys):
    shutil.copytree(run / "seed-0", run / "seed-x")
    assert cli.main(["eval", str(run)]) == 0
    for device in ("foo", "meta", "cuda:-1", "cuda:99"):
        refused(capsys, ["eval", run, "--device", device], "--device", device)


@pytest.mark.parametrize("options, words", [
    (["--neurons", "1000000000000"], ["--neurons 1000000000000", "memory"]),
    (["--neurons", "1" * 400], ["--neurons 1111", "memory"]),
    (["--layers", "1000"], ["--layers", "1 .. 100"]),
    (["--threads", "100000"], ["--threads", "4 x the cores"]),
    (["--epochs", "9" * 5000], ["epochs"]),
], ids=lambda v: v[0])  # fmt: skip
def test_more_than_this_machine_can_do(options, words, capsys, tmp_path):
    refused(capsys, [*TINY, *options, "--out", tmp_path / "out"], *words)
    assert not (tmp_path / "out").exists()


def test_a_batch_larger_than_the_data_is_all_of_it(run, tmp_path):
    """Nothing is sized by the option."""
    argv = [*TINY, "--engine", "fused", "--method", "sdmlp", "--seeds", "0"]
    assert cli.main([*argv, "--batch-size", "9999999999", "--out", str(tmp_path / "a")]) == 0
    assert cli.main([*argv, "--batch-size", "1437", "--out", str(tmp_path / "b")]) == 0
    a, b = (read_tensors(tmp_path / name / "seed-0" / "model.safetensors")[0] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("error, code, words", [
    (MemoryError("big"), 2, "not enough memory"), (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 2,
    "not enough memory"), (RuntimeError("x\ny"), 2, "x y"), (OverflowError("o"), 2, "too large"),
    (RecursionError("r"), 2, "nested"), (OSError(28, "No space left on device", "f"), 2, "f: No space"),
    (KeyboardInterrupt(), 130, "interrupted"), (KeyError("k"), 1, "a fault of this program"),
    (ImportError("i"), 2, "ImportError: i"),
], ids=repr)  # fmt: skip
def test_any_failure_is_one_line_and_a_code(error, code, words, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "parse_run", fail)
    refused(capsys, ["run"], words, code=code)
