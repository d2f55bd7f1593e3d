"""What importing each package costs beyond torch: milliseconds in fresh processes that have imported torch.

    python benchmarks/import_time.py [--runs 10]

`ssd_train` imports its names when they are first used; `ssd_train.train` is the import of all that a run needs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

IMPORTS = {
    "ssd_kernels": "import ssd_kernels",
    "ssd_train": "import ssd_train",
    "both": "import ssd_kernels, ssd_train",
    "ssd_train.train": "from ssd_train import train",
}
PROBE = "import time, torch; begin = time.perf_counter(); {}; print((time.perf_counter() - begin) * 1e3)"


def milliseconds(statement: str) -> float:
    """One import in a fresh process that does not see the current folder."""
    command = [sys.executable, "-P", "-c", PROBE.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="fresh processes per import")
    runs = parser.parse_args().runs
    milliseconds("import ssd_kernels, ssd_train")  # the files are read once, and compiled where they were not
    for name, statement in IMPORTS.items():
        times = [milliseconds(statement) for _ in range(runs)]
        print(f"{name:16} median {statistics.median(times):6.1f} ms, {min(times):.1f} .. {max(times):.1f}")


if __name__ == "__main__":
    main()
