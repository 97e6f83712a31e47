"""Continuous signals on bins: exact means, low-pass, artefacts, trials at their original times, sessions."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deepSTRF.datasets import envelope
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.datasets.continuous import SignalReader, fill_from_signal
from deepSTRF.datasets.session import Feature, Session, Signal, Sound, Trials
from deepSTRF.dsp.binning import bin_edges

Array = npt.NDArray[Any]


def reader(data: Any, fs: float, bin_s: Fraction, antialias: bool = True, **rest: Any) -> SignalReader:
    names = [f"c{k}" for k in range(1 if len(data.shape) == 1 else data.shape[0])]
    return SignalReader(Signal(data, fs, names, **rest), Fraction(fs), bin_s, antialias=antialias)


def mini_eeg(**rest: Any) -> AudioNeuralDataset:
    """2 channels at 500 Hz for 10 s from 2.0 s on, a ramp of 1 uV per row; clips at 3 s and 6 s."""
    signal = np.stack([np.arange(5000) * 1e-6, np.ones(5000)])
    given: dict[str, Any] = {
        "dt_ms": 10.0, "sounds_fs": 16000, "channels": ["Cz", "Pz"], "start_s": 2.0, "bad_s": [[3.5, 3.6]],
        "bad_channels": ["Pz"], "unit": "V", "check_alignment": False, **rest,
    }  # fmt: skip
    sounds = {"1": np.random.default_rng(0).normal(size=16000), "2": np.ones(16000)}
    trials = {"stimulus": ["1", "2"], "onset": [3.0, 6.0]}
    return AudioNeuralDataset.from_continuous(sounds, signal, 500, trials, **given)


@pytest.mark.parametrize("antialias", [True, False])
def test_the_small_eeg_session(antialias: bool) -> None:
    ds = mini_eeg(antialias=antialias)
    first, second = ds.response_block(0)[0, 0].numpy(), ds.response_block(1)[0, 0].numpy()
    centre = 2.5 if antialias else 2.0  # samples that a bin holds: 0 to 4
    ramp = (np.arange(100) * 5 + centre) * 1e-6
    assert np.flatnonzero(np.isnan(first)).tolist() == list(range(50, 60))
    np.testing.assert_allclose(first[:50], (500e-6 + ramp)[:50], rtol=1e-5)
    np.testing.assert_allclose(first[60:], (500e-6 + ramp)[60:], rtol=1e-5)
    np.testing.assert_allclose(second, 2000e-6 + ramp, rtol=1e-5)
    assert ds.nrn_masks.tolist() == [[True, False], [True, False]]
    assert (ds.response_kind, ds.response_unit) == ("trace", "V")
    assert [row["cell_id"] for row in ds.nrn_meta] == ["Cz", "Pz"]
    assert ds.load_report.count("bad channels") == 1
    assert ds.load_report.count("artefacts") == 10
    look = ds.describe()["signal_filter"]
    assert ("ms ahead" in look) is antialias


def exact_mean(data: Array, fs: Fraction, bin_s: Fraction, onset: Fraction, k: int) -> float:
    """Mean of one bin by fractions, each sample standing until the next."""
    low, high = (onset + k * bin_s) * fs, (onset + (k + 1) * bin_s) * fs
    total = Fraction(0)
    for j in range(math.floor(low), math.ceil(high)):
        share = min(Fraction(j + 1), high) - max(Fraction(j), low)
        total += share * Fraction(float(data[j]))
    return float(total / (high - low))


@pytest.mark.parametrize(
    ("fs", "bin_s", "dtype"),
    [
        (500, Fraction(1, 64), np.float32), (500, Fraction(1, 128), np.int16),
        (512, Fraction(1, 100), np.float64), (24414.0625, Fraction(1, 100), np.float32),
        (97656.25, Fraction(1, 128), np.float64),
    ],
)  # fmt: skip
def test_means_without_a_low_pass_are_exact(fs: float, bin_s: Fraction, dtype: Any) -> None:
    rng = np.random.default_rng(7)
    data = (1000 * rng.normal(size=int(fs * 0.6)) + 5000).astype(dtype)
    for onset in (0.0, 0.1037):
        found = reader(data, fs, bin_s, antialias=False).bins(onset, 0, 12)[0]
        loop = [exact_mean(data, Fraction(fs), bin_s, Fraction(onset), k) for k in range(12)]
        np.testing.assert_allclose(found, loop, rtol=1e-10)
        pieces = [reader(data, fs, bin_s, antialias=False).bins(onset, k, k + 1)[0] for k in range(12)]
        np.testing.assert_allclose(found, np.concatenate(pieces), rtol=1e-12)


def test_whole_samples_per_bin_are_a_plain_mean_and_the_bin_rate_is_left_alone() -> None:
    data = np.random.default_rng(8).normal(size=(3, 1000))
    found = reader(data, 500, Fraction(1, 100), antialias=False).bins(0.2, 0, 50)
    np.testing.assert_allclose(found, data[:, 100:350].reshape(3, 50, 5).mean(-1), rtol=1e-12, atol=1e-14)
    for rate in (64, 128, 100):
        same = reader(data, rate, Fraction(1, rate)).bins(0.0, 0, 1000)
        np.testing.assert_allclose(same, data, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bin_s", [Fraction(1, 100), Fraction(1, 64), Fraction(1, 128)])
@pytest.mark.parametrize("fs", [160, 500, 2048, 24414.0625])
def test_low_pass_keeps_slow_waves_and_stops_what_bins_cannot_hold(fs: float, bin_s: Fraction) -> None:
    t = np.arange(int(6 * fs)) / fs
    bin_rate = float(1 / bin_s)
    count = int(2 * bin_rate)
    centre = 2.0137 + (np.arange(count) + 0.5) * float(bin_s)
    for slow in (0.01 * bin_rate, 0.05 * bin_rate, 0.1 * bin_rate, 0.2 * bin_rate):
        found = reader(np.sin(2 * np.pi * slow * t + 0.3), fs, bin_s).bins(2.0137, 0, count)[0]
        np.testing.assert_allclose(found, np.sin(2 * np.pi * slow * centre + 0.3), atol=1e-3)
    phase = np.angle(np.sum(found * np.exp(-2j * np.pi * slow * centre)))
    wanted = np.angle(np.sum(np.sin(2 * np.pi * slow * centre + 0.3) * np.exp(-2j * np.pi * slow * centre)))
    assert abs(phase - wanted) < 1e-3
    for fast in (0.51 * bin_rate, 0.7 * bin_rate, 1.3 * bin_rate):
        if fast < fs / 2:
            left = reader(np.sin(2 * np.pi * fast * t), fs, bin_s).bins(2.0137, 0, count)[0]
            assert np.abs(left).max() < 1e-2
    flat = reader(np.full(len(t), 3.7), fs, bin_s).bins(0.0, 0, count)[0]
    np.testing.assert_allclose(flat, 3.7, rtol=1e-12)  # at the edge of the recording too


def test_slow_signals_are_interpolated_and_say_so() -> None:
    fs = 30.03
    t = np.arange(400) / fs
    ds = AudioNeuralDataset.from_continuous(
        {"pupil": np.arange(1200.0)}, 2.0 + 3.0 * t, fs, {"stimulus": ["clip000"], "onset": [1.0]},
        dt_ms=10.0, check_alignment=False,
    )  # fmt: skip
    centre = 1.0 + (np.arange(1200) + 0.5) * 0.01
    np.testing.assert_allclose(ds.response_block(0)[0, 0], 2.0 + 3.0 * centre, rtol=1e-6)
    assert ds.load_report.count("interpolated signal") == 1
    assert "straight lines" in ds.describe()["signal_filter"]
    holes = t.copy()
    holes[30] = np.nan
    found = reader(holes, fs, Fraction(1, 100)).bins(0.0, 0, 200)[0]
    low, high = 29 / fs, 31 / fs
    edges = np.arange(201) / 100
    expected = (edges[:-1] < high) & (edges[1:] > low)
    np.testing.assert_array_equal(np.isnan(found), expected)


class Ramp:
    """Ten hours at any rate: sample k is k / fs, made when it is read."""

    dtype = np.dtype(np.float64)

    def __init__(self, fs: float, hours: float) -> None:
        self.fs, self.shape, self.most = fs, (1, int(hours * 3600 * fs)), 0

    def __getitem__(self, key: Any) -> Array:
        rows, columns = key
        assert rows == slice(None)
        self.most = max(self.most, columns.stop - columns.start)
        return np.arange(columns.start, columns.stop)[None] / self.fs


@pytest.mark.parametrize(("fs", "bin_s"), [(24414.0625, Fraction(1, 100)), (500, Fraction(1, 64))])
def test_ten_hours_do_not_drift(fs: float, bin_s: Fraction) -> None:
    step = Fraction(fs) * bin_s
    for k in (0, 1, 999_999, int(35_990 / bin_s)):
        base, edges = bin_edges(Fraction(1, 3), step, k, k + 3)
        for j, edge in enumerate(edges):
            exact = Fraction(1, 3) + (k + j) * step
            assert abs(float(Fraction(base) + Fraction(float(edge)) - exact)) < 1e-9
    data = Ramp(fs, 10.0)
    late = int(35_990 / bin_s)
    found = reader(data, fs, bin_s).bins(3.07, late, late + 50)[0]
    centre = [float(Fraction(3.07) + (k + Fraction(1, 2)) * bin_s) for k in range(late, late + 50)]
    np.testing.assert_allclose(found, centre, rtol=0, atol=1e-6)
    assert data.most < 1 << 18


def test_missing_samples_and_spans_stay_in_their_bins() -> None:
    rng = np.random.default_rng(3)
    clean = np.cumsum(rng.normal(size=(2, 20_000)), axis=1)
    broken = clean.copy()
    broken[0, 7001:7004] = np.nan  # bin 1400
    broken[1, 9000:9010] = np.nan  # bins 1800 and 1801
    broken[:, 12_000:12_500] = 1e9  # an artefact, in bad_s: bins 2400 to 2499
    one = reader(broken, 500, Fraction(1, 100), bad_s=np.array([[24.0, 25.0]])).bins(0.0, 0, 4000)
    two = reader(clean, 500, Fraction(1, 100)).bins(0.0, 0, 4000)
    artefact = set(range(2400, 2500))
    assert set(np.flatnonzero(np.isnan(one[0]))) == {1400} | artefact
    assert set(np.flatnonzero(np.isnan(one[1]))) == {1800, 1801} | artefact
    far = np.ones(4000, dtype=bool)
    for at in (1400, 1800, 1801, *artefact):
        far[max(0, at - 13) : at + 14] = False
    np.testing.assert_allclose(one[:, far], two[:, far], rtol=1e-9, atol=1e-9)
    near = ~np.isnan(one)
    assert np.abs(one[near] - two[near]).max() < 30.0  # nothing of 1e9 rings into good bins
    assert np.isnan(reader(clean, 500, Fraction(1, 100)).bins(39.9, 0, 20)).sum() == 20  # after the end
    assert np.isnan(reader(clean, 500, Fraction(1, 100)).bins(-0.1, 0, 20)).sum() == 20  # before the start
    infinite = clean.copy()
    infinite[1, 100] = np.inf
    with pytest.raises(ValueError, match=r"channel 'c1' is infinite at 0\.2 s"):
        reader(infinite, 500, Fraction(1, 100)).bins(0.0, 0, 100)


def test_trials_are_cut_from_their_original_times() -> None:
    fs, rng = 500, np.random.default_rng(5)
    signal = rng.normal(size=(3, 10_000))
    onsets = np.array([1.0013, 5.4321, 9.87, 19.5])
    trials = {"stimulus": ["a", "b", "a", "a"], "onset": onsets}
    sounds = {"a": rng.normal(size=16_000), "b": rng.normal(size=8_000)}
    ds = AudioNeuralDataset.from_continuous(
        sounds, signal, fs, trials, dt_ms=1000 / 64, sounds_fs=16_000, antialias=False, pre_ms=1000 / 16,
        check_alignment=False, features=["envelope"],
    )  # fmt: skip
    block = ds.response_block(0).numpy()
    assert block.shape == (3, 3, 68)
    bin_s = Fraction(1, 64)
    for repeat, onset in enumerate((onsets[0], onsets[2])):
        start = Fraction(float(onset - 4 / 64))
        loop = [[exact_mean(row, Fraction(fs), bin_s, start, k) for k in range(68)] for row in signal]
        np.testing.assert_allclose(block[:, repeat], loop, rtol=1e-4, atol=1e-5)
    last = np.isnan(block[:, 2]).all(axis=0)
    assert last.tolist() == [19.5 - 4 / 64 + (k + 1) / 64 > 20.0 for k in range(68)]
    assert ds.load_report.count("trials cut by the recording's end") == 1
    np.testing.assert_allclose(ds.stims[1][0, :, 4:], envelope(sounds["b"], 16_000, 1000 / 64), rtol=1e-6)


def test_memory_maps_and_single_rows(tmp_path: Path) -> None:
    signal = np.random.default_rng(6).normal(size=(2, 4000)).astype(np.float32)
    np.save(tmp_path / "signal.npy", signal)
    mapped = np.load(tmp_path / "signal.npy", mmap_mode="r")
    given = {"speech": np.ones((3, 800))}
    options: dict[str, Any] = {"dt_ms": 10.0, "check_alignment": False}
    one = AudioNeuralDataset.from_continuous(given, mapped, 500, **options)
    two = AudioNeuralDataset.from_continuous(given, signal.astype(float), 500, **options)
    np.testing.assert_allclose(one.response_block(0), two.response_block(0), rtol=1e-6)
    row = AudioNeuralDataset.from_continuous(given, signal[0], 500, **options)
    np.testing.assert_array_equal(row.response_block(0)[0], one.response_block(0)[0])
    assert one.features == {"speech": 3}
    positive = AudioNeuralDataset.from_continuous(
        given, signal**2, 500, response_kind="rate", antialias=False, **options
    )
    assert positive.response_kind == "rate"
    with pytest.raises(ValueError, match="response_kind='rate'"):
        AudioNeuralDataset.from_continuous(given, signal, 500, response_kind="rate", **options)


def test_features_at_their_own_rate_and_beside_sounds() -> None:
    rng = np.random.default_rng(9)
    sounds = {"a": rng.normal(size=16_000), "b": rng.normal(size=8_000)}
    extra = {"a": {"pupil": rng.normal(size=128)}, "b": {"pupil": rng.normal(size=64)}}
    trials = {"stimulus": ["a", "b"], "onset": [0.0, 2.0]}
    options: dict[str, Any] = {"dt_ms": 1000 / 64, "sounds_fs": 16_000, "check_alignment": False}
    ds = AudioNeuralDataset.from_continuous(
        sounds,
        rng.normal(size=(1, 2000)),
        500,
        trials,
        features=["onsets", extra],
        features_fs=128,
        **options,
    )
    assert list(ds.features.items()) == [("onsets", 1), ("pupil", 1)]
    np.testing.assert_allclose(
        ds.stims[0][0, 1], extra["a"]["pupil"].reshape(64, 2).mean(1), rtol=1e-5, atol=1e-6
    )
    assert ds.load_report.count("resampled features") == 2
    alone = AudioNeuralDataset.from_continuous(
        sounds, rng.normal(size=(1, 2000)), 500, trials, features=extra, features_fs=128,
        spectrogram={"n_filters": 6, "f_min": 200.0}, **options,
    )  # fmt: skip
    assert alone.features == {"spectrogram": 6, "pupil": 1}
    assert alone.select(features=["spectrogram"]).frequencies_hz is not None
    for wrong, text in (
        ({"c": {"pupil": np.ones(64)}}, "'pupil' is given for 'c'|'pupil' is given for c"),
        ({"a": {"pupil": np.ones(128)}}, "'pupil' of stimulus 'b' is not there"),
        ({"a": {"pupil": np.ones(90)}, "b": {"pupil": np.ones(64)}}, "'a'.*64 bins.*45"),
        ({"a": {"pupil": np.full(128, np.nan)}, "b": {"pupil": np.ones(64)}}, "'pupil' of stimulus 'a'.*NaN"),
    ):
        with pytest.raises(ValueError, match=text):
            AudioNeuralDataset.from_continuous(
                sounds, rng.normal(size=(1, 2000)), 500, trials, features=wrong, features_fs=128, **options
            )


def session(name: str, channels: list[str], seed: int, **rest: Any) -> Session:
    rng = np.random.default_rng(seed)
    sound = np.random.default_rng(1).normal(size=8_000)
    return Session(
        Trials(["a", "a"], np.array([1.0, 2.0])),
        sounds={"a": Sound(lambda: sound, 16_000, len(sound))},
        signal=Signal(rng.normal(size=(len(channels), 2000)), 500, channels, unit="uV", **rest),
        name=name,
    )


def filled(sessions: list[Session], **rest: Any) -> AudioNeuralDataset:
    ds = AudioNeuralDataset._blank(10.0)
    ds.F = 34
    fill_from_signal(ds, sessions, dt_ms=10.0, **rest)
    ds.validate()
    return ds


def test_sessions_join_as_neurons_or_as_repeats() -> None:
    subjects = [session("S1", ["Cz", "Pz"], 1), session("S2", ["Cz"], 2)]
    ds = filled(subjects)
    assert [row["cell_id"] for row in ds.nrn_meta] == ["S1/Cz", "S1/Pz", "S2/Cz"]
    assert ds.nrn_meta[2]["session"] == "S2"
    assert len(ds) == 1
    assert ds.response_block(0).shape == (3, 2, 50)
    np.testing.assert_array_equal(ds.response_block(0)[2], filled([subjects[1]]).response_block(0)[0])
    runs = filled([session("R1", ["Cz"], 1), session("R2", ["Cz", "Pz"], 2)], on_same_channel="join")
    assert [row["cell_id"] for row in runs.nrn_meta] == ["Cz", "Pz"]
    assert [len(runs.responses[0][n]) for n in range(2)] == [4, 2]
    apart = filled([session("A", ["x"], 1), session("B", ["y"], 2)])
    assert [row["cell_id"] for row in apart.nrn_meta] == ["x", "y"]
    named = filled([session("A", ["x"], 1)], session_names=True)
    assert named.nrn_meta[0]["cell_id"] == "A/x"
    with pytest.raises(ValueError, match="on_same_channel"):
        filled(subjects, on_same_channel="merge")


OPTIONS: dict[str, Any] = {"dt_ms": 10.0, "check_alignment": False}
SPEECH = {"envelope": np.ones(1000)}  # 10 s


@pytest.mark.parametrize(
    ("signal", "fs", "more", "text"),
    [
        (np.ones((5000, 64)), 500, {}, r"\(T, channels\).*10 s.*signal.T"),
        (np.ones((5000, 2)), 500, {"channels": ["a", "b"]}, r"\(T, channels\)"),
        (np.ones((2, 4000)), 500, {}, "8 s .4000 samples at 500 Hz.* 10 s"),
        (np.ones((2, 5000)), 500, {"channels": ["a"]}, "1 names of channels"),
        (np.ones((2, 5000)), 500, {"channels": ["a", "a"]}, "a stands for several"),
        (np.ones((2, 5000)), 500, {"bad_channels": ["Cz"]}, "Cz is none of"),
        (np.ones((2, 5000)), 500, {"bad_s": [[3.0, 2.0]]}, "bad_s"),
        (np.ones((2, 5000)), 0, {}, "fs"),
        (np.ones((2, 5000)), 500, {"features": {"x": {"envelope": np.ones(9)}}}, "nothing says"),
        (np.ones((2, 5000)), 500, {"features": ["onsets"]}, "computed from sounds"),
        (np.ones((2, 5000)), 500, {"pre_ms": 100.0}, "pre_ms"),
        (np.ones((2, 5000)), 500, {"response_kind": "counts"}, "'trace' or 'rate'|'trace', 'rate'"),
        (np.ones((2, 5000)), 500, {"audio_fs": 16000.0}, "audio_fs"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(signal: Any, fs: Any, more: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        AudioNeuralDataset.from_continuous(SPEECH, signal, fs, **OPTIONS, **more)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="signal="):
        AudioNeuralDataset.from_continuous(SPEECH, dt_ms=10.0)
    with pytest.raises(TypeError, match="real numbers"):
        AudioNeuralDataset.from_continuous(SPEECH, np.ones((2, 5000), complex), 500, **OPTIONS)
    with pytest.raises(ValueError, match="no stimulus"):
        AudioNeuralDataset.from_continuous(None, np.ones((2, 5000)), 500, **OPTIONS)
    sounds = {"a": np.ones(16000), "b": np.ones(8000)}
    with pytest.raises(ValueError, match="nothing says which was presented when"):
        AudioNeuralDataset.from_continuous(sounds, np.ones((2, 500)), 500, sounds_fs=16000, **OPTIONS)
    with pytest.raises(TypeError, match="this mapping is both"):
        AudioNeuralDataset.from_continuous({"a": {"x": [1.0]}, "b": [1.0]}, np.ones((2, 500)), 500, **OPTIONS)


def test_a_table_names_its_channels_and_metadata_are_kept() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(np.random.default_rng(0).normal(size=(5000, 2)), columns=["Cz", "Pz"])
    ds = AudioNeuralDataset.from_continuous(
        SPEECH, table, 500, unit_meta={"Pz": {"area": "parietal"}}, stim_meta=[{"language": "en"}], **OPTIONS
    )
    assert [row["cell_id"] for row in ds.nrn_meta] == ["Cz", "Pz"]
    assert ds.nrn_meta[1]["area"] == "parietal"
    assert ds.stim_meta[0]["language"] == "en"


def test_features_of_sessions_with_their_own_frames() -> None:
    one = Session(
        Trials(["a"], np.array([0.0])), features={"level": {"a": Feature(np.arange(100.0)[None], 100)}},
        signal=Signal(np.ones((1, 500)), 500, ["Cz"]),
    )  # fmt: skip
    ds = filled([one])
    assert ds.features == {"level": 1}
    assert ds.F == 1
    np.testing.assert_array_equal(ds.stims[0][0, 0], np.arange(100.0))


def test_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"no argument 'on_foo'; choices are .*on_overlap"):
        AudioNeuralDataset.from_continuous(SPEECH, np.ones((2, 5000)), 500, on_foo=1, **OPTIONS)
    with pytest.raises(ValueError, match=r"dt_ms is a positive number"):
        AudioNeuralDataset.from_continuous(SPEECH, np.ones((2, 5000)), 500, dt_ms=0.0)
    with pytest.raises(ValueError, match=r"are these seconds"):
        AudioNeuralDataset.from_continuous(SPEECH, np.ones((2, 5000)), 500, dt_ms=0.01)
    with pytest.raises(ValueError, match=r"samples of sounds need sounds_fs"):
        AudioNeuralDataset.from_continuous({"a": np.ones(160_000)}, np.ones((2, 5000)), 500, **OPTIONS)
    noise = np.random.default_rng(0).random((2, 5000)) ** 8
    with pytest.raises(ValueError, match=r"antialias=False"):
        AudioNeuralDataset.from_continuous(SPEECH, noise, 500, response_kind="rate", **OPTIONS)
