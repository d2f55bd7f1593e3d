"""`python -m ssd_train` is the command `ssd-train`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
