"""Runs stopped twice by SIGINT or SIGTERM and resumed: the weights are those of the undisturbed run, bit for bit.

    python tests/resumed.py                                five pairs of moments for each of two commands
    python tests/resumed.py --pairs 2 --epochs 10          a small one
    python tests/resumed.py --out results/resumed.md

The moments are shares of the processor time that the undisturbed run took, and are not chosen with an eye on where the
run is then. A run that ends before its signal comes counts as not stopped, and the pair is tried again, earlier.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from ssd_train import data
from ssd_train.__main__ import main as command

COMMANDS = {
    "autograd": ["--method", "finetune"],
    "fused": ["--method", "finetune", "--model", "sdmlp", "--engine", "fused"],
}
OPTIONS = ["--data", "digits", "--neurons", "2000", "--k", "10", "--momentum", ".9", "--gaba-switch", "none",
           "--plots", "false", "--threads", "1", "--jobs", "1"]  # fmt: skip
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def run(out: Path, options: list[str], number: int = 0, after: float = 0.0) -> tuple[int, float]:
    """Exit code and processor seconds of the command in a fork that gets signal `number` after `after` of them."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            if number:
                signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), number))
                signal.setitimer(signal.ITIMER_PROF, after)
            code = command(["run", *OPTIONS, *options, "--out", str(out), "--resume"])
        finally:
            os._exit(code)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = os.waitpid(process, 0)[1]
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    return os.waitstatus_to_exitcode(status), used


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "seed-0" / "model.safetensors")


def stopped_twice(out: Path, options: list[str], shares: list[float], seconds: float, number: int) -> list[float]:
    """Runs up to two signals, then to the end; the shares of the undisturbed run's time at which they came."""
    came: list[float] = []
    for share in shares:
        code, used = run(out, options, number, share * seconds)
        if code == 0:
            return came
        assert code == CODES[signal.Signals(number)], f"exit code {code}"
        came.append(used / seconds)
    code, _ = run(out, options)
    assert code == 0, f"exit code {code}"
    return came


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", choices=COMMANDS)
    parser.add_argument("--out", type=Path, help="a file for the table, added to what it holds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data.load("digits")  # the forks find scikit-learn imported
    lines, wrong = [], 0
    for name in [options.only] if options.only else COMMANDS:
        given = [*COMMANDS[name], "--epochs", str(options.epochs)]
        chance = random.Random(f"{options.seed} {name}")
        with tempfile.TemporaryDirectory() as root:
            code, seconds = run(Path(root, "whole"), given)
            assert code == 0, f"the undisturbed run ended with {code}"
            whole = weights(Path(root, "whole"))
            for pair in range(options.pairs):
                number, longest, came = (signal.SIGINT, signal.SIGTERM)[pair % 2], 0.9, []
                while len(came) < 2:
                    out = Path(root, "parts")
                    shutil.rmtree(out, ignore_errors=True)
                    first = chance.uniform(0.02, 0.6 * longest)
                    shares = [first, chance.uniform(0.05, longest - first)]
                    came, longest = stopped_twice(out, given, shares, seconds, number), 0.8 * longest
                resumed = weights(out)
                same = whole.keys() == resumed.keys() and all(torch.equal(whole[n], resumed[n]) for n in whole)
                wrong += not same
                shares_text = " and ".join(f"{share:.0%}" for share in came)
                lines.append(f"| {name} | {number.name} | {shares_text} | {'torch.equal' if same else 'DIFFERENT'} |")
                print(lines[-1], flush=True)
    if options.out:
        head = (
            ""
            if options.out.exists()
            else "| engine | signal | processor time before each | weights |\n|---|---|---|---|\n"
        )
        with options.out.open("a") as file:
            file.write(head + "".join(line + "\n" for line in lines))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
