"""Breaks runs in every way that a machine can, resumes them, and counts what was lost and what came out wrong.

    python tests/drill.py --whole --out results/drill.md      every method, a few hundred faults, minutes
    python tests/drill.py                                      SSD, seconds; part of the test suite

Each run is a fork of this process, so that torch is imported once. After a fault the same command with --resume must
end with the weights, curves and results of the undisturbed run, bit for bit ("wrong results" otherwise), and every
checkpoint whose writing had ended must still be there ("work lost" otherwise). A fault that can be answered is one
line on stderr and the exit code of the documentation; anything else counts as wrong. The file is long because it is
a list of faults.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from ssd_train import checkpoint, data
from ssd_train.cli.main import main as command
from ssd_train.errors import BadInput
from ssd_train.methods import METHODS

from ssd_kernels import _native

OPTIONS = {"--data": "digits", "--neurons": "40", "--k": "4", "--epochs": "2", "--batch-size": "64",
           "--n-distill": "20", "--classes-per-task": "5", "--checkpoint-seconds": "0", "--eval-every": "1",
           "--threads": "1", "--probe-size": "20", "--plots": "false", "--importance-samples": "100"}  # fmt: skip
POINTS = ("write", "half", "fsync", "replace", "replaced", "unlink")
marks = -1  # in a fork: where it notes the checkpoints that it finished and that its fault came
LIMIT_SECONDS = 120  # a fork that is not done by then hangs


@dataclasses.dataclass
class Ended:
    """How a fork ended: exit code (negative: the signal that killed it), stderr, checkpoints finished, fault met."""

    code: int
    stderr: str
    saved: int
    fired: bool = True


@dataclasses.dataclass
class Count:
    tried: int = 0
    lost: int = 0
    wrong: int = 0


class Drill:
    """The runs of one method, undisturbed and broken."""

    def __init__(self, method: str, root: Path, chance: random.Random) -> None:
        self.method, self.root, self.chance = method, root, chance
        self.options = dict(OPTIONS)
        self.counts: dict[str, Count] = {}
        self.notes: list[str] = []
        self.number = 0
        while True:  # a method without epochs, neurons or winners refuses these options: they are left out
            out = self.new_folder()
            begin = time.monotonic()
            ended = self.finish(out)
            self.seconds = time.monotonic() - begin
            refused = re.search(r"error: (--[a-z-]+)", ended.stderr)
            if ended.code != 2 or not refused or refused.group(1) not in self.options:
                break
            del self.options[refused.group(1)]
        if ended.code != 0:
            raise SystemExit(f"{method}: the undisturbed run ended with {ended.code}: {ended.stderr}")
        self.whole, self.saves = outcome(out), ended.saved

    def new_folder(self) -> Path:
        self.number += 1
        return self.root / f"{self.method}-{self.number}"

    def arguments(self, out: Path, *more: str) -> list[str]:
        words = [word for option in self.options.items() for word in option]
        return ["run", "--method", self.method, *words, "--resume", "--out", str(out), *more]

    def begin(self, out: Path, arm: Callable[[], None] = lambda: None, *more: str) -> tuple[int, Path]:
        """A fork that runs the command; `arm` is called in it first."""
        log = self.root / f"log-{self.number}-{self.chance.random()}"
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            code = 70
            try:
                stderr, stdout = os.open(f"{log}.err", os.O_WRONLY | os.O_CREAT), os.open(os.devnull, os.O_WRONLY)
                os.dup2(stdout, 1)
                os.dup2(stderr, 2)
                record_saves(log)
                arm()
                code = command(self.arguments(out, *more))
                sys.stderr.flush()
            finally:
                os._exit(code)
        return process, log

    def end(self, process: int, log: Path) -> Ended:
        deadline = time.monotonic() + LIMIT_SECONDS
        while True:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return Ended(99, "hangs", 0)
            time.sleep(0.002)
        written = log.read_bytes() if log.exists() else b""
        code, fired = os.waitstatus_to_exitcode(status), b"!" in written
        return Ended(code, Path(f"{log}.err").read_text(), written.count(b"x"), fired or code != 0)

    def finish(self, out: Path, *more: str) -> Ended:
        return self.end(*self.begin(out, lambda: None, *more))

    def judge(self, fault: str, out: Path, ended: Ended, codes: tuple[int, ...], before: int = 0) -> None:
        """Counts one fault: what came of it, what is still there, and what resuming gives."""
        count = self.counts.setdefault(fault, Count())
        count.tried += ended.fired  # a fault that came after the run's end is none
        if ended.code not in codes or (ended.code == 2 and not one_line(ended.stderr)):
            self.wrong(count, fault, f"exit code {ended.code}, stderr {ended.stderr!r}")
        if out.exists() and "removed" not in fault and newest(out) < before + ended.saved - 1:
            count.lost += 1
            self.notes.append(f"{self.method}, {fault}: {ended.saved} checkpoints were written, {newest(out)} is there")
        again = self.finish(out)
        if again.code != 0 or outcome(out) != self.whole:
            self.wrong(count, fault, f"resumed: {again.code} {again.stderr!r}" if again.code else "resumed: other bits")
        if list(out.rglob(".*.tmp")):
            self.wrong(count, fault, "half-written files stay")
        shutil.rmtree(out, ignore_errors=True)

    def wrong(self, count: Count, fault: str, why: str) -> None:
        count.wrong += 1
        self.notes.append(f"{self.method}, {fault}: {why}")


def record_saves(log: Path) -> None:
    """Writes a byte to `log` whenever a checkpoint is in its place."""
    global marks
    handle, save = os.open(log, os.O_WRONLY | os.O_CREAT), checkpoint.CheckpointFolder.save
    marks = handle

    def recorded(self: Any, *arguments: Any) -> Path:
        path = save(self, *arguments)
        os.write(handle, b"x")
        return path

    checkpoint.CheckpointFolder.save = recorded


def at_point(point: str, number: int, act: Callable[[], None]) -> Callable[[], None]:
    """Arms a fork: `act` at the number-th time that the program is about to write, flush, rename or remove a file.

    `half`: after half of the bytes are written; `replaced`: right after a rename.
    """

    def arm() -> None:
        seen = 0

        def reached() -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os.write(marks, b"!")
                act()

        if point in ("write", "half"):

            class File:
                def __init__(self, file: Any) -> None:
                    self.file = file

                def __enter__(self) -> File:
                    return self

                def __exit__(self, *_: object) -> None:
                    self.file.close()

                def write(self, content: bytes) -> None:
                    if point == "half":
                        self.file.write(content[: len(content) // 2])
                        self.file.flush()
                    reached()
                    self.file.write(content if point == "write" else content[len(content) // 2 :])

            def opened(path: Any, mode: str = "r", **how: Any) -> Any:
                return File(open(path, mode, **how)) if mode == "wb" else open(path, mode, **how)

            checkpoint.open = opened
            return
        name = "replace" if point == "replaced" else point
        original = getattr(os, name)

        def call(*arguments: Any, **how: Any) -> Any:
            if point != "replaced":
                reached()
            result = original(*arguments, **how)
            if point == "replaced":
                reached()
            return result

        setattr(os, name, call)

    return arm


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def one_line(text: str) -> bool:
    return text.startswith("ssd-train: ") and text.count("\n") == 1 and "Traceback" not in text


def newest(out: Path) -> int:
    """Number of the newest checkpoint that can be read; -1 when there is none."""
    for path in reversed(checkpoint.CheckpointFolder(out / "seed-0" / "checkpoint").files()):
        try:
            checkpoint.read_tensors(path)
            return int(path.stem)
        except BadInput:
            continue
    return -1


def outcome(out: Path) -> tuple[dict[str, bytes], str, str]:
    """All that a run computed, without times and places; weights as their bytes."""
    try:
        tensors = load_file(out / "seed-0" / "model.safetensors")
        results = json.loads((out / "results.json").read_text())
        curves = (out / "metrics.csv").read_text()
    except (OSError, ValueError) as error:
        return {}, "", str(error)
    for run in results["runs"]:
        for name in ("seconds", "phases", "activity", "rows"):  # an interrupted epoch is more calls: times and counts
            run.pop(name, None)
    kept = {name: results[name] for name in ("runs", "accuracy", "accuracy_taw", "bwt", "forgetting", "data")}
    bits = {name: tensor.numpy().tobytes() for name, tensor in sorted(tensors.items())}
    return bits, curves, json.dumps(kept, sort_keys=True)


def killed_at_random(drill: Drill, times: int) -> None:
    for _ in range(times):
        out = drill.new_folder()
        process, log = drill.begin(out)
        time.sleep(drill.chance.uniform(0, drill.seconds))
        os.kill(process, signal.SIGKILL)
        drill.judge("kill -9 at a random moment", out, drill.end(process, log), (-9, 0))


def killed_at_points(drill: Drill, times: int) -> None:
    for point in POINTS:
        last = drill.saves + 4  # config.yaml, commands.txt, model, results and curves are written too
        for number in sorted(drill.chance.sample(range(1, last + 1), min(times, last))):
            out = drill.new_folder()
            ended = drill.end(*drill.begin(out, at_point(point, number, kill)))
            drill.judge(f"kill -9 at {point}", out, ended, (-9, 0))


def stopped_by_signals(drill: Drill, times: int) -> None:
    for name, number, code in (("SIGINT", signal.SIGINT, 130), ("SIGTERM", signal.SIGTERM, 143)):
        for _ in range(times):
            out = drill.new_folder()

            def send(number: int = number) -> None:
                os.kill(os.getpid(), number)

            at = drill.chance.randint(3, drill.saves + 2)  # the first are config.yaml and commands.txt
            point = drill.chance.choice(POINTS[:5])
            drill.judge(name, out, drill.end(*drill.begin(out, at_point(point, at, send))), (code, 0))


def disk_errors(drill: Drill, times: int) -> None:
    for name, number in (("disk full", errno.ENOSPC), ("read-only", errno.EROFS), ("input/output error", errno.EIO)):
        for _ in range(times):
            out = drill.new_folder()
            arm = at_point(drill.chance.choice(POINTS[:4]), drill.chance.randint(1, drill.saves + 3), fail(number))
            drill.judge(name, out, drill.end(*drill.begin(out, arm)), (2, 0))


def limits(drill: Drill, times: int) -> None:
    for _ in range(times):
        size = drill.chance.choice((100, 2_000, 10_000, 20_000, 40_000))

        def short_files(size: int = size) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        out = drill.new_folder()
        drill.judge("file-size limit", out, drill.end(*drill.begin(out, short_files)), (2, 0))
        room = drill.chance.choice((0, 1, 4, 16)) << 20

        def little_memory(room: int = room) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + room
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))

        out = drill.new_folder()
        drill.judge("memory limit", out, drill.end(*drill.begin(out, little_memory)), (2, 0))


def removed(drill: Drill, times: int) -> None:
    for _ in range(times):
        at = drill.chance.randint(2, drill.saves + 1)
        out = drill.new_folder()
        arm = at_point("replaced", at, lambda out=out: shutil.rmtree(out))
        drill.judge("folder removed", out, drill.end(*drill.begin(out, arm)), (2,))
        out = drill.new_folder()
        arm = at_point("replaced", at, lambda out=out: (out / ".lock").unlink())
        drill.judge("lock file removed", out, drill.end(*drill.begin(out, arm)), (0, 2))


def two_at_once(drill: Drill, times: int) -> None:
    """The second is refused while the first holds the folder, with its lock file or without."""
    for unlocked in [False, True] * times:
        out, codes = drill.new_folder(), []

        def start_another(out: Path = out, unlocked: bool = unlocked, codes: list[int] = codes) -> None:
            if unlocked:
                (out / ".lock").unlink()
            second = os.fork()
            if second == 0:
                os._exit(command(drill.arguments(out)))
            codes.append(os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]))
            if codes != [2]:
                os._exit(71)

        arm = at_point("replaced", drill.chance.randint(2, drill.saves + 1), start_another)
        ended = drill.end(*drill.begin(out, arm))
        ended.stderr = ""
        drill.judge("two runs in one folder", out, ended, (0,))


def damaged(drill: Drill, times: int) -> None:
    """A newest checkpoint that was cut, changed or exchanged is refused by name; deleting it goes on from the older."""
    other = Drill.__new__(Drill)
    other.__dict__.update(drill.__dict__, options=drill.options | {"--seeds": "1"})
    for kind in ("truncated", "flipped", "swapped", "emptied") * times:
        out = drill.new_folder()
        drill.end(*drill.begin(out, at_point("replaced", drill.saves, kill)))
        files = checkpoint.CheckpointFolder(out / "seed-0" / "checkpoint").files()
        if not files:
            continue
        content, at = files[-1].read_bytes(), drill.chance.random()
        if kind == "truncated":
            files[-1].write_bytes(content[: int(at * len(content))])
        elif kind == "flipped":
            place = int(at * len(content))
            files[-1].write_bytes(content[:place] + bytes([content[place] ^ 1 << drill.chance.randrange(8)]) +
                                  content[place + 1 :])  # fmt: skip
        elif kind == "emptied":
            files[-1].write_bytes(b"")
        else:
            elsewhere = other.new_folder()
            other.end(*other.begin(elsewhere))
            shutil.copy(checkpoint.CheckpointFolder(elsewhere / "seed-1" / "checkpoint").files()[-1], files[-1])
            shutil.rmtree(elsewhere)
        refused = drill.finish(out)
        refused.saved = 0
        files[-1].unlink()
        drill.judge(f"checkpoint {kind}", out, refused, (2,))


FAULTS = (killed_at_random, killed_at_points, stopped_by_signals, disk_errors, limits, removed, two_at_once, damaged)


def table(counts: dict[str, Count]) -> str:
    lines = ["| fault | tried | work lost | wrong results |", "|---|---|---|---|"]
    total = Count(*(sum(getattr(c, f.name) for c in counts.values()) for f in dataclasses.fields(Count)))
    for name, count in [*counts.items(), ("all", total)]:
        lines.append(f"| {name} | {count.tried} | {count.lost} | {count.wrong} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whole", action="store_true", help="every method, every fault several times")
    parser.add_argument("--times", type=int, help="how often each fault is tried; default 1, with --whole 3")
    parser.add_argument("--methods", nargs="+", help="by default ssd, with --whole all")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and places")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data.load("digits")  # the forks find scikit-learn imported
    _native.cpu_module()  # and the native module loaded: a memory limit meets a run, not the start of one
    methods = options.methods or (list(METHODS) if options.whole else ["ssd"])
    times = options.times or (3 if options.whole else 1)
    counts: dict[str, Count] = {}
    notes: list[str] = []
    for method in methods:
        with tempfile.TemporaryDirectory() as root:
            drill = Drill(method, Path(root), random.Random(f"{options.seed} {method}"))
            for fault in FAULTS:
                fault(drill, times)
            notes += drill.notes
            for name, count in drill.counts.items():
                so_far = counts.setdefault(name, Count())
                for field in dataclasses.fields(Count):
                    setattr(so_far, field.name, getattr(so_far, field.name) + getattr(count, field.name))
        if options.whole:
            print(f"{method}: {sum(c.tried for c in drill.counts.values())} faults", file=sys.stderr, flush=True)
    text = table(counts)
    print(text + "".join(note + "\n" for note in notes), end="")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        title = f"# python {' '.join(['tests/drill.py', *sys.argv[1:]])}"
        options.out.write_text(f"{title}\n\n{len(methods)} methods: {', '.join(methods)}.\n\n{text}")
    return 1 if any(c.lost or c.wrong for c in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
