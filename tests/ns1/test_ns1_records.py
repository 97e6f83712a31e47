"""The records on NS1: how clips are divided, what a try writes; nothing is fitted here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import ns1_protocols  # a script of the checkout, not of the package
import ns1_records


def _clips(text: str) -> list[list[int]]:
    return [[int(clip) for clip in part.split(",")] for part in text.split("/")]


def test_choices_never_see_the_test_clips():
    splits = [_clips(text) for text in ns1_protocols.choice_splits()]
    assert sorted(clip for _, val, _ in splits for clip in val) == list(range(17))
    for train, val, test in splits:
        assert sorted(train + val) == list(range(17))
        assert test == [17, 18, 19]
    assert splits[0][1] == [14, 15, 16]  # the validation clips of 14/3/3


def test_choices_are_read_as_words():
    config = ns1_records.read_choices(["arm=leaf epochs=7", "wav2spec_options.learn_pcen=false loss=poisson"])
    assert (config.wav2spec, config.learning_rate, config.epochs) == ("leaf", 2e-3, 7)
    assert (dict(config.wav2spec_options), config.loss) == ({"learn_pcen": False}, "poisson")


def test_a_file_of_choices_is_a_configuration(tmp_path):
    path = tmp_path / "try.toml"
    path.write_text('[model]\nname = "statenet"\n[training]\nepochs = 3\n')
    config = ns1_records.read_choices([str(path)])
    assert (config.dataset, config.model, config.epochs) == ("ns1", "statenet", 3)


def test_an_unknown_choice_is_refused():
    with pytest.raises(TypeError, match="no_such_field"):
        ns1_records.read_choices(["no_such_field=1"])


def test_a_try_is_one_line_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(ns1_records, "TRIED", tmp_path / "tried.jsonl")
    for seed in (0, 1):
        ns1_records.record_try("wide", seed, {"epochs": 5}, [0.5, 0.75], parameters=9)
    lines = [json.loads(line) for line in (tmp_path / "tried.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1]
    assert lines[0]["validation"] == 0.625
    assert lines[0]["choices"] == {"epochs": 5}
    assert not any("test" in key for key in lines[0])
