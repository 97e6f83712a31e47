"""``deepstrf stream`` and ``deepstrf export`` from the command line."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from deepSTRF.datasets.sounds import resampled
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.streaming import Stream

FS, HOP = 8000, 80
NAMES = ("A1-5", "=cmd", "cell,3")
_spec = importlib.util.spec_from_file_location(
    "fake_portaudio", Path(__file__).parents[1] / "streaming" / "fake_portaudio.py"
)
fake_portaudio = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_portaudio)
MICROPHONE = {
    "name": "USB microphone",
    "max_input_channels": 2,
    "default_samplerate": 44100.0,
    "rates": (8000.0,),
}
COMMAND = [sys.executable, "-c", "from deepSTRF.cli import main; main()"]


def small_model(**fitted):
    torch.manual_seed(0)
    front_end = make_wav2spec("mel", FS, 10.0, n_filters=6)
    model = Linear(6, 4, out_neurons=3, wav2spec=front_end, norm="none").eval()
    model.fitted_on = FittedOn(neurons=NAMES, dt_ms=10.0, audio_fs=float(FS), hop=HOP, **fitted)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and sounds."""
    folder = tmp_path_factory.mktemp("stream")
    small_model(response_unit="spikes per bin", rms=0.1).save_pretrained(folder / "model")
    sound = np.random.default_rng(0).normal(0, 0.1, (2 * FS, 1)).clip(-0.9, 0.9)
    soundfile.write(folder / "song.wav", sound, FS, subtype="FLOAT")
    soundfile.write(folder / "stereo.wav", np.hstack([sound, 0 * sound]), FS, subtype="FLOAT")
    soundfile.write(
        folder / "other.wav", np.random.default_rng(1).normal(0, 0.1, 11025), 11025, subtype="FLOAT"
    )
    soundfile.write(folder / "quiet.wav", 1e-4 * sound, FS, subtype="FLOAT")
    return folder


def offline(folder, name="song.wav", channel=0):
    """Rates (N, T) of the whole sound."""
    sound, fs = soundfile.read(folder / name, always_2d=True)
    sound = resampled(sound[:, channel], Fraction(fs), Fraction(FS))
    with torch.no_grad():
        rates = NeuralModel.from_pretrained(folder / "model")(torch.from_numpy(sound)[None, None])
    return rates[0, :, 0].numpy()


def table(text):
    rows = list(csv.reader(io.StringIO(text)))
    return rows[0], np.array(rows[1:], dtype=float)


@pytest.mark.parametrize("chunk_ms", ["100", "3.7", "5000"])
def test_rows_are_the_prediction_of_the_whole_sound(deepstrf, folder, chunk_ms):
    status, out, err = deepstrf(
        "stream", folder / "model", "--wav", folder / "song.wav", "--chunk-ms", chunk_ms
    )
    head, values = table(out)
    assert (status, head) == (0, ["time_s", "A1-5", "'=cmd", "cell,3"])
    np.testing.assert_allclose(values[:, 0], 0.01 * np.arange(200), atol=1e-9)
    np.testing.assert_allclose(values[:, 1:].T, offline(folder), atol=1e-5)
    assert "2.00 s" in err
    assert "200 bins of 10 ms" in err
    assert "Overruns  none" in err


def test_files_hold_the_chosen_neurons(deepstrf, folder, tmp_path):
    wanted = offline(folder, "other.wav")
    asked = ["stream", folder / "model", "--wav", folder / "other.wav", "--neurons", "2, A1-5"]
    status, out, _ = deepstrf(*asked, "--out", "rates.npz")
    assert (status, "at 11025 Hz, resampled" in out, "rates.npz" in out) == (0, True, True)
    with np.load(tmp_path / "rates.npz") as made:
        assert made["neurons"].tolist() == ["cell,3", "A1-5"]
        assert (float(made["dt_ms"]), str(made["unit"])) == (10.0, "spikes per bin")
        np.testing.assert_allclose(made["rates"], wanted[[2, 0]], atol=1e-5)
        np.testing.assert_allclose(made["time_s"], 0.01 * np.arange(wanted.shape[1]))
    status, out, _ = deepstrf(*asked, "--out", "rates.csv", "--seconds", "0.5", "-q")
    _, values = table((tmp_path / "rates.csv").read_text(encoding="utf-8"))
    assert (status, "Heard     0.50 s" in out, values.shape) == (0, True, (50, 3))
    np.testing.assert_allclose(values[:, 1:].T, wanted[[2, 0], :50], atol=1e-5)
    (tmp_path / "mine.csv").write_text("a,b\n")
    status, _, err = deepstrf(*asked, "--out", "mine.csv")
    assert (status, "it holds something else" in err, (tmp_path / "mine.csv").read_text()) == (
        2,
        True,
        "a,b\n",
    )


def test_a_channel_is_chosen(deepstrf, folder):
    asked = ["stream", folder / "model", "--wav", folder / "stereo.wav"]
    status, _, err = deepstrf(*asked)
    assert (status, "--channel 0" in err) == (2, True)
    status, out, _ = deepstrf(*asked, "--channel", "0")
    assert status == 0
    np.testing.assert_allclose(table(out)[1][:, 1:].T, offline(folder), atol=1e-5)


def test_a_level_far_from_the_fit_is_said(deepstrf, folder):
    with pytest.warns(UserWarning, match="80 dB below the sounds of the fit"):
        status, out, _ = deepstrf("stream", folder / "model", "--wav", folder / "quiet.wav", "--rows")
    assert status == 0
    np.testing.assert_allclose(table(out)[1][:, 1:].T, offline(folder, "quiet.wav"), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["stream"], 2, "name the model"),
        (["stream", "{model}"], 2, "say what the model hears"),
        (["stream", "{model}", "--stdin", "--wav", "a.wav"], 2, "one of --wav"),
        (["stream", "{model}", "--stdin"], 2, "--rate HZ"),
        (["stream", "{model}", "--wav", "{song}", "--rate", "8000"], 2, "--rate is for --device and --stdin"),
        (["stream", "{model}", "--wav", "{song}", "--overrun", "stop"], 2, "--overrun is for --device"),
        (["stream", "{model}", "--stdin", "--rate", "8000", "--real-time"], 2, "--real-time is for --wav"),
        (["stream", "{model}", "--wav", "{song}", "--out", "a.txt"], 2, ".csv or .npz"),
        (["stream", "{model}", "--wav", "{song}", "--neurons", "A1-6"], 2, "no neuron 'A1-6'"),
        (["stream", "{model}", "--wav", "{song}", "--neurons", "3"], 2, "no neuron 3"),
        (["stream", "{model}", "--wav", "{song}", "--neurons", "0,0"], 2, "different neurons"),
        (["stream", "{model}", "--wav", "{song}", "--seconds", "0"], 2, "seconds"),
        (["stream", "{model}", "--wav", "{song}", "--chunk-ms", "-3"], 2, "--chunk-ms"),
        (["stream", "{model}", "--wav", "{song}", "--chunk-ms", "0"], 2, "--chunk-ms"),
        (["stream", "{model}", "--stdin", "--rate", "8000", "--channels", "0"], 2, "--channels"),
        (["stream", "{model}", "--wav", "{song}", "--seed", "0"], 2, "--seed"),
        (["stream", "{model}", "--wav", "nothing.wav"], 2, "nothing.wav"),
        (["stream", "{model}", "--wav", "{model}/config.json"], 1, "config.json"),
        (["stream", "ns1/bets", "--wav", "{song}"], 2, "ns1/best"),
        (["stream", "ns1/ridge", "--wav", "{song}"], 2, "hears spectrograms"),
        (["export", "nothing"], 2, "no run folder"),
        (["export", "{model}", "graphs", "--format", "tflite"], 2, "onnx"),
    ],
)
def test_problems_are_said(deepstrf, folder, words, status, text):
    names = {"model": folder / "model", "song": folder / "song.wav"}
    code, _, err = deepstrf(*(word.format(**names) for word in words))
    assert (code, text in " ".join(err.split())) == (status, True), err


def test_a_run_folder_is_a_model(deepstrf, finished, folder):
    """The run of this folder's tests hears spectrograms, and the error says so: it was loaded."""
    status, _, err = deepstrf("stream", finished.path, "--wav", folder / "song.wav", "--seed", "1")
    assert (status, "hears spectrograms" in err) == (2, True)
    status, _, err = deepstrf("stream", finished.path, "--wav", folder / "song.wav", "--seed", "9")
    assert (status, "seed 9" in err) == (2, True)


# ---- pipes, terminals, Ctrl-C: processes of their own


def start(folder, *words, **options):
    environment = os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
    words = [*COMMAND, "stream", str(folder / "model"), *map(str, words)]
    return subprocess.Popen(words, env=environment, cwd=folder, **options)


@pytest.mark.parametrize(("kind", "channels"), [("float32", 1), ("int16", 2)])
def test_raw_samples_from_a_pipe(folder, kind, channels):
    sound, _ = soundfile.read(folder / "song.wav", always_2d=True)
    sound = np.repeat(sound, channels, axis=1)
    raw = (sound * 32768).astype("<i2") if kind == "int16" else sound.astype("<f4")
    words = ["--stdin", "--rate", FS, "--sample-format", kind, "--channels", channels]
    process = start(
        folder, *words, *(["--channel", "1"] if channels > 1 else []),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(raw.tobytes(), timeout=120)
    assert (process.returncode, b"of the pipe" in err) == (0, True), err
    atol = 1e-5 if kind == "float32" else 0.05
    np.testing.assert_allclose(table(out.decode())[1][:, 1:].T, offline(folder), atol=atol)


def test_rows_come_while_the_pipe_is_open_and_a_reader_may_leave(folder):
    process = start(
        folder, "--stdin", "--rate", FS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    piece = np.full(2 * HOP, 0.1, "<f4").tobytes()
    process.stdin.write(piece)
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(3)]  # the head and two bins, before the pipe ends
    assert lines[2].startswith(b"0.01,")
    process.stdout.close()
    for _ in range(50):
        try:
            process.stdin.write(piece)
            process.stdin.flush()
        except BrokenPipeError:
            break
        time.sleep(0.02)
    with contextlib.suppress(BrokenPipeError):  # of what the last write left in the buffer
        process.stdin.close()
    assert process.wait(60) == 0
    err = process.stderr.read()
    assert b"Heard" in err
    assert b"Traceback" not in err
    process.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent by another call there")
def test_ctrl_c_keeps_what_was_heard(folder, tmp_path):
    target = tmp_path / "rates.csv"
    process = start(
        folder, "--stdin", "--rate", FS, "--out", target, "-q",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(np.full(10 * HOP, 0.1, "<f4").tobytes())
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 100 for path in tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.stdout.read(), process.stderr.read()
    assert process.wait(60) == 0, err
    assert b"until Ctrl-C: 10 bins" in out
    assert b"Traceback" not in err
    assert table(target.read_text(encoding="utf-8"))[1].shape == (10, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["rates.csv"]
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


def test_a_terminal_shows_lines_at_80_columns(folder):
    """In a pseudo-terminal, at the speed of the sound, until Ctrl-C."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals are of Unix")
    outer, inner = pty.openpty()
    process = start(
        folder, "--wav", folder / "song.wav", "--real-time", stdin=inner, stdout=inner, stderr=inner
    )
    os.close(inner)
    seen, sent = b"", False
    while True:
        ready, _, _ = select.select([outer], [], [], 60)
        try:
            data = os.read(outer, 1 << 16) if ready else b""
        except OSError:  # Linux: the other side has closed
            break
        if not data:
            break
        seen += data
        if not sent and seen.count(b"real time |") >= 3:
            process.send_signal(signal.SIGINT)
            sent = True
    os.close(outer)
    text = seen.decode()
    assert (process.wait(60), sent) == (130, True), text  # the file was not heard to its end
    assert "A1-5" in text
    assert "\x1b[?25l" in text
    assert "\x1b[?25h" in text
    assert ", until Ctrl-C" in text
    assert "time_s" not in text


# ---- devices


@pytest.fixture
def plugged(monkeypatch):
    def plug(sound, **behaviour):
        fake = fake_portaudio.FakePortAudio([MICROPHONE], sound, **behaviour)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        return fake

    return plug


def test_devices_are_listed(deepstrf, plugged):
    plugged(np.zeros((0, 2)))
    status, out, _ = deepstrf("stream", "--list-devices")
    assert (status, "USB microphone" in out, "44100 Hz" in out) == (0, True, True)


def test_a_device_is_heard(deepstrf, folder, plugged):
    sound, _ = soundfile.read(folder / "stereo.wav", always_2d=True)
    plugged(sound)
    status, out, err = deepstrf("stream", folder / "model", "--device", "usb", "--seconds", "1")
    assert status == 0
    np.testing.assert_allclose(table(out)[1][:, 1:].T, offline(folder)[:, :100], atol=1e-5)
    assert "1.00 s of USB microphone: 100 bins" in err


def test_an_unplugged_device_leaves_what_was_heard(deepstrf, folder, plugged, tmp_path):
    sound, _ = soundfile.read(folder / "stereo.wav", always_2d=True)
    plugged(sound, script={30: "unplug"})
    status, out, err = deepstrf("stream", folder / "model", "--device", "default", "--out", "rates.csv", "-q")
    assert (status, "is it unplugged" in err, "30 bins of 10 ms" in out) == (1, True, True)
    values = table((tmp_path / "rates.csv").read_text(encoding="utf-8"))[1]
    np.testing.assert_allclose(values[:, 1:].T, offline(folder)[:, :30], atol=1e-5)


def test_overruns_are_reported(deepstrf, folder, plugged, monkeypatch):
    sound, _ = soundfile.read(folder / "stereo.wav", always_2d=True)
    fake, push = plugged(sound), Stream.push

    def slow(self, samples):
        assert fake.opened[0].heard.wait(20)
        return push(self, samples)

    monkeypatch.setattr("deepSTRF.cli.streams.Stream.push", slow)
    asked = ["stream", folder / "model", "--device", "0", "--queue-ms", "50", "-q"]
    status, out, _ = deepstrf(*asked)
    assert status == 1  # the microphone has ended
    assert "Overruns  1 overrun, 19" in out
    status, _, err = deepstrf(*asked, "--overrun", "stop")
    assert (status, "fell behind USB microphone" in err) == (1, True)


def test_without_portaudio_the_error_says_what_to_install(deepstrf, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    status, _, err = deepstrf("stream", folder / "model", "--device", "default")
    assert (status, "pip install sounddevice" in " ".join(err.split())) == (1, True)


# ---- export


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_graphs_are_exported(deepstrf, folder, tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    status, out, err = deepstrf("export", folder / "model", "graphs", "--format", kind)
    assert (status, "Folder" in out) == (0, True), err
    stages = [line.split(" s  ")[1] for line in err.splitlines()]
    assert stages[-1] == "step: checking against the model"
    assert "step: tracing" in stages
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[kind]
    assert all((tmp_path / "graphs" / f"{name}{suffix}").is_file() for name in ("sequence", "step"))
    assert "step" in json.loads((tmp_path / "graphs" / "metadata.json").read_text(encoding="utf-8"))


def test_a_graph_can_be_exported_alone_into_a_folder_with_its_name(deepstrf, folder, tmp_path, monkeypatch):
    asked = {}

    def export(self, path, **choices):
        asked.update(choices, path=str(path))
        (tmp_path / path).mkdir()
        return tmp_path / path

    monkeypatch.setattr(NeuralModel, "export", export)
    status, _, err = deepstrf("export", "ns1/leaf-linear", "--graphs", "sequence", "-q")
    assert (status, err) == (0, "")
    wanted = {"path": "ns1-leaf-linear-onnx", "format": "onnx", "graphs": ["sequence"]}
    assert asked == wanted | {"precision": "float32"}
