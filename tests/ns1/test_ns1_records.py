"""The records on NS1: how clips are divided, intervals over clips, tables, the log of tries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import ns1_protocols  # scripts in benchmarks/, which conftest.py puts on the path
import ns1_records
import ns1_tables
from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.metrics import normalized_corrcoef
from deepSTRF.models.audio import GatedNet
from ns1_arms import GROUPS, PUBLISHED, all_arms

ROOT = Path(__file__).parents[2]


def _clips(text: str) -> list[list[int]]:
    return [[int(clip) for clip in part.split(",")] for part in text.split("/")]


# ---- Divisions


def test_choices_never_see_the_test_clips():
    splits = [_clips(text) for text in ns1_protocols.choice_splits()]
    assert sorted(clip for _, val, _ in splits for clip in val) == list(range(17))
    for train, val, test in splits:
        assert sorted(train + val) == list(range(17))
        assert test == [17, 18, 19]
    assert splits[0][1] == [14, 15, 16]  # the validation clips of 14/3/3


def test_every_clip_is_tested_in_one_fold():
    splits = [_clips(text) for text in ns1_protocols.PROTOCOLS["five-fold"]]
    assert sorted(clip for _, _, test in splits for clip in test) == list(range(20))
    assert len({clip for _, val, _ in splits for clip in val}) == 10
    for train, val, test in splits:
        assert (len(train), len(val), len(test)) == (14, 2, 4)
        assert sorted(train + val + test) == list(range(20))


def test_folds_hold_both_sources_and_speech():
    tested = [set(test) for _, _, test in map(_clips, ns1_protocols.PROTOCOLS["five-fold"])]
    assert [len(test & set(range(12, 20))) for test in tested] == [1, 1, 2, 2, 2]
    assert sorted(len(test & set(range(8, 12))) for test in tested) == [0, 1, 1, 1, 1]


def test_the_clips_of_16_4():
    train, val, test = _clips(ns1_protocols.PROTOCOLS["16/4"][0])
    assert (len(train), val, test) == (14, [10, 15], [3, 6, 9, 19])
    assert sorted(train + val + test) == list(range(20))


@pytest.mark.ns1
def test_units_and_hashes_of_the_recording(load_ns1):
    recording = load_ns1()
    assert len(ns1_protocols.published_units(recording.nrn_meta)) == 73
    assert sum(unit["noise_ratio"] < 40 for unit in recording.nrn_meta) == 119
    hashes = [
        parse_split(recording, text).hash[:12]
        for splits in ns1_protocols.PROTOCOLS.values()
        for text in splits
    ]
    assert hashes == [
        "7ba9c75f3ba0", "a24de045c01f", "d534bb8390f3", "b927e75325cb", "111ba88aeaaa", "239068bb9335",
        "ad952d1e4e55",
    ]  # fmt: skip


# ---- Scores


def test_interval_by_pseudo_values():
    left_out = [0.50, 0.62, 0.55, 0.58]
    pseudo = 4 * 0.56 - 3 * np.asarray(left_out)
    width = stats.t.ppf(0.975, 3) * pseudo.std(ddof=1) / 2
    expected = [0.56 - width, 0.56 + width]
    assert ns1_protocols.clip_interval(0.56, left_out) == pytest.approx(expected, rel=1e-12)


def test_no_interval_of_one_clip():
    assert np.isnan(ns1_protocols.clip_interval(0.5, [0.5])).all()


@pytest.fixture(scope="module")
def small():
    return SyntheticDataset(n_neurons=4, n_clips=5, n_repeats=6, clip_seconds=0.5)


def _one_shot(dataset, predictions, clips):
    """cc_norm per neuron, from all clips in one tensor."""
    responses = torch.stack([dataset.response_block(clip) for clip in clips])
    pred = torch.stack([predictions[clip][:, None] for clip in clips])
    return normalized_corrcoef(pred, responses, reduction="none").numpy()


def test_scores_of_some_clips_and_neurons(small):
    generator = torch.manual_seed(0)
    seeds = [
        {clip: rates + 0.02 * torch.randn(rates.shape, generator=generator) for clip, rates in true.items()}
        for true in 2 * [{clip: small.true_rates[clip] for clip in (1, 2, 4)}]
    ]
    score = ns1_protocols.ClipScores(small, [1, 2, 4]).score(seeds, [0, 3])
    whole = np.stack([_one_shot(small, one, [1, 2, 4])[[0, 3]] for one in seeds])
    assert score.per_seed == pytest.approx(whole.mean(1).tolist(), abs=1e-6)
    assert score.median == pytest.approx(np.median(whole, axis=1).mean(), abs=1e-6)
    assert (score.n, score.n_nan) == (2, 0)
    left_out = [
        np.mean([_one_shot(small, one, rest)[[0, 3]] for one in seeds]) for rest in ([2, 4], [1, 4], [1, 2])
    ]
    assert score.interval == pytest.approx(ns1_protocols.clip_interval(whole.mean(), left_out), abs=1e-6)


def test_neurons_without_a_score_are_counted(small):
    flat = {clip: small.true_rates[clip].clone() for clip in (0, 1, 2)}
    for rates in flat.values():
        rates[2] = 0.1  # a constant prediction has no correlation
    score = ns1_protocols.ClipScores(small, [0, 1, 2]).score([flat])
    assert (score.n, score.n_nan) == (3, 1)


def test_averaged_predictions():
    seeds = [{3: torch.tensor([[1.0, 3.0]])}, {3: torch.tensor([[2.0, 5.0]])}]
    assert ns1_protocols.averaged(seeds)[3].tolist() == [[1.5, 4.0]]


# ---- Tables


def _record(per_seed, **more):
    score = {"per_seed": per_seed, "median": 0.5, "interval": [0.4, 0.6], "n": 119, "n_nan": 0}
    return {"score": score, "seeds": list(range(len(per_seed))), "parameters": 36771, "seconds": 12.4, **more}


def test_a_row_per_arm_with_a_record():
    results = {"leaf": {"protocols": {"16/4": _record([0.5, 0.6, 0.7])}}, "mel": {"protocols": {}}}
    text = ns1_tables.protocol_table(["mel", "leaf"], "16/4", results.__getitem__)
    assert text.splitlines() == [
        "| arm | cc_norm | interval | median | parameters | s |",
        "|---|---|---|---|---|---|",
        "| leaf | 0.600 ± 0.100 | 0.400 to 0.600 | 0.500 | 36,771 | 12 |",
    ]


def test_published_scores_are_reached_or_not():
    low, high = (
        {"protocols": {"14/3/3": _record([score], **{"published form": [score]})}} for score in (0.1, 0.9)
    )
    text, notes = ns1_tables.published_table(lambda name: high if name == "leaf" else low).split("\n\n")
    rows = text.splitlines()[2:]
    assert len(rows) == len(PUBLISHED)
    assert [note.split(":")[0] for note in notes.splitlines()] == ["* mel", "* ICNet"]
    assert [row.split(" | ")[0] for row in rows if row.endswith("| yes |")] == ["| LEAF and `Linear`"]


def test_the_best_model_is_chosen_by_validation_scores():
    records = {
        "mel": _record([0.9], validation=[0.5], **{"published form": [0.91]}),
        "leaf": _record([0.6], validation="0.700 ± 0.010", **{"published form": "0.610 ± 0.010"}),
    }
    text = ns1_tables.best_line(
        lambda name: {"protocols": {"14/3/3": records[name]} if name in records else {}}
    )
    assert text.startswith("Our best model, by validation scores: 0.600; 0.610 (`leaf`). ")


def test_pages_show_what_is_stored():
    for name, (title, body) in ns1_tables.all_sections(ns1_records.result_of).items():
        for page in (ROOT / "benchmarks/RESULTS.md", ROOT / "docs/benchmarks.md"):
            assert f"## {title}\n\n{body}" in page.read_text(encoding="utf-8"), f"{page} differs at {name}"


def test_published_rows_name_arms():
    names = [name for one in PUBLISHED for name in (one.arm, one.tuned) if name is not None]
    assert set(names) <= set(all_arms())


# ---- The command


def test_arms_and_groups_by_name():
    assert ns1_records.choose(["mel", "front-ends"])[0] == "mel"
    assert set(ns1_records.choose([])) == {name for group in GROUPS.values() for name in group.arms}
    with pytest.raises(ValueError, match="unknown arm 'x'; groups: front-ends"):
        ns1_records.choose(["x"])


def test_a_task_is_one_seed_of_one_split():
    task = ns1_records.Task("leaf", "five-fold", 3, 4)
    config = task.config()
    assert (config.wav2spec, config.seeds) == ("leaf", (4,))
    assert _clips(config.split)[2] == [3, 8, 13, 18]
    others = [ns1_records.Task("leaf", "five-fold", 3, 3), ns1_records.Task("leaf", "five-fold", 2, 4)]
    assert len({task.folder(), *(other.folder() for other in others)}) == 3


def test_an_arm_may_take_the_choices_of_its_model():
    config = all_arms()["gatednet"].config(seeds=(2,))
    for name, value in GatedNet.recommended.items():
        assert getattr(config, name) == value, name
    assert (config.dataset_options["alignment"], config.seeds) == ("causal", (2,))
    assert ns1_records.read_choices(["model=gatednet recommended=true epochs=9"]).epochs == 9


def test_longer_fits_have_a_folder_of_their_own():
    short, long = (ns1_records.read_choices([f"epochs={epochs}"]) for epochs in (10, 20))
    assert ns1_records.folder_name(short) != ns1_records.folder_name(long)


def test_choices_are_read_as_words():
    config = ns1_records.read_choices(["arm=leaf epochs=7", "wav2spec_options.learn_pcen=false loss=poisson"])
    assert (config.wav2spec, config.learning_rate, config.epochs) == ("leaf", 2e-3, 7)
    assert (dict(config.wav2spec_options), config.loss) == ({"learn_pcen": False}, "poisson")


def test_options_of_an_arm_stay_beside_others():
    config = ns1_records.read_choices(["arm=gammatone-pcen wav2spec_options.f_min=100.0"])
    assert dict(config.wav2spec_options) == {"compression": "pcen", "f_min": 100.0}


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
