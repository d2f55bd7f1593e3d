"""Tables of benchmark results: in the terminal, as JSON, and as Markdown from that JSON.

    python benchmarks/report.py benchmarks/results/*.json
    python benchmarks/report.py .benchmarks          pytest-benchmark's runs: a table and a plot per group, by commit

The page goes to FOLDER/report/index.html.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

from measure import Timing


@dataclasses.dataclass
class Table:
    """One comparison: seconds per contender, the baseline's name, and the ratios that are asked for."""

    title: str
    baseline: str
    timings: dict[str, Timing]
    targets: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    by: str = "median"  # what ratios are of: "median" or "mean"

    def ratio(self, name: str, baseline: str | None = None) -> float:
        """How many times faster than the baseline."""
        return getattr(self.timings[baseline or self.baseline], self.by) / getattr(self.timings[name], self.by)

    def missed(self) -> list[str]:
        """The targets, (baseline, ratio) per contender, that were not reached."""
        return [
            f"{self.title}: {name}: {self.ratio(name, baseline):.2f}x of {baseline}, asked for {wanted:g}x"
            for name, (baseline, wanted) in self.targets.items()
            if self.ratio(name, baseline) < wanted
        ]

    def rows(self) -> list[list[str]]:
        """Contender, median, quartiles, mean, ratio to the baseline, target."""
        rows = [["contender", "median ms", "quartiles ms", "mean ms", f"speed vs {self.baseline}", "target"]]
        for name, timing in self.timings.items():
            baseline, wanted = self.targets.get(name, ("", 0.0))
            reached = self.ratio(name, baseline) >= wanted if baseline else True
            of = f" of {baseline}" if baseline != self.baseline else ""
            rows.append(
                [
                    name,
                    f"{timing.median * 1e3:.3f}",
                    f"{timing.low * 1e3:.3f} - {timing.high * 1e3:.3f}",
                    "" if timing.mean is None else f"{timing.mean * 1e3:.3f}",
                    f"{self.ratio(name):.2f}x",
                    f">= {wanted:g}x{of}: {'met' if reached else 'MISSED'}" if baseline else "",
                ]
            )
        return rows

    def text(self) -> str:
        """Aligned columns."""
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return "\n".join([self.title, *lines, *self.notes])

    def markdown(self) -> str:
        """A Markdown table."""
        head, *rows = self.rows()
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        return "\n".join([f"### {self.title}", *lines, *self.notes, ""])


def save(folder: Path, environment: dict, tables: list[Table]) -> Path:
    """Writes <processor>-<commit>.json; tables of other benchmarks in the same file are kept."""
    machine = re.sub(r"[^a-z0-9]+", "-", f"{environment['cpu']}-{environment['device']}".lower()).strip("-")
    path = folder / f"{machine}-{environment['commit'] or 'unknown'}.json"
    kept = [Table(**table) for table in json.loads(path.read_text())["tables"]] if path.exists() else []
    titles = {table.title for table in tables}
    merged = [*(table for table in kept if table.title not in titles), *tables]
    folder.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment, "tables": [dataclasses.asdict(table) for table in merged]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def load(path: Path) -> tuple[dict, list[Table]]:
    """The environment and the tables of a results file."""
    content = json.loads(path.read_text())
    tables = [
        Table(**{**table, "timings": {name: Timing(**timing) for name, timing in table["timings"].items()}})
        for table in content["tables"]
    ]
    return content["environment"], tables


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if Path(name).is_dir():
            import pages

            print(f"written: {pages.write(Path(name), Path(name) / 'report')}")
            continue
        environment, tables = load(Path(name))
        print(f"## {name}\n")
        print(", ".join(f"{key} {value}" for key, value in environment.items()), end="\n\n")
        print("\n".join(table.markdown() for table in tables))
