"""The data page runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_code_of_the_data_page_runs(capsys):
    namespace: dict[str, object] = {}
    blocks = re.findall(r"(?<!<!-- no-run -->\n)```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) > 8
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out
    for promised in re.findall(r"print\(.*?\)\s+# (.*)", "\n".join(blocks)):
        if not promised.startswith(("1/1/1", "unclear")):
            assert promised in printed
    assert "unclear None" in printed
