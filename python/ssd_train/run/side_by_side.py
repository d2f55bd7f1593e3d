"""Seeds of one run side by side: a process each, one thread, the same files as one after another.

`python -m ssd_train.run.side_by_side` is such a process: it reads what to train from its standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from .. import data as datasets
from ..config import TrainConfig, as_dict, from_dict
from ..errors import BadInput, say
from ..records import Interrupted
from ..trainer import Trainer
from .folder import Claim, StopSignals

PAUSE = 0.05  # seconds between looks at the processes


def train_seeds(config: TrainConfig, seeds: list[int], claim: Claim, jobs: int, stop: Callable[[], bool],
                quiet: bool) -> None:  # fmt: skip
    """Trains the seeds, `jobs` at a time, each into its folder of the claimed output folder.

    Raises:
        Interrupted: `stop` came true; every process has saved its state.
        BadInput: a seed failed; the message is its own.
    """
    waiting = list(reversed(seeds))
    running: dict[subprocess.Popen[str], tuple[int, IO[str]]] = {}
    told = False
    with tqdm(total=len(seeds), unit="seed", disable=quiet or not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs and not stop():
                    seed = waiting.pop()
                    process, log = _start(config, seed, claim)
                    running[process] = seed, log
                time.sleep(PAUSE)
                claim.check()
                for process in [p for p in running if p.poll() is not None]:
                    seed, log = running.pop(process)
                    with log:
                        if process.returncode and not stop():
                            raise BadInput(_last_line(log, process.returncode, seed))
                    bar.update()
                if stop():
                    if not told:
                        _terminate(running)
                        told = True
                    if not running:
                        break
        finally:
            if not told:
                _terminate(running)
            for process, (_, log) in running.items():
                process.wait()
                log.close()
    if stop():
        raise Interrupted


def _start(config: TrainConfig, seed: int, claim: Claim) -> tuple[subprocess.Popen[str], IO[str]]:
    """A process of its own session: a Ctrl-C of the terminal reaches this one alone, which passes it on."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
    command = [sys.executable, "-m", "ssd_train.run.side_by_side"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
                               start_new_session=True)  # fmt: skip
    threads = config.threads or 1
    task = {"settings": as_dict(config), "seed": seed, "folder": str(claim.out / f"seed-{seed}"), "threads": threads}
    assert process.stdin is not None
    process.stdin.write(json.dumps(task))
    process.stdin.close()
    return process, log


def _terminate(running: dict[subprocess.Popen[str], Any]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()


def _last_line(log: IO[str], code: int, seed: int) -> str:
    log.seek(0)
    lines = log.read().strip().splitlines()
    return lines[-1] if lines else f"seed {seed}: its process ended with exit code {code}"


def main() -> int:
    """Trains one seed as standard input says. Returns 0, 2 for bad input, 130 / 143 when interrupted."""
    with StopSignals() as stop:
        task = json.load(sys.stdin)
        config = from_dict(task["settings"])
        torch.set_num_threads(task["threads"])
        try:
            data = datasets.load(config.data)
            data = data.held_out(config.validation) if config.validation else data
            Trainer(config, data, task["seed"], Path(task["folder"]), interrupted=stop).fit()
        except Interrupted:
            return 128 + (stop.received or 0)
        except BadInput as error:
            say(" ".join(str(error).split()), file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
