"""Wrong types in every public call: the error names the argument (tools/misuse.py is the whole bank)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "misuse.py"
ROOMS = (
    "baselines", "crossval", "datasets", "dsp", "experiments", "interpret", "metrics", "models", "plots",
    "report", "streaming", "training",
)  # fmt: skip


@pytest.mark.slow
def test_under_three_per_cent_of_wrong_types_end_in_an_error_that_names_no_argument():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, timeout=900, check=False
    )
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[1].strip() for row in rows] == list(ROOMS), done.stdout + done.stderr
    assert all(int(row[3]) >= 100 for row in rows), done.stdout
    assert done.returncode == 0, done.stdout
