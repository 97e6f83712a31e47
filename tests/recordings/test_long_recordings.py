"""Recordings in files: equal to those in memory to the bit, read in pieces, bounded, damage named."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from deepSTRF._files import DamagedFileError
from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import (
    NeuralDataset,
    concat_neural_datasets,
    neural_collate,
    recording,
    responses,
    stored,
    trials,
)
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.metrics import ScoreTracker, neuron_quality
from deepSTRF.models.audio import Linear, StateNet
from deepSTRF.training import Fitter, make_loaders, score_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSTRF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "recordings"


@pytest.fixture
def tiny_pieces(monkeypatch):
    """Everything is "very long": pieces of some bins, blocks of some bytes."""
    monkeypatch.setattr(stored, "PIECE_BYTES", 96)
    monkeypatch.setattr(responses, "SMALL_BYTES", 64)
    monkeypatch.setattr(recording, "WHOLE_CLIP_BYTES", 1000)
    monkeypatch.setattr(recording, "PIECE_OF_CLIP_BYTES", 4 * 4 * 3 * 37)
    monkeypatch.setattr(recording, "WHOLE_STIMULUS_BYTES", 1000)


def whole(**options) -> SyntheticDataset:
    return SyntheticDataset(n_neurons=4, n_clips=4, n_repeats=3, clip_seconds=1.1, **options)


def odd(kind: str) -> NeuralDataset:
    """Ragged repeats, missing bins and pairs, in each type of number."""
    rng = np.random.default_rng(1)
    make = {
        "int8": lambda n: rng.poisson(1.0, n), "int16": lambda n: rng.poisson(300.0, n),
        "rate": lambda n: rng.random(n), "trace": lambda n: rng.standard_normal(n),
    }[kind]  # fmt: skip
    stims = [torch.from_numpy(rng.standard_normal((2, n))).float() for n in (61, 40)]

    def counts(*shape: int) -> np.ndarray:
        return make(shape).astype(float)

    data = [[counts(3, 61), None, counts(1, 61)], [None, counts(2, 40), counts(2, 40)]]
    data[0][0][1, 10:30] = np.nan
    data[1][2][:, 38:] = np.nan
    return NeuralDataset.from_arrays(stims, data, dt_ms=10.0, check_alignment=False, response_unit="a.u.")


def assert_same(a: NeuralDataset, b: NeuralDataset) -> None:
    assert a.content_fingerprint() == b.content_fingerprint()
    assert a.response_kind == b.response_kind
    assert a.response_unit == b.response_unit
    assert a.describe() == b.describe()
    assert torch.equal(a.nrn_masks, b.nrn_masks)
    for clip in range(len(a)):
        assert torch.equal(a.stims[clip], b.stims[clip])
        np.testing.assert_array_equal(a.response_block(clip), b.response_block(clip))
        for neuron in range(a.N_neurons):
            np.testing.assert_array_equal(a.responses[clip][neuron], b.responses[clip][neuron])
        assert a.fingerprint(clip) == b.fingerprint(clip)


@pytest.mark.parametrize("kind", ["int8", "int16", "rate", "trace"])
@pytest.mark.usefixtures("tiny_pieces")
def test_a_mapped_recording_is_the_recording(kind, tmp_path):
    ds = odd(kind)
    ds.stim_meta[0]["note"] = "kept"
    mapped = ds.mapped(tmp_path / "folder")
    back = NeuralDataset.load(tmp_path / "folder")
    again = NeuralDataset.load(tmp_path / "folder").mapped()
    for other in (mapped, back, pickle.loads(pickle.dumps(mapped)), again):
        assert_same(ds, other)
        assert other.stim_meta == ds.stim_meta
        assert_same(ds.select(neurons=[2, 0, 2], clips=[1, 0]), other.select(neurons=[2, 0, 2], clips=[1, 0]))
        assert_same(ds.smoothed(35.0).normalized(), other.smoothed(35.0).normalized())
        assert_same(ds.standardized(), other.standardized())
        assert_same(ds.cut(130.0, gap_ms=20.0), other.cut(130.0, gap_ms=20.0))
        joined = [concat_neural_datasets([one, odd("int8")], names=["a", "b"]) for one in (ds, other)]
        assert_same(*joined)
        other.save(tmp_path / "one.npz")
        assert_same(ds, NeuralDataset.load(tmp_path / "one.npz"))
    assert_same(joined[0], joined[1].mapped(tmp_path / "both"))


@pytest.mark.parametrize("window", [None, 21.0, 60.0])
def test_pieces_of_a_clip_are_those_of_the_whole(window, tmp_path):
    ds = odd("int16").smoothed(window)
    for view in (ds, ds.mapped(tmp_path / "folder")):
        for clip, start, stop in itertools.product(range(2), (0, 3, 17), (18, 29, 40)):
            block = ds.response_block(clip)[..., start:stop]
            found = view.response_block(clip, start, stop)
            np.testing.assert_allclose(found, block, rtol=1e-6)
            some = view.response_block(clip, start, stop, slice(1, 3))
            np.testing.assert_allclose(some, block[1:3, : some.shape[1]], rtol=1e-6)
            assert torch.equal(view.stimulus_part(clip, start, stop), ds.stims[clip][..., start:stop])


@pytest.mark.parametrize("arm", ["spectrogram", "smoothed", "waveform", "prefilter"])
def test_ridge_and_scores_in_pieces_are_those_of_the_whole(arm, monkeypatch, request, tmp_path):
    ds, options, tolerance = whole(return_waveform=arm == "waveform"), {}, 1e-9
    if arm == "smoothed":
        ds = ds.smoothed(21.0)
    if arm == "waveform":
        from deepSTRF.models.wav2spec import make_wav2spec

        options = {"wav2spec": make_wav2spec("mel", audio_fs=ds.audio_fs, dt_ms=ds.dt, n_filters=12)}
        tolerance = 1e-5  # frames of a chunk of another length, in single precision
    if arm == "prefilter":
        options = {
            "prefiltering": {"prefiltering": "icadaptation", "dt": 5.0, "min_freq": 500, "max_freq": 8000}
        }
        tolerance = 1e-5
    train, val = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    fit = fit_ridge(train, val, n_lags=8, warmup_ms=20.0, **options)
    table = score_model(fit.model, val, n_bootstrap=10, warmup_ms=20.0)
    request.getfixturevalue("tiny_pieces")
    train, val = (view.mapped(tmp_path / name) for view, name in ((train, "a"), (val, "b")))
    assert len(train.pieces(0)) > 3
    pieces = fit_ridge(train, val, n_lags=8, warmup_ms=20.0, **options)
    assert float((fit.weight - pieces.weight).abs().max() / fit.weight.abs().max()) < tolerance
    assert float((fit.lambdas / pieces.lambdas - 1).abs().max()) < 1e-6
    found = score_model(fit.model, val, n_bootstrap=10, warmup_ms=20.0)
    for name in ("cc", "fve", "mse", "cc_norm", "snr", "ccmax", "ccmax_low", "ccmax_high"):
        np.testing.assert_allclose(found[name], table[name], atol=1e-6, err_msg=name)
    assert np.isnan(found["cc_norm_published"]).all()
    assert any("piece by piece" in note for note in found.facts["notes"])


@pytest.mark.usefixtures("tiny_pieces")
def test_scores_of_a_recurrent_model_carry_its_state(monkeypatch):
    ds = whole()
    torch.manual_seed(0)
    model = StateNet(ds.F, out_neurons=4, rnn_type="GRU", hidden_channels=7).eval()
    pieces = score_model(model, ds, n_bootstrap=0)
    monkeypatch.setattr(recording, "WHOLE_CLIP_BYTES", 1 << 29)
    table = score_model(model, ds, n_bootstrap=0)
    for name in ("cc", "fve", "cc_norm"):
        np.testing.assert_allclose(pieces[name], table[name], atol=1e-6, err_msg=name)


@pytest.mark.usefixtures("tiny_pieces")
def test_quality_by_a_few_neurons_at_a_time(monkeypatch):
    some = neuron_quality(whole(), n_bootstrap=5)
    monkeypatch.setattr(recording, "WHOLE_CLIP_BYTES", 1 << 29)
    every = neuron_quality(whole(), n_bootstrap=5)
    for name in ("n_bins", "mean_response", "signal_power", "snr", "ccmax", "ccmax_low"):
        np.testing.assert_allclose(getattr(some, name), getattr(every, name), err_msg=name)
    assert some.reasons == every.reasons


def test_a_fit_on_files_is_the_fit_in_memory_also_with_workers(tmp_path):
    ds = whole()
    results = []
    for data in (ds, ds.mapped(tmp_path / "folder"), None):
        torch.manual_seed(0)
        model = Linear(ds.F, 7, 4)
        source = data or NeuralDataset.load(tmp_path / "folder")
        views = source.select(clips=[0, 1, 2]), source.select(clips=[3])
        loaders = make_loaders(*views, batch_size=2, seed=0)
        if data is None:
            loaders = [
                DataLoader(view, batch_size=2, collate_fn=neural_collate, num_workers=n, shuffle=not i,
                           generator=None if i else torch.Generator().manual_seed(0))
                for i, (view, n) in enumerate(zip(views, (1, 0), strict=True))
            ]  # fmt: skip
        history = Fitter(model, *loaders, max_epochs=2, progress=False, seed=1).fit()
        results.append((model.state_dict(), [row["val_loss"] for row in history]))
    for state, losses in results[1:2]:
        assert losses == results[0][1]
        assert all(torch.equal(value, results[0][0][name]) for name, value in state.items())
    assert np.isfinite(results[2][1]).all()


def test_scores_forget_clips_beyond_their_budget():
    ds = whole()
    blocks = [ds.response_block(clip) for clip in range(4)]
    keep, forget = ScoreTracker(), ScoreTracker(max_bytes=blocks[0][:, 0].numel() * 4 + 10)  # float32
    for _ in range(2):
        for tracker in (keep, forget):
            tracker.reset()
            for clip, block in enumerate(blocks):
                if clip not in tracker:
                    tracker.prepare(clip, block)
                tracker.update([clip], block[None, :, 1:].mean(2, keepdim=True) ** 2)
        a, b = keep.report(), forget.report()
        assert all(torch.allclose(a[name], b[name], 0.0, 0.0, equal_nan=True) for name in a)
    assert [clip in forget for clip in range(4)].count(True) == 1
    with pytest.raises(KeyError, match="prepare"):
        forget.update([next(clip for clip in range(4) if clip not in forget)], blocks[0][None, :, :1])


# ---- files


def test_the_cache_entry_is_made_once_and_made_again_when_it_is_damaged(cache):
    ds = odd("int8")
    first = ds.mapped()
    (entry,) = (path for path in cache.iterdir() if not path.name.startswith("."))
    before = (entry / "rows_0.npy").stat().st_mtime_ns
    assert_same(first, ds.mapped())
    assert (entry / "rows_0.npy").stat().st_mtime_ns == before
    content = bytearray((entry / "rows_0.npy").read_bytes())
    content[-1] ^= 1
    (entry / "rows_0.npy").write_bytes(content)
    assert_same(ds, ds.mapped())
    assert_same(ds, NeuralDataset.load(entry))
    ds.nrn_meta[0]["area"] = "A1"
    ds.mapped()
    assert len([path for path in cache.iterdir() if not path.name.startswith(".")]) == 2


@pytest.mark.parametrize("name", ["rows_1.npy", "stim_0.npy", "header.json", "index.npz", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "other", "longer"])
def test_damage_is_named_when_a_folder_is_opened(name, damage, tmp_path):
    folder = tmp_path / "folder"
    odd("int16").mapped(folder)
    path = folder / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes({
            "cut": content[:middle], "other": b"something else", "longer": content + b"x",
            "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        }[damage])  # fmt: skip
    with pytest.raises((DamagedFileError, FileNotFoundError)) as caught:
        NeuralDataset.load(folder)
    assert name in str(caught.value) or (name == "manifest.json" and "folder" in str(caught.value))


def test_a_file_that_vanishes_or_is_cut_in_use_is_named(tmp_path):
    ds = whole().mapped(tmp_path / "folder")
    view = ds.select(neurons=[1, 2])
    (tmp_path / "folder" / "rows_1.npy").unlink()
    os.truncate(tmp_path / "folder" / "rows_2.npy", 200)
    with open(tmp_path / "folder" / "stim_0.npy", "ab") as stream:
        stream.write(b"more")
    for read, name in (
        (lambda: view.response_block(1), "rows_1"), (lambda: view.responses[1][0], "rows_1"),
        (lambda: view[2], "rows_2"), (lambda: ds.stims[0], "stim_0"),
        (lambda: ds.smoothed(21.0)[1], "rows_1"),
    ):  # fmt: skip
        with pytest.raises(DamagedFileError, match=name):
            read()
    assert view.response_block(3).shape[0] == 2


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text('{"files": {}, "kind": "run"}')
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="mine"):
        odd("int8").mapped(tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["manifest.json", "notes.txt"]
    (tmp_path / "mine" / "manifest.json").unlink()
    odd("int8").mapped(tmp_path / "mine")
    odd("trace").mapped(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    assert_same(odd("trace"), NeuralDataset.load(tmp_path / "mine"))


# ---- import


def session(folder: Path) -> tuple[Path, dict, dict]:
    rng = np.random.default_rng(3)
    (folder / "sounds").mkdir()
    for name in "ab":
        soundfile.write(
            folder / "sounds" / f"{name}.wav", 0.1 * rng.standard_normal(8000), 8000, subtype="PCM_16"
        )
    table = {"stimulus": ["a", "b", "a"], "onset": [1.0, 3.0, 5.0]}
    return folder / "sounds", table, {unit: np.sort(rng.uniform(0, 7, 150)) for unit in ("u1", "u2")}


def test_an_import_into_files_is_the_import_in_memory(tmp_path, monkeypatch, cache):
    given = session(tmp_path)
    plain = AudioNeuralDataset.from_trials(*given, 10.0, cache=None)
    assert not cache.exists()
    assert_same(plain, AudioNeuralDataset.from_trials(*given, 10.0))
    assert not cache.exists()  # too little for files
    kept = AudioNeuralDataset.from_trials(*given, 10.0, cache=tmp_path / "folder")
    assert_same(plain, kept)
    assert_same(plain, NeuralDataset.load(tmp_path / "folder"))
    monkeypatch.setattr(trials, "MEMORY_BYTES", 10)
    auto = AudioNeuralDataset.from_trials(*given, 10.0)
    assert_same(plain, auto)
    held = [path for path in cache.iterdir() if any(path.iterdir())]
    assert len(held) == 1
    part = auto.select(clips=[1])
    del auto
    assert_same(plain.select(clips=[1]), part)  # the files stay as long as anything reads them
    del part
    assert not any(path.exists() for path in held)


LONG = """
import sys
import numpy as np, torch
from deepSTRF.datasets import NeuralDataset, recording, windows, stored
from deepSTRF.datasets.responses import ClipResponses, ResponseStorage
from deepSTRF.datasets.recording import Stimulus, StimulusList
from deepSTRF.baselines import fit_ridge
from deepSTRF.metrics import streaming
from deepSTRF.training import score_model, Fitter, make_loaders
from deepSTRF.models.audio import Linear
from functools import partial
from pathlib import Path
torch.set_num_threads(1)
recording.WHOLE_CLIP_BYTES, recording.PIECE_OF_CLIP_BYTES = 1 << 24, 1 << 23
streaming.MAX_BYTES = 1 << 22
stored.PIECE_BYTES = 1 << 20
folder, n, bins = Path(sys.argv[1]), 100, 300_000
scratch, rng = stored.Scratch(folder), np.random.default_rng(0)
def rows():
    for _ in range(n):
        yield (rng.random((1, bins)) < 0.05).astype(np.int8)
def clip():
    held, index = scratch.write(stored.npy_pieces((n, bins), np.dtype(np.int8), rows())), np.arange(n)
    return ClipResponses(held, index, index, np.ones(n, dtype=np.int64), False)
arrays = partial(NeuralDataset.from_arrays, dt_ms=10.0, check_alignment=False)
small = arrays([torch.rand(4, 500)] * 2, [rng.random((n, 500))] * 2)
options = {"max_epochs": 1, "progress": False, "monitor": "val_loss"}
Fitter(Linear(4, 3, n, norm="none"), *make_loaders(small, small), **options).fit()
mark()
ds = NeuralDataset._blank(10.0)
ds.stim_meta, ds.nrn_meta = [{"name": "a"}, {"name": "b"}], [{"cell_id": str(i)} for i in range(n)]
ds.N_neurons = n
stims = [Stimulus(scratch.put(rng.standard_normal((1, 4, bins)).astype(np.float32))) for _ in range(2)]
ds._stims, ds._storage = StimulusList(stims, [None] * 2), ResponseStorage([clip(), clip()], n)
ds.validate()
mapped = ds.mapped(folder / "kept")
NeuralDataset.load(folder / "kept").content_fingerprint()
train, val = mapped.select(clips=[0]), mapped.select(clips=[1])
fit = fit_ridge(train, val, n_lags=3, lambdas=[10.0, 1000.0])
score_model(fit.model, val, n_bootstrap=0)
parts = [windows(view, 20.0, context_ms=20.0) for view in (train, val)]
fitter = Fitter(Linear(4, 3, n, norm="none"), *make_loaders(*parts, batch_size=4, seed=0), max_epochs=1,
                progress=False, clip_bytes=1 << 22, monitor="val_cc", track_train_metrics=False)
fitter.fit()
print(grown())
"""


def test_memory_stays_bounded(tmp_path, memory_growth):
    # 120 MB of responses as float32 per clip, 240 MB as float64, two clips; what is freed is given back
    more = memory_growth(LONG, tmp_path)
    assert more < 110, f"{more:.0f} MB more"
