"""The examples as a reader would run them: the package in an environment of its own, the notebook in a kernel."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ssd_train.checkpoint import read_tensors

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIZES = ["--data", "bars.npz", "--method", "prototypes", "--neurons", "60", "--k", "5", "--batch-size", "64"]
RUN = ["run", *SIZES, "--epochs", "2", "--plots", "false"]
# Runs the commands of its argument in one process; without an error each of them returns 0.
DRIVER = """
import json, sys
from ssd_train.cli.main import main
for argv in json.loads(sys.argv[1]):
    if code := main(argv):
        sys.exit(code)
"""


class Environment:
    """A virtual environment over the packages of this one, with the example package installed and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python = folder, folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        packages = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
        place = next((folder / "venv" / "lib").glob("python*/site-packages"))
        # Not as plain lines: the .pth files of these folders count as well, such as that of an editable install.
        (place / "base.pth").write_text("".join(f"import site; site.addsitedir({entry!r})\n" for entry in packages))
        shutil.copytree(EXAMPLES / "prototypes", folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
        install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--prefix"]
        self.run(*install, folder / "venv", folder / "source")
        shutil.move(folder / "source" / "study.py", folder / "study.py")
        shutil.rmtree(folder / "source")
        self.run("-m", "prototypes.bars", "bars.npz")

    def run(self, *arguments: str | Path) -> str:
        """What python prints, without the folder it is started in on its path."""
        done = subprocess.run([self.python, "-P", *arguments], cwd=self.folder, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commands(self, *argvs: list[str]) -> str:
        return self.run("-c", DRIVER, json.dumps(argvs))

    def results(self, out: str) -> dict:
        return json.loads((self.folder / out / "results.json").read_text())


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("examples"))


def test_the_installed_method_runs_in_every_command(environment):
    """`run`, a second seed by `--resume`, `eval`, `report`, `sweep` and `paper --set`, with its own data set."""
    where = environment.run("-c", "import prototypes, ssd_train; print(prototypes.__file__, ssd_train.__file__)")
    assert str(environment.folder / "venv") in where.split()[0] and str(EXAMPLES.parent) not in where.split()[0]
    paper = ["paper", "fig6", "--data", "bars.npz", "--seeds", "0", "--epochs", "2", "--neurons", "60",
             "--workers", "0", "--set", "method=prototypes", "replay=0.5", "batch_size=64", "k=5"]  # fmt: skip
    printed = environment.commands(
        [*RUN, "--replay", "2", "--seeds", "0", "--out", "run"],
        [*RUN, "--replay", "2", "--seeds", "0,1", "--resume", "--out", "run"],
        ["eval", "run"],
        ["report", "run", "--format", "markdown"],
        ["sweep", *SIZES, "--epochs", "1", "--vary", "replay=0,1", "--workers", "0", "--out", "sweep"],
        [*paper, "--out", "paper"],
    )
    found = environment.results("run")
    assert found["method"] == "prototypes" and found["config"]["replay"] == 2 and found["seeds"] == [0, 1]
    assert found["data"]["name"] == "bars" and found["data"]["dim"] == 256
    parts = found["runs"][0]["loss_parts"]
    assert parts[0]["replay"] == 0 < parts[1]["replay"]
    assert parts[1]["loss"] == pytest.approx(parts[1]["ce"] + 2 * parts[1]["replay"], rel=1e-5)
    assert f"{found['accuracy']['mean']:.4f}" in printed
    rows = json.loads((environment.folder / "sweep" / "sweep.json").read_text())["rows"]
    assert sorted(row["settings"]["replay"] for row in rows) == [0, 1]
    runs = [json.loads(p.read_text()) for p in (environment.folder / "paper" / "runs").glob("*/results.json")]
    assert runs and all(run["method"] == "prototypes" and run["config"]["replay"] == 0.5 for run in runs)
    assert "method prototypes" in json.loads((environment.folder / "paper" / "fig6.json").read_text())["title"]


@pytest.mark.slow
def test_a_run_that_was_ended_goes_on(environment):
    """Ended by SIGTERM after its first epochs and resumed: the weights of a run that was not, prototypes included."""
    long = ["run", *SIZES, "--epochs", "12", "--eval-every", "12", "--checkpoint-seconds", "0", "--plots", "false"]
    argv = [environment.python, "-P", "-m", "ssd_train", *long, "--out", "ended"]
    process = subprocess.Popen(argv, cwd=environment.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoint = environment.folder / "ended" / "seed-0" / "checkpoint"
    while process.poll() is None and not (checkpoint.is_dir() and any(checkpoint.iterdir())):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, process.stderr.read().decode()
    environment.commands(["run", "--resume", "--out", "ended"], [*long, "--out", "whole"])
    weights = [read_tensors(environment.folder / out / "seed-0" / "model.safetensors")[0] for out in ("ended", "whole")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray (pip install '.[ray]')")
def test_a_sweep_on_a_local_ray(environment):
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    argv = ["sweep", *SIZES, "--epochs", "1", "--vary", "replay=0,1", "--scheduler", "ray", "--out", "ray"]
    done = subprocess.run([environment.python, "-P", "-m", "ssd_train", *argv], cwd=environment.folder, env=environ,
                          text=True, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads((environment.folder / "ray" / "sweep.json").read_text())["rows"]) == 2


@pytest.mark.slow
def test_the_study_in_python(environment):
    code = "import runpy; own = runpy.run_path('study.py'); print(own['study'](own['bars'](16), (2,), epochs=1).keys())"
    assert environment.run("-c", code) == "dict_keys([2])\n"


@pytest.mark.slow
def test_a_users_code_passes_the_strict_type_check(environment, tmp_path):
    """mypy sees the installed packages; a wrong use in the same script is found."""
    pytest.importorskip("mypy")
    shutil.copytree(EXAMPLES / "prototypes" / "prototypes", tmp_path / "prototypes")
    script = (EXAMPLES / "prototypes" / "study.py").read_text()
    (tmp_path / "study.py").write_text(script)
    (tmp_path / "wrong.py").write_text(script.replace('result.metrics["bwt"]["mean"]', "result.backward_transfer"))
    command = [environment.python, "-P", "-m", "mypy", "--strict", "--no-error-summary"]
    done = subprocess.run([*command, "study.py", "prototypes"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([*command, "wrong.py"], cwd=tmp_path, text=True, capture_output=True)
    assert '"Result" has no attribute "backward_transfer"' in done.stdout


@pytest.mark.slow
def test_the_notebook_runs_and_is_kept_without_its_output(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "first_run.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
    short = [cell for cell in cells if "epochs = 40" in cell.source]
    assert len(short) == 1
    short[0].source = short[0].source.replace("epochs = 40", "epochs = 2")
    nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "SDMLP" in text and "SSD" in text and "backward transfer" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
