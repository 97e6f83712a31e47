"""The front door: which format, which hints, what is missing, and paths that are none."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deepSTRF.datasets import MissingHintError, NeuralDataset, open_recording
from deepSTRF.datasets.file_tree import FileTree
from deepSTRF.datasets.formats import Findings, Format, hints_of, template_of
from deepSTRF.datasets.session import Session, Sound, Trials
from deepSTRF.registry import FORMATS


class Toy(Format):
    """A file that begins with "toy" and holds spike times in s, one per line."""

    suffixes = (".toy",)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_file() and path.read_bytes()[:3] == b"toy"

    def look(self, hints):
        candidates = {"rate": [(16000.0, "a line says so")], "zero": [("a", "why a"), ("b", "why b")]}
        return Findings(["3 lines"], {k: v for k, v in candidates.items() if k not in hints}, ["zero"])

    def sessions(self, *, rate: float = 8000.0, zero: str | None = None) -> list[Session]:
        """The session.

        Parameters
        ----------
        rate : float
            Rate of the sound in Hz.
        zero : str
            What zero is.
        """
        samples = np.linspace(-0.5, 0.5, int(rate))
        times = np.array([float(line) for line in self.path.read_text().splitlines()[1:]])
        return [
            Session(
                Trials(["x"], np.array([0.0])), sounds={"x": Sound(lambda: samples, rate)},
                spikes={"u": times}, facts={"zero": zero},
            )
        ]  # fmt: skip


class Twin(Toy):
    """The same, once more."""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    FORMATS.names()
    monkeypatch.setitem(FORMATS._entries, "toy", Toy)
    path = tmp_path / "x.toy"
    path.write_text("toy\n0.005\n0.0151\n")
    return path


def test_hints_come_from_signature_and_docstring():
    hints = hints_of(Toy)
    assert list(hints) == ["rate", "zero"]
    rate = hints["rate"]
    assert (rate.default, rate.kind, rate.help) == (
        8000.0,
        "float",
        "Rate of the sound in Hz.",
    )


def test_one_candidate_is_used_and_noted_and_needed_hints_are_told(toy):
    with pytest.raises(MissingHintError) as caught:
        open_recording(toy, dt_ms=10.0)
    text = str(caught.value)
    for words in (
        "'toy'",
        "zero",
        "What zero is.",
        "'a' (why a)",
        "'b' (why b)",
        "3 lines",
        'zero = "a"',
        "open_recording(",
    ):
        assert words in text
    ds = open_recording(toy, dt_ms=10.0, zero="b")
    assert ds.audio_fs == 16000
    assert ds.facts["zero"] == "b"
    assert ds.path == os.fspath(toy)
    assert [text for topic, text, _ in ds.load_report.notes if topic == "hint used"] == [
        "rate=16000.0 (a line says so)"
    ]
    np.testing.assert_array_equal(np.flatnonzero(ds.responses[0][0].numpy()), [0, 1])
    assert open_recording(toy, dt_ms=10.0, zero="b", rate=8000.0).audio_fs == 8000


def test_unknown_hints_and_missing_bins(toy):
    with pytest.raises(TypeError, match=r"no hint 'zeros'.*Did you mean 'zero'"):
        open_recording(toy, dt_ms=10.0, zeros="a")
    with pytest.raises(TypeError, match=r"Did you mean 'on_overlap'"):
        open_recording(toy, dt_ms=10.0, zero="a", on_overlaps="skip")
    with pytest.raises(MissingHintError, match="bin width"):
        open_recording(toy, zero="a")


def test_two_formats_and_none(toy, tmp_path, monkeypatch):
    (tmp_path / "y.what").write_bytes(b"\1\2\3")
    with pytest.raises(ValueError, match=r"(?s)y\.what.*no known format.*'folder' \(time_unit.*from_trials"):
        open_recording(tmp_path / "y.what", dt_ms=10.0)
    monkeypatch.setitem(FORMATS._entries, "twin", Twin)
    with pytest.raises(ValueError, match=r"'toy' and 'twin'.*format='toy'"):
        open_recording(toy, dt_ms=10.0, zero="a")
    assert open_recording(toy, format="twin", dt_ms=10.0, zero="a").N_neurons == 1
    with pytest.raises(ValueError, match="unknown recording format"):
        open_recording(toy, format="toys", dt_ms=10.0)


def test_paths_that_are_none(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"did you mean .*x\.toy"):
        open_recording(tmp_path / "x.toyy")
    os.mkfifo(tmp_path / "pipe.toy")
    with pytest.raises(ValueError, match=r"pipe\.toy"):
        open_recording(tmp_path / "pipe.toy")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop"):
        open_recording(tmp_path / "loop")


def test_files_of_save_come_as_they_are(tmp_path):
    ds = NeuralDataset.from_arrays([np.zeros((2, 9))], [np.ones((1, 9))], 5.0)
    path = ds.save(tmp_path / "x.npz")
    assert open_recording(path).content_fingerprint() == ds.content_fingerprint()
    with pytest.raises(TypeError, match="dt_ms"):
        open_recording(path, dt_ms=5.0)


def test_one_file_in_an_archive_is_read_through_a_private_copy(toy, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(toy, "deep/er/x.toy")
        archive.writestr("README", "text")
    before = sorted(tmp_path.rglob("*"))
    assert open_recording(tmp_path / "a.zip", dt_ms=10.0, zero="a").N_neurons == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../x.csv", "/etc/x.csv", "a/../../x", "C:/x.csv", "a\\..\\x"])
def test_names_outside_an_archive_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "1")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"1"))
    for path in (tmp_path / "a.zip", tmp_path / "a.tar.gz"):
        with pytest.raises(ValueError, match=rf"{path.name}.*no plain relative name"):
            FileTree(path)


def test_links_bombs_and_doubles_in_archives(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    assert FileTree(tmp_path / "a.tar").names == ()
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x", "1")
    with pytest.raises(ValueError, match="two members"):
        FileTree(tmp_path / "b.zip")


def test_a_tree_leaves_out_outer_folders_and_hidden_files(tmp_path):
    for name in ("out/er/s10.txt", "out/er/s2.txt", "out/er/.hidden", "__MACOSX/x"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    assert FileTree(tmp_path / "in").names == ("s2.txt", "s10.txt")


def test_all_that_must_be_told_is_asked_at_once(tmp_path):
    rng = np.random.default_rng(0)
    sounds = {f"wav_{name}": rng.normal(size=16000) for name in "12"}
    spikes = {f"spike_times_{name}": np.cumsum(rng.integers(500, 9000, 99)) for name in "12"}
    np.savez(tmp_path / "a.npz", **sounds, **spikes)
    with pytest.raises(MissingHintError, match="then, with the first of what was found") as caught:
        open_recording(tmp_path / "a.npz", dt_ms=10.0)
    for hint in ("spikes", "sounds", "time_unit", "zero", "sounds_fs"):
        assert f"\n  {hint} - " in str(caught.value)
    template = template_of(tmp_path / "a.npz")
    assert "Must be told" in template.split("# zero =")[0].rsplit("# time_unit", 1)[1]
