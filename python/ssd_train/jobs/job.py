"""One run of one seed as a job: a folder whose name tells its settings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import FREE_ON_RESUME, TrainConfig, as_dict, from_dict
from ..options import reaching
from ..run import results
from ..validate import check


@dataclass(frozen=True)
class Job:
    """One run of one seed in a folder whose name tells its settings."""

    config: TrainConfig
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def finished(self) -> dict[str, Any] | None:
        """The run's results, or None when there are none yet."""
        return results.read(self.folder) if (self.folder / "results.json").exists() else None


def make_job(settings: dict[str, Any], seed: int, root: Path, threads: int | None,
             methods: Sequence[str] = ()) -> Job:  # fmt: skip
    """The job that trains `settings` with one seed. The same settings always get the same folder.

    Args:
        methods: those of the other jobs: what only they know is left out here.

    Raises:
        BadInput: a setting that does not exist or is out of range.
    """
    settings = settings | {"seeds": str(seed), "resume": False, "overwrite": False, "threads": threads, "jobs": 1}
    own = [settings.get("method", TrainConfig.method)]
    config = from_dict(reaching(settings, own, "setting", methods))
    check(config)
    fixed = {k: v for k, v in as_dict(config).items() if k not in FREE_ON_RESUME}
    digest = hashlib.sha256(json.dumps([fixed, seed], sort_keys=True).encode()).hexdigest()[:10]
    method = re.sub(r"[^A-Za-z0-9_+-]+", "-", config.method)
    kind = f"{method}-{config.model}" if config.model else method
    name = f"{kind}-R{config.neurons}-K{config.k}-e{config.epochs}-seed{seed}-{digest}"
    config.out, config.resume = str(root / name), True
    return Job(config, root / name)
