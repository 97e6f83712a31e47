"""Hostile and damaged NWB files, and sessions that are written as NWB and read back."""

from __future__ import annotations

import shutil
import time
from fractions import Fraction

import h5py
import numpy as np
import pytest

pynwb = pytest.importorskip("pynwb")

from test_nwb import add_templates, add_trials, add_units, new_file, session, write  # noqa: E402

from deepSTRF._files import DamagedFileError  # noqa: E402
from deepSTRF.datasets.audio.nwb import NWB  # noqa: E402
from deepSTRF.datasets.formats import MissingHintError  # noqa: E402
from deepSTRF.datasets.nwb_writing import write_nwb  # noqa: E402
from deepSTRF.datasets.recording import LoadReport  # noqa: E402
from deepSTRF.datasets.session import Feature, Session, Signal, Sound, Trials  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    nwb = new_file()
    add_units(nwb, quality=["good", "mua"])
    add_trials(nwb)
    add_templates(nwb)
    return write(nwb, tmp_path_factory.mktemp("whole") / "whole.nwb")


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copy(whole, tmp_path / "hostile.nwb")


def put(file, name, values, **rest):
    """Replace a data set and keep its attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    made = (
        file.create_dataset(name, data=values, **rest)
        if values is not None
        else file.create_dataset(name, **rest)
    )
    for key, value in attributes.items():
        made.attrs[key] = value


def index_descends(file):
    put(file, "units/spike_times_index", np.array([9, 3], np.uint8))


def index_reaches_beyond(file):
    put(file, "units/spike_times_index", np.array([9, 11], np.uint64))


def index_is_negative(file):
    put(file, "units/spike_times_index", np.array([-1, 10], np.int32))


def index_is_huge(file):
    put(file, "units/spike_times_index", np.array([9, 2**64 - 1], np.uint64))


def index_leaves_spikes_over(file):
    put(file, "units/spike_times_index", np.array([5, 9], np.uint8))


def index_is_short(file):
    put(file, "units/spike_times_index", np.array([10], np.uint8))


def index_is_text(file):
    put(file, "units/spike_times_index", np.array([b"9", b"10"]))


def index_is_float(file):
    put(file, "units/spike_times_index", np.array([9.0, 10.0]))


def times_are_nan(file):
    file["units/spike_times"][3] = np.nan


def times_are_infinite(file):
    file["units/spike_times"][9] = np.inf


def times_are_text(file):
    put(file, "units/spike_times", np.array([b"1"] * 10))


def times_are_integers(file):
    put(file, "units/spike_times", np.arange(10))


def times_are_a_table(file):
    put(file, "units/spike_times", np.ones((10, 2)))


def times_are_huge(file):
    put(file, "units/spike_times", None, shape=(10**12,), dtype="f8", chunks=(1024,))
    put(file, "units/spike_times_index", np.array([9, 10**12], np.uint64))


def times_are_references(file):
    put(file, "units/spike_times", np.array([h5py.Reference()] * 10, dtype=h5py.ref_dtype))


def intervals_are_backwards(file):
    file["units/obs_intervals"][0] = [7.0, 0.0]


def onsets_are_huge(file):
    put(file, "intervals/trials/start_time", None, shape=(10**12,), dtype="f8", chunks=(1024,))


def columns_have_other_lengths(file):
    put(file, "intervals/trials/start_time", np.arange(5.0))


def names_are_references(file):
    put(file, "intervals/trials/stimulus", np.array([h5py.Reference()] * 6, dtype=h5py.ref_dtype))


def a_rate_is_zero(file):
    file["stimulus/templates/A/starting_time"].attrs["rate"] = 0.0


def a_rate_is_nan(file):
    file["stimulus/templates/A/starting_time"].attrs["rate"] = np.nan


def a_conversion_is_infinite(file):
    file["stimulus/templates/A/data"].attrs["conversion"] = np.inf


def a_sound_is_outside(file):
    del file["stimulus/templates/A/data"]
    file["stimulus/templates/A/data"] = h5py.ExternalLink("/etc/passwd", "/")


def units_are_outside(file):
    del file["units"]
    file["units"] = h5py.ExternalLink("../elsewhere.nwb", "/units")


def trials_are_a_loop(file):
    del file["intervals/trials"]
    file["intervals/trials"] = h5py.SoftLink("/intervals/again")
    file["intervals/again"] = h5py.SoftLink("/intervals/trials")


def two_units_have_one_id(file):
    file["units/id"][:] = 7


def the_version_is_gone(file):
    del file.attrs["nwb_version"]


HOSTILE = [
    index_descends, index_reaches_beyond, index_is_negative, index_is_huge, index_leaves_spikes_over,
    index_is_short, index_is_text, index_is_float, times_are_nan, times_are_infinite, times_are_text,
    times_are_integers, times_are_a_table, times_are_huge, times_are_references, intervals_are_backwards,
    onsets_are_huge, columns_have_other_lengths, names_are_references, a_rate_is_zero, a_rate_is_nan,
    a_conversion_is_infinite, a_sound_is_outside, units_are_outside, trials_are_a_loop, two_units_have_one_id,
    the_version_is_gone,
]  # fmt: skip


def read_all(path, **hints):
    one = session(path, **hints)
    for sound in one.sounds.values():
        sound.read()
    return one


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_hostile_files_are_named_errors(path, spoil, within):
    with h5py.File(path, "r+") as file:
        spoil(file)
    error = within(10, lambda: read_all(path))
    assert isinstance(error, ValueError), error
    assert "hostile.nwb" in str(error)
    assert not isinstance(error, UnicodeError)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.6, 0.95])
def test_truncated_files_are_named_errors(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert NWB.recognises(path)
    with pytest.raises(DamagedFileError, match=r"hostile\.nwb"):
        read_all(path)


def test_bytes_that_change_are_errors_or_do_no_harm(path, within):
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    for at in rng.integers(0, len(content), 60):
        spoilt = bytearray(content)
        spoilt[at] ^= 0xFF
        path.write_bytes(spoilt)
        error = within(20, lambda: read_all(path))
        assert error is None or isinstance(error, ValueError), error


def test_other_files_are_refused_by_name(tmp_path):
    text = tmp_path / "text.nwb"
    text.write_text("no HDF5")
    with pytest.raises(DamagedFileError, match=r"text\.nwb"):
        session(text)
    store = tmp_path / "mine.nwb.zarr"
    store.mkdir()
    (store / ".zgroup").write_text("{}")
    assert NWB.recognises(store)
    with pytest.raises(ValueError, match=r"Zarr.*hdmf-zarr"):
        session(store)
    assert not NWB.recognises(tmp_path)
    plain = tmp_path / "plain.h5"
    with h5py.File(plain, "w") as file:
        file["x"] = 1
    assert not NWB.recognises(plain)


def test_external_sound_files_are_read_beside_the_file_only(path, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    stereo = np.random.default_rng(0).integers(-(2**23), 2**23, (4410, 2)).astype(np.int32) << 8
    (tmp_path / "wavs").mkdir()
    soundfile.write(tmp_path / "wavs" / "A.wav", stereo, 44100, subtype="PCM_24")
    shutil.copy(tmp_path / "wavs" / "A.wav", tmp_path.parent / "outside.wav")
    for name, works in (
        ("wavs/A.wav", True),
        ("../outside.wav", False),
        (str(tmp_path / "wavs" / "A.wav"), False),
    ):
        with h5py.File(path, "r+") as file:
            group = file["stimulus/templates/A"]
            for key in ("data", "external_file"):
                if key in group:
                    del group[key]
            group["external_file"] = np.array([name], dtype=h5py.string_dtype())
        if works:
            sound = session(path).sounds["A"]
            assert np.array_equal(sound.read(), stereo / 2.0**31)
            assert (float(sound.fs), sound.n_samples) == (44100, 4410)
        else:
            with pytest.raises(
                DamagedFileError, match=r"hostile\.nwb names the file .*outside its own folder"
            ):
                session(path)


def test_data_in_a_file_beside_is_read(path, tmp_path):
    with h5py.File(tmp_path / "raw.h5", "w") as raw, h5py.File(path, "r+") as file:
        raw["samples"] = file["stimulus/templates/A/data"][:]
        raw["samples"].attrs.update(file["stimulus/templates/A/data"].attrs)
        del file["stimulus/templates/A/data"]
        file["stimulus/templates/A/data"] = h5py.ExternalLink("raw.h5", "/samples")
    assert session(path).sounds["A"].read().shape == (8000,)


def test_whole_parts_in_a_file_beside_are_read(path, tmp_path):
    shutil.copy(path, tmp_path / "other.nwb")
    with h5py.File(path, "r+") as file:
        for part in ("units", "stimulus/templates/A", "intervals/trials"):
            del file[part]
            file[part] = h5py.ExternalLink("other.nwb", f"/{part}")
    one = read_all(path)
    assert list(one.spikes) == ["7", "3"]
    assert sorted(one.sounds) == ["A", "B"]
    assert len(one.trials) == 6
    with h5py.File(path, "r+") as file:
        del file["stimulus/templates/A"]
        file["stimulus/templates/A"] = h5py.ExternalLink("/etc/passwd", "/A")
    with pytest.raises(DamagedFileError, match=r"hostile\.nwb.*outside the folder"):
        read_all(path)


def test_sounds_of_extensions_are_read_without_them(path):
    with h5py.File(path, "r+") as file:
        file["stimulus/presentation/A"] = file["stimulus/templates/A"]
        for name in ("presentation/A", "templates/B"):
            group = file[f"stimulus/{name}"]
            group.attrs["neurodata_type"], group.attrs["namespace"] = "AcousticWaveformSeries", "ndx-sound"
        stereo = np.stack([np.arange(4800), np.arange(4800)[::-1]], axis=1).astype(np.int16)
        put(file, "stimulus/templates/B/data", stereo)
    one = read_all(path)
    assert np.array_equal(one.sounds["B"].read(), stereo / 32768)


def test_onsets_that_are_no_seconds_of_the_session_are_refused(path):
    with h5py.File(path, "r+") as file:
        file["intervals/trials/sound_onset"] = file["intervals/trials/start_time"][:] * 30000
        file["intervals/trials/delay_onset"] = np.full(6, 0.1)
    with pytest.raises(ValueError, match="no onset in the column 'sound_onset'"):
        session(path, onset="sound_onset")
    with pytest.raises(ValueError, match=r"start_time\+delay_onset"):
        session(path, onset="delay_onset")
    assert session(path, onset="start_time+delay_onset").trials.onset_s[0] == 1.1


def test_a_folder_of_sounds_beside_the_file_is_found(path, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    with h5py.File(path, "r+") as file:
        del file["stimulus"]
    for folder, names in (("wavs", "AB"), ("other", "XY")):
        (tmp_path / folder).mkdir()
        for name in names:
            soundfile.write(tmp_path / folder / f"{name}.wav", np.zeros(4000), 8000)
    assert sorted(session(path).sounds) == ["A", "B"]
    assert NWB(path).look({"intervals": "trials"}).hints["sounds"][0][0].endswith("wavs")
    (tmp_path / "wavs" / "A.wav").unlink()
    with pytest.raises(MissingHintError, match="sounds"):
        session(path)
    assert sorted(session(path, sounds=tmp_path / "other").sounds) == ["X", "Y"]
    assert sorted(session(path, sounds="other").sounds) == ["X", "Y"]  # beside the file
    with pytest.raises(FileNotFoundError, match="nowhere"):
        session(path, sounds="nowhere")


def test_many_presentations_are_looked_at_in_little_time(path):
    with h5py.File(path, "r+") as file:
        for k in range(600):
            group = file.create_group(f"stimulus/presentation/p{k:05d}")
            group.attrs["neurodata_type"] = "TimeSeries"
            group["data"] = np.arange(10, dtype=np.int16)
            group["starting_time"] = float(k)
            group["starting_time"].attrs["rate"] = 1000.0
    begin = time.perf_counter()
    one = NWB(path)
    for _ in range(4):
        one.look({"intervals": "intervals/trials"})
    one.sessions(sounds="templates")
    assert time.perf_counter() - begin < 15


def test_a_file_without_sounds_asks_for_them(path, tmp_path):
    with h5py.File(path, "r+") as file:
        del file["stimulus"]
    found = NWB(path).look({})
    assert "sounds" in found.needed
    with pytest.raises(MissingHintError, match=r"hostile\.nwb.*sounds"):
        session(path)


def test_files_without_units_or_presentations_say_so(path):
    with h5py.File(path, "r+") as file:
        del file["units"]
    with pytest.raises(ValueError, match="neither units with spike times nor a continuous"):
        session(path)
    with h5py.File(path, "r+") as file:
        del file["intervals"]
    with pytest.raises(ValueError, match=r"hostile\.nwb"):
        session(path)


# ---- writing


def made_session():
    rng = np.random.default_rng(5)
    sounds = {
        "A": rng.normal(size=300).astype(np.float32),
        "with/slash: and colon": rng.normal(size=(200, 2)),
        ".": np.array([0.1, 0.2, 0.3]),
    }
    rates = {"A": 390625 / 16, "with/slash: and colon": 44100, ".": Fraction(100000, 3)}

    def reader(values):
        return lambda: values

    return Session(
        Trials(
            ["A", "with/slash: and colon", "A", ""],
            np.array([1.0, 2.1, 3.3, 4.7]),
            np.array([1.5, np.nan, 3.4, 5.0]),
            ["x", "y", "x", "\u00e9"],
            {"level": [60.0, 70, None, 50.5], "who": ["a", "b", "c", "d"]},
        ),
        {name: Sound(reader(values), rates[name], len(values), name) for name, values in sounds.items()},
        spikes={"u/1": np.array([0.1, 1.2, 1.2000001]), "empty": np.empty(0), "3": np.array([2.5])},
        observed={"u/1": np.array([[0.0, 2.0], [2.5, 4.0]]), "empty": np.empty((0, 2))},
        span_s=(0.0, 9.25),
        unit_meta={
            "u/1": {"cell_id": "u/1", "depth": 12.5, "list": [1, {"a": None}]},
            "empty": {},
            "3": {"area": "L2"},
        },
        stim_meta={"A": {"split": "test", "source_sha256": "ab"}},
        name="made \u00e9",
        species="Mus musculus",
        facts={"doi": "10.1/x", "n": 3},
        exact={"header": {"dt_ms": 5.0}, "nan": [float("nan"), float("inf")]},
        report=LoadReport(["a"], [("b", "why")], [("topic", "text", 3)]),
    )


def equal_sessions(a, b):
    assert list(a.trials.stimulus) == list(b.trials.stimulus)
    assert np.array_equal(a.trials.onset_s, b.trials.onset_s)
    for one, other in ((a.trials.offset_s, b.trials.offset_s),):
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other, equal_nan=True)
    assert a.trials.condition == b.trials.condition
    assert dict(a.trials.meta) == dict(b.trials.meta)
    assert list(a.sounds) == list(b.sounds)
    for name in a.sounds:
        assert np.array_equal(a.sounds[name].read(), b.sounds[name].read())
        assert a.sounds[name].fs == b.sounds[name].fs
        assert a.sounds[name].n_samples == b.sounds[name].n_samples
        assert a.sounds[name].content_hash() == b.sounds[name].content_hash()
    assert {f: list(v) for f, v in a.features.items()} == {f: list(v) for f, v in b.features.items()}
    for feature, values in a.features.items():
        for name, one in values.items():
            other = b.features[feature][name]
            assert np.array_equal(one.values, other.values)
            assert one.values.dtype == other.values.dtype
            assert one.fs == other.fs
            assert (one.frequencies_hz is None) == (other.frequencies_hz is None)
            assert one.frequencies_hz is None or np.array_equal(one.frequencies_hz, other.frequencies_hz)
    assert (a.spikes is None) == (b.spikes is None)
    if a.spikes is not None:
        assert list(a.spikes) == list(b.spikes)
        assert all(np.array_equal(a.spikes[name], b.spikes[name]) for name in a.spikes)
    assert list(a.observed) == list(b.observed)
    assert all(np.array_equal(a.observed[name], b.observed[name]) for name in a.observed)
    for key in ("span_s", "unit_meta", "stim_meta", "name", "species", "facts", "report"):
        assert getattr(a, key) == getattr(b, key), key
    assert repr(a.exact) == repr(b.exact)


def test_a_session_comes_back_equal(tmp_path):
    made = made_session()
    path = write_nwb(made, tmp_path / "made.nwb")
    equal_sessions(made, session(path))
    assert not NWB(path).look({}).needed
    assert "written by deepSTRF" in NWB(path).look({}).found[0]


def test_features_and_signals_come_back_equal(tmp_path):
    rng = np.random.default_rng(2)
    made = Session(
        Trials(["A", "B"], np.array([0.5, 2.0])),
        features={
            "spectrogram": {
                "A": Feature(rng.normal(size=(4, 50)).astype(np.float32), None, np.arange(1.0, 5.0)),
                "B": Feature(rng.normal(size=(4, 30)), 128, None),
            },
            "onsets": {"A": Feature(np.ones((1, 50), dtype=np.float32), Fraction(100, 3))},
        },
        signal=Signal(
            np.where(rng.random((3, 400)) < 0.1, np.nan, rng.normal(size=(3, 400))), Fraction(1000, 3),
            ["Fz", "Cz", "x"], 0.25, "uV", np.array([[1.0, 1.5]]), ["x"],
        ),
        exact={"header": {"dt_ms": 10.0}},
    )  # fmt: skip
    again = session(write_nwb(made, tmp_path / "signal.nwb"))
    equal_sessions(made, again)
    a, b = made.signal, again.signal
    assert np.array_equal(a.data, b.data[:, 0:400], equal_nan=True)
    assert np.array_equal(a.data[:, 7:9], b.data[:, 7:9], equal_nan=True)
    assert (a.fs, list(a.channels), a.start_s, a.unit) == (b.fs, b.channels, b.start_s, b.unit)
    assert np.array_equal(a.bad_s, b.bad_s)
    assert list(b.bad_channels) == ["x"]


def test_what_is_written_is_an_nwb_file_for_others(tmp_path):
    path = write_nwb(made_session(), tmp_path / "made.nwb")
    assert pynwb.validate(path=str(path)) == []
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        nwb = io.read()
        assert len(nwb.identifier) == 64
        assert nwb.session_start_time.year == 1970
        assert nwb.subject.species == "Mus musculus"
        assert nwb.units["unit_name"][:].tolist() == ["u/1", "empty", "3"]
        assert nwb.units.get_unit_spike_times(0).tolist() == [0.1, 1.2, 1.2000001]
        assert nwb.units.get_unit_obs_intervals(0).tolist() == [[0.0, 2.0], [2.5, 4.0]]
        assert nwb.trials["stimulus"][:].tolist() == ["A", "with/slash: and colon", "A", ""]
        assert nwb.stimulus_template["A"].rate == 24414.0625
        assert nwb.stimulus_template["A"].data.dtype == np.float32
    assert [entry.name for entry in tmp_path.iterdir()] == ["made.nwb"]


def test_written_files_that_were_changed_are_errors(tmp_path):
    path = write_nwb(made_session(), tmp_path / "made.nwb")
    content = path.read_bytes()
    with h5py.File(path) as file:
        at = {
            name: file[name].id.get_chunk_info(0).byte_offset
            for name in ("units/spike_times", "stimulus/templates/A/data")
        }
    at["record"] = content.index(b'"deepSTRF') if b'"deepSTRF' in content else content.index(b"sha256")
    for place in at.values():
        spoilt = bytearray(content)
        spoilt[place + 3] ^= 0x01
        path.write_bytes(spoilt)
        with pytest.raises(DamagedFileError, match=r"made\.nwb"):
            read_all(path)


def test_nothing_is_half_written(tmp_path):
    path = tmp_path / "made.nwb"
    write_nwb(made_session(), path)
    before = path.read_bytes()
    bad = made_session()
    bad.unit_meta = {"u/1": {"what": object()}}
    with pytest.raises(TypeError, match="cannot be written as NWB"):
        write_nwb(bad, path)

    def fails():
        raise OSError("gone")

    bad = made_session()
    bad.sounds = {"A": Sound(fails, 100.0)}
    with pytest.raises(OSError, match="gone"):
        write_nwb(bad, path)
    assert path.read_bytes() == before
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_nwb(made_session(), tmp_path / "other.txt")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["made.nwb", "other.txt"]
