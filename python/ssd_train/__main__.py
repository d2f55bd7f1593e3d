"""`python -m ssd_train` is the command `ssd-train`."""

import importlib.util
import sys

# What the extra `train` installs, by the names that are imported.
MODULES = ("filelock", "jsonargparse", "matplotlib", "PIL", "rich", "safetensors", "sklearn", "tqdm", "yaml")


def main() -> int:
    """Runs the command; where the extra `train` is missing, one line says what to install."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"ssd-train: error: not installed: {', '.join(missing)}; run: pip install 'ssd-kernels[train]'",
              file=sys.stderr)  # fmt: skip
        return 2
    from .cli.main import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
