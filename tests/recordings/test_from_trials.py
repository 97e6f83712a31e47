"""``from_trials``: sounds, a table of trials and spike times to exact counts."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.datasets.session import Session, Sound, Trials
from deepSTRF.datasets.trials import dataset_of


def mini_sounds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"A": (rng.normal(size=8000) * 3000).astype(np.int16),
            "B": (rng.normal(size=4800) * 3000).astype(np.int16)}  # fmt: skip


MINI_TRIALS = {
    "stimulus": ["A", "B", "A", "B", "A", ""],
    "onset": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "offset": [1.5, 2.3, 3.5, 4.3, 5.5, 6.5],
}
MINI_SPIKES = {7: [0.995, 1.000, 1.0149, 1.499, 1.500, 2.105, 3.070, 3.255, 4.2999], 3: [1.250]}
MINI_OBSERVED = {7: [[0.0, 7.0]], 3: [[0.0, 3.9]]}


def mini(**changes: Any) -> AudioNeuralDataset:
    given: dict[str, Any] = {
        "sounds": mini_sounds(), "trials": MINI_TRIALS, "spikes": MINI_SPIKES, "dt_ms": 10.0,
        "sounds_fs": 16000, "observed": MINI_OBSERVED, "span_s": (0.0, 7.0), "check_alignment": False,
    } | changes  # fmt: skip
    return AudioNeuralDataset.from_trials(**given)


def expected_mini() -> list[list[np.ndarray]]:
    a7, b7 = np.zeros((3, 50)), np.zeros((2, 30))
    a7[0, [0, 1, 49]] = a7[1, [7, 25]] = 1
    b7[0, 10] = b7[1, 29] = 1
    a3, b3 = np.zeros((2, 50)), np.zeros((1, 30))
    a3[0, 25] = 1
    return [[a7, a3], [b7, b3]]


def test_mini_session() -> None:
    ds = mini()
    assert [row["name"] for row in ds.stim_meta] == ["A", "B"]
    assert [row["cell_id"] for row in ds.nrn_meta] == ["7", "3"]
    for row, wanted in zip(ds.responses, expected_mini(), strict=True):
        for got, want in zip(row, wanted, strict=True):
            assert np.array_equal(got.numpy(), want)
    sound = mini_sounds()["A"] / 32768
    assert ds.audio_fs == 16000
    assert torch.equal(ds.stims[0][0], torch.from_numpy(sound).float())
    report = ds.load_report
    assert report.count("blank trials") == 1
    assert report.count("spikes outside trials") == 2
    assert report.count("spikes at trial edges") == 2
    assert report.count("trials without sound") == 0


def test_missing_sound_can_be_an_error() -> None:
    trials = {"stimulus": ["A", "C"], "onset": [1.0, 2.0]}
    assert mini(trials=trials).load_report.count("trials without sound") == 1
    with pytest.raises(ValueError, match=r"trials without sound.*C.*on_missing_sound"):
        mini(trials=trials, on_missing_sound="error")


def exact_counts(
    times: list[float], onset: float, dt: Fraction, before: int, bins: int, observed: list[list[float]] | None
) -> np.ndarray:
    """Counts of one repeat in exact fractions, a plain loop; NaN where a bin is not observed whole."""
    second, slack = Fraction(1000), Fraction(1, 1_000_000)
    counts = np.zeros(bins)
    for time in times:
        index = (Fraction(time) - Fraction(onset) + slack) * second / dt + before
        if 0 <= index < bins:
            counts[int(index)] += 1
    for k in range(bins if observed is not None else 0):
        low = Fraction(onset) + (k - before) * dt / second
        high = low + dt / second
        if not any(Fraction(a) <= low + slack and high - slack <= Fraction(b) for a, b in observed or []):
            counts[k] = np.nan
    return counts


@pytest.mark.parametrize(
    ("dt", "rate"),
    [(10.0, 16000), (5.0, 44100), (15.625, 22050), (1000 / 60, 48000), (0.983, 24414.0625), (2.5, 44100.0)],
)
def test_counts_equal_a_loop_in_fractions(dt: float, rate: float) -> None:
    rng = np.random.default_rng(int(dt * 1000))
    bin_ms = Fraction(dt).limit_denominator(1000)
    assert float(bin_ms) == dt
    before, after = 4, 3
    n_samples = {f"s{k}": int(rng.integers(int(0.05 * rate), int(0.3 * rate))) for k in range(4)}
    sounds = {name: rng.normal(size=n) * 0.1 for name, n in n_samples.items()}
    onset, clock = [], 1.0
    names = [f"s{k}" for k in rng.integers(0, 4, 25)]
    for name in names:
        onset.append(clock)
        clock += n_samples[name] / rate + 0.1 + float(np.round(rng.uniform(0, 0.2), int(rng.integers(2, 7))))
    spikes, observed = {}, {}
    for unit in range(5):
        free = rng.uniform(0, clock, 120)
        on_edges = np.array(onset)[rng.integers(0, 25, 40)] + rng.integers(-5, 10, 40) * float(bin_ms) / 1000
        near = on_edges[:20] + rng.uniform(-2e-6, 2e-6, 20)
        samples = np.round(free[:60] * 30000) / 30000
        spikes[unit] = rng.permutation(np.concatenate([free, on_edges, near, samples]))
        if unit % 2:
            cuts = np.sort(rng.uniform(0, clock, 6)).reshape(3, 2)
            observed[unit] = cuts
    ds = AudioNeuralDataset.from_trials(
        sounds, {"stimulus": names, "onset": onset}, spikes, dt, sounds_fs=rate, observed=observed,
        pre_ms=float(before * bin_ms), post_ms=float(after * bin_ms), check_alignment=False,
    )  # fmt: skip
    assert ds.load_report.count("unsorted spikes") == 5
    seen = 0
    for clip, row in enumerate(ds.stim_meta):
        name = row["name"]
        bins = before + int(Fraction(n_samples[name]) / Fraction(rate) * 1000 / bin_ms) + after
        assert ds.n_bins(clip) in (bins, bins + 1)  # a sound may lack part of a sample
        bins = ds.n_bins(clip)
        onsets = [at for at, shown in zip(onset, names, strict=True) if shown == name]
        for unit in range(5):
            intervals = None if unit not in observed else observed[unit].tolist()
            want = [exact_counts(spikes[unit].tolist(), at, bin_ms, before, bins, intervals) for at in onsets]
            want = [repeat for repeat in want if not np.isnan(repeat).all()]
            got = ds.responses[clip][unit].numpy()
            if not want:
                assert got.shape == (1, 1)
                continue
            assert np.array_equal(got, np.array(want), equal_nan=True), (name, unit)
            seen += int(np.nansum(got))
    assert seen > 200


# ---- tables and containers


def same(one: AudioNeuralDataset, two: AudioNeuralDataset) -> None:
    assert len(one) == len(two)
    assert [row["cell_id"] for row in one.nrn_meta] == [row["cell_id"] for row in two.nrn_meta]
    for clip in range(len(one)):
        assert torch.equal(one.stims[clip], two.stims[clip])
        for a, b in zip(one.responses[clip], two.responses[clip], strict=True):
            assert np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


def tables() -> dict[str, Any]:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    names, onset, offset = MINI_TRIALS["stimulus"], MINI_TRIALS["onset"], MINI_TRIALS["offset"]
    length = [b - a for a, b in zip(onset, offset, strict=True)]
    nested = np.array(
        list(zip(names, onset, strict=True)), dtype=[("stim_name", "U8"), ("stimulus_onset", "f8")]
    )
    return {
        "pandas": pandas.DataFrame({**MINI_TRIALS, "row": range(6)}),
        "pandas strings": pandas.DataFrame({"Stimulus": names, "Onset": [str(v) for v in onset]}),
        "missing": pandas.DataFrame({"stim": [n or None for n in names], "start_time": onset}),
        "pyarrow": pyarrow.table({"sound": names, "onset_s": onset, "duration": length}),
        "structured": nested,
        "rows": [{"stimulus": n, "onset": o} for n, o in zip(names, onset, strict=True)],
        "ms": {"stim_file": names, "stimOnset (ms)": [1000 * v for v in onset]},
        "us": {"filename": names, "onset_us": np.array(onset) * 1e6},
        "timedelta": {"stimulus": names, "onset": pandas.to_timedelta(onset, unit="s")},
        "bytes": {"stimulus": [n.encode() for n in names], "onset": np.array(onset, np.float32)},
        "suffix": {"stimulus": [n and f"stim/{n.lower()}.wav" for n in names], "onset": onset},
    }


def test_tables_of_every_kind() -> None:
    want = mini()
    for kind, table in tables().items():
        try:
            same(mini(trials=table), want)
        except Exception as error:
            raise AssertionError(kind) from error
    renamed = {"wavname": MINI_TRIALS["stimulus"], "t0": MINI_TRIALS["onset"], "onset_ish": [0] * 6}
    same(mini(trials=renamed, columns={"stimulus": "wavname", "onset": "t0"}), want)


@pytest.mark.parametrize(
    ("trials", "text"),
    [
        ({"onset": [1.0]}, "no column is named 'stimulus'.*it has 'onset'.*columns={'stimulus': '...'}"),
        ({"stimulus": ["A"]}, "no column is named 'onset'"),
        ({"stimulus": ["A"], "start_time": [1.0], "sound_onset": [1.2]}, "several columns may be the onset"),
        ({"stimulus": ["A", "B"], "onset": [1.0]}, "different lengths: stimulus 2, onset 1"),
        ({"stimulus": ["A"], "onset": ["soon"]}, "'onset' holds times as numbers"),
        ({"stimulus": ["A"], "onset": [np.inf]}, "infinite"),
        ({"stimulus": ["A"], "onset": [2.0], "offset": [1.0]}, "trial 0 ends at 1 s, before its onset"),
        ({"stimulus": [], "onset": []}, "no presentation of a sound is left"),
        ({"stimulus": ["X"], "onset": [1.0]}, "no presentation.*there is no sound 'X'"),
        ({"stimulus": ["A"], "onset": [np.nan]}, "no presentation.*no onset"),
    ],
)
def test_wrong_tables(trials: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        mini(trials=trials)


def test_tables_of_wrong_kinds() -> None:
    with pytest.raises(TypeError, match="trials is a table in memory, got the path"):
        mini(trials="trials.csv")
    with pytest.raises(TypeError, match="a dictionary of columns"):
        mini(trials=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"columns=.'onset': 'T'., but it has 'stimulus'"):
        mini(columns={"onset": "T"})
    with pytest.raises(ValueError, match="columns maps"):
        mini(columns={"start": "onset"})


def test_spikes_of_every_container() -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    want = mini(spikes={3: MINI_SPIKES[3], 7: MINI_SPIKES[7]})
    times = np.array(MINI_SPIKES[7] + MINI_SPIKES[3])
    units = np.array([7] * 9 + [3])
    order = np.random.default_rng(0).permutation(10)
    frame = pandas.DataFrame({"cluster_id": units[order].astype(float), "time_ms": 1000 * times[order]})
    for spikes, ids in (
        (times[order], units[order]),
        (times.astype(object)[order], [str(u) for u in units[order]]),
        (torch.from_numpy(times), torch.from_numpy(units.astype(np.uint8))),
        (frame, None),
        (pyarrow.Table.from_pandas(frame), None),
        ({"unit": units, "spike_times": times}, None),
        (
            pandas.DataFrame({"id": [3, 7], "unit": ["3", "7"], "times": [MINI_SPIKES[3], MINI_SPIKES[7]]}),
            None,
        ),
    ):
        same(mini(spikes=spikes, unit_ids=ids), want)
    padded = np.full(20, np.nan)
    padded[3:12] = MINI_SPIKES[7]
    ds = mini(spikes={3: np.array(MINI_SPIKES[3]), 7: np.ma.masked_invalid(padded)})
    same(ds, want)
    assert ds.load_report.count("spikes without a time") == 11
    whole = {"a": np.array([1, 3, 5], np.uint64), "b": np.array([2], np.int8)}
    counted = mini(spikes=whole, observed=None)
    assert counted.responses[0][0][:, 0].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("spikes", "rest", "error", "text"),
    [
        (np.arange(9.0), {}, TypeError, "one unit alone is spikes={'unit': times}"),
        (np.arange(9.0), {"unit_ids": [1, 2]}, ValueError, "unit_ids has 2 entries for 9 spikes"),
        ({"a": [1.0, np.inf]}, {}, ValueError, "unit 'a': a time is infinite"),
        ({"a": ["x"]}, {}, ValueError, "unit 'a'"),
        ({"a": [1 + 2j]}, {}, ValueError, "unit 'a'"),
        ({7: [1.0], "7": [2.0]}, {}, ValueError, "two units have the name '7'"),
        ({}, {}, ValueError, "there is no unit"),
        ({"a": [1.0]}, {"observed": {"b": [[0, 1]]}}, ValueError, "observed names b, spikes has a"),
        ({"a": [1.0]}, {"observed": {"a": [[1.0, 0.0]]}}, ValueError, "a start and a later end"),
        ({"a": [1.0]}, {"observed": [1.0, 2.0, 3.0]}, ValueError, "observed holds intervals .start, end."),
        ({"a": [1.0]}, {"F": 0}, ValueError, "F must be at least 1"),
        ({"a": [1.0]}, {"audio_fs": 1e12}, ValueError, "audio_fs=1e.12 Hz would take"),
        ({"a": [1.0]}, {"span_s": (3.0, 1.0)}, ValueError, "span_s is .start, end."),
        ({u: [1000 * t for t in v] for u, v in MINI_SPIKES.items()}, {}, ValueError, "are the spikes in ms"),
        (
            {u: [30000 * int(t) for t in v] for u, v in MINI_SPIKES.items()},
            {},
            ValueError,
            "are they samples",
        ),
    ],
)
def test_wrong_spikes(spikes: Any, rest: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        mini(spikes=spikes, **{"observed": None, "span_s": None} | rest)


def test_onsets_in_milliseconds() -> None:
    trials = {"stimulus": MINI_TRIALS["stimulus"], "onset": [1000 * t for t in MINI_TRIALS["onset"]]}
    with pytest.raises(ValueError, match=r"are the onsets in ms.*onset_ms"):
        mini(trials=trials, observed=None, span_s=None)


# ---- choices and notes


@pytest.mark.parametrize(
    "choice",
    ["clip", "on_missing_sound", "on_overlap", "on_equal_sounds", "on_empty_unit", "on_partly_observed",
     "on_blank", "on_drift", "level"],
)  # fmt: skip
def test_choices_are_words(choice: str) -> None:
    with pytest.raises(ValueError, match=f"{choice} must be one of"):
        mini(**{choice: "perhaps"})


def test_overlapping_trials() -> None:
    trials = {"stimulus": ["A", "B", "A"], "onset": [1.0, 1.4, 3.0]}
    spikes = {"u": [1.45, 3.1]}
    kept = mini(trials=trials, spikes=spikes, observed=None)
    assert [float(r.sum()) for r in (kept.responses[0][0], kept.responses[1][0])] == [2.0, 1.0]
    assert kept.load_report.count("overlapping trials") == 2
    skipped = mini(trials=trials, spikes=spikes, observed=None, on_overlap="skip")
    assert len(skipped) == 1
    assert skipped.responses[0][0].shape == (1, 50)
    with pytest.raises(ValueError, match=r"overlapping trials: recording: trials 0, 1 .sounds overlap"):
        mini(trials=trials, spikes=spikes, observed=None, on_overlap="error")
    silence = mini(pre_ms=600.0)  # 2.3 s to 3.0 s is silence, 1.5 s to 2.0 s is shorter
    assert "only silence before and after" in str(silence.load_report.notes)
    assert mini(pre_ms=500.0).load_report.count("overlapping trials") == 0
    twice = mini(trials={"stimulus": ["A", "A", "B"], "onset": [1.0, 1.0, 3.0]}, spikes=spikes, observed=None)
    assert twice.responses[0][0].shape[0] == 1
    assert twice.load_report.count("duplicate trials") == 1


def test_blank_trials() -> None:
    ds = mini(on_blank="silence", trials={**MINI_TRIALS, "stimulus": ["A", "B", "A", "B", "A", "blank"]})
    assert len(ds) == 3
    assert ds.stim_meta[2]["name"] == "silence"
    assert tuple(ds.stims[2].shape) == (1, 8000)
    assert not ds.stims[2].any()
    assert ds.responses[2][0].shape == (1, 50)
    assert torch.isnan(ds.responses[2][1]).all()  # unit 3 was not observed
    with pytest.raises(ValueError, match="trial 5 has no stimulus"):
        mini(on_blank="error")
    with pytest.raises(ValueError, match="needs the length of blank trials"):
        mini(on_blank="silence", trials={k: v for k, v in MINI_TRIALS.items() if k != "offset"})
    named = mini_sounds() | {"blank": np.ones(1600, np.int16)}
    ds = mini(sounds=named, trials={**MINI_TRIALS, "stimulus": ["A", "B", "A", "B", "A", "blank"]})
    assert [row["name"] for row in ds.stim_meta] == ["A", "B", "blank"]  # a sound of that name is one


def test_empty_units() -> None:
    spikes = {**MINI_SPIKES, "mute": []}
    kept = mini(spikes=spikes)
    assert kept.N_neurons == 3
    assert float(kept.responses[0][2].sum()) == 0.0
    assert kept.load_report.count("units without spikes") == 1
    dropped = mini(spikes=spikes, on_empty_unit="drop")
    assert dropped.N_neurons == 2
    assert ("mute", "it has no spikes") in dropped.load_report.skipped
    with pytest.raises(ValueError, match="units without spikes: mute"):
        mini(spikes=spikes, on_empty_unit="error")


def test_partly_observed_bins() -> None:
    observed = {7: [[0.0, 3.0725], [3.255, 7.0]], 3: [[0.0, 3.9]]}
    row = mini(observed=observed).responses[0][0][1].numpy()
    assert np.flatnonzero(np.isnan(row)).tolist() == list(range(7, 26))
    row = mini(observed=observed, on_partly_observed="keep").responses[0][0][1].numpy()
    assert np.flatnonzero(np.isnan(row)).tolist() == list(range(8, 25))
    assert row[7] == 1
    assert row[25] == 1
    touching = {7: [[0.0, 3.1], [3.1, 3.25], [3.2, 7.0]], 3: [[0, 3.9]]}
    assert not torch.isnan(mini(observed=touching).responses[0][0]).any()


def test_trials_cut_by_the_end_of_the_recording() -> None:
    ds = mini(observed=None, span_s=(0.0, 5.25))
    assert ds.load_report.count("trials cut by the recording's end") == 1
    row = ds.responses[0][0][2]
    assert torch.isnan(row).sum() == 25
    assert not torch.isnan(row[:25]).any()
    gone = mini(observed=None, span_s=(0.0, 4.9))
    assert gone.responses[0][0].shape[0] == 2
    assert gone.load_report.count("trials cut by the recording's end") == 1


def test_clips_of_the_table() -> None:
    trials = {"stimulus": ["A", "A", "B"], "onset": [1.0, 3.0, 5.0], "offset": [1.6, 3.305, np.nan]}
    ds = mini(trials=trials, observed=None, clip="offset")
    assert (ds.n_bins(0), ds.n_bins(1)) == (60, 30)
    assert not ds.stims[0][0, 8000:].any()
    assert torch.isnan(ds.responses[0][0][1, 30:]).all()
    assert not torch.isnan(ds.responses[0][0][1, :30]).any()
    assert ds.load_report.count("trials of different lengths") == 1
    short = mini(trials=trials, observed=None)
    assert short.n_bins(0) == 50
    assert short.load_report.count("trials shorter than their sound") == 1


def test_conditions() -> None:
    trials = {**MINI_TRIALS, "condition": ["quiet", "loud", "loud", "loud", "quiet", ""]}
    ds = mini(
        trials=trials, by_condition=True, stim_meta={"A": {"split": "test"}}, unit_meta={7: {"area": "L"}}
    )
    assert [row["name"] for row in ds.stim_meta] == ["A (loud)", "A (quiet)", "B (loud)"]
    assert [row["condition"] for row in ds.stim_meta] == ["loud", "quiet", "loud"]
    assert [row.get("split") for row in ds.stim_meta] == ["test", "test", None]
    assert ds.nrn_meta == [{"cell_id": "7", "area": "L"}, {"cell_id": "3"}]
    assert [ds.responses[c][0].shape[0] for c in range(3)] == [1, 2, 2]
    assert ds.stim_meta[0]["source_sha256"] == ds.stim_meta[1]["source_sha256"]
    assert len(mini(trials=trials)) == 2
    with pytest.raises(ValueError, match="by_condition=True needs a column"):
        mini(by_condition=True)


def test_metadata_of_tables() -> None:
    pandas = pytest.importorskip("pandas")
    units = pandas.DataFrame({"unit_id": [3, 7], "quality": ["mua", "good"], "depth": [1.5, 2]})
    ds = mini(unit_meta=units, stim_meta=[{"stimulus": "B", "class": "noise"}])
    assert ds.nrn_meta[0] == {"cell_id": "7", "quality": "good", "depth": 2.0}
    assert ds.stim_meta[1]["class"] == "noise"
    assert mini(stim_meta={"a.wav": {"split": "test"}}).stim_meta[0]["split"] == "test"
    extra = mini(unit_meta={"7": {"area": "L"}, "8": {"area": "M"}, "9": {"area": "M"}})
    assert extra.load_report.count("metadata of nothing that is there") == 2
    with pytest.raises(ValueError, match="'3' has two rows"):
        mini(unit_meta={"unit": [3, 3], "area": ["a", "b"]})


def test_many_spikes_in_a_bin() -> None:
    sounds, trials = {"A": mini_sounds()["A"]}, {"stimulus": ["A", "A"], "onset": [1.0, 3.0]}
    for n in (100, 127, 128, 300, 40000):
        times = np.concatenate([np.linspace(1.1001, 1.1099, n), [3.2]])
        ds = mini(sounds=sounds, trials=trials, spikes={"u": times}, observed={"u": [[0, 3.3]]}, span_s=None)
        row = ds.responses[0][0].numpy()
        assert row[0, 10] == n
        assert row[1, 20] == 1
        assert np.nansum(row) == n + 1
        assert np.isnan(row[1, 30:]).all()
        assert ds.recorded_kind == "counts"


def test_signs_of_other_clocks() -> None:
    rng = np.random.default_rng(0)
    names = ["A", "B"] * 40
    onset = 10.0 + 3.0 * np.arange(80)
    spikes = {f"u{n}": np.sort(rng.uniform(0.0, 260.0, 1500)) for n in range(3)}
    given = {"observed": None, "span_s": None, "spikes": spikes}
    length = np.where(np.array(names) == "A", 0.5, 0.3)
    fine = mini(trials={"stimulus": names, "onset": onset, "offset": onset + length}, **given)
    topics = {topic for topic, _, _ in fine.load_report.notes}
    assert topics <= {"spikes outside trials", "spikes at trial edges"}
    late = mini(trials={"stimulus": names, "onset": onset + 100.0}, **given)
    assert late.load_report.count("clock offset") == 1
    with pytest.raises(ValueError, match=r"in 80 of 80 trials.*another clock.*triggers="):
        mini(trials={"stimulus": names, "onset": onset + 300.0}, **given)
    for ppm, seen in ((800.0, 1), (0.0, 0)):
        trials = {"stimulus": names, "onset": onset, "offset": onset + length * (1 + ppm * 1e-6)}
        assert mini(trials=trials, **given).load_report.count("clock drift") == seen
    rounded = {"stimulus": names, "onset": np.round(onset, 3), "offset": np.round(onset + length + 4e-4, 3)}
    assert mini(trials=rounded, **given).load_report.count("clock drift") == 0


def test_odd_units() -> None:
    rng = np.random.default_rng(0)
    onset = 10.0 + 3.0 * np.arange(80)
    fine = np.sort(rng.uniform(0.0, 260.0, 4000))
    in_trial = ((fine[:, None] >= onset) & (fine[:, None] < onset + 0.5)).any(axis=1)
    spikes = {"fine": fine, "lost": fine[fine < 150], "never": fine[~in_trial]}
    trials = {"stimulus": ["A"] * 80, "onset": onset}
    observed = {"fine": [[0, 100.0]]}
    report = mini(trials=trials, spikes=spikes, observed=observed, span_s=None).load_report
    assert report.count("silent trials") == int((onset > 150).sum())
    assert report.count("spikes dropped") == 1
    assert report.count("uneven repeats") == 1
    assert report.count("spikes outside observation") == int((fine >= 100.0).sum())


def test_triggers() -> None:
    rng = np.random.default_rng(0)
    true = np.cumsum(rng.uniform(1.0, 3.0, 40)) + 50
    names = ["A", "B"] * 20
    spikes = {"u": np.sort(rng.uniform(40.0, 160.0, 2000))}
    given = {"observed": None, "span_s": None, "spikes": spikes}
    want = mini(trials={"stimulus": names, "onset": true}, **given)
    table = {"stimulus": names, "onset": (true - 31.25) / (1 + 50e-6)}
    for pulses in (true, rng.permutation(true), np.delete(true, [3, 20])):
        ds = mini(trials=table, triggers=pulses, **given)
        same(ds, want)
        assert ds.load_report.count("clock drift") == 1
        assert ds.load_report.count("dropped triggers") == 40 - len(pulses)
    ignored = mini(trials=table, triggers=true, on_drift="ignore", **given)
    assert "not corrected" in str(ignored.load_report.notes)
    with pytest.raises(ValueError, match=r"clock drift: 50\.0 ppm"):
        mini(trials=table, triggers=true, on_drift="error", **given)
    even = {"stimulus": ["A"] * 20, "onset": 2.0 * np.arange(20)}
    with pytest.raises(ValueError, match="ambiguous, two alignments match 19 and 19 of 20"):
        mini(trials=even, triggers=60.0 + 2.0 * np.arange(19), **given)
    inner = np.delete(60.0 + 2.0 * np.arange(20), 7)
    assert "trials 7, placed" in str(mini(trials=even, triggers=inner, **given).load_report.notes)
    with pytest.raises(ValueError, match=r"(?s)triggers:.*check that the triggers are of these trials"):
        mini(trials=table, triggers=np.sort(rng.uniform(40, 160, 40)), **given)
    with pytest.raises(ValueError, match="finite and at least one"):
        mini(trials=table, triggers=[np.nan], **given)


# ---- several sessions, files, storage


def sessions() -> list[Session]:
    rng = np.random.default_rng(5)
    x, y, z = (rng.normal(size=4800) for _ in range(3))

    def sound(values: np.ndarray) -> Sound:
        return Sound(lambda: values, 16000, len(values))

    one = Session(
        Trials(["x", "y", "x"], np.array([1.0, 2.0, 3.0])), {"x": sound(x), "y": sound(y)},
        spikes={"a": np.array([1.1, 3.2]), "b": np.array([2.05])}, name="site1", unit_meta={"a": {"site": 1}},
        stim_meta={"x": {"split": "test"}}, species="ferret", facts={"doi": "10.1"},
    )  # fmt: skip
    two = Session(
        Trials(["y", "w", "y"], np.array([5.0, 7.0, 9.0])), {"w": sound(x.copy()), "y": sound(z)},
        spikes={"b": np.array([7.2]), "c": np.array([5.1, 9.25])}, name="site2",
    )  # fmt: skip
    return [one, two]


def test_sessions_become_one_dataset() -> None:
    ds = dataset_of(AudioNeuralDataset, sessions(), dt_ms=10.0, check_alignment=False)
    assert [row["name"] for row in ds.stim_meta] == ["x", "site1/y", "site2/y"]
    assert ds.stim_meta[0]["split"] == "test"
    assert [row["cell_id"] for row in ds.nrn_meta] == ["a", "b", "c"]
    shapes = [[tuple(r.shape) for r in row] for row in ds.responses]
    assert shapes == [[(2, 30), (3, 30), (1, 30)], [(1, 30), (1, 30), (1, 1)], [(1, 1), (2, 30), (2, 30)]]
    assert ds.responses[0][1][2].nonzero().tolist() == [[20]]  # unit b, its repeat of the second session
    assert ds.load_report.count("same name, different sounds") == 1
    assert ds.load_report.count("equal sounds under two names") == 1
    assert (ds.species, ds.facts["doi"], ds.name) == ("ferret", "10.1", "site1+site2")


def test_report_and_data_come_back_from_a_file(tmp_path: Path) -> None:
    ds = mini(pre_ms=100.0)
    back = AudioNeuralDataset.load(ds.save(tmp_path / "mini.npz"))
    assert back.load_report.notes == ds.load_report.notes
    assert back.load_report.kept == ds.load_report.kept
    assert back.facts["pre_ms"] == 100.0
    assert back.content_fingerprint() == ds.content_fingerprint()
    assert str(ds.load_report)


def test_fit_is_that_of_arrays() -> None:
    ds = mini(spikes={7: MINI_SPIKES[7]}, observed=None)
    sounds = mini_sounds()
    arrays = AudioNeuralDataset.from_arrays(
        [sounds["A"], sounds["B"]], [[part[0]] for part in expected_mini()], 10.0, 16000,
        nrn_meta=[{"cell_id": "7"}], check_alignment=False,
    )  # fmt: skip
    same(ds, arrays)
    assert ds.F == arrays.F
