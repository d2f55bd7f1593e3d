"""`--parallel data` and `--parallel neurons`: the files of several processes hold the bits of one; what is refused.

A process that is killed or hangs: the others name it and end; --resume and torchrun go on. Processes are forked from
this one, which has torch loaded already; torchrun starts its own.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ssd_train
import torch
from ssd_train.__main__ import main
from ssd_train.checkpoint import CheckpointFolder, read_tensors
from ssd_train.errors import BadInput
from ssd_train.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

# Three tasks of digits; in most of the first two epochs every neuron is active, then come lists.
RUN = ["run", "--data", "digits", "--epochs", "2", "--classes-per-task", "4", "--plots", "false", "--gaba-switch",
       "1700", "--n-distill", "150", "--neurons", "400", "--probe-size", "64"]  # fmt: skip
OPTIONS = {"sdmlp": [], "ssd": [], "ssd+ewc": ["--importance-samples", "64"]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_rank(rank, size, port, argv, log):
    """A process of the group, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        torch.set_num_threads(1)
        code = main(argv[rank] if isinstance(argv[0], list) else argv)
    os._exit(code)


def together(size, argv, folder, watch=lambda processes: None):
    """Exit codes and outputs of `size` processes of `ssd-train`; argv of each, or of all. watch: sees them run."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    logs = [folder / f"rank-{rank}.log" for rank in range(size)]
    processes = [fork.Process(target=one_rank, args=(r, size, port, argv, log)) for r, log in enumerate(logs)]
    for process in processes:
        process.start()
    watch(processes)
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes], [log.read_text() for log in logs]


def command(method, out, *more):
    options = [o for o in RUN if method != "sdmlp" or o not in ("--n-distill", "150")]
    return [*options, "--method", method, "--out", str(out), *OPTIONS[method], *more]


def tensors_of(out: Path):
    """What a run left: the model's tensors, the last checkpoint's, and the numbers of results.json."""
    results = json.loads((out / "results.json").read_text())
    run = results["runs"][0]
    kept = ("accuracy_matrix", "accuracy_matrix_taw", "accuracy_initial", "loss_parts", "path_length")
    model = read_tensors(out / "seed-0" / "model.safetensors")[0]
    checkpoint = CheckpointFolder(out / "seed-0" / "checkpoint").load()[0]
    return model, checkpoint, {name: run[name] for name in kept}, (out / "metrics.csv").read_text()


def same(one, other):
    for a, b in zip(one[:2], other[:2]):
        assert a.keys() == b.keys()
        assert not [name for name in a if not torch.equal(torch.nan_to_num(a[name]), torch.nan_to_num(b[name]))]
    assert one[2:] == other[2:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process leaves of a method's run."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def of(method):
        threads = torch.get_num_threads()
        assert main(command(method, folder / method)) == 0
        torch.set_num_threads(threads)
        return tensors_of(folder / method)

    return of


@pytest.mark.parametrize("mode", ["data", "neurons"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("method", OPTIONS)
def test_bitwise_the_files_of_one_process(method, size, mode, alone, tmp_path):
    out, one = tmp_path / "run", alone(method)  # forked processes find everything imported
    codes, logs = together(size, command(method, out, "--parallel", mode), tmp_path)
    assert codes == [0] * size, logs
    assert "written to" in logs[0] and not "".join(logs[1:])
    same(one, tensors_of(out))
    results = json.loads((out / "results.json").read_text())
    assert (results["environment"]["parallel"], results["environment"]["processes"]) == (mode, size)
    traffic = results["runs"][0]["traffic"]
    assert traffic["steps"] > 0 and traffic["received"] >= (size - 1) * traffic["steps"] and traffic["exchanges"] > 0


@pytest.mark.parametrize("mode", [pytest.param("data", marks=pytest.mark.slow), "neurons"])
def test_a_checkpoint_goes_on_with_any_number_of_processes(mode, alone, tmp_path):
    """Two of three tasks by two processes, the rest by three of the other mode, then read by one: all the same bits."""
    out, other = tmp_path / "run", {"data": "neurons", "neurons": "data"}[mode]
    argv = command("ssd+ewc", out)
    codes, logs = together(2, [*argv, "--parallel", mode, "--checkpoint-seconds", "0"], tmp_path)
    assert codes == [0, 0], logs
    checkpoint = CheckpointFolder(out / "seed-0" / "checkpoint")
    checkpoint.files()[-1].unlink()  # the one before: the last epoch's end
    (out / "results.json").unlink()
    (out / "seed-0" / "model.safetensors").unlink()
    codes, logs = together(3, [*argv, "--resume", "--parallel", other], tmp_path)
    assert codes == [0, 0, 0], logs
    same(alone("ssd+ewc"), tensors_of(out))


REFUSED = {
    "more processes than samples": (["--parallel", "data", "--batch-size", "1"], "allowed are 1 to 1"),
    "more processes than neurons": (["--parallel", "neurons", "--neurons", "100", "--k", "60"], "allowed are 1 "),
    "a method": (["--parallel", "neurons", "--method", "mas"], "one of "),
    "an engine": (["--parallel", "data", "--engine", "autograd"], "with the fused engine only"),
    "jobs": (["--parallel", "data", "--jobs", "2"], "1 or null with --parallel"),
}


@pytest.mark.parametrize("more, message", REFUSED.values(), ids=REFUSED)
def test_bad_set_ups_are_refused_once_and_by_name(more, message, tmp_path):
    plain = [word for word in RUN if word not in ("--n-distill", "150")]
    codes, logs = together(2, [*plain, "--out", str(tmp_path / "run"), "--method", "sdmlp", *more], tmp_path)
    assert codes == [2, 2], logs
    assert message in logs[0] and logs[0].count("\n") == 1 and not logs[1], logs


def test_processes_that_differ_are_refused_with_their_rank(tmp_path):
    argv = command("sdmlp", tmp_path / "run", "--parallel", "data")
    codes, logs = together(2, [argv, [*argv, "--lr", "0.1"]], tmp_path)
    assert codes == [2, 2] and "rank 1 has --lr 0.1, rank 0 has 0.05" in logs[0], logs
    missing = [a if a != "digits" else str(tmp_path / "none.npz") for a in argv]
    codes, logs = together(2, [argv, missing], tmp_path)
    assert codes == [2, 2] and "rank 1: " in logs[0] and "none.npz" in logs[0], logs
    assert not (tmp_path / "run").exists()


def test_without_torchrun_the_option_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main(command("sdmlp", tmp_path / "run", "--parallel", "data")) == 2
    assert "torchrun --nproc-per-node" in capsys.readouterr().err
    sweep = ["sweep", "--vary", "lr=0.1", *command("sdmlp", tmp_path / "sweep", "--parallel", "data")[1:]]
    assert main(sweep) == 2 and "null in a sweep" in capsys.readouterr().err
    with pytest.raises(BadInput, match="under torchrun"):
        ssd_train.train({"data": "digits", "parallel": "data"})


def test_a_run_of_one_process_never_imports_torch_distributed_for_us(tmp_path):
    """No module of ours asks for it where --parallel is not given: imports are watched from the first one on."""
    code = f"""
import builtins, sys
plain, asked = builtins.__import__, []
def watching(name, globals=None, *rest, **named):
    who = (globals or {{}}).get("__name__", "")
    if name.startswith("torch.distributed") and who.partition(".")[0] in ("ssd_train", "ssd_kernels", "__main__"):
        asked.append(who)
    return plain(name, globals, *rest, **named)
builtins.__import__ = watching
from ssd_train.__main__ import main
assert main({[*command("sdmlp", tmp_path / "run"), "--epochs", "1"]!r}) == 0
assert not asked, asked
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def meeting(number, rank, monkeypatch):
    """Processes forked from now on: this rank gets the signal at its third checkpoint."""
    plain, saves = Trainer.save, []

    def save(trainer):
        plain(trainer)
        saves.append(1)
        if trainer.parts.rank == rank and len(saves) == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "save", save)


@pytest.mark.parametrize("mode", [pytest.param("data", marks=pytest.mark.slow), "neurons"])
def test_a_killed_process_is_named_and_a_resume_ends_with_the_same_bits(mode, alone, tmp_path, monkeypatch):
    argv = command("ssd", tmp_path / "run", "--checkpoint-seconds", "0", "--parallel", mode)
    with monkeypatch.context() as patched:
        meeting(signal.SIGKILL, 1, patched)
        codes, logs = together(3, argv, tmp_path)
    assert codes[1] == -signal.SIGKILL and codes[0] == codes[2] == 1, (codes, logs)
    for log in (logs[0], logs[2]):
        assert "rank 1 ended" in log and log.count("\n") == 1, logs
    codes, logs = together(3, [*argv, "--resume"], tmp_path)
    assert codes == [0] * 3, logs
    same(alone("ssd"), tensors_of(tmp_path / "run"))


def test_a_process_that_hangs_is_named_when_its_time_is_over(tmp_path, monkeypatch):
    argv = command("ssd", tmp_path / "run", "--checkpoint-seconds", "0", "--parallel", "data")
    argv += ["--parallel-timeout", "3"]
    meeting(signal.SIGSTOP, 1, monkeypatch)
    stopped = []

    def watch(processes):
        """Ends the stopped one, once the others have."""
        for rank in (0, 2):
            processes[rank].join(100)
        stopped.append(processes[1].is_alive())
        os.kill(processes[1].pid, signal.SIGKILL)

    codes, logs = together(3, argv, tmp_path, watch)
    assert stopped == [True] and codes[0] == codes[2] == 1, (codes, logs)
    for log in (logs[0], logs[2]):
        assert "rank 1 did not answer for 3 s" in log and log.count("\n") == 1, logs


@pytest.mark.slow
def test_a_signal_to_one_process_saves_the_state_of_all(alone, tmp_path, monkeypatch):
    argv = command("ssd", tmp_path / "run", "--checkpoint-seconds", "0", "--parallel", "neurons")
    with monkeypatch.context() as patched:
        meeting(signal.SIGTERM, 1, patched)
        codes, logs = together(2, argv, tmp_path)
    assert codes == [143, 143] and "interrupted, state saved" in logs[0], (codes, logs)
    codes, logs = together(2, [*argv, "--resume"], tmp_path)
    assert codes == [0, 0], logs
    same(alone("ssd"), tensors_of(tmp_path / "run"))


@pytest.mark.slow
def test_torchrun_starts_killed_processes_again(alone, tmp_path):
    """`torchrun --max-restarts 1` of a run with --resume, in which one process kills itself once."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, sys\n"
        "from ssd_train.__main__ import main\n"
        "from ssd_train.trainer import Trainer\n"
        "plain, saves = Trainer.save, []\n"
        "def save(trainer):\n"
        "    plain(trainer)\n"
        "    saves.append(1)\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "    if trainer.parts.rank == 1 and first and len(saves) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer.save = save\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = command("ssd", tmp_path / "run", "--checkpoint-seconds", "0", "--parallel", "data", "--resume")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                "--max-restarts", "1"]  # fmt: skip
    done = subprocess.run([*torchrun, str(script), *argv], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    same(alone("ssd"), tensors_of(tmp_path / "run"))
