"""Many runs at once: finished ones are read, interrupted ones resumed, the rest trained, in processes or on Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import yaml
from tqdm import tqdm

from ..config import as_dict
from ..errors import BadInput
from ..records import Interrupted
from ..run.folder import StopSignals
from ..run.runner import execute
from .job import Job
from .ray_cluster import connect, run_on_ray


def run_all(jobs: list[Job], workers: int | None, scheduler: str = "local") -> list[dict[str, Any]]:
    """Results of every job, in order; each distinct job is trained once.

    Args:
        workers: runs at a time; 0 trains in this process; None, with Ray only, as many as the cluster holds.
        scheduler: `local` processes, or `ray`.

    Raises:
        Interrupted: SIGINT or SIGTERM; every running job has saved its state. Its `args[0]` is the signal.
        BadInput: a job failed; the message is its own.
    """
    distinct = {job.folder: job for job in jobs}
    todo = [job for job in distinct.values() if job.finished() is None]
    ray = connect() if scheduler == "ray" and todo else None  # before StopSignals: Ray sets a handler of its own
    with StopSignals() as stop, tqdm(total=len(distinct), initial=len(distinct) - len(todo), unit="run",
                                     disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:  # fmt: skip
        if ray is not None:
            run_on_ray(ray, todo, workers, stop, bar)
        elif workers == 0:
            _run_here(todo, stop, bar)
        else:
            _run_processes(todo, workers, stop, bar)
    return [job.finished() for job in jobs]


def _run_here(todo: list[Job], stop: StopSignals, bar: tqdm) -> None:
    for job in todo:
        bar.set_postfix_str(job.name)
        if stop():
            raise Interrupted(stop.received)
        try:
            execute(job.config, ["run", "--resume", "--out", job.config.out], stop, quiet=True)
        except Interrupted:
            raise Interrupted(stop.received) from None
        bar.update()


def _run_processes(todo: list[Job], workers: int, stop: StopSignals, bar: tqdm) -> None:
    waiting, running = list(reversed(todo)), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers and not stop():
                job = waiting.pop()
                running[_start(job)] = job
            bar.set_postfix_str(", ".join(job.name for job in running.values()))
            time.sleep(0.1)
            for process in [p for p in running if p.poll() is not None]:
                job = running.pop(process)
                if process.returncode == 0:
                    bar.update()
                elif not stop():
                    raise BadInput(f"{job.name}: {_last_line(process)}")
            if stop() and not running:
                break
            if stop():
                _terminate(running)
    finally:
        _terminate(running)
        for process in running:
            process.wait()
    if stop():
        raise Interrupted(stop.received)


def _start(job: Job) -> subprocess.Popen:
    """A process of its own session: a Ctrl-C of the terminal reaches the scheduler alone, which passes it on."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    settings = job.folder.parent / f"{job.name}.yaml"
    settings.write_text(yaml.safe_dump(as_dict(job.config), sort_keys=False))
    log = open(job.folder.parent / f"{job.name}.log", "w+")  # noqa: SIM115 (closed with the process)
    command = [sys.executable, "-m", "ssd_train", "run", "--config", str(settings), "--resume"]
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    process.log = log
    return process


def _terminate(running: dict[subprocess.Popen, Job]) -> None:
    for process in running:
        if process.poll() is None and not getattr(process, "told", False):
            process.told = True  # a second signal would end it before its state is saved
            process.terminate()


def _last_line(process: subprocess.Popen) -> str:
    process.log.seek(0)
    lines = process.log.read().strip().splitlines()
    return lines[-1].removeprefix("ssd-train: error: ") if lines else f"ended with exit code {process.returncode}"
