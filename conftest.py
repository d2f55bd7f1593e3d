"""The suite tests the installed package, never the checkout it is started from."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent

# `python -m pytest` puts the current folder first, where ssd_kernels/ has no compiled modules. Child processes of the
# tests obey the variable.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, Path.cwd())]
os.environ["PYTHONSAFEPATH"] = "1"


def _require_compiled_package() -> None:
    """Stops the run where the tests would have nothing compiled to test: that is a failure, not a skip."""
    advice = "install it first: pip install -c constraints.txt '.[test]'"
    for package in ("ssd_kernels", "ssd_train"):
        if importlib.util.find_spec(package) is None:
            raise pytest.UsageError(f"{package} is not installed; {advice}")
    from ssd_kernels import _native

    module, reason = _native.cpu_module()
    if module is None:
        raise pytest.UsageError(f"the native CPU module of {_native.__file__} cannot be loaded ({reason}); {advice}")
    try:
        module.simd_level(_native.simd_level())
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config: pytest.Config) -> None:
    _require_compiled_package()


def pytest_report_header(config: pytest.Config) -> list[str]:
    import ssd_kernels
    from ssd_kernels import _native, testing

    module, _ = _native.cpu_module()
    level, best = module.simd_level(_native.simd_level()), module.best_simd_level()
    return [
        f"ssd_kernels {ssd_kernels.__version__} from {Path(ssd_kernels.__file__).parent}",
        f"SIMD level: {level} (this processor's best: {best}), threads: {torch.get_num_threads()}, "
        f"torch {torch.__version__}",
        f"case tables: {len(testing.SHAPES)} shapes, {len(testing.VALUES)} kinds of values, {len(testing.DTYPES)} "
        f"dtypes, {len(testing.LAYOUTS)} layouts, {len(testing.SCALES)} scales, SIMD levels "
        f"{', '.join(testing.simd_levels())}",
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    too_slow = pytest.mark.skip(reason="takes minutes; run with --runslow")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if "slow" in item.keywords and not config.getoption("--runslow"):
            item.add_marker(too_slow)
