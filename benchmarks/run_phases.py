"""The tables of a whole run by phase: of runs of ssd-train with the fused engine, from their results.json.

ssd-train run --data cifar10_convmixer.safetensors --method ssd --neurons 10000 --k 10 --epochs 2000 --out runs/ssd
python benchmarks/run_phases.py runs/ssd [runs/sdmlp ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def tables(folder: Path) -> str:
    """Steps and seconds by how many neurons were active, and seconds by phase, of every run in the folder."""
    lines = []
    for number, run in enumerate(json.loads((folder / "results.json").read_text())["runs"]):
        seconds = run["seconds"]
        lines += [
            f"{folder}, run {number}: {seconds['total']:.1f} s, of which training {seconds['train']:.1f} and "
            f"evaluation {seconds['eval']:.1f}; accuracy {run['accuracy']:.4f}",
            "",
            "| active neurons per row | steps | seconds | ms a step |",
            "|---|---|---|---|",
        ]
        for kind, part in run["activity"].items():
            each = part["seconds"] / max(part["steps"], 1) * 1e3
            lines.append(f"| {kind} | {part['steps']:.0f} | {part['seconds']:.1f} | {each:.2f} |")
        phases = {phase: value for phase, value in run["phases"].items() if value > 0}
        whole = sum(phases.values())
        lines += ["", "| phase | seconds | share |", "|---|---|---|"]
        for phase, value in sorted(phases.items(), key=lambda item: -item[1]):
            lines.append(f"| {phase} | {value:.1f} | {value / whole:.0%} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="+", help="folders of runs")
    for folder in parser.parse_args().folder:
        print(tables(folder))


if __name__ == "__main__":
    main()
