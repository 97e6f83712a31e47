"""A dataset as one file: round trips, damage, files that mean harm."""

from __future__ import annotations

import json
import os
import resource
import zipfile

import numpy as np
import pytest
import torch

from deepSTRF import _files
from deepSTRF._files import DamagedFileError, load_npz, npz_bytes, write_sealed_zip  # inner: tested by itself
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
    assert header["format"] == 2


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


# ---- damage, hostile content, special files


def resaved(path, change, *, seal=True):
    """Write the arrays of a dataset file again after ``change(header, arrays)``."""
    arrays = load_npz(path)
    header = json.loads(arrays.pop("header").tobytes())
    text = change(header, arrays)
    text = json.dumps(header) if text is None else text
    content = npz_bytes({"header": np.frombuffer(text.encode(), dtype=np.uint8), **arrays})
    if seal:
        write_sealed_zip(path, content, "dataset")
    else:
        path.write_bytes(content)
    return path


@pytest.fixture
def full(sparse, tmp_path):
    """A file with everything in it: missing bins, both kinds of transforms."""
    return sparse.smoothed().normalized().standardized().save(tmp_path / "full.npz")


def test_every_flip_and_every_cut_is_named(full):
    whole, rng = full.read_bytes(), np.random.default_rng(0)
    places = {*range(40), *range(len(whole) - 200, len(whole)), *rng.integers(0, len(whole), 160).tolist()}
    for at in sorted(places):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        full.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"full\.npz"):
            NeuralDataset.load(full)
    for length in (0, 1, 3, 21, 22, 100, len(whole) // 2, len(whole) - 150, len(whole) - 22, len(whole) - 1):
        full.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match=r"full\.npz"):
            NeuralDataset.load(full)
    full.write_bytes(whole + b"\0")
    with pytest.raises(DamagedFileError):
        NeuralDataset.load(full)


def test_a_file_of_another_kind_or_without_its_seal_is_refused(full):
    content = npz_bytes(load_npz(full))
    write_sealed_zip(full, content, "cache")
    with pytest.raises(DamagedFileError, match="it is a cache, not a dataset"):
        NeuralDataset.load(full)
    full.write_bytes(content)
    with pytest.raises(DamagedFileError, match="lost its checksum"):
        NeuralDataset.load(full)


def test_files_of_earlier_versions_load_with_one_warning(sparse, tmp_path):
    def earlier(header, arrays):
        header["format"] = 1
        for key in ("response_kind", "response_unit", "level", "level_factor"):
            del header[key]

    path = resaved(sparse.save(tmp_path / "old.npz"), earlier, seal=False)
    with pytest.warns(UserWarning, match=r"old\.npz is of an earlier version.*ds\.save") as caught:
        again = NeuralDataset.load(path)
    assert len(caught) == 1
    assert_equal(again, sparse)


def _set(**values):
    return lambda header, arrays: header.update(values)


def _array(name, function):
    def change(header, arrays):
        arrays[name] = function(arrays[name])

    return change


def _drop(name):
    def change(header, arrays):
        del (header if name in header else arrays)[name]

    return change


HOSTILE = {
    **{f"header {name}={value!r:.30}": _set(**{name: value}) for name, value in [
        ("kind", "other"), ("kind", 1), ("kind", "audio"), ("dt_ms", 0), ("dt_ms", -5.0), ("dt_ms", "5"),
        ("dt_ms", None), ("dt_ms", float("nan")), ("dt_ms", float("inf")), ("dt_ms", 10**400), ("name", 5),
        ("n_neurons", 10**12), ("n_neurons", -1), ("n_neurons", 2), ("n_neurons", 3.0), ("n_neurons", True),
        ("stim_meta", {}), ("stim_meta", []), ("stim_meta", [1, 2, 3]), ("stim_meta", [{}, {}]),
        ("stim_meta", [{}] * 4), ("nrn_meta", [None] * 3), ("nrn_meta", "abc"), ("smoothing_ms", -1.0),
        ("smoothing_ms", float("nan")), ("smoothing_ms", 1e15), ("smoothing_ms", "21"),
        ("response_kind", "spikes"), ("response_kind", 3), ("response_unit", ""), ("facts", []),
        ("kept", 5), ("kept", [1]), ("skipped", [["a"]]), ("skipped", [[1, 2]]), ("path", None),
        ("name", "\ud800"), ("stim_meta", [{"name": "\udfff"}, {}, {}]), ("format", [2]), ("format", "2"),
    ]},
    **{f"no {name}": _drop(name) for name in [
        "kind", "dt_ms", "name", "n_neurons", "stim_meta", "nrn_meta", "facts", "kept", "stim_0", "rows_1",
        "heard_2", "counts_0", "standardization_of", "standardization_0_mean", "standardization_0_std",
        "standardization_0_clips", "normalization_scale", "normalization_offset", "normalization_clips",
        "normalization_method",
    ]},
    **{f"array {name} {number}": _array(name, function) for number, (name, function) in enumerate([
        ("stim_0", lambda a: a * np.float32("nan")), ("stim_0", lambda a: a * 0 + np.float32("inf")),
        ("stim_0", lambda a: a.astype(np.float64)), ("stim_0", lambda a: a.astype(">f4")),
        ("stim_0", lambda a: a.astype(np.complex64)), ("stim_0", lambda a: a[..., :-1]),
        ("stim_0", lambda a: a[:, :0]), ("stim_0", lambda a: a[:, :1]), ("stim_0", lambda a: a.ravel()),
        ("stim_0", lambda a: np.array("text")), ("stim_0", lambda a: a[0, 0, 0]),
        ("rows_0", lambda a: a.astype(np.int64)), ("rows_0", lambda a: a - np.float32("inf")),
        ("rows_0", lambda a: a.astype(np.float16)), ("rows_0", lambda a: a[:-1]), ("rows_0", lambda a: a[:0]),
        ("rows_0", lambda a: a[:, :-1]), ("rows_0", lambda a: a.ravel()), ("rows_0", lambda a: a[None]),
        ("rows_0", lambda a: np.full_like(a, np.iinfo(a.dtype).min)), ("rows_1", lambda a: a.astype("m8")),
        ("heard_0", lambda a: a + 2), ("heard_0", lambda a: a - 1), ("heard_0", lambda a: a[::-1].copy()),
        ("heard_0", lambda a: a * 0), ("heard_0", lambda a: a.astype(float)), ("heard_0", lambda a: a[None]),
        ("heard_0", lambda a: a[:-1]), ("heard_0", lambda a: a + 2**62),
        ("heard_0", lambda a: a.astype(bool)),
        ("counts_0", lambda a: a + 1), ("counts_0", lambda a: a * 0), ("counts_0", lambda a: -a),
        ("counts_0", lambda a: a[::-1] + 2**62), ("counts_0", lambda a: a.astype(np.int32)),
        ("counts_0", lambda a: np.append(a, 0)), ("standardization_of", lambda a: a + 1),
        ("standardization_of", lambda a: a - 2), ("standardization_of", lambda a: a[:-1]),
        ("standardization_0_mean", lambda a: a * np.float32("inf")),
        ("standardization_0_std", lambda a: a * 0),
        ("standardization_0_mean", lambda a: a[:1]), ("standardization_0_std", lambda a: -a),
        ("standardization_0_std", lambda a: a.astype(str)), ("standardization_0_clips", lambda a: a - 99),
        ("normalization_scale", lambda a: a * 0), ("normalization_scale", lambda a: a[:-1]),
        ("normalization_scale", lambda a: a * np.float32(1e-40)),
        ("normalization_offset", lambda a: a * np.float32("nan")), ("normalization_clips", lambda a: a - 99),
        ("normalization_method", lambda a: np.array("other")),
        ("normalization_method", lambda a: np.array(3)),
    ])},
    "an array more": lambda header, arrays: arrays.update(stim_3=np.zeros(3)),
    "deep": lambda header, arrays: '{"format": 2, "kind": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "rather deep": lambda header, arrays: json.dumps(
        {**header, "nrn_meta": [{"a": json.loads("[" * 300 + "]" * 300)}, {}, {}]}
    ),
    "long number": lambda header, arrays: '{"format": ' + "9" * 5000 + "}",
    "a list": lambda header, arrays: "[1, 2]",
    "a text": lambda header, arrays: '"format"',
    "nothing": lambda header, arrays: "",
    "no json": lambda header, arrays: "{'format': 2}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_says_is_not_believed(full, name):
    resaved(full, HOSTILE[name])
    with pytest.raises(DamagedFileError, match=r"full\.npz"):
        NeuralDataset.load(full)


@pytest.mark.parametrize(
    "values",
    [
        {"F": 0}, {"F": 10**30}, {"F": 2.0}, {"audio_fs": None}, {"audio_fs": "16000"}, {"audio_fs": -16000},
        {"audio_fs": 16001}, {"audio_fs": float("nan")}, {"return_waveform": False}, {"return_waveform": 1},
        {"hearing_range_hz": [5]}, {"hearing_range_hz": [9, 5]}, {"hearing_range_hz": ["a", "b"]},
        {"species": 4}, {"level": "loud"}, {"level_factor": 0}, {"level_factor": float("inf")},
        {"level_factor": None}, {"kind": "base"},
    ],
)  # fmt: skip
def test_facts_of_sounds_are_not_believed(tmp_path, values):
    rng = np.random.default_rng(0)
    ds = AudioNeuralDataset.from_arrays(
        [rng.normal(size=1600)], [np.ones((1, 20))], 5.0, 16000, frequencies_hz=np.arange(1.0, 21.0)
    )
    path = resaved(ds.save(tmp_path / "w.npz"), _set(**values))
    if values == {"kind": "base"}:
        with pytest.raises(TypeError, match="no sounds"):
            AudioNeuralDataset.load(path)
    with pytest.raises(DamagedFileError, match=r"w\.npz"):
        NeuralDataset.load(path)


def test_a_header_that_claims_much_allocates_nothing(tmp_path):
    for shape in ("(1000000000000,)", "(3, -1)", "(99,) * 9", "(" * 3000):
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        head += " " * (63 - (len(head) + 10) % 64) + "\n"
        member = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + b"1234"
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("header.npy", member)
        with pytest.raises(DamagedFileError, match=r"x\.npz is no dataset file or is damaged"):
            NeuralDataset.load(tmp_path / "x.npz")


def test_pipes_and_devices_are_refused_before_they_are_opened(ds, tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/full")  # endless zeros for readers
    (tmp_path / "gone.npz").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.npz").mkdir()
    for name in ("pipe", "zero"):
        with pytest.raises(DamagedFileError, match=rf"{name}\.npz is no regular file"):
            NeuralDataset.load(tmp_path / f"{name}.npz")
    (tmp_path / "zero.npz").unlink()
    (tmp_path / "link.npz").symlink_to(tmp_path / "pipe.npz")
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match=rf"{name}\.npz.*no regular file"):
            ds.save(tmp_path / f"{name}.npz")
        assert (tmp_path / "pipe.npz").is_fifo()
    for name in ("gone", "folder"):
        with pytest.raises(FileNotFoundError, match=rf"no dataset file .*{name}\.npz"):
            NeuralDataset.load(tmp_path / f"{name}.npz")
    with pytest.raises(OSError, match=r"folder\.npz"):
        ds.save(tmp_path / "folder.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.npz", "gone.npz", "link.npz", "pipe.npz"]


def test_a_link_that_was_named_stays_a_link(ds, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.npz").symlink_to(tmp_path / "there" / "real.npz")
    for _ in range(2):
        ds.save(tmp_path / "link.npz")
        assert (tmp_path / "link.npz").is_symlink()
        assert_equal(NeuralDataset.load(tmp_path / "there" / "real.npz"), ds)


def test_metadata_that_no_file_can_hold_is_named(tmp_path):
    def made(**kwargs):
        return NeuralDataset.from_arrays([np.zeros((2, 9))], [np.zeros((1, 9))], 5.0, **kwargs)

    ring: dict[str, object] = {}
    ring["again"] = ring
    for row, words in (({"cell_id": "a\udc80"}, "lone surrogate"), (ring, "levels deep")):
        with pytest.raises(ValueError, match=rf"nrn_meta\[0\].*{words}"):
            made(nrn_meta=[row])
    with pytest.raises(TypeError, match=r"stim_meta\[0\] is a dictionary, got int"):
        made(stim_meta=[5])
    for row, words in (
        ({"a": {"b": {1, 2}}}, r"stim_meta\[0\] cannot be saved.*set"),
        ({float("nan"): 1}, "its key nan is no text"),
        ({(1, 2): 1}, r"its key \(1, 2\) is no text"),
        ({5: 1, "5": 2}, "its key 5 is no text"),
    ):
        ds = made(stim_meta=[row])  # in memory, everything is legal
        with pytest.raises(TypeError, match=words):
            ds.save(tmp_path / "x.npz")
    ds = made()
    ds.name = 5
    with pytest.raises(ValueError, match="cannot be saved: name is 5"):
        ds.save(tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


def test_smoothing_windows_are_bounded(ds):
    with pytest.raises(ValueError, match=r"window_ms=1e\+18 is longer"):
        ds.smoothed(1e18)


def test_a_folder_whose_name_is_no_text_does_not_spoil_a_file(ds, tmp_path):
    ds.path = os.fsdecode(b"/data/\xff\xfe")
    ds.load_report.skip("x", f"{ds.path}/x.mat is damaged")
    again = NeuralDataset.load(ds.save(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.npz")))
    assert again.path == ds.path
    assert again.load_report.skipped == ds.load_report.skipped


def test_archives_of_other_makers_and_with_more_than_fits(full, monkeypatch):
    arrays = load_npz(full)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED):
        with zipfile.ZipFile(full, "w", method) as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, values)
        with pytest.raises(DamagedFileError, match="lost its checksum"):  # readable, and of nobody
            NeuralDataset.load(full)
    with zipfile.ZipFile(full, "w") as archive:
        archive.writestr("header", b"{}")
    with pytest.raises(DamagedFileError, match=r"full\.npz"):
        NeuralDataset.load(full)
    write_sealed_zip(full, npz_bytes({**arrays, "bomb": np.zeros(10**7)}), "dataset")
    monkeypatch.setattr(_files, "memory_bytes", lambda: 10**6)
    with pytest.raises(DamagedFileError, match="more than the memory of this machine"):
        NeuralDataset.load(full)
