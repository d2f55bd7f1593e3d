"""What type checkers see: stubs of the native modules, the markers, a user's script and the public modules."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssd_kernels
from ssd_kernels import _native

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ssd_kernels.__file__).parent


def native_stub():
    spec = importlib.util.spec_from_file_location("native_stub", ROOT / "tests" / "native_stub.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stub_is_that_of_the_native_module():
    written = (ROOT / "ssd_kernels" / "_cpu.pyi").read_text()
    assert written == native_stub().stub(_native.cpu_module()[0]), "run: python tests/native_stub.py _cpu"


def test_the_stub_of_the_cuda_module_has_the_functions_of_its_bindings():
    """Names and keywords, read from the source: the module itself may not be built here."""
    source = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "bindings").glob("cuda*.cpp")))
    calls = re.findall(r'm\.def\(\s*"(\w+)"([^;]*);', source)
    bound = {name: re.findall(r'arg\("(\w+)"\)', rest) for name, rest in calls}
    tree = ast.parse((ROOT / "ssd_kernels" / "_cuda.pyi").read_text())
    functions = [node.args for node in tree.body if isinstance(node, ast.FunctionDef)]
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    stub = {name: [a.arg for a in (*args.args, *args.kwonlyargs)] for name, args in zip(names, functions)}
    assert bound and stub == bound, "run: python tests/native_stub.py _cuda"


@pytest.mark.slow
def test_the_stub_of_the_cuda_module_is_that_of_its_bindings():
    """In a process of its own: the tests of the CUDA backend load another module of this name into this one."""
    command = [sys.executable, ROOT / "tests" / "native_stub.py", "_cuda", "--print"]
    written = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (ROOT / "ssd_kernels" / "_cuda.pyi").read_text() == written


@pytest.mark.parametrize("package", ["ssd_kernels", "ssd_train"])
def test_both_packages_are_marked_as_typed(package):
    assert (Path(importlib.import_module(package).__file__).parent / "py.typed").exists()


def test_the_stubs_are_installed():
    assert {path.name for path in PACKAGE.glob("*.pyi")} >= {"_cpu.pyi", "_cuda.pyi"}


# What a user may write; every line that must be refused says so.
SCRIPT = """
import torch
from torch import Tensor

import ssd_kernels
import ssd_train
from ssd_kernels import Rows, SDMLPEngine, SparseTopKLinear, TopK
from ssd_train import Batch, Loss, Method, TaskContext, TrainConfig

x, weight = torch.randn(4, 8), torch.randn(16, 8)
top: TopK = ssd_kernels.topk_linear(x, weight, 2, activation="relu", backend="auto")
values: Tensor = top.values
dense: Tensor = ssd_kernels.gaba_linear(x, weight, 2, torch.ones(16))
rows: Rows = ssd_kernels.gaba_linear(x, weight, 2, torch.ones(16), output="rows")
decoded: Tensor = ssd_kernels.sparse_linear(rows, torch.randn(3, 16))
loss: Tensor = ssd_kernels.distill_loss(decoded, torch.zeros(4, dtype=torch.int64), kl="reverse").loss
model = torch.nn.Sequential(SparseTopKLinear(8, 16, k=2, output="dense"))
optimizer = ssd_kernels.SparseSGD(model.parameters(), lr=0.1)
optimizer.step()
norm: Tensor = ssd_kernels.clip_grad_norm_(model.parameters(), 1.0)
counts: Tensor = ssd_kernels.activation_counts(rows, 16)
engine = SDMLPEngine(weight, torch.randn(3, 16), counts, k=2, gaba_switch=None, scan="exhaustive")
loss_of_epoch: float = engine.train_epoch(x, counts[:4], counts[:4]).loss


class Mine(Method):
    def before_task(self, context: TaskContext) -> None:
        self.stage: int = context.stage

result: ssd_train.Result = ssd_train.train(TrainConfig(method="sdmlp", neurons=100, k=5, epochs=1))
accuracy: float = result.accuracy_matrix[0, -1].mean()
logits: Tensor = ssd_train.load_model("model.safetensors")(x).logits

ssd_train.train("digits")  # refused
ssd_kernels.topk_linear(x, weight, 2, activation="gelu")  # refused
ssd_kernels.gaba_linear(x, weight, 2, torch.ones(16)).offsets  # refused
SparseTopKLinear(8, 16, k="2")  # refused
"""


def mypy(*arguments: str, cwd: Path) -> list[str]:
    """Its complaints, one a line."""
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-P", "-m", "mypy", "--no-error-summary", *arguments], cwd=cwd, text=True,
                          capture_output=True)  # fmt: skip
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_users_script_is_checked_strictly(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    found = mypy("--strict", "script.py", cwd=tmp_path)
    lines = [int(complaint.split(":")[1]) for complaint in found if ": error:" in complaint]
    refused = [number for number, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# refused")]
    assert lines == refused, "\n".join(found)


@pytest.mark.slow
def test_the_packages_pass_the_configured_check():
    assert not mypy(cwd=ROOT)
