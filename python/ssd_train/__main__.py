"""The command `ssd-train`, also as `python -m ssd_train`; it answers signals before torch is imported."""

from __future__ import annotations

import importlib.util
import logging
import signal
import sys
import warnings

from .cli.failures import leave_at_once, raise_terminated, report
from .errors import BadInput
from .sizes import check_address_space

# What the extra `train` installs, by the names that are imported.
MODULES = ("filelock", "jsonargparse", "matplotlib", "PIL", "rich", "safetensors", "sklearn", "tqdm", "yaml")


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; whatever goes wrong is one line on stderr."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave_at_once)
    try:
        check_address_space()
        if missing := [name for name in MODULES if importlib.util.find_spec(name) is None]:
            raise BadInput(f"not installed: {', '.join(missing)}; run: pip install 'ssd-kernels[train]'")
        if not sys.flags.dev_mode:
            warnings.simplefilter("ignore")  # stderr holds one line, from us
            logging.lastResort = None
        from .cli.main import main as command

        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, raise_terminated)
        code = command(argv)
        sys.stdout.flush()
        return code
    except SystemExit:
        raise
    except BaseException as error:
        return report(error)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
