"""Every notebook of the documentation runs to its end: briefly, on simulated neurons, warnings as errors.

The site (`make docs`) runs the same cells at their full length, on NS1 where the recording is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
CELL = re.compile(
    r"^```\{code-cell\}[^\n]*\n(?P<options>(:[^\n]*\n)*)(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
NOTEBOOKS = sorted(page for page in DOCS.glob("*.md") if CELL.search(page.read_text(encoding="utf-8")))
#: A notebook that takes longer is no tutorial: most of it is the import of torch, once per process.
TIMEOUT_S = 600


def script_of(text: str) -> str:
    """The cells of a notebook as one script of one epoch per fit, without what only IPython understands."""
    lines = ["import subprocess, warnings", "warnings.simplefilter('error')"]
    for cell in CELL.finditer(text):
        for line in cell["code"].splitlines():
            if line.startswith("!"):
                line = f"subprocess.run({line[1:]!r}, shell=True, check=True)"
            lines.append("" if line.startswith("%") else line)
    return re.sub(
        r"^EPOCHS = \d+|(?<=--epochs )\d+",
        lambda old: re.sub(r"\d+", "1", old[0]),
        "\n".join(lines),
        flags=re.MULTILINE,
    )


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs_to_its_end(page, tmp_path):
    script = tmp_path / f"{page.stem}.py"
    script.write_text(script_of(page.read_text(encoding="utf-8")), encoding="utf-8")
    environment = {**os.environ, "DEEPSTRF_DATA_DIR": str(tmp_path / "no-data"), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True,
        encoding="utf-8", timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def test_notebooks_are_found_and_made_scripts():
    assert len(NOTEBOOKS) >= 5
    page = "```{code-cell} ipython3\n:tags: [a]\n\n%matplotlib inline\nEPOCHS = 20\n!fit --epochs 30\n```\n"
    script = script_of(page)
    assert script.splitlines()[3:] == [
        "",
        "EPOCHS = 1",
        "subprocess.run('fit --epochs 1', shell=True, check=True)",
    ]
