"""NWB files: the small session of the specification in all its forms, hostile files, and the way back."""

from __future__ import annotations

import datetime
from dataclasses import replace

import h5py
import numpy as np
import pytest

pynwb = pytest.importorskip("pynwb")

from pynwb.epoch import TimeIntervals  # noqa: E402

from deepSTRF._files import DamagedFileError  # noqa: E402
from deepSTRF.datasets.audio.nwb import NWB  # noqa: E402
from deepSTRF.datasets.formats import MissingHintError  # noqa: E402

FS = 16000
PRESENTED = [("A", 1.0), ("B", 2.0), ("A", 3.0), ("B", 4.0), ("A", 5.0), ("blank", 6.0)]
LENGTHS = {"A": 8000, "B": 4800, "blank": 8000}
SPIKES = {
    "7": np.array([0.995, 1.0, 1.0149, 1.499, 1.5, 2.105, 3.07, 3.255, 4.2999]),
    "3": np.array([1.25]),
}
OBSERVED = {"7": [[0.0, 7.0]], "3": [[0.0, 3.9]]}


def pcm(name):
    """Samples of a sound, int16."""
    rng = np.random.default_rng(ord(name[0]))
    return rng.integers(-3000, 3000, LENGTHS[name]).astype(np.int16)


def new_file(**rest):
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return pynwb.NWBFile(session_description="mini", identifier="mini-1", session_start_time=start, **rest)


def series(name, data, unit="V", **rest):
    return pynwb.TimeSeries(name=name, data=data, unit=unit, **rest)


def add_units(nwb, spikes=SPIKES, observed=OBSERVED, **columns):
    for name in columns:
        nwb.add_unit_column(name=name, description=name)
    for row, (unit, times) in enumerate(spikes.items()):
        extra = {} if observed is None else {"obs_intervals": observed[unit]}
        nwb.add_unit(id=int(unit), spike_times=times, **extra, **{k: v[row] for k, v in columns.items()})


def add_trials(nwb, early=0.0, column="stimulus", onset=None, names=None, stop=True):
    nwb.add_trial_column(name=column, description="sound")
    if onset:
        nwb.add_trial_column(name=onset, description="onset of the sound in s")
    for name, at in PRESENTED:
        extra = {onset: at} if onset else {}
        end = at + LENGTHS[name] / FS if stop else np.nan
        nwb.add_trial(
            start_time=at - early, stop_time=end, **{column: (names or {}).get(name, name)}, **extra
        )


def add_templates(nwb, rate=float(FS), values=pcm, names=None):
    for name in ("B", "A"):
        nwb.add_stimulus_template(
            series(
                (names or {}).get(name, name), data=values(name), unit="V", rate=rate, conversion=1 / 32768
            )
        )


def write(nwb, path):
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return path


@pytest.fixture
def mini(tmp_path):
    nwb = new_file(subject=pynwb.file.Subject(subject_id="zf1", species="Taeniopygia guttata"))
    add_units(nwb, quality=["good", "mua"])
    add_trials(nwb)
    add_templates(nwb)
    return write(nwb, tmp_path / "mini.nwb")


def session(path, **hints):
    (one,) = NWB(path).sessions(**hints)
    return one


def counted(one, unit, dt=0.01):
    """Counts by sound and presentation, None where not observed: a plain loop over spikes and bins."""
    found = {}
    for name, onset in sorted(
        zip(one.trials.stimulus, one.trials.onset_s.tolist(), strict=True), key=lambda t: t[1]
    ):
        if name not in one.sounds:
            continue
        sound = one.sounds[name]
        bins = int(sound.n_samples / float(sound.fs) / dt + 1e-9)
        row = [0] * bins
        for time in one.spikes[unit].tolist():
            for k in range(bins):
                if onset + k * dt <= time + 1e-6 < onset + (k + 1) * dt:
                    row[k] += 1
        spans = one.observed.get(unit, [[-np.inf, np.inf]])
        seen = any(a <= onset and onset + bins * dt <= b + 1e-6 for a, b in spans)
        found.setdefault(name, []).append({k: n for k, n in enumerate(row) if n} if seen else None)
    return found


EXPECTED_7 = {"A": [{0: 1, 1: 1, 49: 1}, {7: 1, 25: 1}, {}], "B": [{10: 1}, {29: 1}]}
EXPECTED_3 = {"A": [{25: 1}, {}, None], "B": [{}, None]}


def is_mini(one, units=("7", "3")):
    assert list(one.spikes) == list(units)
    assert counted(one, "7") == EXPECTED_7
    if "3" in units:
        assert counted(one, "3") == EXPECTED_3
    for name in ("A", "B"):
        sound = one.sounds[name]
        assert (float(sound.fs), sound.n_samples) == (FS, LENGTHS[name])
        assert np.array_equal(sound.read(), pcm(name) / 32768)
    return True


def test_the_small_session_comes_without_a_hint(mini):
    one = session(mini)
    assert is_mini(one)
    assert one.trials.stimulus[5] == ""
    assert one.species == "Taeniopygia guttata"
    assert one.name == "mini"
    assert one.unit_meta["3"] == {"quality": "mua", "cell_id": "3", "animal": "zf1"}
    assert one.observed["3"].tolist() == [[0.0, 3.9]]
    found = NWB(mini).look({})
    assert not found.needed
    assert any("units: 2 units: 7, 3" in line for line in found.found)


def test_labels_keep_units(mini):
    one = session(mini, labels=["good"])
    assert is_mini(one, ("7",))
    assert one.report.count("unit excluded") == 1
    assert session(mini, labels="mua", quality="quality").spikes.keys() == {"3"}
    with pytest.raises(ValueError, match="no unit is labelled best"):
        session(mini, labels=["best"])


def test_the_second_file_needs_the_onset_column(tmp_path):
    nwb = new_file()
    spikes = {**SPIKES, "12": np.empty(0)}
    add_units(nwb, spikes, {**OBSERVED, "12": [[0.0, 7.0]]})
    add_trials(nwb, early=0.2, onset="sound_onset")
    add_templates(nwb, rate=24414.0625)
    path = write(nwb, tmp_path / "second.nwb")
    found = NWB(path).look({})
    assert found.needed == ["onset"]
    assert [value for value, _ in found.hints["onset"]] == ["sound_onset", "start_time"]
    assert "+0.2 s from start_time" in found.hints["onset"][0][1]
    with pytest.raises(MissingHintError, match=r"second\.nwb.*onset.*sound_onset"):
        session(path)
    one = session(path, onset="sound_onset")
    assert list(one.spikes) == ["7", "3", "12"]
    assert not one.spikes["12"].size
    assert one.trials.onset_s.tolist() == [at for _, at in PRESENTED]
    assert float(one.sounds["A"].fs) == 24414.0625
    with h5py.File(path) as file:
        assert file["units/spike_times_index"].dtype == np.uint8


@pytest.mark.parametrize("name", ["stimulus_onset", "stim_on_time", "onset", "tone_start", "Sound_Onset_s"])
def test_onset_columns_of_other_names_are_asked_for(tmp_path, name):
    nwb = new_file()
    add_units(nwb)
    add_trials(nwb, early=0.2, onset=name)
    add_templates(nwb)
    path = write(nwb, tmp_path / "other.nwb")
    assert NWB(path).look({}).needed == ["onset"]
    assert is_mini(session(path, onset=name))
    assert is_mini(session(write_equal_onset(tmp_path, name)))  # no choice where it is the start itself


def write_equal_onset(folder, name):
    nwb = new_file()
    add_units(nwb)
    add_trials(nwb, onset=name)
    add_templates(nwb)
    return write(nwb, folder / "equal.nwb")


def test_an_onset_relative_to_the_trial_is_a_sum(tmp_path):
    nwb = new_file()
    add_units(nwb)
    nwb.add_trial_column(name="stimulus", description="sound")
    nwb.add_trial_column(name="sound_onset", description="s from start_time")
    for name, at in PRESENTED:
        nwb.add_trial(start_time=at - 0.25, stop_time=np.nan, stimulus=name, sound_onset=0.25)
    add_templates(nwb)
    path = write(nwb, tmp_path / "sum.nwb")
    assert "'start_time+sound_onset'" in NWB(path).look({}).hints["onset"][0][1]
    assert is_mini(session(path, onset="start_time+sound_onset"))


def test_tables_of_any_name_and_several_tables(tmp_path):
    nwb = new_file()
    add_units(nwb)
    add_templates(nwb)
    add_trials(nwb)
    other = TimeIntervals(name="stimulus_presentations", description="sounds")
    other.add_column(name="file", description="sound")
    for name, at in PRESENTED:
        other.add_row(start_time=at, stop_time=at + 0.3, file=f"sounds/{name}.wav")
    nwb.add_time_intervals(other)
    path = write(nwb, tmp_path / "several.nwb")
    found = NWB(path).look({})
    assert found.needed == ["intervals"]
    assert [value for value, _ in found.hints["intervals"]] == [
        "intervals/stimulus_presentations", "intervals/trials",
    ]  # fmt: skip
    one = session(path, intervals="stimulus_presentations")
    assert one.trials.stimulus[0] == "sounds/A.wav"  # the engine matches names
    assert one.trials.onset_s.tolist() == [at for _, at in PRESENTED]
    assert is_mini(session(path, intervals="trials"))
    with pytest.raises(ValueError, match="no table of intervals is called 'none'"):
        session(path, intervals="none")


def long_trace():
    trace = np.zeros(7 * FS, dtype=np.int16)
    for name, at in PRESENTED[:5]:
        begin = round(at * FS)
        trace[begin : begin + LENGTHS[name]] = pcm(name)
    return trace


def presentation(nwb, form):
    scale = {"unit": "V", "conversion": 1 / 32768}
    if form == "long":
        nwb.add_stimulus(series("speaker", data=long_trace(), rate=float(FS), starting_time=0.0, **scale))
    elif form == "late":  # begins at 0.5 s, with time stamps
        stamps = 0.5 + np.arange(6.5 * FS) / FS
        nwb.add_stimulus(series("speaker", data=long_trace()[FS // 2 :], timestamps=stamps, **scale))
    elif form == "trials":
        for k, (name, at) in enumerate(PRESENTED[:5]):
            played = series(f"p{k:02d}", data=pcm(name), rate=float(FS), starting_time=at, **scale)
            nwb.add_stimulus(played)
    elif form == "names":
        for name in ("A", "B"):
            nwb.add_stimulus(series(name, data=pcm(name), rate=float(FS), **scale))
    elif form == "index":
        add_templates(nwb)


def add_index(path, name, numbers, times, target=None):
    """An index series as earlier versions of pynwb wrote it."""
    with h5py.File(path, "r+") as file:
        group = file.create_group(f"stimulus/presentation/{name}")
        group.attrs["neurodata_type"] = "IndexSeries"
        group["data"], group["timestamps"] = np.array(numbers, dtype=np.uint32), np.array(times)
        if target:
            group["indexed_timeseries"] = h5py.SoftLink(target)


@pytest.mark.parametrize("form", ["long", "late", "trials", "names", "index"])
@pytest.mark.parametrize("table", [True, False])
def test_presentations_of_every_form(tmp_path, form, table):
    nwb = new_file()
    add_units(nwb)
    presentation(nwb, form)
    if table:
        add_trials(nwb)
    path = write(nwb, tmp_path / f"{form}.nwb")
    if form == "index":
        for sound in ("A", "B"):
            times = [at for name, at in PRESENTED if name == sound]
            add_index(path, f"{sound} played", [0] * len(times), times, f"/stimulus/templates/{sound}")
    if table:
        one = session(path, sounds="presentation")
        assert is_mini(one)
        assert not one.report.count("same name, different sounds")
    elif form in ("trials", "index"):  # their own times are the presentations
        one = session(path)
        assert one.trials.onset_s.tolist() == [at for _, at in PRESENTED[:5]]
        heard = [one.sounds[name].read() for name in one.trials.stimulus]
        assert all(np.array_equal(s, pcm(n) / 32768) for s, (n, _) in zip(heard, PRESENTED, strict=False))


def test_other_samples_under_one_name_are_noted(tmp_path):
    nwb = new_file()
    add_units(nwb)
    add_trials(nwb)
    trace = long_trace()
    trace[3 * FS + 100] += 1
    nwb.add_stimulus(series("speaker", data=trace, unit="V", rate=float(FS), conversion=1 / 32768))
    one = session(write(nwb, tmp_path / "changed.nwb"))
    assert is_mini(one)
    assert one.report.count("same name, different sounds") == 1


def test_index_series_into_rows_of_one_template_and_numbers_of_templates(tmp_path):
    nwb = new_file()
    add_units(nwb)
    rows = np.stack([pcm("A"), pcm("A")[::-1]])
    template = series("tokens", data=rows, unit="V", rate=float(FS), conversion=1 / 32768)
    nwb.add_stimulus_template(template)
    path = write(nwb, tmp_path / "rows.nwb")
    add_index(path, "played", [0, 1, 0], [1.0, 2.0, 3.0], "/stimulus/templates/tokens")
    one = session(path)
    assert one.trials.stimulus == ["tokens[0]", "tokens[1]", "tokens[0]"]
    assert np.array_equal(one.sounds["tokens[1]"].read(), pcm("A")[::-1] / 32768)


def test_index_series_into_numbers_of_templates(tmp_path):
    nwb = new_file()
    add_units(nwb)
    add_templates(nwb)
    path = write(nwb, tmp_path / "numbers.nwb")
    add_index(path, "played", [0, 1, 0, 1, 0], [at for _, at in PRESENTED[:5]])
    assert is_mini(session(path))
    add_index(path, "more", [2], [9.0])
    with pytest.raises(DamagedFileError, match="counts up to 2, and there are 2 templates"):
        session(path)


@pytest.mark.parametrize(
    ("dtype", "channels", "conversion"),
    [("i2", 2, 1 / 32768), ("i4", 1, 1.0), ("f4", 2, 1.0), ("f8", 1, 2.5), ("u1", 1, 1.0), ("i2", 1, 1.0)],
)
def test_samples_of_every_type_are_in_their_unit(tmp_path, dtype, channels, conversion):
    rng = np.random.default_rng(3)
    shape = (800, channels) if channels > 1 else (800,)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        data = rng.normal(size=shape).astype(kind)
        expected = data.astype(np.float64) * conversion
    else:
        info = np.iinfo(kind)
        data = rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
        half = 2.0 ** (info.bits - 1)
        whole = data.astype(np.float64)
        expected = (
            whole * conversion if conversion != 1.0 else whole / half - (1.0 if kind.kind == "u" else 0.0)
        )
    nwb = new_file()
    add_units(nwb)
    add_trials(nwb)
    for name in ("A", "B"):
        nwb.add_stimulus_template(
            series(
                name,
                data=data,
                unit="V",
                rate=44100.0,
                conversion=conversion,
                offset=0.25 if conversion == 2.5 else 0.0,
            )
        )
    sound = session(write(nwb, tmp_path / "types.nwb")).sounds["A"]
    assert sound.read().shape == shape
    assert np.allclose(sound.read(), expected + (0.25 if conversion == 2.5 else 0.0), rtol=1e-15, atol=0)
    assert (sound.n_samples, sound.fs) == (800, 44100.0)


def test_names_come_as_bytes_integers_floats_and_elements(mini, tmp_path):
    for k, values in enumerate(
        [
            np.array([b"A", b"B", b"A", b"B", b"A", b"blank"]),
            np.array(["A", "B", "A", "B", "A", ""], dtype=object),
        ]
    ):
        with h5py.File(mini, "r+") as file:
            attributes = dict(file["intervals/trials/stimulus"].attrs)
            del file["intervals/trials/stimulus"]
            file["intervals/trials/stimulus"] = values if k == 0 else values.astype(h5py.string_dtype())
            for key, value in attributes.items():
                file["intervals/trials/stimulus"].attrs[key] = value
        assert is_mini(session(mini))
    with h5py.File(mini, "r+") as file:
        del file["intervals/trials/stimulus"]
        file["intervals/trials/stimulus"] = np.array([1, 2, 1, 2, 1, 0], dtype=np.int8)
        file["stimulus/templates/1"] = file["stimulus/templates/A"]
        file["stimulus/templates/2"] = file["stimulus/templates/B"]
        for name in "AB":
            del file[f"stimulus/templates/{name}"]
    one = session(mini)
    assert one.trials.stimulus == ["1", "2", "1", "2", "1", ""]
    with h5py.File(mini, "r+") as file:
        del file["intervals/trials/stimulus"]
        file["intervals/trials/stimulus"] = np.array([1.0, 2.0, 1.0, 2.0, 1.0, np.nan])
    assert session(mini, stimulus="stimulus").trials.stimulus == ["1", "2", "1", "2", "1", ""]


def test_templates_may_be_counted(mini):
    with h5py.File(mini, "r+") as file:
        del file["intervals/trials/stimulus"]
        file["intervals/trials/stimulus"] = np.array([0, 1, 0, 1, 0, 9], dtype=np.int64)
    one = session(mini, sounds="templates by number", stimulus="stimulus", blank=["9"])
    assert counted(replace_names(one), "7") == EXPECTED_7


def replace_names(one):
    names = {"0": "A", "1": "B", "": ""}
    trials = replace(one.trials, stimulus=[names[n] for n in one.trials.stimulus])
    one.trials, one.sounds = trials, {names[n]: s for n, s in one.sounds.items()}
    return one


def test_what_is_not_observed_and_not_valid(tmp_path):
    nwb = new_file()
    add_units(nwb, observed=None)
    add_trials(nwb, stop=False)
    add_templates(nwb)
    nwb.add_invalid_time_interval(start_time=2.5, stop_time=3.6)
    one = session(write(nwb, tmp_path / "invalid.nwb"))
    assert one.observed["7"].tolist() == [[-np.inf, 2.5], [3.6, np.inf]]
    assert one.report.count("invalid times") == 1
    assert counted(one, "7")["A"][1] is None


def test_areas_of_electrodes_and_free_columns(tmp_path):
    nwb = new_file()
    device = nwb.create_device(name="probe")
    group = nwb.create_electrode_group(name="shank", description="a", location="b", device=device)
    for number, place in ((100, "A1"), (101, "A1"), (102, "PEG")):
        nwb.add_electrode(id=number, location=place, group=group)
    nwb.add_unit_column(name="depth", description="um")
    nwb.add_unit_column(name="snr", description="ratio")
    for unit, rows in (("7", [0, 1]), ("3", [2])):
        nwb.add_unit(id=int(unit), spike_times=SPIKES[unit], electrodes=rows, depth=100.0, snr=np.nan)
    add_trials(nwb)
    add_templates(nwb)
    path = write(nwb, tmp_path / "areas.nwb")
    one = session(path)
    assert one.unit_meta["7"] == {"depth": 100.0, "area": "A1", "cell_id": "7"}
    assert one.unit_meta["3"] == {"depth": 100.0, "area": "PEG", "electrode": "102", "cell_id": "3"}
    with h5py.File(path, "r+") as file:
        file["units/electrodes"][0] = 3
    with pytest.raises(DamagedFileError, match="beyond the 3 electrodes"):
        session(path)


def test_continuous_series_are_read_piece_by_piece(tmp_path):
    nwb = new_file()
    add_trials(nwb)
    add_templates(nwb)
    data = np.arange(7000 * 3, dtype=np.int16).reshape(7000, 3)
    lfp = series("lfp", data=data, unit="V", rate=1000.0, starting_time=0.5, conversion=1e-6, offset=1.0)
    nwb.add_acquisition(lfp)
    nwb.add_invalid_time_interval(start_time=1.0, stop_time=2.0)
    one = session(write(nwb, tmp_path / "lfp.nwb"))
    assert one.spikes is None
    signal = one.signal
    assert (signal.fs, signal.start_s, signal.unit) == (1000.0, 0.5, "V")
    assert list(signal.channels) == ["0", "1", "2"]
    assert signal.data.shape == (3, 7000)
    assert np.array_equal(signal.data[:, 10:20], data[10:20].T * 1e-6 + 1.0)
    assert signal.bad_s.tolist() == [[1.0, 2.0]]


def test_time_stamps_must_be_regular(tmp_path):
    for gap in (False, True):
        nwb = new_file()
        add_trials(nwb)
        add_templates(nwb)
        stamps = 3.0 + np.arange(5000) / 500
        stamps[2500:] += 0.1 * gap
        nwb.add_acquisition(series("eeg", data=np.zeros((5000, 2)), unit="V", timestamps=stamps))
        path = write(nwb, tmp_path / f"stamps{gap}.nwb")
        if gap:
            with pytest.raises(ValueError, match=r"/acquisition/eeg are not regular"):
                session(path)
        else:
            assert (session(path).signal.fs, session(path).signal.start_s) == (500.0, 3.0)
