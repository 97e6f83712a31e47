"""Damaged, empty, wrong and hostile files, over every registered format that has a maker here.

A maker writes one small valid recording into a folder and returns (path, files to damage, options). A new
format adds one function to ``MAKERS``; what its own structure needs beyond that is tested beside it. Whatever
is done to the file, the outcome is a dataset, or a ValueError (DamagedFileError, MissingHintError),
TypeError, OSError or ImportError that names the file or folder: no other error, no hang, no code that runs.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import zipfile
from pathlib import Path

import nems_archives as nems
import numpy as np
import pytest
from scipy.io import savemat

from deepSTRF.cli import main
from deepSTRF.datasets import NeuralDataset, open_recording, write_recording
from deepSTRF.registry import FORMATS

soundfile = pytest.importorskip("soundfile")

#: s that one case may take.
PATIENCE = 30
#: Bytes that one case may take beside what the process has.
MEMORY = 2 << 30
ALLOWED = (ValueError, TypeError, OSError, ImportError)


def small() -> NeuralDataset:
    rng = np.random.default_rng(0)
    from deepSTRF.datasets.audio import AudioNeuralDataset

    stims = [rng.normal(size=40 * 80) for _ in range(2)]
    counts = [rng.poisson(0.5, (2, 3, 40)) for _ in stims]
    return AudioNeuralDataset.from_arrays(stims, counts, 5.0, 16000, check_alignment=False)


def make_folder(root: Path):
    path = write_recording(small(), root / "rec")
    (path / "exact.json").unlink()
    (path / "manifest.json").unlink()
    return (
        path,
        ["spikes.csv", "trials.csv", "units.csv", "recording.toml", "sounds/clip000.wav"],
        {"dt_ms": 5.0},
    )


def make_exact(root: Path):
    path = write_recording(small(), root / "rec")
    return path, ["spikes.csv", "exact.json", "manifest.json", "sounds/clip001.wav", "recording.toml"], {}


def make_signal(root: Path):
    rng = np.random.default_rng(1)
    path = root / "rec"
    (path / "sounds").mkdir(parents=True)
    soundfile.write(path / "sounds" / "A.wav", rng.uniform(-0.5, 0.5, 8000), 16000)
    (path / "trials.csv").write_text("stimulus,onset\nA,1\nA,2\n")
    np.save(path / "signal.npy", rng.normal(size=(2, 4000)))
    return path, ["signal.npy"], {"dt_ms": 10.0, "signal_fs": 1000.0}


def make_tables(root: Path):
    rng = np.random.default_rng(2)
    path = root / "rec"
    path.mkdir(parents=True)
    for number in (1, 2):
        soundfile.write(path / f"stim{number}.wav", rng.uniform(-0.5, 0.5, 4000), 16000)
        lines = [" ".join(f"{t:.2f}" for t in np.sort(rng.uniform(0, 250, 9))) for _ in range(3)]
        (path / f"spike{number}.txt").write_text("\n".join(lines) + "\n")
    return path, ["spike1.txt", "stim2.wav"], {"dt_ms": 5.0, "time_unit": "ms"}


def make_zip(root: Path):
    path, _, options = make_tables(root / "in")
    shutil.make_archive(str(root / "rec"), "zip", path)
    return root / "rec.zip", [None], options


def make_tgz(root: Path):
    path, _, options = make_tables(root / "in")
    shutil.make_archive(str(root / "rec"), "gztar", path)
    return root / "rec.tar.gz", [None], options


def make_nwb(root: Path):
    pytest.importorskip("pynwb")
    root.mkdir(parents=True)
    return write_recording(small(), root / "rec.nwb", "nwb"), [None], {}


def variables() -> dict[str, np.ndarray]:
    """Counts (unit, stimulus, repeat, bin) and what else makes a dataset of a file of variables."""
    rng = np.random.default_rng(3)
    return {
        "counts": rng.poisson(0.5, (2, 2, 3, 40)).astype(np.float64), "ids": np.array([7.0, 3.0]),
        "wav_A": rng.uniform(-0.5, 0.5, 6400), "wav_B": rng.uniform(-0.5, 0.5, 6400),
    }  # fmt: skip


VARIABLE_HINTS = {
    "dt_ms": 10.0, "counts": "counts", "axes": "unit stimulus repeat time", "fs": 100.0,
    "stimuli": ["A", "B"], "unit_names": "ids", "sounds": "wav_{stimulus}", "sounds_fs": 16000,
}  # fmt: skip


def make_matlab(root: Path):
    root.mkdir(parents=True)
    savemat(root / "rec.mat", variables(), do_compression=True)
    return root / "rec.mat", [None], VARIABLE_HINTS


def make_matlab_73(root: Path):
    h5py = pytest.importorskip("h5py")
    root.mkdir(parents=True)
    with h5py.File(root / "rec.mat", "w", userblock_size=512) as file:
        for name, values in variables().items():
            data = file.create_dataset(name, data=np.atleast_2d(values).T)
            data.attrs["MATLAB_class"] = np.bytes_("double")
    with open(root / "rec.mat", "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" "))
    return root / "rec.mat", [None], VARIABLE_HINTS


def make_arrays(root: Path):
    root.mkdir(parents=True)
    np.savez_compressed(root / "rec.npz", **variables())
    return root / "rec.npz", [None], VARIABLE_HINTS


def make_kilosort(root: Path):
    rng = np.random.default_rng(4)
    path = root / "rec"
    (path / "sounds").mkdir(parents=True)
    np.save(path / "spike_times.npy", np.sort(rng.integers(0, 200_000, 60)).astype(np.uint64))
    np.save(path / "spike_clusters.npy", rng.integers(0, 3, 60).astype(np.int32))
    (path / "params.py").write_text("n_channels_dat = 2\ndtype = 'int16'\nsample_rate = 30000.\n")
    (path / "cluster_group.tsv").write_text("cluster_id\tgroup\n0\tgood\n1\tgood\n")
    (path / "onsets.csv").write_text("stimulus,onset_sample\nA,30000\nB,60000\nA,90000\n")
    for name in "AB":
        soundfile.write(path / "sounds" / f"{name}.wav", rng.uniform(-0.5, 0.5, 4800), 16000)
    files = ["spike_times.npy", "spike_clusters.npy", "params.py", "cluster_group.tsv", "onsets.csv"]
    return path, [*files, "sounds/A.wav"], {"dt_ms": 10.0}


def make_nems(root: Path):
    pytest.importorskip("h5py")
    return nems.pack(root / "rec.tgz", nems_members()), [None], {"dt_ms": 10.0}


def make_nems_folder(root: Path):
    pytest.importorskip("h5py")
    path = nems.unpack(root, nems_members()) / "rec"
    return path, sorted(Path(name).name for name in nems_members()), {"dt_ms": 10.0}


def nems_members() -> dict[str, bytes]:
    return nems.site("rec", nems.MINI_SPIKES, nems.MINI_TILES, nems.MINI_EPOCHS)


def make_mne(root: Path):
    mne = pytest.importorskip("mne")
    root.mkdir(parents=True)
    rng = np.random.default_rng(5)
    raw = mne.io.RawArray(
        1e-6 * rng.normal(size=(2, 1000)), mne.create_info(2, 250.0, "eeg"), verbose="error"
    )
    raw.set_annotations(mne.Annotations([0.5, 2.0], [0.1, 0.1], ["A", "B"]))
    raw.save(root / "rec_raw.fif", verbose="error")
    sounds = {name: (rng.uniform(-0.5, 0.5, 8000), 16000) for name in "AB"}
    return root / "rec_raw.fif", [None], {"dt_ms": 20.0, "onsets": "annotations", "sounds": sounds}


MAKERS = {
    "folder": make_folder, "exact": make_exact, "signal": make_signal, "tables": make_tables, "zip": make_zip,
    "tar.gz": make_tgz, "nwb": make_nwb, "matlab": make_matlab, "matlab-7.3": make_matlab_73,
    "arrays": make_arrays, "kilosort": make_kilosort, "nems": make_nems, "nems-folder": make_nems_folder,
    "mne": make_mne,
}  # fmt: skip


class Mine:
    """A pickle that leaves a trace where it is loaded."""

    def __reduce__(self):
        return (os.mkdir, ("code-ran",))


def damages(content: bytes):
    rng = np.random.default_rng(len(content))
    yield "empty", b""
    for share in (0.02, 0.3, 0.7, 0.97):
        yield f"cut at {share}", content[: int(share * len(content))]
    for place in (*range(0, min(len(content), 24), 4), *rng.integers(0, len(content), 6).tolist()):
        flipped = bytearray(content)
        flipped[place] ^= 0x55
        yield f"flip at {place}", bytes(flipped)
    yield "zeros", bytes(len(content))
    yield "another kind", b"\x89PNG\r\n\x1a\n" + content[:100]
    yield "text", b"<html><body>Please log in</body></html>"
    yield "huge numbers", b"unit,time\n1e400,1e308\n9" + b"9" * 400 + b",-1e308\n"
    yield "pickle", pickle.dumps(Mine())
    yield "long line", b"1 " * 50_000
    yield "nul", b"a\0b,c\n"


def outcome(path, options, names):
    def late(*_):
        raise AssertionError(f"still running after {PATIENCE} s")

    usual = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        return open_recording(path, **options)
    except ALLOWED as error:
        if not any(name in str(error) for name in names):
            raise AssertionError(f"no name in {type(error).__name__}: {error}") from error
        return None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("maker", list(MAKERS))
def test_whatever_is_done_to_a_file(maker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, files, options = MAKERS[maker](tmp_path / "made")
    whole = outcome(path, options, [path.name])
    assert whole is not None
    names = [path.name, os.fspath(path)]
    for file in files:
        target = path if file is None else path / file
        content = target.read_bytes()
        for what, damaged in damages(content):
            target.write_bytes(damaged)
            found = outcome(path, options, [*names, target.name])
            if (
                maker in ("exact", "zip", "tar.gz")
                and found is not None
                and what.startswith(("cut", "empty"))
            ):
                assert found.content_fingerprint() == whole.content_fingerprint(), (file, what)
        target.unlink()
        outcome(path, options, [*names, target.name])
        target.mkdir()
        outcome(path, options, [*names, target.name])
        target.rmdir()
        os.mkfifo(target)
        outcome(path, options, [*names, target.name])
        target.unlink()
        target.symlink_to(target.name)
        outcome(path, options, [*names, target.name])
        target.unlink()
        target.write_bytes(content)
    assert not (tmp_path / "code-ran").exists()
    again = outcome(path, options, names)
    assert again is not None
    assert again.content_fingerprint() == whole.content_fingerprint()


def test_every_format_has_a_maker():
    assert set(FORMATS) <= set(MAKERS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("maker", ["exact", "signal", "nwb", "arrays", "nems", "kilosort"])
@pytest.mark.parametrize("out", ["mine.npz", "mine", "mine.nwb"])
def test_the_command_refuses_and_writes_nothing(maker, out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, files, options = MAKERS[maker](tmp_path / "made")
    target = path if files[0] is None else path / files[0]
    words = ["import", str(path), "--out", out]
    for key, value in options.items():
        words += ["-o", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    for damaged in (b"", b"<html></html>"):
        target.write_bytes(damaged)
        with pytest.raises(SystemExit) as done:
            main(words)
        shown = capsys.readouterr()
        assert done.value.code in (1, 2)
        assert shown.err.startswith("Error:")
        assert path.name in shown.err or target.name in shown.err
        assert "Traceback" not in shown.err
        assert [one.name for one in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("form", ["folder", "nwb"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_recordings_replace_nothing_of_others(form, overwrite, tmp_path):
    ds, suffix = small(), {"folder": "", "nwb": ".nwb"}[form]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years")
    (tmp_path / "note").write_text("mine")
    makers = {
        "file": lambda path: path.write_text("mine"),
        "link": lambda path: path.symlink_to(tmp_path / "note"),
        "folder": lambda path: shutil.copytree(tmp_path / "theirs", path),
        "link to a folder": lambda path: path.symlink_to(tmp_path / "theirs"),
        "pipe": os.mkfifo,
    }
    for what, make in makers.items():
        path = tmp_path / f"{what}{suffix}"
        make(path)
        with pytest.raises(OSError, match=r"exists|nothing|holds|is no|is a"):
            write_recording(ds, path, form, overwrite=overwrite)
        assert [one.name for one in (tmp_path / "theirs").iterdir()] == ["thesis.txt"]
        assert (tmp_path / "note").read_text() == "mine"
        assert not path.is_file() or path.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2 + len(makers)


def test_a_full_disk_leaves_the_earlier_recording(tmp_path):
    ds = small()
    for form, path in (("folder", tmp_path / "rec"), ("nwb", tmp_path / "rec.nwb")):
        if form == "nwb":
            pytest.importorskip("pynwb")
        write_recording(ds, path, form)
        before = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        try:
            with pytest.raises(OSError, match=path.name):
                write_recording(ds.standardized(), path, form, overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, usual)
        assert {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()} == before
        assert open_recording(path).content_fingerprint() == ds.content_fingerprint()


def test_npy_files_that_claim_more_than_they_hold(tmp_path):
    path, _, options = make_signal(tmp_path)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4000000000000), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    (path / "signal.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    )
    with pytest.raises(ValueError, match=r"signal\.npy"):
        open_recording(path, **options)
    np.save(path / "signal.npy", np.array([Mine()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"signal\.npy"):
        open_recording(path, **options)


def test_a_zip_that_unpacks_to_far_more(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("spikes.csv", "w", force_zip64=True) as stream,
    ):
        for _ in range(1100):
            stream.write(bytes(1 << 20))
    with pytest.raises(ValueError, match=r"a\.zip"):
        open_recording(tmp_path / "a.zip", format="tables", dt_ms=5.0, spikes="spikes.csv")
