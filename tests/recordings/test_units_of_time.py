"""Times that are no seconds, sounds with a rate in kHz, and numbers that stand for named sounds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from deepSTRF.datasets import open_recording
from deepSTRF.datasets.audio import AudioNeuralDataset

ONSETS = np.array([1.0, 2.5, 4.0, 5.5])
NAMES = ["tone", "song", "song", "tone"]


def sounds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"tone": 0.1 * rng.normal(size=8000), "song": 0.1 * rng.normal(size=12000)}  # 0.5 and 0.75 s


def spikes() -> np.ndarray:
    return np.sort(np.random.default_rng(2).uniform(0.0, 8.0, 400))


def counts(times: np.ndarray, name: str) -> np.ndarray:
    """(repeats, bins of 10 ms) by a plain loop."""
    onsets = [onset for onset, shown in zip(ONSETS, NAMES, strict=True) if shown == name]
    table = np.zeros((len(onsets), {"tone": 50, "song": 75}[name]))
    for row, onset in enumerate(onsets):
        for time in times:
            k = int(np.floor((time - onset + 1e-6) / 0.01))
            if 0 <= k < table.shape[1]:
                table[row, k] += 1
    return table


def made(trials: Any, times: Any, **more: Any) -> AudioNeuralDataset:
    more = {"sounds_fs": 16000, "check_alignment": False} | more
    return AudioNeuralDataset.from_trials(sounds(), trials, times, dt_ms=10.0, **more)


@pytest.mark.parametrize(
    ("column", "scale"),
    [
        ("onset (\u00b5s)", 1e6),
        ("onset_\u03bcs", 1e6),
        ("Onset [us]", 1e6),
        ("onsetMs", 1e3),
        ("ONSET (ms)", 1e3),
    ],
)
def test_unit_in_the_name_of_a_column(column: str, scale: float) -> None:
    times = {"unit": [7] * 400, "time (\u00b5s)": spikes() * 1e6}
    ds = made({"stimulus": NAMES, column: ONSETS * scale}, times, span_s=(0.0, 8.0))
    for i, name in enumerate(("tone", "song")):
        assert np.array_equal(ds.responses[i][0].numpy(), counts(spikes(), name))


def test_whole_numbers_are_no_seconds() -> None:
    samples = np.unique(np.rint(spikes() * 30000))
    with pytest.raises(ValueError, match="spike times are whole numbers: are they samples"):
        made({"stimulus": NAMES, "onset": ONSETS * 30000}, {"u": samples})
    raster = np.random.default_rng(3).random(3000) < 0.1
    with pytest.raises(ValueError, match="counts per bin"):
        made({"stimulus": NAMES, "onset": ONSETS}, {"u": raster.astype(int)}, span_s=(0.0, 8.0))
    assert made({"stimulus": NAMES, "onset": ONSETS}, {"u": np.arange(9)}).N_neurons == 1


@pytest.mark.parametrize("scale", [1e3, 1e6])
@pytest.mark.parametrize("clip", ["sound", "offset"])
def test_durations_in_another_unit(scale: float, clip: str) -> None:
    lengths = np.array([{"tone": 0.5, "song": 0.75}[name] for name in NAMES])
    trials = {"stimulus": NAMES, "onset": ONSETS, "duration": lengths * scale}
    with pytest.raises(ValueError, match=f"trials last {scale:.0f} times as long as their sounds"):
        made(trials, {"u": spikes()}, clip=clip)


def test_spikes_and_onsets_in_ms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"are times in ms.*spikes are in clips"):
        made({"stimulus": NAMES, "onset": ONSETS * 1000}, {"u": spikes() * 1000})
    ds = made({"stimulus": NAMES, "onset": ONSETS * 1000}, {"u": spikes() * 1000}, span_s=(0.0, 8000.0))
    assert ds.load_report.count("trials far apart") == 1
    right = made({"stimulus": NAMES, "onset_ms": ONSETS * 1000}, {"u": spikes()})
    assert right.load_report.count("trials far apart") == 0


def test_onsets_that_are_all_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="taken for ms"):
        made({"stimulus": NAMES, "onset_ms": ONSETS}, {"unit": [1] * 400, "time_ms": spikes()})


def test_rate_in_khz_is_refused() -> None:
    for rate in (44.1, 48):
        with pytest.raises(ValueError, match="kHz"):
            made({"stimulus": NAMES, "onset": ONSETS}, {"u": spikes()}, sounds_fs=rate)


def test_half_precision_sounds_do_not_warn() -> None:
    half = {name: wave.astype(np.float16) for name, wave in sounds().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = AudioNeuralDataset.from_trials(
            half, {"stimulus": NAMES, "onset": ONSETS}, {"u": spikes()}, dt_ms=10.0, sounds_fs=16000,
            check_alignment=False,
        )  # fmt: skip
    assert np.array_equal(np.asarray(ds.stims[0]).ravel(), half["tone"].astype(np.float32))


@pytest.mark.parametrize("where", ["folder", "cell"])
def test_numbers_stand_for_named_sounds(tmp_path: Path, where: str) -> None:
    """The commonest layout in MATLAB: stim_id is the row of a list of names."""
    savemat = pytest.importorskip("scipy.io").savemat
    waves, cell, named = np.empty(2, dtype=object), np.empty(1, dtype=object), ["tone", "song"]
    cell[0] = spikes()[:, None]
    for k, name in enumerate(named):
        waves[k] = sounds()[name][:, None]
        soundfile.write(tmp_path / f"{name}.wav", sounds()[name], 16000, subtype="DOUBLE")
    ids = np.array([1.0 + named.index(name) for name in NAMES])
    savemat(tmp_path / "m.mat", {
        "st": cell, "onset": ONSETS, "stim_id": ids, "names": np.array(named, dtype=object), "wav": waves,
    })  # fmt: skip
    where_from = {"sounds": tmp_path} if where == "folder" else {"sounds": "wav", "sounds_fs": 16000}

    def read(**more: Any) -> AudioNeuralDataset:
        return open_recording(
            tmp_path / "m.mat", dt_ms=10.0, spikes="st", axes="unit", zero="session", time_unit="s",
            onsets="onset", stimuli="stim_id", sound_names="names", check_alignment=False, **where_from,
            **more,
        )  # fmt: skip

    ds = read()
    assert sorted(row["name"] for row in ds.stim_meta) == ["song", "tone"]
    for i, row in enumerate(ds.stim_meta):
        assert np.array_equal(ds.responses[i][0].numpy(), counts(spikes(), row["name"]))
    with pytest.raises(ValueError, match="one_based"):
        read(one_based=False)


def test_numbers_of_trials_that_name_no_sound_say_what_helps(tmp_path: Path) -> None:
    for name, wave in sounds().items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000, subtype="DOUBLE")
    trials = {"stimulus": [1 + (name == "song") for name in NAMES], "onset": ONSETS}
    with pytest.raises(ValueError, match=r"sounds=\{<name in the trials>: <file>"):
        AudioNeuralDataset.from_trials(tmp_path, trials, {"u": spikes()}, dt_ms=10.0)
    files = {1: tmp_path / "tone.wav", 2: tmp_path / "song.wav"}
    ds = AudioNeuralDataset.from_trials(files, trials, {"u": spikes()}, dt_ms=10.0, check_alignment=False)
    for i, name in enumerate(("tone", "song")):
        assert np.array_equal(ds.responses[i][0].numpy(), counts(spikes(), name))


def test_fields_that_hold_one_number_are_not_proposed_as_spike_times(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    units = np.zeros(2, dtype=[("id", object), ("st", object), ("area", object)])
    for k in range(2):
        units[k] = (k + 4, spikes() + k, "A1")
    savemat(tmp_path / "m.mat", {"units": units, "onset": ONSETS, "stim": np.array(NAMES, dtype=object)})
    with pytest.raises(ValueError, match=r"spikes='units\(:\)\.st'") as error:
        open_recording(tmp_path / "m.mat", dt_ms=10.0, sounds=sounds(), sounds_fs=16000)
    assert "units(:).id" not in str(error.value)
    assert "units(:).area" not in str(error.value)


def test_a_bin_that_is_made_whole_samples_is_noted() -> None:
    trials = {"stimulus": NAMES, "onset": ONSETS}
    ds = AudioNeuralDataset.from_trials(
        sounds(), trials, {"u": spikes()}, dt_ms=1000 / 24, sounds_fs=97656.25, check_alignment=False
    )
    assert ds.dt == pytest.approx(4069 * 1000 / 97656.25, rel=1e-12)  # 4069.01 samples were asked for
    assert ds.load_report.count("bin width") == 1
    assert made(trials, {"u": spikes()}).load_report.count("bin width") == 0
