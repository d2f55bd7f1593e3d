"""Runs on a Ray cluster: one task per run, the same folders and checkpoints as with local processes.

The nodes need this package, and on a shared file system, under the same paths, the driver's current folder, the data
and --out: a run that Ray moves to another node goes on from its last checkpoint. RAY_ADDRESS names the cluster; without
it Ray starts one on this machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import as_dict, from_dict
from ..errors import BadInput
from ..records import Interrupted
from ..run.folder import StopSignals
from ..run.runner import execute

if TYPE_CHECKING:
    from tqdm import tqdm

    from .job import Job

POLL = 0.5  # seconds between looks at a signal


def connect() -> Any:
    """The module ray, connected to the cluster.

    Raises:
        BadInput: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise BadInput("--scheduler: got 'ray', but Ray is not installed: pip install 'ssd-kernels[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = os.environ.get("RAY_ADDRESS", "this machine")
            raise BadInput(f"--scheduler: Ray at {where} cannot be reached ({str(error).splitlines()[0]})") from None
    return ray


def run_on_ray(ray: Any, todo: list[Job], workers: int | None, stop: StopSignals, bar: tqdm) -> None:
    """Trains the jobs. `workers` bounds how many run at a time; None leaves that to the cluster's resources.

    Raises:
        Interrupted: `stop` came true; every running job has saved its state.
        BadInput: a job failed; the message is its own.
    """
    waiting, running, here = list(reversed(todo)), {}, os.getcwd()
    try:
        while (waiting or running) and not stop():
            while waiting and (workers is None or len(running) < workers):
                job = waiting.pop()
                running[_submit(ray, job, here)] = job
            for reference in ray.wait(list(running), timeout=POLL)[0]:
                failure = ray.get(reference)
                job = running.pop(reference)
                if failure is not None:
                    raise BadInput(f"{job.name}: {failure}")
                bar.update()
    finally:
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(list(running), num_returns=len(running))
    if stop():
        raise Interrupted(stop.received)


def _submit(ray: Any, job: Job, here: str) -> Any:
    resources = {"num_cpus": job.config.threads or 1, "num_gpus": int(job.config.device.startswith("cuda"))}
    settings = as_dict(job.config) | {"out": str(Path(here) / job.config.out)}
    return ray.remote(**resources)(_train).remote(settings, here)


def _train(settings: dict[str, Any], here: str) -> str | None:
    """On a node: one run, resumed where it was left. Returns what went wrong, if anything."""
    try:
        os.chdir(here)
    except OSError as error:
        return (
            f"the folder {here} cannot be entered on this node ({error.strerror}); the nodes need a shared file system"
        )
    config = from_dict(settings)
    config.resume = True
    with StopSignals() as stop:  # a cancelled task gets a SIGINT
        try:
            execute(config, ["run", "--resume", "--out", config.out], stop, quiet=True)
        except Interrupted:
            return "interrupted"
        except BadInput as error:
            return str(error)
    return None
