"""EEG that MNE reads: rows of onsets, channels, bad spans, epochs, and named errors for damage."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import soundfile

from deepSTRF._files import DamagedFileError
from deepSTRF.datasets.audio.eeg import MneFormat
from deepSTRF.datasets.formats import MissingHintError, open_recording

mne = pytest.importorskip("mne")

FS, N = 500.0, 5000


def sounds(folder):
    """Two sounds of 1 s, called 1 and 2."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    out = {}
    for name in "12":
        out[name] = np.convolve(rng.normal(size=16000), np.ones(40) / 40, "same")
        out[name] /= 2 * np.abs(out[name]).max()
        soundfile.write(folder / f"{name}.wav", out[name], 16000, subtype="FLOAT")
    return out


def raw(first_samp=1000, extra=(), kinds=()):
    """10 s of two EEG channels, the first a ramp over rows; sounds from row 500 and 2000 on."""
    data = np.stack([1e-6 * np.arange(N), np.zeros(N), *extra])
    names = ["Fz", "Cz", *(f"X{k}" for k in range(len(extra)))]
    info = mne.create_info(names, FS, ["eeg", "eeg", *kinds])
    info["bads"] = ["Cz"]
    made = mne.io.RawArray(data, info, first_samp=first_samp, verbose="error")
    first = first_samp / FS
    # without a date of the measurement, MNE adds first_time to these
    made.set_annotations(
        mne.Annotations([3.0 - 2, 6.0 - 2, 3.5 - 2], [0.1, 0.1, 0.1], ["1", "2", "BAD_x"]), verbose="error"
    )
    assert made.annotations.onset.tolist() == [1 + first, 1.5 + first, 4 + first]
    return made


def save(made, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save(path, verbose="error")
    return path


def session_of_mne(made, **hints):
    return MneFormat(made).sessions(**hints)[0]


def check(session, first=500, second=2000):
    """Onsets at these rows of the first channel, and the second one bad."""
    signal = session.signal
    assert signal.channels == ["Fz", "Cz"]
    assert list(signal.bad_channels) == ["Cz"]
    assert signal.unit == "V"
    assert session.trials.stimulus == ["1", "2"]
    rows = (np.asarray(session.trials.onset_s) - signal.start_s) * FS
    np.testing.assert_allclose(rows, [first, second], rtol=0, atol=1e-9)
    values = signal.data[:, first : first + 3]
    np.testing.assert_allclose(values[0], 1e-6 * np.arange(first, first + 3), rtol=0, atol=2e-10)


@pytest.mark.parametrize("first_samp", [1000, 0])
def test_annotations_count_from_the_start_of_the_acquisition(tmp_path, first_samp):
    sounds(tmp_path / "wav")
    path = save(raw(first_samp), tmp_path / "alice.fif")  # no name as MNE likes them, and no warning
    assert MneFormat.recognises(path)
    (session,) = MneFormat(path).sessions(onsets="annotations", sounds="wav")
    check(session)
    np.testing.assert_allclose(session.signal.bad_s, [[1.5, 1.6]], rtol=0, atol=1e-9)
    check(session_of_mne(raw(first_samp), onsets="annotations", sounds=tmp_path / "wav"))
    later = MneFormat(path).sessions(onsets="annotations", sounds="wav", delay_s=0.02)[0]
    np.testing.assert_allclose(later.trials.onset_s, [1.02, 4.02], rtol=0, atol=1e-12)
    assert later.facts["onset_delay_s"] == 0.02


def test_a_measurement_date_and_cropping_change_no_row(tmp_path):
    sounds(tmp_path / "wav")
    made = raw(1000)
    made.set_meas_date(1_600_000_000)
    check(session_of_mne(made, onsets="annotations", sounds=tmp_path / "wav"))
    cropped = session_of_mne(made.copy().crop(0.5), onsets="annotations", sounds=tmp_path / "wav")
    np.testing.assert_allclose(cropped.trials.onset_s * FS, [250, 1750], rtol=0, atol=1e-9)
    np.testing.assert_allclose(cropped.signal.data[0:1, 250:251], [[500e-6]], rtol=0, atol=1e-12)


def test_only_brain_channels_are_neurons_and_positions_come_along(tmp_path):
    sounds(tmp_path / "wav")
    made = raw(extra=[np.ones(N), np.ones(N), np.ones(N)], kinds=["eog", "misc", "stim"])
    made.set_montage(
        mne.channels.make_dig_montage({"Fz": [0.0, 0.1, 0.05], "Cz": [0, 0, 0.1]}, coord_frame="head")
    )
    session = session_of_mne(made, onsets="annotations", sounds=tmp_path / "wav")
    assert session.signal.channels == ["Fz", "Cz"]
    assert session.report.count("channels left out") == 3
    assert session.report.count("bad channels") == 1
    np.testing.assert_allclose(session.unit_meta["Fz"]["position_m"], [0, 0.1, 0.05], atol=1e-7)
    hints = {"onsets": "annotations", "sounds": tmp_path / "wav"}
    assert session_of_mne(made, picks=["Fz"], **hints).signal.channels == ["Fz"]
    assert session_of_mne(made, exclude=["Fz"], **hints).signal.channels == ["Cz"]
    for wrong, text in (
        ({"picks": "seeg"}, r"no channels of the type 'seeg' but eeg \(2\)"),
        ({"picks": ["Fz", "Pz"]}, "no channel Pz"),
        ({"picks": ["Fz", "X0"]}, "picks are of 2 units"),
        ({"match": "("}, "no regular expression"),
        ({"delay_s": "audio"}, "delay_s is a number"),
    ):
        with pytest.raises(ValueError, match=text):
            session_of_mne(made, **hints, **wrong)
    with pytest.raises(ValueError, match="onsets"):
        session_of_mne(made, sounds=tmp_path / "wav", onsets="triggers")
    with pytest.raises(MissingHintError, match="onsets"):
        session_of_mne(made, sounds=tmp_path / "wav")


def test_bad_spans_of_single_channels(tmp_path):
    sounds(tmp_path / "wav")
    made = raw()
    made.annotations.append(5.0, 0.5, "BAD_y", ch_names=[["Fz"]])
    signal = session_of_mne(made, onsets="annotations", sounds=tmp_path / "wav").signal
    rows = np.flatnonzero(np.isnan(signal.data[:, 1000:3000]).any(axis=0)) + 1000
    assert (rows[0], rows[-1]) == (1500, 1749)
    assert not np.isnan(signal.data[1:, 1000:3000]).any()
    assert signal.bad_s.shape == (1, 2)


def test_onsets_of_tables_and_stim_channels(tmp_path):
    sounds(tmp_path / "wav")
    stim = np.zeros(N)
    stim[500:550], stim[2000:2001], stim[3000] = 11, 12, 99
    path = save(raw(extra=[stim], kinds=["stim"]), tmp_path / "sub-01_task-listen_eeg.fif")
    (tmp_path / "sub-01_events.tsv").write_text(
        "onset\tduration\ttrial_type\tstim_file\n1.0\t1.0\tspeech\t1.wav\n2.5\tn/a\tbutton\tn/a\n4.0\t1.0\tspeech\t2.wav\n"
    )
    (session,) = MneFormat(path).sessions(onsets="events", events="sub-01_events.tsv", sounds="wav")
    np.testing.assert_allclose(session.trials.onset_s, [1.0, 4.0], rtol=0, atol=1e-12)
    assert session.trials.stimulus == ["1.wav", "2.wav"]
    assert session.trials.meta["trial_type"] == ["speech", "speech"]
    hints = {"onsets": "stim", "names": {"11": "1", "12": "2"}}
    (session,) = MneFormat(path).sessions(sounds="wav", **hints)
    check(session)
    assert session.report.count("events that are no stimuli") == 1
    (session,) = MneFormat(path).sessions(sounds="wav", onsets="stim", names={11: "1", 12.0: "2"})
    check(session)
    with pytest.raises(ValueError, match=r"no event is a stimulus.*are 11 \(1\), 12 \(1\), 99 \(1\)"):
        MneFormat(path).sessions(sounds="wav", onsets="stim", names={"S11": "1"})
    (session,) = MneFormat(path).sessions(sounds="wav", onsets="stim", match="1([12])")
    check(session)
    with pytest.raises(MissingHintError, match=r"must be told: onsets, sounds.*annotations: 1 \(1\), BAD_x"):
        MneFormat(path).sessions()
    found = MneFormat(path).look({})
    assert [source for source, _ in found.hints["onsets"]] == ["annotations", "stim", "events", "audio"]
    assert any("2 s after the start of the acquisition" in line for line in found.found)


def test_the_audio_channel_shows_lags_and_onsets(tmp_path):
    waves = sounds(tmp_path / "wav")
    aux = 0.01 * np.random.default_rng(1).normal(size=N)
    for name, row in (("1", 510), ("2", 2015)):  # 20 and 30 ms after their annotations
        smooth = waves[name].reshape(500, 32).mean(axis=1)
        aux[row : row + 500] += smooth / np.abs(smooth).max()
    made = raw(extra=[aux], kinds=["misc"])
    hints = {"sounds": tmp_path / "wav", "audio_channel": "X0"}
    session = session_of_mne(made, onsets="annotations", **hints)
    check(session)
    (note,) = [text for topic, text, _ in session.report.notes if topic == "sound lag"]
    assert note.startswith("25 ms from the onsets")
    check(session_of_mne(made, onsets="annotations", delay_s="audio", **hints), 510, 2015)
    check(session_of_mne(made, onsets="audio", **hints), 510, 2015)
    silent = raw(extra=[np.zeros(N)], kinds=["misc"])
    with pytest.raises(ValueError, match="none of the 2 sounds is heard"):
        session_of_mne(silent, onsets="audio", **hints)
    assert session_of_mne(silent, onsets="annotations", **hints).report.count("sound not heard") == 2


def test_epochs_include_both_ends_and_keep_their_numbers(tmp_path):
    sounds(tmp_path / "wav")
    events = np.array([[1000 + row, 0, code] for row, code in ((500, 1), (1200, 9), (2000, 2))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = mne.Epochs(
            raw(), events, {"1": 1, "2": 2, "click": 9}, tmin=-0.2, tmax=1.0, baseline=None, preload=True,
            reject_by_annotation=False, verbose="error",
        )[["1", "2"]]  # fmt: skip
        made.save(tmp_path / "mine.fif", verbose="error")
    assert len(made.times) == 601
    (read,) = MneFormat(tmp_path / "mine.fif").sessions(sounds="wav")
    for session in (session_of_mne(made, sounds=tmp_path / "wav"), read):
        assert session.trials.stimulus == ["1", "2"]
        assert session.trials.meta["trial"] == [0, 2]
        assert list(session.signal.bad_channels) == ["Cz"]
        for onset, row in zip(session.trials.onset_s, (500, 2000), strict=True):
            at = round(onset * FS)
            assert onset * FS == pytest.approx(at, abs=1e-9)
            values = session.signal.data[0, at - 101 : at + 502]
            assert np.isnan(values[[0, -1]]).all()
            np.testing.assert_allclose(
                values[1:-1], 1e-6 * np.arange(row - 100, row + 501), rtol=0, atol=5e-10
            )


def test_brainvision_and_damage(tmp_path):
    sounds(tmp_path / "wav")
    made = raw()
    header = (
        "BrainVision Data Exchange Header File Version 1.0\n[Common Infos]\n"
        "DataFile=a.eeg\nMarkerFile=a.vmrk\n"
        "DataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=2\nSamplingInterval=2000\n"
        "[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n[Channel Infos]\nCh1=Fz,,1,µV\nCh2=Cz,,1,µV\n"
    )
    markers = (
        "BrainVision Data Exchange Marker File, Version 1.0\n[Common Infos]\nDataFile=a.eeg\n[Marker Infos]\n"
        "Mk1=Stimulus,S  1,501,1,0\nMk2=Stimulus,S  2,2001,1,0\n"
    )
    (tmp_path / "a.vhdr").write_text(header, encoding="utf-8")
    (tmp_path / "a.vmrk").write_text(markers, encoding="utf-8")
    (1e6 * made.get_data().T).astype("<f4").tofile(tmp_path / "a.eeg")
    form = MneFormat(tmp_path / "a.vhdr")
    assert MneFormat.recognises(form.path)
    (session,) = form.sessions(onsets="annotations", sounds="wav", match="Stimulus/S +(\\d+)")
    assert session.trials.stimulus == ["1", "2"]
    np.testing.assert_allclose(session.trials.onset_s * FS, [500, 2000], rtol=0, atol=1e-9)
    np.testing.assert_allclose(session.signal.data[0, 500:503], [500e-6, 501e-6, 502e-6], rtol=1e-6)
    for name in ("../a.eeg", "/etc/passwd", "b\\a.eeg"):
        (tmp_path / "b.vhdr").write_text(
            header.replace("DataFile=a.eeg", f"DataFile={name}"), encoding="utf-8"
        )
        with pytest.raises(DamagedFileError, match=r"b\.vhdr: its DataFile .* lies outside of its folder"):
            MneFormat(tmp_path / "b.vhdr").sessions(onsets="annotations", sounds="wav")
    (tmp_path / "b.vhdr").write_text(header.replace("DataFile=a.eeg", "DataFile=c.eeg"), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"b\.vhdr: its DataFile 'c\.eeg' is not there"):
        MneFormat(tmp_path / "b.vhdr").sessions(onsets="annotations", sounds="wav")


def test_damaged_files_are_named(tmp_path):
    sounds(tmp_path / "wav")
    content = save(raw(), tmp_path / "good.fif").read_bytes()
    rng = np.random.default_rng(2)
    for k in range(12):
        bad = bytearray(content)
        if k % 2:
            bad = bad[: int(rng.integers(36, len(bad)))]
        else:
            for place in rng.integers(0, 6000, size=8):
                bad[place] = int(rng.integers(256))
        (tmp_path / "bad.fif").write_bytes(bad)
        try:
            (session,) = MneFormat(tmp_path / "bad.fif").sessions(onsets="annotations", sounds="wav")
            session.signal.data[:, :]
        except ValueError as error:
            if "bad.fif" not in str(error):
                raise
    (tmp_path / "no.fif").write_bytes(b"unit,time\n")
    assert not MneFormat.recognises(tmp_path / "no.fif")
    with pytest.raises(DamagedFileError, match=r"no\.fif is no FIF"):
        MneFormat(tmp_path / "no.fif").look({})


def edf(path, n_records=10, stated=None):
    """An EDF file of two EEG channels at 500 Hz, 1 s per record; the first one a ramp in uV."""

    def fields(width, *values):
        return "".join(str(value).ljust(width) for value in values)

    header = (
        fields(8, "0") + fields(80, "X X X X", "Startdate X X X X") + fields(8, "01.01.20", "00.00.00", 768)
    )
    header += fields(44, "") + fields(8, stated or n_records, 1) + fields(4, 2)
    header += fields(16, "Fz", "Cz") + fields(80, "", "") + fields(8, "uV", "uV")
    header += fields(8, -32768, -32768) + fields(8, 32767, 32767) + fields(8, -32768, -32768)
    header += fields(8, 32767, 32767) + fields(80, "", "") + fields(8, 500, 500) + fields(32, "", "")
    ramp = np.arange(500 * n_records, dtype="<i2").reshape(n_records, 1, 500)
    path.write_bytes(header.encode("ascii") + np.concatenate([ramp, -ramp], axis=1).tobytes())


def test_edf_files_and_those_that_are_too_short(tmp_path):
    sounds(tmp_path / "wav")
    edf(tmp_path / "a.edf")
    (tmp_path / "events.csv").write_text("onset_ms;sound\n1000;1\n4000;2\n")
    assert MneFormat.recognises(tmp_path / "a.edf")
    hints = {"onsets": "events", "events": "events.csv", "sounds": "wav"}
    (session,) = MneFormat(tmp_path / "a.edf").sessions(**hints)
    assert session.trials.stimulus == ["1", "2"]
    np.testing.assert_allclose(session.trials.onset_s, [1.0, 4.0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        session.signal.data[:, 500:502], [[500e-6, 501e-6], [-500e-6, -501e-6]], rtol=1e-6
    )
    assert session.report.count("note of MNE") == 0
    bids = tmp_path / "sub-1_task-x_eeg.edf"
    edf(bids)
    bids.with_name("sub-1_task-x_events.tsv").write_text("onset\ttrial_type\n1.0\t1\n4.0\t2\n")
    bids.with_name("sub-1_task-x_channels.tsv").write_text(
        "name\ttype\tstatus\nFz\tEEG\tbad\nCz\tEOG\tgood\n"
    )
    assert "events" not in MneFormat(bids).look({"onsets": "events", "sounds": "wav"}).needed
    (session,) = MneFormat(bids).sessions(onsets="events", sounds="wav")
    assert session.trials.onset_s.tolist() == [1.0, 4.0]
    assert session.signal.channels == list(session.signal.bad_channels) == ["Fz"]
    edf(tmp_path / "b.edf", stated=20)
    (session,) = MneFormat(tmp_path / "b.edf").sessions(**hints)
    assert session.report.count("note of MNE") == 1
    assert session.signal.data.shape == (2, 5000)
    (tmp_path / "c.edf").write_bytes((tmp_path / "a.edf").read_bytes()[:600])
    with pytest.raises(DamagedFileError, match=r"c\.edf"):
        MneFormat(tmp_path / "c.edf").sessions(**hints)


def bins(path, **choices):
    return open_recording(
        path, dt_ms=10.0, onsets="annotations", sounds="wav", check_alignment=False, **choices
    )


@pytest.mark.parametrize("first_samp", [1000, 0])
def test_a_file_and_an_object_become_the_same_dataset(tmp_path, monkeypatch, first_samp):
    """The small EEG session: clip 1 from row 500 on, bins 50 to 59 missing, channel 2 absent."""
    monkeypatch.chdir(tmp_path)
    sounds(tmp_path / "wav")
    made = raw(first_samp)
    ds = bins(save(made, tmp_path / "alice.fif"))
    assert (len(ds), ds.N_neurons, ds.response_unit, ds.response_kind) == (2, 2, "V", "trace")
    for clip, row in enumerate((500, 2000)):
        assert ds.responses[clip][1].shape == (1, 1)
        values = ds.responses[clip][0].numpy()[0]
        assert values.shape == (100,)
        missing = np.flatnonzero(np.isnan(values))
        assert missing.tolist() == (list(range(50, 60)) if clip == 0 else [])
        # a ramp: its mean over a bin of 5 rows is its middle, with any low-pass of zero phase; sample k
        # stands for k to k + 1, and lines between samples for the half of a row less
        middle = 1e-6 * (row + 5 * np.arange(100) + 2)
        np.testing.assert_allclose(values[5:45], middle[5:45], rtol=0, atol=0.6e-6)
    other = bins(made)
    for clip in range(2):
        np.testing.assert_allclose(ds.responses[clip][0], other.responses[clip][0], rtol=0, atol=1e-9)
    with pytest.raises(TypeError, match=r"continuous signal, to which on_empty_unit does not apply"):
        bins(made, on_empty_unit="drop")
    with pytest.raises(TypeError, match="got int"):
        open_recording(3, dt_ms=10.0)
