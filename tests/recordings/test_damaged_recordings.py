"""Damaged, empty, wrong and hostile files, over every registered format that has a maker here.

A maker writes one small valid recording into a folder and returns (path, files to damage, options). A new
format adds one function to ``MAKERS``; what its own structure needs beyond that is tested beside it. Whatever
is done to the file, the outcome is a dataset, or a ValueError (DamagedFileError, MissingHintError),
TypeError, OSError or ImportError that names the file or folder: no other error, no hang, no code that runs.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deepSTRF.datasets import NeuralDataset, open_recording, write_recording
from deepSTRF.registry import FORMATS

soundfile = pytest.importorskip("soundfile")

#: s that one case may take.
PATIENCE = 30
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


def make_matlab(root: Path):
    scipy_io = pytest.importorskip("scipy.io")
    root.mkdir(parents=True)
    scipy_io.savemat(root / "rec.mat", {"spikes": np.arange(30.0), "stim": np.zeros((4, 30)), "fs": 100.0})
    return root / "rec.mat", [None], {"dt_ms": 10.0}


MAKERS = {
    "folder": make_folder, "exact": make_exact, "signal": make_signal, "tables": make_tables, "zip": make_zip,
    "tar.gz": make_tgz, "nwb": make_nwb, "matlab": make_matlab,
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
    try:
        return open_recording(path, **options)
    except ALLOWED as error:
        if not any(name in str(error) for name in names):
            raise AssertionError(f"no name in {type(error).__name__}: {error}") from error
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("maker", list(MAKERS))
def test_whatever_is_done_to_a_file(maker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, files, options = MAKERS[maker](tmp_path / "made")
    whole = outcome(path, options, [path.name])
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
    assert (again is None) == (whole is None)
    assert again is None or again.content_fingerprint() == whole.content_fingerprint()


def test_every_format_that_writes_has_a_maker():
    assert {name for name, entry in FORMATS.items() if entry.writes} <= set(MAKERS)


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
