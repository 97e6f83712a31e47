"""Files of filters: damaged, foreign and half replaced ones are named."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF._files import DamagedFileError, sealed_json
from deepSTRF.datasets import plan_folds
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret.dstrf import FileSink, dstrf, dstrf_folds
from deepSTRF.interpret.dstrf import sinks as sinks_module
from deepSTRF.interpret.filter_statistics import complexity
from deepSTRF.interpret.filter_statistics.ensembles import as_filters, cut_off
from deepSTRF.models.audio import Linear
from deepSTRF.plots import movies, save_dstrf_movie


@pytest.fixture(scope="module")
def ds() -> SyntheticDataset:
    return SyntheticDataset(n_neurons=2, n_clips=2, n_repeats=2, clip_seconds=0.1)


def filters(ds: SyntheticDataset, folder: Path, seed: int = 0, **options: Any) -> list[Path]:
    torch.manual_seed(seed)
    models = [Linear(ds.F, 3, 2) for _ in range(2)]
    fits = SimpleNamespace(manifest=plan_folds(ds, crossval=True), unseen=lambda ds, clip: models)
    return dstrf_folds(fits, ds, folder, **options)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


WHOLE = npy(np.ones((4, 1, 2, 3), dtype=np.float32))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"notes",
        WHOLE[:50],
        WHOLE[:-1],
        WHOLE + b"\0",
        header("(1000000000000, 1, 2, 3)") + bytes(96),
        header("(10**30, 1, 2, 3)") + bytes(96),
        header(f"({10**30}, 1, 2, 3)") + bytes(96),
        header("(-4, 1, 2, 3)") + bytes(96),
        header("'abc'") + bytes(96),
        header("(4, 1, 2, 3)", "'|O'") + bytes(192),
        header("(4, 1, 2, 3)", "[" * 3000) + bytes(96),
        header("(4, 1, 2, 3)", "'<q9'") + bytes(96),
        npy(np.array([[[["a"]]]], dtype=object)),
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_files_that_hold_no_filters_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dstrf.npy"
    path.write_bytes(content)
    for call in (as_filters, complexity, cut_off):
        with pytest.raises(ValueError, match=r"dstrf\.npy"):
            call(path)


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]", "object", "V8"])
def test_what_is_no_number_is_refused(tmp_path: Path, dtype: str) -> None:
    array = np.zeros((2, 1, 2, 3), dtype=dtype)
    with pytest.raises(TypeError, match="real numbers"):
        as_filters(array)
    if dtype != "object":
        np.save(tmp_path / "a.npy", array)
        with pytest.raises((TypeError, ValueError), match=r"real numbers|a\.npy"):
            as_filters(tmp_path / "a.npy")


def test_numbers_of_another_byte_order_are_the_same(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((6, 1, 2, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", array.astype(">f4"))
    assert torch.equal(complexity(tmp_path / "a.npy"), complexity(torch.from_numpy(array)))


@pytest.mark.parametrize("special", ["fifo", "zero", "folder"])
def test_special_files_are_named_before_the_work(ds: SyntheticDataset, tmp_path: Path, special: str) -> None:
    path = tmp_path / "dstrf.npy"
    if special == "fifo":
        os.mkfifo(path)
    elif special == "zero":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    before = os.lstat(path).st_mode
    with pytest.raises((OSError, ValueError), match=r"dstrf\.npy"):
        as_filters(path)
    with pytest.raises(OSError, match=r"dstrf\.npy"):
        dstrf(Linear(ds.F, 3, 2), ds.stims[0], sink=FileSink(path))
    assert os.lstat(path).st_mode == before
    assert os.listdir(tmp_path) == ["dstrf.npy"]


def test_a_failing_estimate_leaves_the_earlier_file(
    ds: SyntheticDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its note: without it the ends of the clip would count."""
    (path, _) = filters(ds, tmp_path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    cut = cut_off(path)
    assert cut.any()

    def failing(*_: Any) -> None:
        raise RuntimeError("no more")

    with monkeypatch.context() as patched:
        patched.setattr(FileSink, "write", failing)
        with pytest.raises(RuntimeError, match="no more"):
            filters(ds, tmp_path, seed=1)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before
    with monkeypatch.context() as patched:
        patched.setattr(
            sinks_module.os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(OSError, match=r"full.*dSTRF-000\.npy"):
            filters(ds, tmp_path, seed=1)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before
    assert torch.equal(cut_off(path), cut)


@pytest.mark.parametrize("step", ["write_atomically", "replace"])
def test_a_kill_between_note_and_file_is_no_pair(
    ds: SyntheticDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (path, _) = filters(ds, tmp_path)

    class KillError(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise KillError

    with monkeypatch.context() as patched:
        if step == "replace":
            patched.setattr(Path, "replace", kill)
        else:
            patched.setattr(sys.modules["deepSTRF.interpret.dstrf.jackknife"], step, kill)
        with pytest.raises(KillError):
            filters(ds, tmp_path, seed=1)
    if step == "replace":  # the new note beside the old file
        with pytest.raises(DamagedFileError, match=r"dSTRF-000\.npy.*dSTRF-000\.json states"):
            complexity(path)
    else:
        complexity(path)
    (again, _) = filters(ds, tmp_path, seed=1)
    (fresh, _) = filters(ds, tmp_path / "fresh", seed=1)
    assert again.read_bytes() == fresh.read_bytes()
    complexity(again)


def test_damage_to_files_with_a_note_is_found_and_they_are_made_anew(
    ds: SyntheticDataset, tmp_path: Path
) -> None:
    (path, _) = filters(ds, tmp_path)
    note, chance = path.with_suffix(".json"), random.Random(0)
    expected, whole = complexity(path), {one: one.read_bytes() for one in (path, note)}
    for target in (path, note):
        for _ in range(40):
            content = bytearray(whole[target])
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            target.write_bytes(bytes(content))
            try:
                found = complexity(path)
            except ValueError as error:
                known = "dSTRF-000" in str(error)
            else:  # white space, or the name of the key of the checksum
                known = target == note and torch.equal(found, expected)
            assert known
            target.write_bytes(whole[target])
    path.write_bytes(whole[path][:-4])
    assert filters(ds, tmp_path)[0].read_bytes() == whole[path]


@pytest.mark.parametrize(
    ("note", "ours"),
    [
        ({"cut": "ab"}, True),
        ({"cut": [1]}, True),
        ({"cut": [-1, 0]}, True),
        ({"cut": [True, 0]}, True),
        ({"cut": [1.5, 0]}, True),
        ({"cut": None}, True),
        ({"cut": [10**30, 0]}, True),
        ({"cut": [1, 1], "file": 3}, True),
        ({"cut": [1, 1], "file": {}}, True),
        ({"mine": 1}, False),
    ],
    ids=str,
)
def test_notes_of_another_shape(tmp_path: Path, note: dict[str, Any], ours: bool) -> None:
    (tmp_path / "a.npy").write_bytes(WHOLE)
    for content in (json.dumps(note).encode(), sealed_json(note)):
        (tmp_path / "a.json").write_bytes(content)
        if ours:
            with pytest.raises(DamagedFileError, match=r"a\.(json|npy) is damaged"):
                cut_off(tmp_path / "a.npy")
        else:
            assert not cut_off(tmp_path / "a.npy").any()
    for content in (b"\xff", b"{", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"a\.json"):
            cut_off(tmp_path / "a.npy")


def test_notes_of_earlier_versions_still_count(ds: SyntheticDataset, tmp_path: Path) -> None:
    (path, _) = filters(ds, tmp_path)
    note = path.with_suffix(".json")
    earlier = {
        key: value for key, value in json.loads(note.read_text()).items() if key not in ("sha256", "file")
    }
    cut, changed = cut_off(path), path.stat().st_mtime_ns
    note.write_text(json.dumps(earlier))
    assert torch.equal(cut_off(path), cut)
    filters(ds, tmp_path)
    assert path.stat().st_mtime_ns == changed  # not made again


def test_links_in_the_folder_are_not_written_through(ds: SyntheticDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("mine.npy", "mine.json"):
        (tmp_path / name).write_bytes(b"mine")
    (out / "dSTRF-000.npy").symlink_to(tmp_path / "mine.npy")
    (out / "dSTRF-000.json").symlink_to(tmp_path / "mine.json")
    (path, _) = filters(ds, out)
    assert (tmp_path / "mine.npy").read_bytes() == (tmp_path / "mine.json").read_bytes() == b"mine"
    assert not path.is_symlink()
    complexity(path)


@pytest.mark.parametrize("ending", [".gif", ".html"])
def test_a_movie_appears_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    rng = np.random.default_rng(0)
    stim, weights, rates = rng.normal(size=(6, 4)), rng.normal(size=(4, 3, 6)), np.zeros(4)
    path = tmp_path / f"cell{ending}"
    os.mkfifo(path)
    with pytest.raises(FileExistsError, match="cell"):
        save_dstrf_movie(path, stim, weights, rates)
    path.unlink()
    save_dstrf_movie(path, stim, weights, rates)
    before = path.read_bytes()

    def full(target: Path, film: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(movies.FORMATS, ending, full)
    with pytest.raises(OSError, match=r"No space left.*cell"):
        save_dstrf_movie(path, stim, weights, rates)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
