"""A hook of MkDocs: READMEs, public names and the help of the commands become pages of the site.

Each text has one place, and every name in `__all__` has its entry. Links between the READMEs become links between the
pages; links to other files of the repository become plain text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ssd_train
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from ssd_train.cli.main import USAGE, main

import ssd_kernels
from ssd_kernels.__main__ import main as doctor

ROOT = Path(__file__).resolve().parents[1]
OPERATIONS = sorted(path.parent.name for path in ROOT.glob("ssd_kernels/*/reference.py"))
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "csrc/README.md": "native.md",
    "examples/README.md": "examples.md",
    "ssd_kernels/sae/README.md": "sae.md",
    "python/ssd_train/PAPER.md": "paper.md",
    **{f"ssd_kernels/{name}/README.md": f"operations/{name}.md" for name in OPERATIONS},
}
KERNELS = """# ssd_kernels

Operations and modules for networks with Top-K sparse layers.
Letters: B batch, D inputs, R neurons, K winners, C classes, n distilled neurons, T temperature.
"""
TRAIN = """# ssd_train

Trains SDMLP and SSD on class-incremental tasks. The settings of a `TrainConfig` with their defaults are the options of
[`ssd-train run`](commands.md#ssd-train-run).
"""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for entry in config.nav:
        if "Operations" in entry:
            entry["Operations"] = [f"operations/{name}.md" for name in OPERATIONS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        text, images = page_of(source, page)
        files.append(File.generated(config, page, content=text))
        for image in images:
            files.append(File.generated(config, image, abs_src_path=str(ROOT / image)))
    files.append(File.generated(config, "kernels.md", content=interface(ssd_kernels, KERNELS)))
    files.append(File.generated(config, "train.md", content=interface(ssd_train, TRAIN)))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def interface(package: ModuleType, head: str) -> str:
    """One entry for each public name: functions, then classes."""
    members = [getattr(package, name) for name in package.__all__]
    functions = [member for member in members if not isinstance(member, type)]
    classes = [member for member in members if isinstance(member, type)]
    lines = [head]
    for title, group in (("Functions", functions), ("Classes", classes)):
        lines += [f"## {title}", "", *map(entry, group)]
    return "\n".join(lines)


def entry(member: Any) -> str:
    """Its docstring and signature; the fields of a long dataclass are listed elsewhere."""
    lines = [f"::: {member.__module__}.{member.__qualname__}"]
    if dataclasses.is_dataclass(member) and len(dataclasses.fields(member)) > 20:
        lines += ["    options:", "      show_signature: false", "      merge_init_into_class: false"]
    return "\n".join([*lines, ""])


def page_of(source: str, page: str) -> tuple[str, list[str]]:
    """The text of a README with its links turned, and the images that it shows."""
    images = []

    def turned(link: re.Match[str]) -> str:
        bang, text, target, anchor = link.groups("")
        if "://" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if bang:
            images.append(path)
            return f"![{text}]({posixpath.relpath(path, posixpath.dirname(page) or '.')})"
        if path in PAGES:
            return f"[{text}]({posixpath.relpath(PAGES[path], posixpath.dirname(page) or '.')}{anchor})"
        return text

    return LINK.sub(turned, (ROOT / source).read_text()), images


def commands() -> str:
    """The help of every command, as it prints it here."""
    names = re.findall(r"^  ([a-z-]+) ", USAGE, re.MULTILINE)
    parts = ["# Commands", "", "## ssd-train", "", *_fenced(USAGE)]
    for name in names:
        parts += [f"## ssd-train {name}", "", *_fenced(_printed(main, [name, "--help"]))]
    parts += ["## python -m ssd_kernels", "", *_fenced(_printed(doctor, ["--help"]))]
    return "\n".join(parts)


def _printed(command: Callable[[list[str]], int], arguments: list[str]) -> str:
    out = io.StringIO()
    os.environ["COLUMNS"] = "100"  # argparse's width
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        command(arguments)
    if not out.getvalue().strip():
        raise RuntimeError(f"{arguments}: no help was printed")
    return out.getvalue().replace(" \b", "")  # jsonargparse hides a space by a backspace


def _fenced(text: str) -> list[str]:
    return ["```text", text.strip("\n"), "```", ""]
