"""Public recordings by key: each row of the table loads a small recording in its documented layout."""

from __future__ import annotations

import json
import math
import pickle
import shutil

import mne
import numpy as np
import pytest
import torch
from public_makers import PARTS, SIGNALS, SPIKES, Made, samples
from scipy.io import savemat

from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import PUBLIC_RECORDINGS, load_public
from deepSTRF.experiments import ExperimentConfig
from deepSTRF.experiments.build import load_dataset
from deepSTRF.registry import DATASETS

MAKERS = {**SPIKES, **PARTS}


def table(ds) -> dict[tuple[str, str], np.ndarray]:
    """(unit, clip) -> (R, T) of the pairs that are there."""
    masks = ds.nrn_masks
    return {
        (ds.nrn_meta[n]["cell_id"], ds.stim_meta[s]["name"]): ds.responses[s][n].numpy()
        for s in range(len(ds))
        for n in range(ds.N_neurons)
        if masks[s, n]
    }


@pytest.fixture(params=MAKERS)
def made(request, tmp_path):
    return request.param.split()[0], tmp_path, MAKERS[request.param](tmp_path)


def load(key, root, made: Made, **options):
    return load_public(key, root, dt_ms=10.0, **{**made.options, **options})


def test_each_row_of_the_table_has_a_maker():
    assert {key.split()[0] for key in (*MAKERS, *SIGNALS)} == set(PUBLIC_RECORDINGS)


def test_counts_are_those_of_the_files(made):
    key, root, known = made
    ds = load(key, root, known)
    found = table(ds)
    assert found.keys() == known.counts.keys()
    for pair, counts in known.counts.items():
        np.testing.assert_array_equal(found[pair], counts, err_msg=str(pair))
    assert ds.response_kind == "counts"
    assert {row["cell_id"]: row["area"] for row in ds.nrn_meta} == known.areas
    for clip, row in enumerate(ds.stim_meta):
        if row["name"] in known.stims:
            np.testing.assert_allclose(ds.stims[clip][0], known.stims[row["name"]], rtol=1e-6)


@pytest.fixture(params=SIGNALS)
def signal(request, tmp_path):
    return request.param.split()[0], tmp_path, SIGNALS[request.param](tmp_path)


def test_signals_are_those_of_the_files(signal):
    """Every trace is a ramp over its rows: an onset that is a row off, or a clock that is, moves the mean."""
    key, root, known = signal
    ds = load_public(key, root, dt_ms=1000 * known.dt, **known.options)
    found = table(ds)
    assert found.keys() == known.onsets.keys()
    for pair in known.onsets:
        wanted = known.table(pair)
        assert found[pair].shape == wanted.shape, pair
        np.testing.assert_array_equal(np.isnan(found[pair]), np.isnan(wanted), err_msg=str(pair))
        inner = slice(10, -10)  # filters see the ends of a recording
        np.testing.assert_allclose(
            found[pair][:, inner], wanted[:, inner], atol=0.1 * known.per_row, err_msg=str(pair)
        )
    assert ds.response_kind == "trace"
    assert ds.response_unit == known.unit
    for topic, count in known.notes.items():
        assert ds.load_report.count(topic) == count, (topic, ds.load_report.notes)
    assert ds.default_split is not None or len(ds) < 3


def test_a_damaged_signal_file_is_named(signal):
    key, root, known = signal
    path = min(root.glob(known.damage))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 3], b"\xff\xfe" * 200, b""):
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError), match=path.name.replace(".", r"\.")):
            load_public(key, root, **known.options)


def test_a_subject_without_annotations_is_left_out(tmp_path):
    known = SIGNALS["alice-eeg"](tmp_path)
    path = tmp_path / "eeg" / "S26" / "S26_alice-raw.fif"
    raw = mne.io.read_raw_fif(path, preload=True, verbose="ERROR")
    raw.set_annotations(None)
    raw.save(path, overwrite=True, verbose="ERROR")
    ds = load_public("alice-eeg", tmp_path, dt_ms=1000 * known.dt)
    assert [row["cell_id"] for row in ds.nrn_meta] == ["S01-1", "S01-2"]
    assert ds.load_report.count("subjects without segments") == 1


def test_a_sound_of_absurd_values_is_named(tmp_path):
    known = SIGNALS["crcns-ac1 wehr"](tmp_path)
    path = tmp_path / "wehr" / "Stimuli" / "fragments" / "3.mat"
    loud = np.full((48828, 1), 1e300)
    savemat(path, {"stimulus": {"samples": loud, "param": {"description": "x", "sf": 97656.0}}})
    with pytest.raises(ValueError, match=r"fragments/3.*1e\+300"):
        load_public("crcns-ac1", tmp_path, **known.options)


def test_sequences_are_joined_with_ramps(tmp_path):
    known = SIGNALS["crcns-ac1 asari"](tmp_path)
    ds = load_public(
        "crcns-ac1", tmp_path, return_waveform=True, audio_fs=97656, dt_ms=125.0, **known.options
    )
    (clip,) = (i for i, row in enumerate(ds.stim_meta) if row["name"] == "class6/1+class6/3")
    sounds = [samples(name, 97656) for name in "AC"]
    n_ramp = round(0.005 * 97656)
    ramp = np.sin(0.5 * np.pi * (np.arange(n_ramp) + 0.5) / n_ramp) ** 2
    for sound in sounds:
        sound[:n_ramp] *= ramp
        sound[-n_ramp:] *= ramp[::-1]
    whole = np.concatenate(sounds)
    np.testing.assert_allclose(ds.stims[clip][0], whole[: ds.stims[clip].shape[-1]], atol=1e-6)


def test_areas_of_the_two_parts_of_asari(tmp_path):
    known = SIGNALS["crcns-ac1 asari"](tmp_path)
    ds = load_public("crcns-ac1", tmp_path, area="MGB", **known.options)
    assert [row["cell_id"] for row in ds.nrn_meta] == ["20060101-ha3-001"]


def test_nat4_responses_of_the_population(tmp_path):
    known = SPIKES["nat4-a1"](tmp_path)
    ds = load("nat4-a1", tmp_path, known, responses="population")
    responses = np.random.default_rng(0).random((400, 2))
    assert ds.response_kind == "rate"
    for clip in range(4):
        np.testing.assert_allclose(
            ds.responses[clip][0][0], responses[100 * clip : 100 * clip + 100, 0], rtol=1e-6
        )
    assert ds.nrn_masks[:, 1].tolist() == [True, False, True, True]


def test_the_report_counts_what_was_found(made):
    key, root, known = made
    report = load(key, root, known).load_report
    for topic, count in known.notes.items():
        assert report.count(topic) == count, (topic, report.notes)
    assert report.count("pairs") == len(known.counts)
    if PUBLIC_RECORDINGS[key].expect:
        assert any(topic == "expectations" and "expected" in text for topic, text, _ in report.notes)


def test_the_split_is_the_default(made):
    key, root, known = made
    ds = load(key, root, known)
    roles = {row["name"]: row["split"] for row in ds.stim_meta}
    if known.tests is not None:
        assert {name for name, role in roles.items() if role == "test"} == known.tests
    if known.groups is not None:
        by_group: dict[str, set[str]] = {}
        for row in ds.stim_meta:
            by_group.setdefault(row[known.groups], set()).add(row["split"])
        assert all(len(found) == 1 for found in by_group.values()), by_group
    if ds.default_split is None:  # two sounds a class are too few for three roles
        assert key in ("crcns-aa1", "crcns-aa2", "crcns-aa4")
        return
    split = parse_split(ds, ds.default_split)
    for part, role in ((split.train, "train"), (split.val, "validation"), (split.test, "test")):
        assert {ds.stim_meta[i]["name"] for i in part} == {n for n, found in roles.items() if found == role}
    view = ds.select(clips=[*split.test, *split.train])
    assert [view.stim_meta[i]["split"] for i in parse_split(view, view.default_split).test] == ["test"] * len(
        split.test
    )


def test_facts_say_where_it_is_from(made):
    key, root, known = made
    facts = load(key, root, known).describe()
    record = PUBLIC_RECORDINGS[key]
    assert facts["licence"] == record.licence
    assert facts["source"] == record.page
    assert record.dois[0] in facts["doi"]


def test_waveforms_have_the_same_counts(made):
    key, root, known = made
    if not PUBLIC_RECORDINGS[key].sounds:
        with pytest.raises(ValueError, match="not in the deposit"):
            load(key, root, known, return_waveform=True)
        return
    ds = load(key, root, known, return_waveform=True)
    found = table(ds)
    assert found.keys() == known.counts.keys()
    for pair, counts in known.counts.items():
        np.testing.assert_array_equal(found[pair], counts)
    for clip in range(len(ds)):
        assert ds.stims[clip].shape == (1, ds.n_bins(clip) * ds.hop)


def test_spectrograms_see_no_future(tmp_path):
    known = SPIKES["crcns-aa1"](tmp_path)
    ds = load("crcns-aa1", tmp_path, known)
    assert ds.stims[0].shape == (1, ds.F, ds.n_bins(0))
    assert len(ds.frequencies_hz) == ds.F
    assert float(min(x.min() for x in ds.stims)) >= 0
    assert math.isclose(ds.frequencies_hz[6], 500.0, rel_tol=1e-6)


def test_a_dataset_can_be_pickled_and_saved(tmp_path):
    known = SPIKES["le2025"](tmp_path)
    ds = load("le2025", tmp_path, known)
    again = pickle.loads(pickle.dumps(ds))
    assert again.default_split == ds.default_split
    path = ds.save(tmp_path / "mine.npz")
    stored = type(ds).load(path)
    assert [row["split"] for row in stored.stim_meta] == [row["split"] for row in ds.stim_meta]
    assert stored.load_report.notes == ds.load_report.notes


# ---- choosing a part


@pytest.mark.parametrize(
    ("key", "options", "units"),
    [
        ("crcns-aa1", {"area": "MLd"}, {"aa12_3_A"}),
        ("crcns-aa1", {"only": ["pipu1018"]}, {"pipu1018_2_B"}),
        ("crcns-aa2", {"area": ["None"]}, {"gg0116_1_A"}),
        ("crcns-aa4", {"only": "WhiWhi4522M"}, {"WhiWhi4522M_Site1_L1200R1400_e14_s0_ss1"}),
        ("nat4-a1", {"quality": "auditory"}, {"TNC010a-05-1"}),
        ("wingert2026", {"area": "PEG"}, {"PRN018a-001-1"}),
        ("espejo-nat", {"only": "AMT003c"}, {"AMT003c-11-1"}),
        ("downer2025", {"only": "180627"}, {"c_180627_Ch3"}),
        ("le2025", {"area": "NCM"}, {"P22_2_1_c3"}),
    ],
)
def test_a_part_is_chosen(tmp_path, key, options, units):
    known = SPIKES[key](tmp_path)
    ds = load(key, tmp_path, known, **options)
    assert {row["cell_id"] for row in ds.nrn_meta} == units
    assert not ds.load_report.count("expectations")
    for pair, counts in table(ds).items():
        np.testing.assert_array_equal(counts, known.counts[pair])


def test_classes_of_stimuli_are_chosen(tmp_path):
    known = SPIKES["crcns-aa1"](tmp_path)
    ds = load("crcns-aa1", tmp_path, known, stimuli="flatrip")
    assert {row["class"] for row in ds.stim_meta} == {"flatrip"}
    assert len(ds) == 2


def test_a_choice_that_leaves_nothing_says_what_there_is(made):
    key, root, known = made
    with pytest.raises(ValueError, match=r"only=\['nobody'\]"):
        load(key, root, known, only="nobody")


def test_options_that_are_not_there(tmp_path):
    known = SPIKES["crcns-aa1"](tmp_path)
    with pytest.raises(ValueError, match=r"no option 'areas'; it takes root, dt_ms, .*area"):
        load("crcns-aa1", tmp_path, known, areas="MLd")
    with pytest.raises(ValueError, match="key must be one of"):
        load_public("crcns-aa3")
    with pytest.raises(TypeError, match="area is a text"):
        load("crcns-aa1", tmp_path, known, area=3)
    with pytest.raises(ValueError, match="return_waveform=True"):
        load("crcns-aa1", tmp_path, known, audio_fs=16000)


# ---- single recordings


def test_nat4_responses_of_the_population_and_counts_are_not_mixed(tmp_path):
    known = SPIKES["nat4-a1"](tmp_path)
    with pytest.raises(ValueError, match="responses must be one of 'counts', 'population'"):
        load("nat4-a1", tmp_path, known, responses="mixed")


def test_the_rate_of_a_sound_is_resampled_not_truncated(tmp_path):
    known = SPIKES["crcns-aa4"](tmp_path)
    ds = load_public("crcns-aa4", tmp_path, dt_ms=1.0, return_waveform=True)
    assert ds.audio_fs == 25000  # 24,414 Hz has 24.414 samples per ms
    assert sorted(ds.n_bins(clip) for clip in range(len(ds))) == [300, 400, 400, 500]
    assert known.damage


def test_units_of_more_qualities(tmp_path):
    known = SPIKES["crcns-aa4"](tmp_path)
    ds = load("crcns-aa4", tmp_path, known, quality=["single", "multi"])
    assert ds.load_report.count("units without trials") == 1
    assert ds.load_report.count("units of another quality") == 0


def test_a_sound_that_is_not_what_its_name_says_is_noted(tmp_path):
    known = SPIKES["crcns-aa1"](tmp_path)
    wav = min(tmp_path.glob("**/conspecific/*.wav"))
    content = bytearray(wav.read_bytes())
    content[100] ^= 1
    wav.write_bytes(bytes(content))
    report = load("crcns-aa1", tmp_path, known).load_report
    assert report.count("sound files that are not what their name says") == 1


def test_presentations_without_a_spike_on_any_channel_are_left_out(tmp_path):
    known = SPIKES["downer2025"](tmp_path)
    (path,) = tmp_path.glob("**/c_180627_Ch3_MUspk.mat")
    shutil.copy(path, path.with_name("c_180627_Ch4p_MUspk.mat"))
    ds = load("downer2025", tmp_path, known)
    found = table(ds)
    # the third repeat of A, and both of D, are silent on both channels
    assert ds.load_report.count("presentations without a spike on any channel") == 3
    for unit in ("c_180627_Ch3", "c_180627_Ch4p"):
        np.testing.assert_array_equal(found[unit, "012"], known.counts["c_180627_Ch3", "012"][:2])
        assert (unit, "003") not in found
    np.testing.assert_array_equal(found["f_180724_Ch11s2", "003"], known.counts["f_180724_Ch11s2", "003"])


def test_drafts_and_unknown_forms_of_le2025(tmp_path):
    known = SPIKES["le2025"](tmp_path)
    (path,) = tmp_path.glob("**/C104_1_1_c12.json")
    tree = json.loads(path.read_text())
    for entry in tree["pprox"]:
        entry["stimulus"]["stimulus_begin"] = entry["stimulus"].pop("interval")[0]
    path.write_text(json.dumps(tree))
    found = table(load("le2025", tmp_path, known))
    for pair, counts in known.counts.items():
        np.testing.assert_array_equal(found[pair], counts)
    tree["$schema"] = "https://example.org/another.json#"
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"C104_1_1_c12\.json has the \$schema"):
        load("le2025", tmp_path, known)


def test_a_trial_that_ends_before_its_sound_is_missing_from_there(tmp_path):
    known = SPIKES["le2025"](tmp_path)
    (path,) = tmp_path.glob("**/C104_1_1_c12.json")
    tree = json.loads(path.read_text())
    for entry in tree["pprox"]:
        entry["interval"] = [-1.95, 0.25]  # 0.2 s into the sound
    path.write_text(json.dumps(tree))
    ds = load("le2025", tmp_path, known)
    counts = table(ds)["C104_1_1_c12", "ep_m1_C"]
    np.testing.assert_array_equal(counts[:, :20], known.counts["C104_1_1_c12", "ep_m1_C"][:, :20])
    assert np.isnan(counts[:, 20:]).all()


def test_an_experiment_takes_a_key(tmp_path):
    SPIKES["le2025"](tmp_path)
    config = ExperimentConfig(
        dataset="le2025", model="ridge", dataset_options={"root": str(tmp_path), "only": "P22", "dt_ms": 10.0}
    )
    ds = load_dataset(config)
    assert [row["cell_id"] for row in ds.nrn_meta] == ["P22_2_1_c3"]
    with pytest.raises(ValueError, match="no option 'areas'"):
        load_dataset(ExperimentConfig(dataset="le2025", model="ridge", dataset_options={"areas": "NCM"}))


# ---- missing, damaged and hostile files


def test_missing_files_say_how_to_get_them(tmp_path):
    for key, record in PUBLIC_RECORDINGS.items():
        for root in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(FileNotFoundError, match="download=True"):
                load_public(key, root)
        with pytest.raises(FileNotFoundError) as error:
            load_public(key, tmp_path)
        assert record.page in str(error.value)


@pytest.mark.parametrize("how", ["cut", "noise", "empty"])
def test_a_damaged_file_is_named(made, how):
    key, root, known = made
    (path,) = root.glob(known.damage) if "*" not in known.damage else sorted(root.glob(known.damage))[:1]
    content = path.read_bytes()
    if how == "empty" and path.name.startswith("spike"):
        path.write_bytes(b"")
        assert load(key, root, known).load_report.count("empty spike files") == 1
        return
    if how == "cut" and path.suffix not in (".h5", ".tgz", ".json", ".mat"):
        return  # a text that is cut is a shorter text
    path.write_bytes({"cut": content[: len(content) // 2], "noise": b"\xff\xfe\x00" * 30, "empty": b""}[how])
    with pytest.raises((ValueError, FileNotFoundError), match=path.name.replace(".", r"\.")):
        load(key, root, known)


# ---- names and lists


def test_keys_are_datasets_with_their_options():
    for key, record in PUBLIC_RECORDINGS.items():
        cls = DATASETS.get(key)
        assert cls.record is record
        assert record.split
        assert record.licence
        assert record.citation
        assert record.traps
        assert record.dois
        assert record.files


def test_hash_of_the_split_does_not_depend_on_the_form(tmp_path):
    known = SPIKES["downer2025"](tmp_path)
    spec, wave = (load("downer2025", tmp_path, known, return_waveform=form) for form in (False, True))
    assert parse_split(spec, spec.default_split).hash == parse_split(wave, wave.default_split).hash
    assert torch.equal(spec.responses[0][0], wave.responses[0][0])
