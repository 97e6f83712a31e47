"""``deepstrf import``: a recording in files becomes a dataset, a folder, or a template of hints."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from deepSTRF.cli import main
from deepSTRF.datasets import NeuralDataset, open_recording

soundfile = pytest.importorskip("soundfile")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Two songs, two units, three trials each; times in ms, one line per trial."""
    folder = tmp_path / "lab"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in (1, 2):
        soundfile.write(folder / f"stim{number}.wav", rng.uniform(-0.5, 0.5, 8000), 16000)
        for unit in "ab":
            lines = [" ".join(f"{t:.3f}" for t in np.sort(rng.uniform(0, 550, 20))) for _ in range(3)]
            (folder / f"{unit}_spike{number}.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return folder


def call(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return end.value.code or 0, " ".join(out.split()), " ".join(err.split())


def test_what_must_be_told_is_an_error(lab, capsys):
    code, _, err = call(capsys, "import", "lab", "--dt-ms", "5", "--out", "x.npz")
    assert code == 2
    assert "-o time_unit=ms" in err
    assert not (lab.parent / "x.npz").exists()
    code, _, err = call(capsys, "import", "lab", "-o", "time_unit=ms", "--out", "x.npz")
    assert code == 2
    assert "--dt-ms" in err
    code, _, err = call(capsys, "import", "lab", "-o", "time_units=ms", "--dt-ms", "5", "--dry-run")
    assert code == 2
    assert "Did you mean 'time_unit'?" in err
    code, _, err = call(capsys, "import", "lab", "--dt-ms", "5", "-o", "time_unit=ms")
    assert code == 2
    assert "--out" in err
    assert call(capsys, "import", "nothing", "--dry-run")[0] == 2
    code, _, err = call(capsys, "import", "lab", "--out", "x.xlsx", "-o", "time_unit=ms", "--dt-ms", "5")
    assert code == 2
    assert "mine.npz" in err


def test_dry_run_prints_the_report_and_writes_nothing(lab, capsys):
    before = sorted(lab.parent.rglob("*"))
    code, out, _ = call(capsys, "import", "lab", "--dt-ms", "5", "-o", "time_unit=ms", "--dry-run")
    assert code == 0
    shown = ("Neurons 2", "Clips 2", "Repeats 3", "Bins 200 of 5 ms", "spikes after the sound's end")
    for words in (*shown, "Nothing was written"):
        assert words in out
    assert sorted(lab.parent.rglob("*")) == before


def test_datasets_and_folders(lab, capsys):
    base = ("import", "lab", "--dt-ms", "5", "-o", "time_unit=ms", "--out")
    assert call(capsys, *base, "x.npz")[0] == 0
    assert call(capsys, *base, "mine")[0] == 0
    saved, folder = NeuralDataset.load("x.npz"), open_recording("mine")
    direct = open_recording(lab, dt_ms=5.0, time_unit="ms")
    assert saved.content_fingerprint() == folder.content_fingerprint() == direct.content_fingerprint()
    for target in ("x.npz", "mine"):
        code, _, err = call(capsys, *base, target)
        assert code == 2
        assert "--overwrite" in err
        assert call(capsys, *base, target, "--overwrite")[0] == 0
    assert call(capsys, "import", "mine", "--out", "again.npz")[0] == 0
    assert NeuralDataset.load("again.npz").content_fingerprint() == saved.content_fingerprint()


def test_templates_of_hints(lab, capsys):
    code, out, _ = call(capsys, "import", "lab", "--template")
    assert code == 0
    assert '# time_unit = "ms"' in out
    assert call(capsys, "import", "lab", "--template", "-o", "time_unit=ms", "--out", "hints.toml")[0] == 0
    text = (lab.parent / "hints.toml").read_text()
    told = tomllib.loads(text)
    assert told["format"] == "tables"
    assert told["time_unit"] == "ms"
    for hint in ("spikes", "sounds", "repeats", "window_ms"):
        assert f"# {hint} = " in text
    assert call(capsys, "import", "lab", "--hints", "hints.toml", "--dt-ms", "5", "--out", "x.npz")[0] == 0
    (lab / "recording.toml").write_text(text.replace("# dt_ms = 10.0", "dt_ms = 5.0"))
    assert open_recording(lab).content_fingerprint() == NeuralDataset.load("x.npz").content_fingerprint()
    code, _, err = call(capsys, "import", "lab", "--template", "--out", "hints.toml")
    assert code == 2
    assert "--overwrite" in err
    (lab / "recording.toml").write_text("dt_ms = ")
    code, _, err = call(capsys, "import", "lab", "--dry-run")
    assert code == 1
    assert "recording.toml" in err


def test_fit_takes_folders_and_recordings(lab, capsys):
    assert call(capsys, "import", "lab", "--dt-ms", "5", "-o", "time_unit=ms", "--out", "mine")[0] == 0
    fit = ("fit", "--model", "ridge", "--wav2spec", "mel", "--split", "cut:0.1:random:0.6/0.2/0.2", "-q")
    assert call(capsys, *fit, "--dataset", "mine", "--model-option", "n_lags=3", "--out", "a")[0] == 0
    options = ("-o", "dt_ms=5.0", "-o", "time_unit=ms")
    assert (
        call(capsys, *fit, "--dataset", "lab", *options, "--model-option", "n_lags=3", "--out", "b")[0] == 0
    )
    code, _, err = call(capsys, *fit, "--dataset", "lab", "--out", "c")
    assert code == 2
    assert "time_unit" in err


def test_formats_are_listed(capsys):
    code, out, _ = call(capsys, "datasets")
    assert code == 0
    for words in ("folder", "tables", "time_unit", "deepstrf import PATH"):
        assert words in out


def test_the_command_that_is_printed_next_runs(lab, capsys):
    base = ("import", "lab", "--dt-ms", "5", "-o", "time_unit=ms")
    for more in ((), ("-o", 'features=["spectrogram"]')):
        code, out, _ = call(capsys, *base, *more, "--out", f"x{len(more)}.npz")
        assert code == 0
        words = out.split("Fit deepstrf ")[1].split()
        assert ("--wav2spec" in words) == (not more)
        code, _, err = call(capsys, *words, "--epochs", "1", "--split", "1/1/0", "--out", f"run{len(more)}")
        assert "front-end" not in err
