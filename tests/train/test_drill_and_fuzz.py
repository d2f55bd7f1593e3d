"""A few faults of tests/drill.py and a few cases of tests/fuzz_files.py; by hand they run at full length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def table(*arguments: str) -> list[list[str]]:
    """Runs a script; the cells of the table that it prints."""
    done = subprocess.run([sys.executable, str(TESTS / arguments[0]), *arguments[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]


def test_nothing_is_lost_and_nothing_is_wrong():
    rows = table("drill.py")
    name, tried, lost, wrong = rows[-1]
    assert name == "all" and int(tried) >= 18 and (lost, wrong) == ("0", "0")
    assert len(rows) >= 22, "one row per fault"


def test_no_damaged_file_is_more_than_one_line():
    rows = table("fuzz_files.py", "--cases", "12")[2:]
    assert len(rows) == 10 and all(row[1] == "12" and row[-1] == "0" for row in rows)
