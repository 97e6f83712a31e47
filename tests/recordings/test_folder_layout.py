"""The folder layout: written of any dataset and read back equal; written by hand and read as documented."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset, open_recording, write_recording
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.datasets.exact import dataset_of_session, session_of_dataset

soundfile = pytest.importorskip("soundfile")


def equal(one, other):
    assert other.content_fingerprint() == one.content_fingerprint()
    kind = AudioNeuralDataset if isinstance(one, AudioNeuralDataset) else NeuralDataset
    assert type(other) is kind
    for name in (
        "dt",
        "stim_meta",
        "nrn_meta",
        "response_kind",
        "response_unit",
        "smoothing_ms",
        "name",
        "features",
    ):
        assert getattr(other, name) == getattr(one, name), name
    for name in ("audio_fs", "F", "species", "level", "level_factor", "hearing_range_hz"):
        assert getattr(other, name, None) == getattr(one, name, None), name
    for name in ("frequencies_hz",):
        np.testing.assert_array_equal(getattr(other, name, None), getattr(one, name, None))
    assert (other.load_report.kept, other.load_report.notes) == (one.load_report.kept, one.load_report.notes)
    for clip in range(len(one)):
        assert torch.equal(other.stims[clip], one.stims[clip])
        for neuron in range(one.N_neurons):
            a, b = one.responses[clip][neuron], other.responses[clip][neuron]
            torch.testing.assert_close(b, a, rtol=0, atol=0, equal_nan=True)
    for name in ("response_normalization", "stim_normalization"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert {k: str(v) for k, v in a.items()} == {k: str(v) for k, v in b.items()}


def responses(rng, scale=1.0, shift=0.0):
    """Two clips of 3 neurons: ragged repeats, a missing pair, NaN bins, a repeat without a value."""
    made = []
    for bins, rate in ((100, 0.3), (60, 2.0)):
        clip = [scale * rng.poisson(rate, (r, bins)).astype(float) + shift if r else None for r in (3, 0, 2)]
        made.append(clip)
    made[0][0][1, 5:9] = np.nan
    made[0][0][2] = np.nan
    made[0][2][0, 0] = made[0][2][1, -1] = np.nan
    made[1][1] = np.full((1, 60), 3.0 * scale)
    return made


@pytest.fixture
def waveforms():
    rng = np.random.default_rng(3)
    stims = [14.0 * rng.normal(size=bins * 80) for bins in (100, 60)]
    ds = AudioNeuralDataset.from_arrays(
        stims, responses(rng), 5.0, 16000, species="ferret", hearing_range_hz=(100.0, 20000.0), level="rms",
        stim_meta=[{"name": "a/b song.wav", "loud": [1, 2]}, {"name": "A"}], check_alignment=False,
        nrn_meta=[{"cell_id": "=x", "area": "NA"}, {"cell_id": "u", "q": None}, {"cell_id": "u", "n": 3}],
    )  # fmt: skip
    ds.load_report.note("a topic", "a text", 3)
    ds.facts["source"] = {"doi": "10.1/x", "n": [1, None]}
    return ds


def written(ds, folder):
    return open_recording(write_recording(ds, folder))


def test_waveforms_and_views_come_back_equal(waveforms, tmp_path):
    views = [
        waveforms,
        waveforms.smoothed(21.0),
        waveforms.normalized("zscore"),
        waveforms.smoothed().normalized(),
        waveforms.select(neurons=[2, 0], clips=[1]),
        waveforms.select(neurons=[1], keep_unheard=True),
        waveforms.select(clips=[1, 0, 1]),
    ]
    for number, view in enumerate(views):
        equal(view, written(view, tmp_path / str(number)))


def test_rates_traces_and_large_counts(tmp_path):
    rng = np.random.default_rng(4)
    stims = [rng.normal(size=(4, bins)) for bins in (100, 60)]
    for number, (scale, shift) in enumerate([(0.5, 0.0), (1.0, -2.5), (20000.0, 0.0), (200.0, 0.0)]):
        ds = NeuralDataset.from_arrays(
            stims, responses(rng, scale, shift), 1000 / 30, check_alignment=False, response_unit="things"
        )
        equal(ds, written(ds, tmp_path / f"a{number}"))
        view = ds.standardized([0]).select(neurons=[2], clips=[0])
        equal(view, written(view, tmp_path / f"b{number}"))


def test_features_frequencies_and_odd_rates(tmp_path):
    rng = np.random.default_rng(5)
    named = [{"spectrogram": rng.normal(size=(3, 50)), "pupil size": rng.normal(size=50)} for _ in range(2)]
    ds = AudioNeuralDataset.from_arrays(
        named,
        [np.ones((2, 50)), np.ones((2, 50))],
        10.0,
        frequencies_hz=[100.0, 200.0, 400.0],
        check_alignment=False,
    )
    again = written(ds, tmp_path / "named")
    equal(ds, again)
    np.testing.assert_array_equal(again.feature_frequencies["spectrogram"], [100.0, 200.0, 400.0])
    rate = 24414.0625
    ds = AudioNeuralDataset.from_arrays(
        [rng.normal(size=125 * 40)], [np.ones((1, 40))], 1000 * 125 / rate, rate, check_alignment=False
    )
    again = written(ds, tmp_path / "odd")
    equal(ds, again)
    assert again.audio_fs == rate


@pytest.mark.parametrize("kind", ["zip", "gztar", "tar"])
def test_archives_are_read_in_place(waveforms, tmp_path, kind):
    folder = write_recording(waveforms, tmp_path / "in" / "mine")
    archive = shutil.make_archive(str(tmp_path / "packed"), kind, folder.parent, folder.name)
    before = sorted(tmp_path.rglob("*"))
    equal(waveforms, open_recording(archive))
    assert sorted(tmp_path.rglob("*")) == before


def test_other_bins_are_cut_of_the_tables(waveforms, tmp_path):
    plain = waveforms.select(neurons=[0])
    folder = write_recording(plain, tmp_path / "x")
    wide = open_recording(folder, dt_ms=10.0)
    assert wide.dt == 10.0
    values = plain.responses[1][0].numpy().reshape(3, 30, 2).sum(axis=2)
    clip = next(k for k in range(len(wide)) if wide.n_bins(k) == 30)
    np.testing.assert_array_equal(wide.responses[clip][0].numpy(), values)
    with pytest.raises(ValueError, match="no multiple"):
        open_recording(folder, dt_ms=7.0)


def test_a_changed_file_is_named(waveforms, tmp_path):
    folder = write_recording(waveforms, tmp_path / "x")
    text = (folder / "spikes.csv").read_text().splitlines()
    (folder / "spikes.csv").write_text("\n".join(text[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"spikes\.csv was changed.*exact\.json"):
        open_recording(folder)
    (folder / "exact.json").unlink()
    assert open_recording(folder, dt_ms=5.0).N_neurons == 3
    (folder / "sounds" / "A.wav").unlink()
    assert open_recording(folder, dt_ms=5.0).load_report.count("trials without sound") == 3


def test_sessions_without_files(waveforms):
    session = session_of_dataset(waveforms)
    json.dumps(session.exact)
    equal(waveforms, dataset_of_session(session, "memory"))
    session.spikes = {unit: times[:-1] for unit, times in session.spikes.items()}
    assert dataset_of_session(session, "memory").content_fingerprint() != waveforms.content_fingerprint()
    session.spikes = {unit: times + 1000.0 for unit, times in session.spikes.items()}
    with pytest.raises(ValueError, match="outside of its trials"):
        dataset_of_session(session, "memory")


def test_a_folder_by_hand(tmp_path):
    rng = np.random.default_rng(6)
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds" / "A.flac", rng.uniform(-0.5, 0.5, 8000), 16000)
    soundfile.write(tmp_path / "sounds" / "B.wav", rng.uniform(-0.5, 0.5, (4800, 2)), 16000, subtype="PCM_24")
    (tmp_path / "trials.csv").write_text(
        "stimulus,onset_ms,context\nA,1000,x\nB,2000,y\nA,3000,x\nB,4000,y\nA,5000,x\n"
    )
    (tmp_path / "spikes.csv").write_text(
        "unit,time\n"
        + "".join(f"7,{t}\n" for t in (0.995, 1, 1.0149, 1.499, 1.5, 2.105, 3.07, 3.255, 4.2999))
        + "3,1.25\n"
    )
    (tmp_path / "units.csv").write_text("unit,area,label\n7,None,good\n3,A1,mua\n12,A1,good\n")
    (tmp_path / "observed.csv").write_text("unit,start,stop\n3,0,3.9\n12,,\n")
    (tmp_path / "recording.toml").write_text(
        'name = "hand"\nspecies = "gerbil"\ndt_ms = 10.0\nchannel = 1\nspan_s = [0.0, 7.0]\n'
        '[facts]\nlicence = "CC0"\n'
    )
    ds = open_recording(tmp_path)
    assert (ds.name, ds.species, ds.facts["licence"], ds.dt) == ("hand", "gerbil", "CC0", 10.0)
    cells = {row["cell_id"]: n for n, row in enumerate(ds.nrn_meta)}
    clips = {row["name"]: s for s, row in enumerate(ds.stim_meta)}
    assert ds.nrn_meta[cells["7"]]["area"] == "None"
    assert [np.flatnonzero(row).tolist() for row in ds.responses[clips["A"]][cells["7"]].numpy()] == [
        [0, 1, 49], [7, 25], [],
    ]  # fmt: skip
    assert [np.flatnonzero(row).tolist() for row in ds.responses[clips["B"]][cells["7"]].numpy()] == [
        [10],
        [29],
    ]
    assert ds.responses[clips["A"]][cells["3"]].shape[0] == 2
    assert ds.responses[clips["B"]][cells["3"]].shape[0] == 1
    assert open_recording(tmp_path, dt_ms=5.0).dt == 5.0


def test_a_signal_by_hand(tmp_path):
    rng = np.random.default_rng(7)
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds" / "A.wav", rng.uniform(-0.5, 0.5, 16000), 16000)
    (tmp_path / "trials.csv").write_text("stimulus,onset\nA,1\nA,3\n")
    signal = np.repeat(rng.normal(size=(2, 500)), 10, axis=1)
    np.save(tmp_path / "signal.npy", signal)
    with pytest.raises(ValueError, match="signal_fs"):
        open_recording(tmp_path, dt_ms=10.0)
    ds = open_recording(
        tmp_path, dt_ms=10.0, signal_fs=1000.0, channels=["Cz", "Pz"], antialias=False, signal_unit="uV"
    )
    assert (ds.response_kind, ds.response_unit) == ("trace", "uV")
    assert [row["cell_id"] for row in ds.nrn_meta] == ["Cz", "Pz"]
    wanted = signal[:, ::10][:, [[*range(100, 200)], [*range(300, 400)]]]
    np.testing.assert_allclose(ds.response_block(0).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_what_stands_there_is_kept(waveforms, tmp_path):
    folder = write_recording(waveforms, tmp_path / "x")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_recording(waveforms, folder)
    other = waveforms.select(clips=[1])
    equal(other, open_recording(write_recording(other, folder, overwrite=True)))
    assert len(list((folder / "sounds").iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="did not write"):
        write_recording(waveforms, tmp_path / "mine", overwrite=True)
    with pytest.raises(ValueError, match="folder"):
        write_recording(waveforms, tmp_path / "y", "tables")
