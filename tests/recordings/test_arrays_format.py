"""Recordings kept as variables of MATLAB files and NumPy archives: every layout to the same counts."""

from __future__ import annotations

import contextlib
import re

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from deepSTRF._files import DamagedFileError
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.datasets.audio.arrays import ArraysFormat
from deepSTRF.datasets.audio.matlab import MatlabFormat
from deepSTRF.datasets.formats import MissingHintError, open_recording
from deepSTRF.datasets.trials import fill_from_sessions

DT = 10.0
UNIT_7 = [0.995, 1.000, 1.0149, 1.499, 1.500, 2.105, 3.070, 3.255, 4.2999]
UNIT_3 = [1.250]
ONSETS = [1.0, 2.0, 3.0, 4.0, 5.0]
NAMES = ["A", "B", "A", "B", "A"]
LENGTH = {"A": 0.5, "B": 0.3}


def cell(values, shape):
    out = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        out[index] = value
    return out.reshape(shape)


def waves():
    rng = np.random.default_rng(3)
    return {"A": rng.uniform(-0.5, 0.5, size=8000), "B": rng.uniform(-0.5, 0.5, size=4800)}


def expected():
    """Counts of the small session: by stimulus, (unit, repeat, bin); NaN where nothing was recorded."""
    a, b = np.zeros((2, 3, 50)), np.zeros((2, 2, 30))
    a[0, 0, [0, 1, 49]] = 1
    a[0, 1, [7, 25]] = 1
    b[0, 0, 10] = b[0, 1, 29] = 1
    a[1, 0, 25] = 1
    a[1, 2] = b[1, 1] = np.nan
    return {"A": a, "B": b}


def dataset(form, dt_ms=DT, **hints):
    choices = {key: hints.pop(key) for key in ("pre_ms", "post_ms", "audio_fs") if key in hints}
    ds = AudioNeuralDataset._blank(dt_ms)
    fill_from_sessions(ds, form.sessions(**hints), dt_ms=dt_ms, **choices)
    ds.validate()
    return ds


def check(ds, wanted=None, units=("7", "3")):
    wanted = expected() if wanted is None else wanted
    assert [row["cell_id"] for row in ds.nrn_meta] == list(units)
    assert sorted(row["name"] for row in ds.stim_meta) == sorted(wanted)
    for clip, row in enumerate(ds.stim_meta):
        for unit in range(len(units)):
            rows = wanted[row["name"]][unit]
            rows = rows[~np.isnan(rows).all(axis=1)]
            np.testing.assert_array_equal(
                ds.responses[clip][unit].numpy(), rows, err_msg=f"{row['name']}, {unit}"
            )


def aligned_ms():
    """Cell {unit, stimulus, repeat} of times in ms from the onset; NaN where nothing was recorded."""
    out = np.full((2, 2, 3), None, dtype=object)
    nothing, silent = np.array([[np.nan]]), np.empty((0, 0))
    out[0, 0, 0] = np.array([[-5.0, 0, 14.9, 499, 500]])
    out[0, 0, 1] = np.array([[70.0, 255.0]])
    out[0, 0, 2] = silent
    out[0, 1, 0], out[0, 1, 1], out[0, 1, 2] = np.array([[105.0]]), np.array([[299.9]]), nothing
    out[1, 0, 0], out[1, 0, 1], out[1, 0, 2] = np.array([[250.0]]), silent, nothing
    out[1, 1, 0], out[1, 1, 1], out[1, 1, 2] = silent, nothing, nothing
    return out


def mini():
    return {
        "spikes": aligned_ms(),
        "stim_names": cell(["A", "B"], (1, 2)),
        "fs": np.array([[16000.0]]),
        "ids": np.array([[7.0, 3.0]]),
        **{f"wav_{name}": wave[:, None] for name, wave in waves().items()},
    }


HINTS = {
    "axes": "unit stimulus repeat",
    "time_unit": "ms",
    "zero": "onset",
    "stimuli": "stim_names",
    "unit_names": "ids",
    "sounds": "wav_{stimulus}",
    "sounds_fs": "fs",
}


def write_73(path, variables):
    """Numbers, texts and one cell of them, by MATLAB's layout of version 7.3."""

    def put(group, name, value):
        if isinstance(value, str):
            codes = np.frombuffer(value.encode("utf-16-le"), "<u2")[:, None]
            group.create_dataset(name, data=codes).attrs["MATLAB_class"] = np.bytes_("char")
        elif value.dtype == object:
            refs = group.file.require_group("#refs#")
            found = []
            for item in value.T.ravel():
                put(refs, f"{name}{len(refs)}", item)
                found.append(refs[f"{name}{len(refs) - 1}"].ref)
            array = np.array(found, dtype=h5py.ref_dtype).reshape(value.T.shape)
            group.create_dataset(name, data=array, dtype=h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_(
                "cell"
            )
        elif value.size == 0:
            made = group.create_dataset(name, data=np.array(value.shape, dtype=np.uint64))
            made.attrs["MATLAB_class"], made.attrs["MATLAB_empty"] = np.bytes_("double"), np.uint8(1)
        else:
            group.create_dataset(name, data=value.T).attrs["MATLAB_class"] = np.bytes_("double")

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            put(file, name, value)
    with open(path, "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(512))


@pytest.mark.parametrize("write", [savemat, write_73])
def test_the_small_session_in_both_versions(tmp_path, write):
    write(tmp_path / "mini.mat", mini())
    form = MatlabFormat(tmp_path / "mini.mat")
    assert MatlabFormat.recognises(form.path)
    assert not ArraysFormat.recognises(form.path)
    (session,) = form.sessions(spikes="spikes", **HINTS)
    assert session.trials.stimulus == ["A", "A", "A", "B", "B"]
    check(dataset(form, spikes="spikes", **HINTS))
    assert session.report.count("repeats not recorded") == 4


def test_a_spike_before_the_onset_counts_where_silence_before_is_asked_for(tmp_path):
    savemat(tmp_path / "mini.mat", mini())
    ds = dataset(
        MatlabFormat(tmp_path / "mini.mat"), spikes="spikes", pre_ms=20, window_ms=(-20, 600), **HINTS
    )
    first = ds.responses[0][0].numpy()
    assert first.shape == (3, 52)
    assert first[0, 1] == 1  # -5 ms
    # without a window, what is before the earliest spike is unknown
    ds = dataset(MatlabFormat(tmp_path / "mini.mat"), spikes="spikes", pre_ms=20, **HINTS)
    assert np.isnan(ds.responses[0][0].numpy()[:, 0]).all()


def test_struct_arrays_over_units(tmp_path):
    spikes = aligned_ms()
    units = np.empty((1, 2), dtype=[("name", "O"), ("spikes", "O")])
    for u, name in enumerate(["7", "3"]):
        units[0, u] = (name, spikes[u])
    rest = {key: value for key, value in mini().items() if key != "spikes"}
    savemat(tmp_path / "s.mat", {"s": units, "data": {"units": units}, **rest})
    hints = {**HINTS, "axes": "unit / stimulus repeat"}
    check(
        dataset(MatlabFormat(tmp_path / "s.mat"), spikes="s(:).spikes", **hints | {"unit_names": "s(:).name"})
    )
    check(dataset(MatlabFormat(tmp_path / "s.mat"), spikes="data.units.spikes", **hints))
    savemat(tmp_path / "one.mat", {"s": units[:, :1], **rest})
    ds = dataset(MatlabFormat(tmp_path / "one.mat"), spikes="s(:).spikes", **hints | {"unit_names": ["7"]})
    check(ds, {name: value[:1] for name, value in expected().items()}, units=["7"])
    with pytest.raises(ValueError, match="put '/' between the levels"):
        MatlabFormat(tmp_path / "s.mat").sessions(spikes="s(:).spikes", **HINTS)
    with pytest.raises(ValueError, match="name the field with the numbers"):
        MatlabFormat(tmp_path / "s.mat").sessions(spikes="s", **{**HINTS, "axes": "unit"})


def test_one_cell_per_trial_on_the_clock_of_the_session(tmp_path):
    codes = np.array([[1.0, 2, 1, 2, 1]])
    variables = {
        "spikes": cell([np.array(UNIT_7)[:, None], np.array(UNIT_3)], (2, 1)),
        "onset": np.array(ONSETS)[:, None],
        "code": codes,
        "wavs": cell([waves()["A"], waves()["B"][None]], (1, 2)),
        "ids": np.array([7, 3]),
    }
    savemat(tmp_path / "t.mat", variables)
    hints = {
        "spikes": "spikes",
        "axes": "unit",
        "time_unit": "s",
        "zero": "session",
        "onsets": "onset",
        "stimuli": "code",
        "sounds": "wavs",
        "sounds_fs": 16000,
        "unit_names": "ids",
    }
    wanted = {str(k + 1): np.nan_to_num(value) for k, value in enumerate(expected().values())}
    check(dataset(MatlabFormat(tmp_path / "t.mat"), **hints), wanted)
    # samples that count from 1
    samples = {
        **variables,
        "spikes": cell(
            [np.round(np.array(t) * 20000).astype(np.int32) + 1 for t in (UNIT_7, UNIT_3)], (1, 2)
        ),
    }
    samples["onset"] = (np.array(ONSETS) * 20000 + 1).astype(np.uint32)
    samples["rate"] = 20000.0
    savemat(tmp_path / "n.mat", samples)
    hints |= {"time_unit": "samples", "fs": "rate"}
    check(dataset(MatlabFormat(tmp_path / "n.mat"), **hints), wanted)
    hints |= {"sound_names": ["song", "noise"], "stimuli": ["song", "noise", "song", "noise", "song"]}
    renamed = {"song": wanted["1"], "noise": wanted["2"]}
    check(dataset(MatlabFormat(tmp_path / "n.mat"), **hints), renamed)


@pytest.mark.parametrize("one_based", [True, False])
def test_one_vector_of_all_spikes_with_units_and_trials(tmp_path, one_based):
    trials, times, units = [], [], []
    for unit, spikes in ((7, UNIT_7), (3, UNIT_3)):
        for time in spikes:
            trial = max(k for k, onset in enumerate(ONSETS) if onset <= time + 0.2)
            trials.append(trial + one_based)
            times.append(1000 * (time - ONSETS[trial]))
            units.append(unit)
    np.savez(
        tmp_path / "v.npz",
        times=np.array(times),
        unit=np.array(units),
        trial=np.array(trials, dtype=np.uint8),
        stim=np.array(NAMES),
        ids=np.array([7, 3]),
        A=waves()["A"],
        B=waves()["B"],
        fs=16000,
    )
    form = ArraysFormat(tmp_path / "v.npz")
    assert ArraysFormat.recognises(form.path)
    hints = {
        "spikes": "times",
        "axes": "spike",
        "time_unit": "ms",
        "zero": "onset",
        "spike_units": "unit",
        "spike_trials": "trial",
        "stimuli": "stim",
        "unit_names": "ids",
        "sounds_fs": "fs",
    }
    np.savez(tmp_path / "w.npz", **{f"wav_{k}": v for k, v in waves().items()}, **dict(np.load(form.path)))
    form = ArraysFormat(tmp_path / "w.npz")
    hints["sounds"] = "wav_{stimulus}"
    with pytest.raises(MissingHintError, match="one_based"):
        form.sessions(**hints)
    wanted = {name: np.nan_to_num(value) for name, value in expected().items()}
    check(dataset(form, one_based=one_based, **hints), wanted)
    if one_based:
        with pytest.raises(ValueError, match=r"spike_trials go from 1 to 4|spike_trials go from 1 to 5"):
            form.sessions(**{**hints, "stimuli": NAMES[:3]}, one_based=True)


def test_padded_rows_and_counts_in_matrices(tmp_path):
    wanted = expected()
    counts = np.full((2, 2, 3, 50), np.nan)
    for s, name in enumerate("AB"):
        counts[:, s, : wanted[name].shape[1], : wanted[name].shape[2]] = wanted[name]
    rows = np.full((5, 6), np.nan)
    for trial, (onset, name) in enumerate(zip(ONSETS, NAMES, strict=True)):
        inside = [t - onset for t in UNIT_7 if onset <= t < onset + LENGTH[name]]
        rows[trial, : len(inside)] = inside
    np.savez(
        tmp_path / "c.npz",
        counts=counts,
        rows=rows,
        names=np.array(["A", "B"]),
        order=np.array(NAMES),
        wav_A=waves()["A"],
        wav_B=waves()["B"],
    )
    form = ArraysFormat(tmp_path / "c.npz")
    sounds = {"sounds": "wav_{stimulus}", "sounds_fs": 16000}
    ds = dataset(
        form,
        counts="counts",
        axes="unit stimulus repeat time",
        fs=100,
        stimuli="names",
        unit_names=["7", "3"],
        **sounds,
    )
    check(ds, wanted)
    hints = {"counts": "counts", "axes": "unit stimulus repeat time", "fs": 100, "stimuli": "names", **sounds}
    coarse = dataset(form, dt_ms=50, **hints)
    np.testing.assert_array_equal(coarse.responses[0][0].numpy(), wanted["A"][0].reshape(3, 10, 5).sum(-1))
    with pytest.raises(ValueError, match="counts in bins of 10 ms, so dt_ms is a whole multiple"):
        dataset(form, dt_ms=5, **hints)
    ds = dataset(
        form, spikes="rows", axes="trial spike", time_unit="s", zero="onset", stimuli="order", **sounds
    )
    check(ds, {k: v[:1] for k, v in wanted.items()}, units=["c"])
    np.savez(
        tmp_path / "z.npz", **{**dict(np.load(form.path)), "rows": np.nan_to_num(rows), "half": counts / 2}
    )
    form = ArraysFormat(tmp_path / "z.npz")
    with pytest.raises(ValueError, match="ends in zeros after later spikes"):
        form.sessions(
            spikes="rows", axes="trial spike", time_unit="s", zero="onset", stimuli="order", **sounds
        )
    with pytest.raises(ValueError, match="no counts; signal= reads"):
        form.sessions(counts="half", axes="unit stimulus repeat time", fs=100, stimuli="names", **sounds)


def test_traces_of_trials_and_of_the_session(tmp_path):
    rng = np.random.default_rng(5)
    trace = rng.normal(size=(2, 2, 3, 500))
    savemat(
        tmp_path / "v.mat",
        {
            "vm": trace,
            "long": trace.reshape(12, 500).T,
            "parts": cell([trace[:, 0, 0].T, trace[:, 1, 0, :300].T], (1, 2)),
            "wav_A": waves()["A"],
            "wav_B": waves()["B"],
            "onsets": np.array([0.1, 0.3]),
        },
    )
    form = MatlabFormat(tmp_path / "v.mat")
    sounds = {"sounds": "wav_{stimulus}", "sounds_fs": 16000, "signal_unit": "mV", "fs": 1000}
    (session,) = form.sessions(signal="vm", axes="unit stimulus repeat time", stimuli=["A", "B"], **sounds)
    signal = session.signal
    assert signal.unit == "mV"
    assert signal.channels == ["1", "2"]
    for k, (name, onset) in enumerate(zip(session.trials.stimulus, session.trials.onset_s, strict=True)):
        at = round(onset * 1000)
        assert onset * 1000 == at
        assert name == "AB"[k // 3]
        np.testing.assert_array_equal(signal.data[:, at : at + 500], trace[:, k // 3, k % 3])
        assert np.isnan(signal.data[:, at - 5 : at]).all()
        assert np.isnan(signal.data[:, at + 500 : at + 505]).all()
    (session,) = form.sessions(signal="parts", axes="stimulus / time unit", stimuli=["A", "B"], **sounds)
    at = round(session.trials.onset_s[1] * 1000)
    np.testing.assert_array_equal(session.signal.data[:, at : at + 300], trace[:, 1, 0, :300])
    (session,) = form.sessions(
        signal="long", axes="time unit", onsets="onsets", onset_unit="s", stimuli=["B", "A"], **sounds
    )
    np.testing.assert_array_equal(session.signal.data, trace.reshape(12, 500))
    assert session.trials.stimulus == ["B", "A"]
    assert session.trials.onset_s.tolist() == [0.1, 0.3]


def test_missing_hints_are_listed_with_what_was_found(tmp_path):
    savemat(tmp_path / "mini.mat", mini())
    form = MatlabFormat(tmp_path / "mini.mat")
    found = form.look({})
    assert found.needed == ["spikes", "sounds"]
    assert "MATLAB file of version 5" in found.found
    assert "spikes: cell 2 x 2 x 3" in found.found
    assert [name for name, _ in found.hints["spikes"]] == ["spikes"]
    assert [name for name, _ in found.hints["sounds"]] == ["wav_A", "wav_B"]
    found = form.look({"spikes": "spikes", "sounds": "wav_{stimulus}"})
    assert found.needed == ["axes", "time_unit", "zero", "sounds_fs"]
    assert found.hints["time_unit"][0] == ("ms", "the largest is 500, not all are whole numbers")
    assert ("unit stimulus repeat", "a guess: the shape is (2, 2, 3)") in found.hints["axes"]
    with pytest.raises(MissingHintError, match=r"mini\.mat must be told: axes, time_unit, zero, sounds"):
        form.sessions(spikes="spikes")
    for wrong, text in (
        ({"axes": "unit stimulus laps"}, "'laps' is no meaning of an axis; legal: unit, stimulus"),
        ({"axes": "unit stimulus"}, "names 2"),
        ({"axes": "unit unit repeat"}, "names an axis twice"),
        ({"time_unit": "min"}, "time_unit"),
        ({"zero": "0"}, "zero"),
        ({"stimuli": ["A", "B", "C"]}, "the axis 'stimulus' has 2 places, and there are 3 stimuli"),
        ({"unit_names": ["7"]}, "2 units and 1 names"),
        ({"sounds": "waves_{stimulus}"}, "no variable fits"),
        ({"sounds_fs": "rate"}, "has no variable 'rate'"),
        ({"time_unit": "samples", "fs": 1000}, "fractions, which numbers of samples are not"),
        ({"window_ms": (5, 1)}, "window_ms"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            form.sessions(spikes="spikes", **{**HINTS, **wrong})


def test_names_that_a_hint_leads_to_are_there(tmp_path):
    np.savez(tmp_path / "e.npz", c=np.zeros((2, 1, 3, 10)), wav_A=np.ones(1600), ids=np.zeros(0))
    hints = {"counts": "c", "axes": "unit stimulus repeat time", "fs": 100.0, "sounds": "wav_{stimulus}"}
    hints |= {"stimuli": ["A"], "sounds_fs": 16000}
    assert list(ArraysFormat(tmp_path / "e.npz").sessions(**hints)[0].spikes) == ["1", "2"]
    with pytest.raises(ValueError, match=r"e\.npz: unit_names='ids' holds no names"):
        ArraysFormat(tmp_path / "e.npz").sessions(**hints, unit_names="ids")


def test_pickles_and_damage_are_named(tmp_path):
    np.save(tmp_path / "o.npy", cell([np.eye(2), np.eye(3)], (2,)), allow_pickle=True)
    np.savez(tmp_path / "o.npz", a=cell([np.eye(2), "x"], (2,)), b=np.eye(2))
    hints = {"axes": "unit", "time_unit": "s", "zero": "onset", "sounds": "b", "sounds_fs": 1000}
    for name, variable in (("o.npy", "o"), ("o.npz", "a")):
        form = ArraysFormat(tmp_path / name)
        assert f"{variable}: object 2" in form.look({}).found
        with pytest.raises(ValueError, match=rf"{re.escape(name)}.*(not loaded|say which axis)"):
            form.sessions(spikes=variable, **{**hints, "sounds": "b" if "npz" in name else variable})
    np.savez_compressed(
        tmp_path / "good.npz", a=np.arange(5000.0), b=np.random.default_rng(0).normal(size=5000)
    )
    raw = (tmp_path / "good.npz").read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(40):
        bad = bytearray(raw)
        if rng.random() < 0.5:
            bad = bad[: int(rng.integers(4, len(raw)))]
        else:
            for place in rng.integers(0, len(raw), size=4):
                bad[place] = int(rng.integers(256))
        (tmp_path / "bad.npz").write_bytes(bad)
        with contextlib.suppress(DamagedFileError):
            ArraysFormat(tmp_path / "bad.npz").sessions(
                spikes="a", axes="", time_unit="s", zero="onset", sounds="b", sounds_fs=1000
            )
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    (tmp_path / "huge.npy").write_bytes(header + text.ljust(117) + b"\n" + b"\0" * 64)
    with pytest.raises(DamagedFileError, match=r"huge\.npy"):
        ArraysFormat(tmp_path / "huge.npy").sessions(
            spikes="huge", axes="", time_unit="s", zero="onset", sounds="huge", sounds_fs=1000
        )


def test_the_recording_of_the_grasshopper_is_imported_by_one_call(ns1_dir):
    path = ns1_dir.parent.parent / "cases" / "recordings" / "grasshopper_receptor.npz"
    if not path.is_file():
        pytest.skip("grasshopper_receptor.npz is not beside the data folder")
    ds = open_recording(
        path, dt_ms=1.0, spikes="spike_times_us_{stimulus}", time_unit="us", zero="onset",
        features={"envelope": "stimulus_volt_{stimulus}"}, features_fs=2000,
    )  # fmt: skip
    assert (len(ds), ds.N_neurons, ds.features) == (2, 1, {"envelope": 1})
    assert [row["name"] for row in ds.stim_meta] == ["1", "2"]
    with np.load(path) as archive:
        for clip, name in enumerate("12"):
            edges = np.arange(0, 10_001_000, 1000)  # in us
            counts = np.histogram(archive[f"spike_times_us_{name}"], edges)[0]
            np.testing.assert_array_equal(ds.responses[clip][0].numpy(), counts[None])
            means = archive[f"stimulus_volt_{name}"].astype(float).reshape(-1, 2).mean(1)
            np.testing.assert_allclose(ds.stims[clip][0, 0].numpy(), means, rtol=0, atol=1e-6)


def test_numbers_of_stimuli_and_units_of_time_are_not_guessed(tmp_path):
    rng = np.random.default_rng(7)
    trials = cell([np.sort(rng.uniform(0, 500, size=9)) for _ in range(4)], (1, 4))
    savemat(tmp_path / "a.mat", {
        "spikes": trials, "from0": np.array([0.0, 1, 0, 1]), "from1": np.array([1.0, 2, 1, 2]),
        "wavs": cell([waves()["A"], waves()["B"]], (1, 2)), "far": np.array([1.0, 3, 1, 3]),
        "counts": cell([rng.poisson(1.0, size=(1, 50)) for _ in range(2)], (1, 2)),
        "pair": cell([trials[0, 0], trials[0, 1]], (1, 2)), **{f"wav_{k}": v for k, v in waves().items()},
    })  # fmt: skip
    form = MatlabFormat(tmp_path / "a.mat")
    hints = {"spikes": "spikes", "axes": "trial", "time_unit": "ms", "zero": "onset", "sounds_fs": 16000}
    listed = {**hints, "sounds": "wavs"}
    (session,) = form.sessions(stimuli="from1", **listed)
    assert session.trials.stimulus == ["1", "2", "1", "2"]
    with pytest.raises(MissingHintError, match="one_based, whether the numbers of 2 stimuli"):
        form.sessions(stimuli="from0", **listed)
    (session,) = form.sessions(stimuli="from0", one_based=False, **listed)
    assert session.trials.stimulus == ["0", "1", "0", "1"]
    assert list(session.sounds) == ["0", "1"]
    with pytest.raises(ValueError, match="stimuli has the number 3, and the 2 sounds are 1 to 2"):
        form.sessions(stimuli="far", **listed)
    with pytest.raises(ValueError, match="time_unit='s' the last spike is at 4"):
        form.sessions(stimuli="from1", **{**listed, "time_unit": "s"})
    with pytest.raises(ValueError, match="time_unit='us' the last spike is at"):
        form.sessions(stimuli="from1", **{**listed, "time_unit": "us"})
    named = {**hints, "spikes": "pair", "axes": "stimulus"}
    with pytest.raises(MissingHintError, match="stimuli, the variable with the name"):
        form.sessions(sounds="wav_{stimulus}", **named)
    assert form.sessions(sounds="wavs", **named)[0].trials.stimulus == ["1", "2"]
    ds = dataset(form, counts="counts", axes="stimulus time", fs=100, sounds="wavs", sounds_fs=16000)
    theirs = loadmat(tmp_path / "a.mat")["counts"]
    np.testing.assert_array_equal(ds.responses[0][0].numpy(), theirs[0, 0])
    np.testing.assert_array_equal(ds.responses[1][0].numpy(), theirs[0, 1][:, :30])


def test_many_spikes_in_one_vector_are_sorted_into_trials_at_once(tmp_path):
    rng = np.random.default_rng(8)
    n, trials = 200_000, 500
    np.savez(
        tmp_path / "m.npz", t=rng.uniform(0, 0.5, n), u=rng.integers(0, 50, n), k=rng.integers(0, trials, n),
        s=np.array(NAMES * 100), wav_A=waves()["A"], wav_B=waves()["B"],
    )  # fmt: skip
    ds = dataset(
        ArraysFormat(tmp_path / "m.npz"), spikes="t", axes="spike", time_unit="s", zero="onset",
        spike_units="u", spike_trials="k", one_based=False, stimuli="s", sounds="wav_{stimulus}",
        sounds_fs=16000,
    )  # fmt: skip
    data = np.load(tmp_path / "m.npz")
    chosen = (data["u"] == 17) & (data["k"] == 0)
    wanted = np.histogram(data["t"][chosen], np.arange(51) / 100)[0]
    np.testing.assert_array_equal(ds.responses[0][17].numpy()[0], wanted)
    assert ds.responses[0][17].shape == (300, 50)


def test_continuous_signals_with_spectrograms_and_axes_that_are_exchanged(tmp_path):
    rng = np.random.default_rng(9)
    stim, resp = rng.normal(size=(1280, 16)), rng.normal(size=(1280, 8))
    parts = [resp, rng.normal(size=(640, 8))]
    savemat(tmp_path / "one.mat", {"stim": stim, "resp": resp, "fs": 128.0})
    savemat(tmp_path / "two.mat", {
        "stim": cell([stim, rng.normal(size=(640, 16))], (1, 2)), "resp": cell(parts, (1, 2)), "fs": 128.0,
    })  # fmt: skip
    hints = {"signal": "resp", "axes": "time unit", "fs": "fs", "features": {"spectrogram": "stim"},
             "features_axes": "time feature", "features_fs": "fs", "check_alignment": False}  # fmt: skip
    ds = open_recording(tmp_path / "one.mat", dt_ms=1000 / 64, antialias=False, **hints)
    assert ds.features == {"spectrogram": 16}
    np.testing.assert_allclose(ds.stims[0][0].numpy(), stim.reshape(640, 2, 16).mean(1).T, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        ds.responses[0][3][0], resp.reshape(640, 2, 8).mean(1)[:, 3], rtol=0, atol=1e-6
    )
    ds = open_recording(tmp_path / "two.mat", dt_ms=1000 / 128, **{**hints, "axes": "stimulus / time unit"})
    for clip in range(2):
        np.testing.assert_allclose(ds.responses[clip][5][0], parts[clip][:, 5], rtol=0, atol=1e-6)
    for wrong, text in (
        ({"axes": "unit time"}, "resp lasts 0.0625 s at fs=128 Hz .* order of axes"),
        ({"features_axes": "feature time"}, "are the axes in features_axes exchanged"),
        (
            {"axes": "unit time", "onsets": [0.0], "onset_unit": "s", "stimuli": ["1"]},
            "more units than samples",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            open_recording(tmp_path / "one.mat", dt_ms=1000 / 64, **{**hints, **wrong})


def test_a_list_of_features_is_computed_from_the_sounds(tmp_path):
    savemat(tmp_path / "mini.mat", mini())
    ds = open_recording(tmp_path / "mini.mat", dt_ms=DT, spikes="spikes", features=["envelope"], **HINTS)
    assert ds.features == {"envelope": 1}
    check(ds)


def test_files_of_the_package_are_none_of_these(tmp_path):
    savemat(tmp_path / "mini.mat", mini())
    ds = open_recording(tmp_path / "mini.mat", dt_ms=DT, spikes="spikes", **HINTS)
    ds.save(tmp_path / "ours.npz")
    assert not ArraysFormat.recognises(tmp_path / "ours.npz")
    assert open_recording(tmp_path / "ours.npz").content_fingerprint() == ds.content_fingerprint()
    with np.load(tmp_path / "ours.npz") as archive:  # as earlier versions wrote it, without a seal
        np.savez(tmp_path / "old.npz", **archive)
    assert not ArraysFormat.recognises(tmp_path / "old.npz")
