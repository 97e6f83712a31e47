"""Names that hold anything (units, stimuli, features, recordings), through files, import, fit and report."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from deepSTRF.cli import main
from deepSTRF.datasets import NeuralDataset, open_recording, write_recording
from deepSTRF.datasets.audio import AudioNeuralDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "package"))
from test_text import NAMES

soundfile = pytest.importorskip("soundfile")

MORE = [".", "..", "a/b", "a\\b", "CON", "--", "{x}", "%s", "a;b", "a.wav", "nan", "007", "1.0", "#x"]
ALL = list(dict.fromkeys([*NAMES.values(), *MORE]))
FEW = [
    NAMES[key]
    for key in ("mathematics", "markup", "clear screen", "lines", "null", "formula", "html", "path")
]
BINS = 40


def recording(kind: str, names: list[str] = ALL) -> NeuralDataset:
    """One unit and one clip of each name, of waveforms, or a few clips of features with such names."""
    rng = np.random.default_rng(0)
    clips = names if kind == "sounds" else FEW[:3]
    counts = [rng.poisson(0.5, (len(names), 2, BINS)) for _ in clips]
    facts = {
        "nrn_meta": [{"cell_id": name, "area": name} for name in names],
        "stim_meta": [{"name": name} for name in clips],
        "name": NAMES["clear screen"],
        "check_alignment": False,
    }
    if kind == "sounds":
        stims = [rng.normal(size=BINS * 80) for _ in clips]
        return AudioNeuralDataset.from_arrays(stims, counts, 5.0, 16000, **facts)
    stims = [{name: rng.normal(size=(1, BINS)) for name in names if name.strip()} for _ in clips]
    return AudioNeuralDataset.from_arrays(stims, counts, 5.0, **facts)


def same(a: NeuralDataset, b: NeuralDataset) -> None:
    assert a.content_fingerprint() == b.content_fingerprint()
    assert a.name == b.name
    assert [dict(row) for row in a.nrn_meta] == [dict(row) for row in b.nrn_meta]
    assert [dict(row) for row in a.stim_meta] == [dict(row) for row in b.stim_meta]
    assert dict(a.features) == dict(b.features)


@pytest.mark.parametrize("kind", ["sounds", "features"])
@pytest.mark.parametrize("form", ["folder", "nwb"])
def test_datasets_come_back_with_every_name_and_write_nowhere_else(tmp_path, kind, form):
    if form == "nwb":
        pytest.importorskip("pynwb")
    ds = recording(kind)
    place = tmp_path / "deep" / ("rec" if form == "folder" else "rec.nwb")
    place.parent.mkdir()
    write_recording(ds, place, form)
    same(ds, open_recording(place))
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    if form == "folder":
        (place / "exact.json").unlink()
        (place / "manifest.json").unlink()
        if kind == "sounds":
            plain = open_recording(place, dt_ms=5.0)
            assert (plain.N_neurons, len(plain)) == (ds.N_neurons, len(ds))


@pytest.mark.filterwarnings("ignore")
def test_import_fit_and_report_show_every_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_recording(recording("sounds", FEW), "rec")
    split = ["--split", "4/2/2"]
    for words in (
        ["import", "rec", "--out", "mine.npz"],
        [
            "fit",
            "-d",
            "mine.npz",
            "--model",
            "ridge",
            "--wav2spec",
            "mel",
            *split,
            "--out",
            "run",
        ],
        ["report", "run", "--out", "page.html"],
    ):
        with pytest.raises(SystemExit) as done:
            main(words)
        shown = capsys.readouterr()
        assert done.value.code in (0, None), shown.err
        kinds = {unicodedata.category(char) for char in shown.out + shown.err if char not in "\n\t"}
        assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.npz", "page.html", "rec", "run"]
