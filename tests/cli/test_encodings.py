"""Every command prints in every encoding of the output: a score, a table or a name never ends it."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from deepSTRF.cli import main
from deepSTRF.datasets.audio import AudioNeuralDataset

ENCODINGS = ("utf-8", "cp1252", "cp437", "ascii")
#: Names as people give them.
CELLS = ("cellule n\u00b03 \u2013 A1", "\u010cern\u00fd \u2212", "\u00b5-unit \u03bb\u2026")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encodings")
    rng = np.random.default_rng(0)  # noise: scores below 0
    AudioNeuralDataset.from_arrays(
        [rng.random((6, 120)) for _ in range(6)],
        [rng.poisson(0.3, (3, 4, 120)) for _ in range(6)],
        dt_ms=5.0, nrn_meta=[{"cell_id": cell} for cell in CELLS],
        name="M\u00fcller \u2014 \u96fb", check_alignment=False,
    ).save(folder / "noise.npz")  # fmt: skip
    words = ["fit", "-d", str(folder / "noise.npz"), "-m", "ridge", "--out", str(folder / "run"), "-q"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    return folder


def call(monkeypatch, encoding, words):
    """Exit code and what was written, for an output redirected in an encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with pytest.raises(SystemExit) as end:
        main(words)
    for stream in streams:
        stream.flush()
    return end.value.code, *(stream.buffer.getvalue().decode(encoding, "replace") for stream in streams)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--help"], 0, "deepstrf"),
        (["fit", "--help"], 0, "--split"),
        (["datasets"], 0, "ns1"),
        (["models"], 0, "statenet"),
        (["evaluate", "RUN"], 0, "test"),
        (["report", "RUN"], 0, "Protocol"),
        (["fit", "-d", "FILE", "-m", "ridge", "--out", "RUN"], 0, "complete"),
        (["evaluate", "RUN", "--clips", "\u7d30\u80de \u2212"], 2, "clips"),
        (["explain", "RUN", "--neurons", "\u2026\u03bb"], 2, "no neuron"),
        (["fit", "-d", "M\u00fcller\u2026.npz"], 2, "npz"),
    ],
)
def test_no_command_ends_in_an_encoding_error(run_folder, monkeypatch, encoding, words, code, text):
    places = {"RUN": str(run_folder / "run"), "FILE": str(run_folder / "noise.npz")}
    got, out, err = call(monkeypatch, encoding, [places.get(word, word) for word in words])
    assert got == code, err
    assert text in out + err
    assert "UnicodeEncodeError" not in err


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_signs_are_kept(run_folder, monkeypatch, encoding):
    from deepSTRF.experiments import Run

    expected = Run.load(run_folder / "run").scores.per_neuron("test")["fve"].mean()
    assert expected < -0.005
    _, out, _ = call(monkeypatch, encoding, ["evaluate", str(run_folder / "run")])
    numbers = [w.replace("\u2212", "-") for w in out.split() if w[-1:].isdigit() and "." in w]
    assert any(abs(float(number) - expected) < 0.005 for number in numbers if number[0] == "-")


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_long_commands(run_folder, monkeypatch, encoding):
    fit = ["fit", "-d", str(run_folder / "noise.npz"), "-e", "1", "--out", str(run_folder / encoding)]
    assert call(monkeypatch, encoding, fit)[0] == 0
    code, out, err = call(monkeypatch, encoding, ["explain", str(run_folder / encoding), "--neurons", "1"])
    assert code == 0, err
    assert "Explained" in out


def test_what_cannot_be_written_is_spelled_out(monkeypatch):
    import typer

    from deepSTRF.cli import _never_fail_to_print

    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp437")
    monkeypatch.setattr(sys, "stdout", stream)
    _never_fail_to_print()
    typer.echo("\u22120.12 \u2026 \u00b1 \u010caj \u2192 \u7d30")
    stream.flush()
    assert stream.buffer.getvalue().decode("cp437").rstrip("\r\n") == "-0.12 ... \u00b1 Caj -> ?"
