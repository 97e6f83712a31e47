"""A dataset as one file."""

from __future__ import annotations

import json
import resource

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import AudioNeuralDataset


def assert_equal(a, b):
    assert (a.N_neurons, len(a), a.dt, a.name, a.smoothing_ms) == (
        b.N_neurons,
        len(b),
        b.dt,
        b.name,
        b.smoothing_ms,
    )
    assert a.nrn_meta == b.nrn_meta
    assert a.stim_meta == b.stim_meta
    assert torch.equal(a.nrn_masks, b.nrn_masks)
    for clip in range(len(a)):
        assert torch.equal(a.stims[clip], b.stims[clip])
        assert torch.equal(a.response_block(clip).nan_to_num(-9), b.response_block(clip).nan_to_num(-9))
        assert a.source_fingerprint(clip) == b.source_fingerprint(clip)


def test_round_trip(sparse, tmp_path):
    path = sparse.save(tmp_path / "mine.npz")
    assert path == tmp_path / "mine.npz"
    again = NeuralDataset.load(path)
    assert type(again) is NeuralDataset
    assert_equal(again, sparse)
    assert again.response_storage.clips[0].data.dtype == np.int8
    assert [p.name for p in tmp_path.iterdir()] == ["mine.npz"]


def test_views_keep_what_they_show(sparse, tmp_path):
    view = sparse.select(neurons=[2, 0, 2], clips=[2, 1]).smoothed()
    view = view.normalized("zscore").standardized()
    again = NeuralDataset.load(view.save(tmp_path / "view.npz"))
    assert_equal(again, view)
    assert again.I is None
    assert torch.equal(again.stim_normalization["mean"], view.stim_normalization["mean"])
    assert again.response_normalization["method"] == "zscore"
    assert again.response_storage.nbytes < sparse.response_storage.nbytes + 400
    with pytest.raises(ValueError, match="smooth first"):
        again.smoothed(30.0)  # the counts are still there


def test_audio_facts_survive(tmp_path):
    ds = AudioNeuralDataset.from_arrays(
        [np.random.default_rng(0).normal(size=1600)], [np.ones((1, 20))], 5.0, 16000, F=20,
        hearing_range_hz=(100.0, 9000.0), species="finch", frequencies_hz=np.arange(1.0, 21.0), name="w",
    )  # fmt: skip
    ds.load_report.skip("x", "broken")
    again = NeuralDataset.load(ds.save(tmp_path / "w.npz"))
    assert type(again) is AudioNeuralDataset
    assert (again.hop, again.F, again.species, again.hearing_range_hz) == (80, 20, "finch", (100.0, 9000.0))
    np.testing.assert_array_equal(again.frequencies_hz, ds.frequencies_hz)
    assert again.load_report.skipped == [("x", "broken")]
    assert_equal(again, ds)
    assert again.describe() == ds.describe()


def test_facts_of_a_loader_are_kept(tmp_path):
    class Loader(AudioNeuralDataset):
        def describe(self):
            return {**super().describe(), "binning": "half-open"}

    ds = Loader.from_arrays([np.zeros((2, 9))], [np.zeros((1, 9))], 5.0)
    again = NeuralDataset.load(ds.save(tmp_path / "x.npz"))
    assert again.describe()["binning"] == "half-open"


def test_joined_and_standardised(make, tmp_path):
    both = make(name="a").standardized() + make(seed=1, name="b").standardized()
    again = NeuralDataset.load(both.save(tmp_path / "ab.npz"))
    assert_equal(again, both)
    assert len(again.stim_normalization["datasets"]) == 2


def test_empty_views(ds, tmp_path):
    for index, view in enumerate((ds.select(neurons=[], keep_unheard=True), ds.select(clips=[]))):
        again = NeuralDataset.load(view.save(tmp_path / f"{index}.npz"))
        assert (again.N_neurons, len(again)) == (view.N_neurons, len(view))


def test_metadata_of_numpy_and_torch_scalars(tmp_path):
    meta = [{"depth": np.int64(3), "snr": np.float32(0.5), "q": torch.tensor(2.0), "gone": float("nan")}]
    ds = NeuralDataset.from_arrays([np.zeros((2, 9))], [np.zeros((1, 9))], 5.0, nrn_meta=meta)
    row = NeuralDataset.load(ds.save(tmp_path / "m.npz")).nrn_meta[0]
    assert (row["depth"], row["snr"], row["q"]) == (3, 0.5, 2.0)
    assert np.isnan(row["gone"])
    ds.nrn_meta[0]["bad"] = object()
    with pytest.raises(TypeError, match="object"):
        ds.save(tmp_path / "m.npz")
    assert NeuralDataset.load(tmp_path / "m.npz").N_neurons == 1


def test_no_pickle_inside(ds, tmp_path):
    with np.load(ds.save(tmp_path / "x.npz"), allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
        assert all(archive[key].dtype != object for key in archive.files)
    assert header["format"] == 1


def test_a_full_disk_leaves_the_old_file(make, tmp_path):
    path = tmp_path / "x.npz"
    make(n_neurons=2).save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match="nothing was changed"):
            make(n_neurons=50).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_bad_targets(ds, tmp_path):
    with pytest.raises(ValueError, match=r"\.npz"):
        ds.save(tmp_path / "x.h5")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ds.save(tmp_path / "no" / "x.npz")


def test_bad_files(ds, tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset file"):
        NeuralDataset.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    whole = ds.save(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "other", "cut"):
        with pytest.raises(ValueError, match="is no dataset file or is damaged"):
            NeuralDataset.load(tmp_path / f"{name}.npz")
    header = np.frombuffer(json.dumps({"format": 99}).encode(), dtype=np.uint8)
    np.savez(tmp_path / "new.npz", header=header)
    with pytest.raises(ValueError, match="another version"):
        NeuralDataset.load(tmp_path / "new.npz")


def test_damage_inside_is_noticed(ds, tmp_path):
    data = bytearray(ds.save(tmp_path / "x.npz").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (tmp_path / "x.npz").write_bytes(bytes(data))
    with pytest.raises(ValueError, match="damaged"):
        NeuralDataset.load(tmp_path / "x.npz")


def test_a_file_without_sounds_is_no_audio_dataset(tmp_path):
    ds = NeuralDataset.from_arrays([np.zeros((2, 9))], [np.zeros((1, 9))], 5.0)
    path = ds.save(tmp_path / "x.npz")
    with pytest.raises(TypeError, match=r"NeuralDataset\.load"):
        AudioNeuralDataset.load(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.nwb", "pynwb"), ("x.mat", "scipy.io.loadmat"), ("x.wav", "soundfile"), ("x.txt", "numpy.loadtxt"),
        ("x.csv", "pandas.read_csv"), ("x.npy", "numpy.load"), ("x.h5", "h5py"), ("x.PKL", "pickle"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("exists", [True, False])
def test_files_of_other_kinds_say_how_to_read_them(tmp_path, name, words, exists):
    path = tmp_path / name
    if exists:
        path.write_bytes(b"\x89HDF\r\n\x1a\n and more")
    with pytest.raises(ValueError if exists else FileNotFoundError, match=words) as caught:
        NeuralDataset.load(path)
    assert "from_arrays" in str(caught.value)
    assert "bin_spikes" in str(caught.value)
    assert "allow_pickle" not in str(caught.value)


def test_other_archives_name_what_they_hold(tmp_path):
    np.savez(tmp_path / "mine.npz", sounds=np.zeros(3), spikes=np.zeros(3))
    with pytest.raises(ValueError, match=r"sounds, spikes.*from_arrays"):
        NeuralDataset.load(tmp_path / "mine.npz")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="damaged") as caught:
        NeuralDataset.load(tmp_path / "broken.npz")
    assert "allow_pickle" not in str(caught.value)
