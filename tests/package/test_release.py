"""One version and one date wherever a release states them; wheel and sdist compared with the checkout."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

import deepSTRF

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("check_dist", ROOT / "tools" / "check_dist.py")
check_dist = importlib.util.module_from_spec(spec)
sys.modules["check_dist"] = check_dist
spec.loader.exec_module(check_dist)

METADATA = """\
Metadata-Version: 2.4
Name: deepstrf-toolkit
Version: 0.1.0
Summary: Fit and explain models.
License-Expression: BSD-3-Clause
Requires-Python: >=3.11
Keywords: neuroscience
Project-URL: Source, https://example.org
Requires-Dist: torch>=2.4
Description-Content-Type: text/markdown

# Text
"""


def citation(key: str) -> str:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    return re.search(rf'^{key}: "?([^"\n]+)"?$', text, flags=re.MULTILINE)[1]


def test_every_file_states_the_version_and_the_date_of_the_release():
    deposit = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation("version") == deposit["version"] == deepSTRF.__version__
    assert citation("date-released") == deposit["publication_date"]
    released = re.search(r"^## \[(\d.*?)\] - (\S+)$", changelog, flags=re.MULTILINE)
    assert released.groups() == (deepSTRF.__version__, citation("date-released"))


def test_the_changelog_has_each_section_and_each_line_once():
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for section in sections[1:]:
        lines = section.splitlines()
        for start in ("### ", "#### ", "- "):
            found = [line for line in lines if line.startswith(start)]
            assert sorted(found) == sorted(set(found))


def test_the_deposit_says_what_the_citation_says():
    deposit = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    assert deposit["title"] == citation("title")
    assert deposit["description"] == f"<p>{citation('abstract')}</p>"
    assert deposit["license"] == citation("license") == "BSD-3-Clause"
    assert deposit["upload_type"] == citation("type") == "software"
    assert all(
        f"\n  - {word}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
        for word in deposit["keywords"]
    )


TRACKED = {
    "src/deepSTRF/__init__.py": b"1",
    "src/deepSTRF/report/report.css": b"2",
    "tests/test_a.py": b"3",
    "README.md": b"4",
}
INFO = {f"x-1.dist-info/{name}": b"" for name in check_dist.IN_DIST_INFO}
WHEEL = {"deepSTRF/__init__.py": b"1", "deepSTRF/report/report.css": b"2", **INFO}


def test_a_wheel_with_every_file_of_the_package_passes():
    assert list(check_dist.check_wheel(WHEEL, TRACKED)) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"deepSTRF/report/report.css": None}, "the wheel lacks deepSTRF/report/report.css"),
        ({"deepSTRF/a.pyc": b""}, "the wheel holds deepSTRF/a.pyc, which is no tracked file"),
        ({"tests/test_a.py": b"3"}, "the wheel holds tests/test_a.py, which is no tracked file"),
        (
            {"deepSTRF/__init__.py": b"0"},
            "the wheel holds another deepSTRF/__init__.py than the checkout",
        ),
        ({"x-1.dist-info/entry_points.txt": None}, "the wheel has the metadata"),
    ],
)
def test_what_is_wrong_with_a_wheel_is_named(change, problem):
    files = {name: content for name, content in {**WHEEL, **change}.items() if content is not None}
    (found,) = check_dist.check_wheel(files, TRACKED)
    assert found.startswith(problem)


def test_an_sdist_is_the_checkout():
    assert list(check_dist.check_sdist({**TRACKED, "PKG-INFO": b""}, TRACKED)) == []
    without = {name: content for name, content in TRACKED.items() if name != "tests/test_a.py"}
    assert list(check_dist.check_sdist(without, TRACKED)) == ["the sdist lacks tests/test_a.py"]


def test_metadata_that_an_index_would_refuse_are_named():
    assert list(check_dist.check_metadata(METADATA.encode())) == []
    address = METADATA.replace("torch>=2.4", "torch @ https://example.org/torch.whl")
    (problem,) = check_dist.check_metadata(address.encode())
    assert problem.endswith("https://example.org/torch.whl has an address")
    (problem,) = check_dist.check_metadata(METADATA.replace("0.1.0", "one").encode())
    assert "'one' is invalid for 'version'" in problem
    assert "metadata: no keywords" in list(
        check_dist.check_metadata(METADATA.replace("Keywords: neuroscience\n", "").encode())
    )


def test_a_folder_without_the_version_of_the_checkout_says_what_to_do(tmp_path):
    problems, files = check_dist.check_folder(tmp_path, ROOT)
    assert files == []
    assert len(problems) == 2
    assert all(problem.endswith("is not there: make dist") for problem in problems)
