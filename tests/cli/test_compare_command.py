"""``deepstrf compare`` and ``deepstrf bench`` from the command line."""

from __future__ import annotations

import json

SMALL = [*("-o", "n_neurons=2"), *("-o", "n_clips=14"), *("-o", "clip_seconds=0.4"), "-q"]


def test_bench_then_compare(deepstrf, tmp_path):
    asked = ["bench", "synthetic", "--table", "quick", "--rows", "ridge,linear", "--seeds", "0"]
    status, out, err = deepstrf(*asked, "--epochs", "2", *SMALL, "--out", "bench")
    assert (status, err) == (0, "")
    assert "ridge - linear" in out
    tree = json.loads((tmp_path / "bench" / "comparison.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in tree["models"]] == ["ridge", "linear"]
    status, _, _ = deepstrf("compare", "bench", "--score", "cc", "--out", "page.html", "--csv", "a.csv")
    assert status == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").startswith("model,mean")


def test_tables_are_listed(deepstrf):
    status, out, _ = deepstrf("bench", "--list")
    assert (status, "gatednet" in out) == (0, True)


def test_problems_are_said(deepstrf):
    status, _, err = deepstrf("compare", "nothing")
    assert (status, "deepstrf fit writes run folders" in err) == (2, True)
    status, _, err = deepstrf("bench", "synthetic", "--table", "everything")
    assert (status, "quick" in err) == (2, True)
