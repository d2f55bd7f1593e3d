"""What a user meets first: the import, the doctor, what is built and what is shipped."""

from __future__ import annotations

import doctest
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import ssd_train.__main__
import torch

import ssd_kernels
from ssd_kernels import __main__ as doctor
from ssd_kernels import _backend, _native

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ssd_kernels.__file__).resolve().parent

IMPORT_PROBE = """
import json, sys, torch
started = []
sys.addaudithook(lambda event, args: started.append(event) if event in
                 ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork") else None)
found = {}
for package in ("ssd_kernels", "ssd_train"):
    before = set(sys.modules)
    __import__(package)
    found[package] = sorted(set(sys.modules) - before - sys.stdlib_module_names)
print(json.dumps({"processes": started, **found}))
"""


def run_python(*args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """A fresh interpreter that does not see the current folder."""
    return subprocess.run([sys.executable, "-P", *args], env={**os.environ, **(env or {})}, cwd=cwd, text=True,
                          capture_output=True, timeout=600)  # fmt: skip


@pytest.fixture
def without_native(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that imports a copy of the package from which the native modules are gone."""
    shutil.copytree(PACKAGE, tmp_path / "ssd_kernels", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    # The finder of an editable install would fetch the missing modules from the checkout.
    hide = "sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, '__name__', '') != '_EditableFinder']"
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{hide}\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_import_is_light_and_builds_nothing():
    """What an import takes beyond torch's is the modules that it loads: own ones, few, and nobody else's."""
    result = run_python("-c", IMPORT_PROBE)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert not found["processes"], "importing started processes"
    kernels = [name for name in found["ssd_kernels"] if not name.startswith("ssd_kernels")]
    assert not [name for name in kernels if name.partition(".")[0] not in sys.stdlib_module_names]
    assert not [name for name in found["ssd_kernels"] if re.search(r"triton|\.testing|\.sae|__main__|_cuda", name)]
    assert len(found["ssd_kernels"]) < 80
    train = [name for name in found["ssd_train"] if name.partition(".")[0] not in sys.stdlib_module_names]
    assert not [name for name in train if not name.startswith("ssd_train")]
    assert len(train) < 5, "the names of ssd_train are imported when they are used"


def test_torch_and_numpy_are_all_that_an_installation_needs():
    plain, extras = set(), {}
    for requirement in importlib.metadata.requires("ssd-kernels"):
        name = re.match(r"[\w.-]+(\[\w+\])?", requirement)[0]
        extra = re.search(r"extra == ['\"](\w+)", requirement)
        (extras.setdefault(extra[1], set()) if extra else plain).add(name)
    assert plain == {"torch", "numpy"}
    assert set(extras) == {"train", "test", "dev", "bench", "docs", "triton", "ray", "tensorboard"}
    assert "ssd-kernels[train]" in extras["test"] & extras["ray"] & extras["tensorboard"]
    installed = importlib.metadata.packages_distributions()
    assert {installed[name][0].lower() for name in ssd_train.__main__.MODULES} == {n.lower() for n in extras["train"]}


def test_the_command_without_its_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert ssd_train.__main__.main() == 2
    assert capsys.readouterr().err == (
        "ssd-train: error: not installed: jsonargparse, rich; run: pip install 'ssd-kernels[train]'\n"
    )


def test_import_works_without_the_extra():
    block = f"import sys; sys.modules.update(dict.fromkeys({ssd_train.__main__.MODULES}))"
    result = run_python("-c", f"{block}; import ssd_kernels, ssd_train.model, ssd_train.metrics.accuracy")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ssd_kernels.__all__)
def test_public_names_are_documented_and_their_examples_run(name):
    documented = getattr(ssd_kernels, name)
    assert documented.__doc__, f"ssd_kernels.{name} has no docstring"
    names = {"torch": torch, "ssd_kernels": ssd_kernels, **vars(ssd_kernels)}
    example = doctest.DocTestParser().get_doctest(documented.__doc__, names, name, None, 0)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.append)
    assert not report, "".join(report)


def test_import_works_without_native_modules(without_native, tmp_path):
    result = run_python("-c", "import ssd_kernels; print(ssd_kernels.__file__)", env=without_native)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path))


def test_missing_native_module_is_one_clear_sentence(without_native):
    code = """
import torch
from ssd_kernels import _backend
try:
    _backend.resolve("cpu", "topk_linear", torch.device("cpu"))
except ValueError as error:
    print(error)
print(_backend.resolve("auto", "topk_linear", torch.device("cpu")))
"""
    result = run_python("-c", code, env=without_native)
    assert result.returncode == 0, result.stderr
    sentence, auto = result.stdout.splitlines()
    assert sentence.startswith("backend='cpu' cannot run topk_linear: the native CPU module is not loaded (")
    assert auto == "reference"


def test_auto_warns_once_that_it_takes_the_reference(without_native, tmp_path):
    code = """
import torch
import ssd_kernels
for _ in range(2):
    ssd_kernels.topk_linear(torch.rand(2, 3), torch.rand(4, 3), 1)
    ssd_kernels.normalize_inputs(torch.rand(2, 3))
"""
    broken = tmp_path / "ssd_kernels" / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    for content, reason in ((None, "No module named"), (b"not a module", "ImportError")):
        if content is not None:
            broken.write_bytes(content)
        loud = run_python("-W", "always", "-c", code, env=without_native)
        assert loud.returncode == 0, loud.stderr
        assert loud.stderr.count("RuntimeWarning: ssd_kernels: the native CPU module is not loaded") == 1, loud.stderr
        assert reason in loud.stderr
    quiet = run_python("-W", "error", "-c", code, env={**without_native, "SSD_BACKEND": "reference"})
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_doctor_says_what_runs():
    result = run_python("-m", "ssd_kernels", env={"SSD_SIMD": "generic"})
    assert result.returncode == 0, result.stderr
    module, _ = _native.cpu_module()
    assert f"generic  (set by SSD_SIMD; the best of this processor is {module.best_simd_level()})" in result.stdout
    assert f"torch        {torch.__version__}" in result.stdout
    for op in _backend.OPERATIONS:
        assert re.search(rf"{op} +auto = {_backend.resolve('auto', op, torch.device('cpu'))}", result.stdout)


def test_doctor_as_json(monkeypatch, capsys):
    monkeypatch.setenv("SSD_SIMD", "generic")
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["torch"]) == (ssd_kernels.__version__, torch.__version__)
    assert report["simd"] == "generic"
    assert report["modules"]["_cpu"] == {"file": _native.cpu_module()[0].__file__, "reason": None}
    assert tuple(report["operations"]) == _backend.OPERATIONS
    cpu = torch.device("cpu")
    for op, found in report["operations"].items():
        assert found["backends"]["reference"] is None and found["backends"]["cpu"] is None
        assert tuple(found["backends"]) == _backend.BACKENDS
        if not torch.cuda.is_available():
            assert found["auto"] == _backend.resolve("auto", op, cpu)
            assert found["backends"]["cuda"] == _backend.missing_reason("cuda", op, cpu)


def test_doctor_as_json_without_native_modules(without_native):
    report = json.loads(run_python("-m", "ssd_kernels", "--json", env=without_native).stdout)
    assert report["simd"] is None and "No module named 'ssd_kernels._cpu'" in report["modules"]["_cpu"]["reason"]
    assert "native CPU module is not loaded" in report["operations"]["topk_linear"]["backends"]["cpu"]


def test_doctor_refuses_unknown_options_and_names_of_backends(monkeypatch):
    with pytest.raises(SystemExit, match="2"):
        doctor.main(["--jso"])
    monkeypatch.setenv("SSD_BACKEND", "fpga")
    assert doctor.report()["operations"]["topk_linear"]["auto"] is None


def test_doctor_into_a_closed_pipe():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-P", "-m", "ssd_kernels"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_operation_is_listed():
    assert set(_backend.OPERATIONS) == {path.parent.name for path in PACKAGE.glob("*/reference.py")}


def test_doctor_in_a_bare_checkout_tells_of_the_installation(tmp_path):
    # The current folder comes first on the path of `python -m`: sources without compiled modules must not be reported.
    shutil.copytree(PACKAGE, tmp_path / "ssd_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "ssd_kernels"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) not in done.stdout, done.stdout
    assert "not built: ModuleNotFoundError" not in done.stdout, done.stdout


def test_doctor_without_native_modules(without_native):
    result = run_python("-m", "ssd_kernels", env=without_native)
    assert result.returncode == 0, result.stderr
    assert re.search(r"_cpu +not built: .*No module named 'ssd_kernels._cpu'", result.stdout)
    assert re.search(r"topk_linear +auto = reference", result.stdout)
    assert "not cpu: the native CPU module is not loaded" in result.stdout


def test_doctor_reports_a_wrong_simd_level():
    result = run_python("-m", "ssd_kernels", env={"SSD_SIMD": "sse9"})
    assert result.returncode == 0, result.stderr
    assert "SSD_SIMD=sse9: allowed are generic, avx2, avx512, avx512bf16" in result.stdout


def test_unknown_backend_names_what_is_allowed():
    with pytest.raises(ValueError, match=r"backend='fpga' cannot run topk_linear.*allowed: auto, reference, cpu"):
        _backend.resolve("fpga", "topk_linear", torch.device("cpu"))


# ---- The binary.


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="checks x86 instructions")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
def test_only_the_avx_levels_contain_avx_instructions():
    """Every function outside namespaces avx2, avx512 and avx512bf16, so all that SSD_SIMD=generic can reach, is free of
    VEX and EVEX instructions: an inline function compiled for AVX must not have been linked into the plain path."""
    module, _ = _native.cpu_module()
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", module.__file__], text=True, check=True,
                             stdout=subprocess.PIPE).stdout  # fmt: skip
    level = re.compile("4avx2|6avx512|10avx512bf16")  # length-prefixed, as C++ mangles a namespace
    plain_kernels, avx_kernels, found = 0, 0, {}
    name = ""
    for line in listing.splitlines():
        if line.endswith(">:"):
            name = line[line.index("<") + 1 : -2]
            plain_kernels += "7generic" in name
            avx_kernels += bool(level.search(name))
        elif not level.search(name) and (instruction := re.match(r"\s+[0-9a-f]+:\s+(v(?!err|erw|mcall)\w+)", line)):
            found.setdefault(name, instruction[1])
    assert plain_kernels and avx_kernels, "the module has no symbols to check"
    assert not found


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
@pytest.mark.skipif(platform.system() != "Linux", reason="looks at ELF")
def test_the_native_module_needs_no_library_of_this_machine():
    """What a manylinux wheel may need of its system, and the OpenMP runtime, which is torch's when torch is loaded."""
    module, _ = _native.cpu_module()
    header = subprocess.run(["objdump", "-p", module.__file__], text=True, check=True, stdout=subprocess.PIPE).stdout
    needed = set(re.findall(r"NEEDED +(\S+)", header))
    system = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libpthread.so.0", "libdl.so.2"}
    assert not {name for name in needed - system if not name.startswith("ld-linux")} - {"libgomp.so.1"}
    assert not re.search(r"RPATH|RUNPATH", header)


def build_wheel(source: Path, out: Path, **env: str) -> subprocess.CompletedProcess:
    """Builds a wheel with the tools of this environment: no download, torch is not asked for."""
    out.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    return run_python("-c", code, cwd=source, env=env)


@pytest.fixture(scope="session")
def clean_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows, as a clean clone would have them."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tree = tmp_path_factory.mktemp("clean") / "tree"
    for name in tracked_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    return tree


def tracked_files() -> list[str]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, check=True, stdout=subprocess.PIPE).stdout
    return [name for name in names.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="session")
def sdist(clean_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    out = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(out)!r}))"
    result = run_python("-c", code, cwd=clean_tree)
    assert result.returncode == 0, result.stderr
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    return next(path for path in out.iterdir() if path.is_dir())


def test_sdist_contains_every_tracked_file(sdist):
    missing = [name for name in tracked_files() if not (sdist / name).exists()]
    assert missing in ([], [".gitignore"])


@pytest.mark.slow
def test_wheel_from_the_sdist_is_complete(sdist, tmp_path):
    stale = sdist / "build" / f"lib.linux-{platform.machine()}-cpython-311" / "ssd_kernels" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    result = build_wheel(sdist, tmp_path / "wheel", SSD_CUDA="0")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    wheel = next((tmp_path / "wheel").glob("*.whl"))
    assert not wheel.name.endswith("none-any.whl"), "a wheel with native modules is tied to a platform"
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert not (installed / "ssd_kernels" / "stale.py").exists()
    assert len(list((installed / "ssd_kernels").glob("_cpu.*.so"))) == 1
    assert not list(installed.rglob("_cuda*.so"))
    files = re.compile(r"ssd_kernels/.*\.(pyi?|md|typed)$|python/ssd_train/.*\.(py|md|yaml|json|typed)$")
    shipped = [name for name in tracked_files() if files.match(name)]
    missing = [name for name in shipped if not (installed / name.removeprefix("python/")).exists()]
    assert not missing
    doctor = run_python("-m", "ssd_kernels", env={"PYTHONPATH": str(installed)})
    assert f"_cpu   {installed}" in doctor.stdout, doctor.stdout + doctor.stderr


def test_cuda_asked_for_but_absent_is_a_clear_error(clean_tree, tmp_path):
    result = build_wheel(clean_tree, tmp_path, SSD_CUDA="1", CUDACXX="/nonexistent/nvcc")
    assert result.returncode != 0
    assert "SSD_CUDA=1, but no CUDA compiler was found (set CUDACXX or PATH)" in result.stdout
    assert "Traceback" not in result.stdout
    assert not list(tmp_path.glob("*.whl"))
    assert "SSD_CUDA='2': allowed are 0, 1 or unset" in build_wheel(clean_tree, tmp_path, SSD_CUDA="2").stderr


@pytest.mark.gpu
def test_cuda_module_runs():
    module, reason = _native.cuda_module()
    assert module is not None, reason
    x = torch.randn(33, 257, device="cuda")
    norms = torch.full((33,), float("nan"), device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    module.row_norms(
        dtype=0, x=x.data_ptr(), rows=33, cols=257, stride=x.stride(0), inverse=False, norms=norms.data_ptr(),
        device=x.device.index, stream=stream,
    )  # fmt: skip
    torch.testing.assert_close(norms, x.norm(dim=1))
