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


SOUNDS = ["bench", "synthetic", "--table", "quick", "--seeds", "0", "--split", "kfold:3", "--epochs", "1"]
SOUNDS += [*("-o", "n_neurons=2"), *("-o", "n_clips=6"), *("-o", "return_waveform=true"), "-q"]


def test_failures_of_one_cause_are_told_once(deepstrf):
    status, out, _ = deepstrf(*SOUNDS, "--out", "bench")
    assert status == 1
    assert out.count("Failed: ") == 2  # a closed form says it in its way, networks in theirs
    assert ("and 2 more: " in out, "and 5 more: " in out) == (True, True)
    assert "none is" in out


def test_a_bench_of_sounds_takes_a_front_end(deepstrf, tmp_path):
    status, out, err = deepstrf(*SOUNDS, "--wav2spec", "mel", "--rows", "ridge", "--out", "bench")
    assert status == 0, err
    assert "No page: it compares rows that are finished, and 1 is." in out
    assert 'wav2spec = "mel"' in (tmp_path / "bench" / "sweep.toml").read_text(encoding="utf-8")
