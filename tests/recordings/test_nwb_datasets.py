"""From NWB files to datasets and fitted models, and from datasets to NWB files and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pynwb = pytest.importorskip("pynwb")
soundfile = pytest.importorskip("soundfile")

from test_nwb import add_templates, add_trials, add_units, new_file, write  # noqa: E402

from deepSTRF.datasets import NeuralDataset, open_recording  # noqa: E402
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset  # noqa: E402
from deepSTRF.datasets.formats import write_recording  # noqa: E402
from deepSTRF.models.audio import Linear  # noqa: E402
from deepSTRF.models.wav2spec import make_wav2spec  # noqa: E402
from deepSTRF.training import Fitter, make_loaders  # noqa: E402

NAN = float("nan")


def rows(found, clip, neuron):
    return [[int(k) if k == k else None for k in row] for row in found.responses[clip][neuron].tolist()]


@pytest.mark.parametrize("onset", [None, "sound_onset"])
def test_the_small_session_becomes_the_expected_arrays(tmp_path, onset):
    nwb = new_file()
    add_units(nwb, quality=["good", "mua"])
    add_trials(nwb, early=0.2 if onset else 0.0, onset=onset)
    add_templates(nwb)
    path = write(nwb, tmp_path / "mini.nwb")
    hints = {"onset": onset} if onset else {}
    ds = open_recording(path, dt_ms=10.0, **hints)
    assert ds.audio_fs == 16000
    assert [row["cell_id"] for row in ds.nrn_meta] == ["7", "3"]
    a, b = ([row["name"] for row in ds.stim_meta].index(name) for name in "AB")
    assert [tuple(stim.shape) for stim in (ds.stims[a], ds.stims[b])] == [(1, 8000), (1, 4800)]
    ones = [[0, 1, 49], [7, 25], []]
    assert rows(ds, a, 0) == [[int(k in found) for k in range(50)] for found in ones]
    assert rows(ds, b, 0) == [[int(k in found) for k in range(30)] for found in ([10], [29])]
    assert rows(ds, a, 1)[:2] == [[int(k == 25) for k in range(50)], [0] * 50]
    assert rows(ds, b, 1)[0] == [0] * 30
    for clip, missing in ((a, 2), (b, 1)):
        left = rows(ds, clip, 1)[missing:]
        assert all(value is None for row in left for value in row)
    assert ds.load_report.count("blank trials") == 1
    good = open_recording(path, dt_ms=10.0, labels=["good"], **hints)
    assert [row["cell_id"] for row in good.nrn_meta] == ["7"]


FS, DT = 44100, 0.01
PRE, POST = 5, 2


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A recording with most nuisances: the file, and what it is made of."""
    folder = tmp_path_factory.mktemp("lab")
    rng = np.random.default_rng(11)
    (folder / "wavs").mkdir()
    sounds = {}
    for k, seconds in enumerate([0.6, 0.75, 0.5, 0.8, 0.613]):
        n = int(seconds * FS)
        samples = (rng.normal(size=(n, 2)) * 2**19).astype(np.int32)
        samples[: FS // 50] = 0  # silence before the sound
        soundfile.write(folder / "wavs" / f"s{k}.wav", samples << 8, FS, subtype="PCM_24")
        sounds[f"s{k}"] = samples / 2.0**23
    order = rng.permutation(np.repeat(np.arange(5), [6, 5, 6, 4, 3]))  # ragged repeats
    onsets = np.cumsum(rng.uniform(1.0, 1.6, len(order))) + rng.uniform(0, 1e-3, len(order))
    end = float(onsets[-1]) + 2.0
    spikes, observed = {}, {}
    for unit in (41, 7, 12, 3):
        spikes[unit] = np.sort(rng.uniform(0, end, 600))
        on_edges = onsets[rng.integers(0, len(onsets), 40)] + rng.integers(0, 60, 40) * DT
        spikes[unit] = np.sort(np.concatenate([spikes[unit], on_edges]))
        observed[unit] = np.array([[0.0, end]])
    observed[7] = np.array([[0.0, float(onsets[9]) - 0.2], [float(onsets[15]) - 0.2, end]])  # missing repeats
    spikes[12] = np.empty(0)
    nwb = new_file()
    nwb.add_unit_column(name="quality", description="quality")
    for unit, times in spikes.items():
        nwb.add_unit(id=unit, spike_times=times, obs_intervals=observed[unit], quality="good")
    table = pynwb.epoch.TimeIntervals(name="playback", description="sounds")
    for name in ("sound_file", "stimulus_onset"):
        table.add_column(name=name, description=name)
    for k, onset in zip(order, onsets, strict=True):
        table.add_row(
            start_time=onset - 0.3,
            stop_time=onset + 1.0,
            sound_file=f"stimuli/s{k}.wav",
            stimulus_onset=onset,
        )
    nwb.add_time_intervals(table)
    write(nwb, folder / "lab.nwb")
    return folder / "lab.nwb", sounds, order, onsets, spikes, observed


def by_hand(lab, unit, sound):
    """(R, T) counts of a unit and a sound by a loop over spikes, of repeats that were wholly observed."""
    _, sounds, order, onsets, spikes, observed = lab
    bins = PRE + int(len(sounds[f"s{sound}"]) / FS / DT + 1e-9) + POST
    found = []
    for onset in onsets[order == sound]:
        begin = onset - PRE * DT
        if not any(a <= begin and begin + bins * DT <= b for a, b in observed[unit]):
            continue
        row = np.zeros(bins, dtype=int)
        for time in spikes[unit]:
            k = int(np.floor((time + 1e-6 - begin) / DT))
            if 0 <= k < bins:
                row[k] += 1
        found.append(row)
    return np.array(found).reshape(-1, bins)


@pytest.fixture(scope="module")
def opened(lab):
    return open_recording(
        lab[0], dt_ms=10.0, audio_fs=48000, channel=1, pre_ms=50.0, post_ms=20.0, onset="stimulus_onset",
    )  # fmt: skip


def test_counts_are_those_of_a_loop(lab, opened):
    assert [row["cell_id"] for row in opened.nrn_meta] == ["41", "7", "12", "3"]
    assert sorted(row["name"] for row in opened.stim_meta) == [f"s{k}" for k in range(5)]
    total = 0
    for clip, row in enumerate(opened.stim_meta):
        for neuron, unit in enumerate((41, 7, 12, 3)):
            expected = by_hand(lab, unit, int(row["name"][1:]))
            found = opened.responses[clip][neuron].numpy()
            found = found[~np.isnan(found).any(axis=1)]
            assert np.array_equal(found, expected), (row["name"], unit)
            total += expected.sum()
    assert total > 500


def test_a_fit_is_that_of_the_same_arrays(lab, opened):
    arrays = [np.stack([np.asarray(s, dtype=np.float32) for s in [stim]]) for stim in opened.stims]
    responses = []
    for row in opened.stim_meta:
        mine = [by_hand(lab, unit, int(row["name"][1:])) for unit in (41, 7, 12, 3)]
        responses.append(mine)
    same = AudioNeuralDataset.from_arrays(
        [a[0] for a in arrays], responses, dt_ms=10.0, audio_fs=48000,
        stim_meta=[{"name": row["name"]} for row in opened.stim_meta],
        nrn_meta=[{"cell_id": unit} for unit in ("41", "7", "12", "3")],
    )  # fmt: skip
    fitted = []
    for ds in (opened, same):
        torch.manual_seed(3)
        front = make_wav2spec("mel", audio_fs=48000, dt_ms=10.0, n_filters=8)
        model = Linear(n_frequency_bands=8, temporal_window_size=3, out_neurons=4, wav2spec=front)
        fitter = Fitter(model, *make_loaders(ds, ds, seed=0), max_epochs=2)
        fitter.fit()
        fitted.append({name: value.clone() for name, value in model.state_dict().items()})
    assert fitted[0].keys() == fitted[1].keys()
    assert all(torch.equal(fitted[0][name], fitted[1][name]) for name in fitted[0])


def equal_datasets(a, b):
    assert type(a) is type(b) or isinstance(a, SyntheticDataset)
    assert a.content_fingerprint() == b.content_fingerprint()
    assert (a.dt, a.N_neurons, len(a), a.response_kind, a.response_unit) == (
        b.dt, b.N_neurons, len(b), b.response_kind, b.response_unit,
    )  # fmt: skip
    assert a.smoothing_ms == b.smoothing_ms
    assert repr(a.stim_meta) == repr(b.stim_meta)
    assert repr(a.nrn_meta) == repr(b.nrn_meta)
    for clip in range(len(a)):
        assert torch.equal(a.stims[clip], b.stims[clip])
        for neuron in range(a.N_neurons):
            one, other = a.responses[clip][neuron], b.responses[clip][neuron]
            assert one.shape == other.shape
            assert torch.equal(torch.nan_to_num(one, -77.0), torch.nan_to_num(other, -77.0))


def made(kind):
    rng = np.random.default_rng(4)
    if kind == "waveforms":
        return SyntheticDataset(
            n_clips=3, clip_seconds=0.5, n_neurons=3, n_repeats=4, missing_fraction=0.2, ragged=True
        )
    if kind == "view":
        ds = SyntheticDataset(n_clips=3, clip_seconds=0.5, n_neurons=3, n_repeats=2)
        return ds.select(neurons=[2, 0], clips=[1, 2]).smoothed(21.0)
    shapes = [40, 25]
    if kind == "features":
        stims = [{"spec": rng.normal(size=(4, t)), "onsets": rng.random((1, t))} for t in shapes]
    else:
        stims = [rng.normal(size=(4, t)) for t in shapes]
    responses = [[rng.normal(size=(r, t)) for r in (3, 1)] for t in shapes]
    responses[0][1][0, 3:6] = NAN
    responses[1][0] = None
    if kind == "counts":
        responses = [
            [None if r is None else rng.poisson(1.0, r.shape).astype(float) for r in clip]
            for clip in responses
        ]
        responses[0][0][1, 5:9] = NAN
    meta = [{"name": "a/b", "source_sha256": "0" * 64, "list": [1, None]}, {"name": "a:b"}]
    ds = AudioNeuralDataset.from_arrays(
        stims,
        responses,
        dt_ms=7.5,
        stim_meta=meta,
        nrn_meta=[{"cell_id": "x", "area": "A1"}, {"cell_id": "y"}],
    )
    return ds.standardized(ds) if kind == "standardized" else ds


@pytest.mark.parametrize("kind", ["waveforms", "view", "features", "traces", "counts"])
def test_datasets_come_back_equal(tmp_path, kind):
    ds = made(kind)
    path = write_recording(ds, tmp_path / "mine.nwb", format="nwb")
    equal_datasets(ds, open_recording(path))
    assert pynwb.validate(path=str(path)) == []
    with pytest.raises(FileExistsError):
        write_recording(ds, path, format="nwb")
    write_recording(ds, path, format="nwb", overwrite=True)


def test_base_datasets_come_back_equal(tmp_path):
    ds = NeuralDataset.from_arrays([torch.rand(2, 3, 4, 20)], [torch.rand(2, 3, 20)], dt_ms=5.0)
    equal_datasets(ds, open_recording(write_recording(ds, tmp_path / "video.nwb", format="nwb")))
