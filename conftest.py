"""The suite tests the installed package, never the checkout it is started from."""

from __future__ import annotations

import collections
import functools
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

# Without a GPU the Triton kernels run in Triton's interpreter. It must be chosen before anything imports triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


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


def _interpreter_reason() -> str:
    """Why Triton's interpreter cannot run here; empty when it can."""
    from ssd_kernels import _backend

    return _backend.missing_reason("triton", "topk_linear", torch.device("cpu"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests that take minutes, too")


class Coverage:
    """Which parts of the case tables of ssd_kernels/testing.py the tests of each operation have run, by backend."""

    def __init__(self) -> None:
        from ssd_kernels import testing

        self.used: dict[tuple[str, str], dict[str, set]] = collections.defaultdict(lambda: collections.defaultdict(set))
        self.tables = {"shapes": testing.SHAPES, "values": tuple(testing.VALUES), "dtypes": testing.DTYPES,
                       "layouts": testing.LAYOUTS, "scales": testing.SCALES}  # fmt: skip
        self.test = ("", "")  # file and backend of the test that runs
        make = testing.make

        @functools.wraps(make)
        def recording(*shape: int, **options: object) -> torch.Tensor:
            for table, option, default in (("values", "values", "normal"), ("dtypes", "dtype", torch.float32),
                                           ("layouts", "layout", "contiguous"), ("scales", "scale", 1.0)):  # fmt: skip
                self.used[self.test][table].add(options.get(option, default))
            return make(*shape, **options)

        testing.make = recording  # before any test module imports it

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        file, level = item.nodeid.partition("::")[0], parameters.get("level")
        # Files that compare one backend with the reference themselves.
        alone = f"cpu-{level}" if level else "triton" if "/test_triton_" in file else ""
        self.test = file.replace("test_triton_", "test_"), str(parameters.get("backend", alone))
        self.used[self.test]["shapes"].update(v for v in parameters.values() if type(v).__name__ == "Shape")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        operations: dict[str, dict[str, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
        for (file, backend), used in sorted(self.used.items()):
            if "/ops/" in file and backend and used["shapes"]:
                parts = "  ".join(
                    f"{name} {len(used[name] & set(all_))}/{len(all_)}" for name, all_ in self.tables.items()
                )
                operations[Path(file).stem.removeprefix("test_")][parts].append(backend)
        if not operations:
            return
        terminalreporter.section("case tables: parts that ran, of the parts there are")
        for operation, lines in operations.items():
            for parts, backends in lines.items():
                terminalreporter.write_line(f"{operation:<18} {parts}  {', '.join(backends)}")


def pytest_configure(config: pytest.Config) -> None:
    _require_compiled_package()
    config.pluginmanager.register(Coverage())


def pytest_report_header(config: pytest.Config) -> list[str]:
    import ssd_kernels
    from ssd_kernels import _native

    module, _ = _native.cpu_module()
    level, best = module.simd_level(_native.simd_level()), module.best_simd_level()
    return [
        f"ssd_kernels {ssd_kernels.__version__} from {Path(ssd_kernels.__file__).parent}",
        f"SIMD level: {level} (this processor's best: {best}), threads: {torch.get_num_threads()}, "
        f"torch {torch.__version__}",
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    too_slow = pytest.mark.skip(reason="takes minutes; run with --runslow")
    broken = "" if torch.cuda.is_available() else _interpreter_reason()
    for item in items:
        if broken and "interpreter" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=broken))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if "slow" in item.keywords and not config.getoption("--runslow"):
            item.add_marker(too_slow)
