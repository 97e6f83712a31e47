"""Sounds of ``from_trials``: files and arrays of any rate, width and number of channels."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from deepSTRF._files import DamagedFileError
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.datasets.sounds import bins_of, choose_rate, exact_bin, find_name, mono, sounds_of
from deepSTRF.dsp.resample import resample_exact

RATE = 16000


def made(sounds: Any, names: list[str], dt_ms: float = 10.0, **rest: Any) -> AudioNeuralDataset:
    onset = [1.0 + 2.0 * k for k in range(len(names))]
    spikes = {"u": np.arange(1.0, 2.0 * len(names), 0.13)}
    given = {"check_alignment": False} | rest
    return AudioNeuralDataset.from_trials(sounds, {"stimulus": names, "onset": onset}, spikes, dt_ms, **given)


@pytest.mark.parametrize(
    ("suffix", "subtype", "step"),
    [
        ("wav", "PCM_U8", 2**-7), ("wav", "PCM_16", 2**-15), ("wav", "PCM_24", 2**-23),
        ("wav", "PCM_32", 2**-31), ("wav", "FLOAT", 0.0), ("wav", "DOUBLE", 0.0), ("flac", "PCM_16", 2**-15),
        ("flac", "PCM_24", 2**-23), ("aiff", "PCM_16", 2**-15), ("ogg", "VORBIS", None), ("mp3", None, None),
    ],
)  # fmt: skip
def test_files_of_every_width(tmp_path: Path, suffix: str, subtype: str | None, step: float | None) -> None:
    x = 0.4 * np.sin(np.arange(8000) * 2 * np.pi * 440 / RATE)
    soundfile.write(tmp_path / f"tone.{suffix}", x, RATE, subtype=subtype)
    ds = made(tmp_path, ["tone"])
    got = ds.stims[0][0].numpy()
    assert got.shape == (8000,)
    if step is None:  # lossy: the level is right
        assert abs(np.std(got) / np.std(x) - 1) < 0.1
    else:
        assert np.abs(got - x).max() <= step + 1e-7


def test_extensible_header_and_peaks_above_one(tmp_path: Path) -> None:
    x = (np.sin(np.arange(4800)) * 3.5).astype("<f4")
    body = x.tobytes()
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, RATE * 4, 4, 32, 22, 32, 4)
    form += struct.pack("<H", 3) + bytes.fromhex("000000001000800000aa00389b71")
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    (tmp_path / "loud.wav").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    ds = made(tmp_path, ["loud"])
    assert torch.equal(ds.stims[0][0], torch.from_numpy(x))


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8", "float32", "float64", ">i2", ">f4"])
def test_arrays_of_every_type(dtype: str) -> None:
    x = np.sin(np.arange(4800) * 0.1) * 0.5
    kind = np.dtype(dtype)
    if kind.kind == "f":
        array, step = x.astype(kind), 1e-7
    else:
        half = 2.0 ** (8 * kind.itemsize - 1)
        array = np.round(x * half + (half if kind.kind == "u" else 0)).astype(kind)
        step = 1 / half + 1e-7
    for given in ({"s": array}, {"s": (array, RATE)}, {"s": (RATE, array)}):
        rate = None if isinstance(given["s"], tuple) else RATE
        got = made(given, ["s"], sounds_fs=rate).stims[0][0].numpy()
        assert np.abs(got - x).max() <= step


def test_channels() -> None:
    x = np.random.default_rng(0).normal(size=(4800, 2))
    with pytest.raises(ValueError, match=r"'s' has 2 channels.*channel=0 .to 1.*channel='mean'"):
        made({"s": x}, ["s"], sounds_fs=RATE)
    for channel, want in ((0, x[:, 0]), (1, x[:, 1]), ("mean", x.mean(axis=1))):
        for given in (x, x.T):
            ds = made({"s": given}, ["s"], sounds_fs=RATE, channel=channel)
            assert np.allclose(ds.stims[0][0].numpy(), want, atol=1e-6)
            assert ds.load_report.count("stereo sounds") == 1
    assert made({"s": x[:, 0]}, ["s"], sounds_fs=RATE, channel=1).load_report.count("stereo sounds") == 0
    with pytest.raises(ValueError, match="channels 0 to 1, channel=2"):
        made({"s": x}, ["s"], sounds_fs=RATE, channel=2)
    with pytest.raises(ValueError, match="channel is None, 'mono', 'mean'"):
        mono(x, "left", "s")
    with pytest.raises(ValueError, match="3 samples that are no numbers"):
        mono(np.array([0.0, np.nan, np.inf, -np.inf]), None, "s")


def test_folder_names_and_order(tmp_path: Path) -> None:
    for name in ("s10.wav", "s2.wav", "S1.WAV", "call/a.flac", "song/a.flac", "notes.txt", "._s2.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt" or path.name.startswith("."):
            path.write_text("x")
        else:
            soundfile.write(path, np.full(800, 0.1), RATE)
    sounds = list(sounds_of(tmp_path))
    assert list(sounds) == ["call/a", "S1", "s2", "s10", "song/a"]
    assert find_name("stim/s2.WAV", sounds, "stimulus") == "s2"
    assert find_name("s1", sounds, "stimulus") == "S1"
    assert find_name("SONG\\A.flac", sounds, "stimulus") == "song/a"
    assert find_name("s3", sounds, "stimulus") is None
    with pytest.raises(ValueError, match=r"stimulus 'a' may be 'call/a' or 'song/a'"):
        find_name("a", sounds, "stimulus")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no sound file"):
        sounds_of(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no folder"):
        sounds_of(tmp_path / "absent")


def test_sounds_are_read_once_and_only_when_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(4):
        soundfile.write(tmp_path / f"s{k}.wav", np.random.default_rng(k).normal(size=800) * 0.1, RATE)
    reads: list[str] = []
    real = soundfile.SoundFile.read

    def counted(file: Any, *args: Any, **kwargs: Any) -> Any:
        reads.append(Path(file.name.name).name)
        return real(file, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    made(tmp_path, ["s1", "s0", "s1", "s0"])
    assert sorted(reads) == ["s0.wav", "s1.wav"]


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not a sound at all" * 10])
def test_damaged_sounds_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.wav").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"broken\.wav"):
        made(tmp_path, ["broken"])


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "ogg"])
def test_truncated_sounds_are_named(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / f"cut.{suffix}", np.random.default_rng(0).normal(size=9000) * 0.1, RATE)
    data = (tmp_path / f"cut.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedFileError, match=rf"cut\.{suffix}"):
        made(tmp_path, ["cut"])


def test_streamed_sounds_without_a_size(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", np.full(4800, 0.25), RATE, subtype="PCM_16")
    data = bytearray((tmp_path / "s.wav").read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "s.wav").write_bytes(bytes(data))
    assert made(tmp_path, ["s"]).n_bins(0) == 30


@pytest.mark.parametrize(
    ("rates", "dt", "asked", "want"),
    [
        ([44100], 10.0, None, 44100), ([44100], 5.0, None, 44200), ([24414.0625], 10.0, None, 24500),
        ([48000], 1000 / 60, None, 48000), ([16000, 44100], 10.0, None, 44100),
        ([16000], 15.625, None, 16000), ([44100], 10.0, 16000, 16000), ([97656.25], 1.0, None, 98000),
        ([24414.0625], 1.024, None, 24414.0625), ([48000], 33.3333, None, 48000),
    ],
)  # fmt: skip
def test_rate_that_bins_allow(rates: list[float], dt: float, asked: float | None, want: float) -> None:
    rate, width, hop = choose_rate([Fraction(r) for r in rates], exact_bin(dt), asked)
    assert rate == Fraction(want)
    assert hop == rate * width / 1000
    assert abs(float(width) / dt - 1) < 5e-6


def test_resampling_is_exact_and_noted() -> None:
    x = np.sin(np.arange(24414) * 2 * np.pi * 300 / 24414.0625)
    ds = made({"s": x}, ["s"], sounds_fs=24414.0625)
    want = resample_exact(x, 24414.0625, 24500)
    assert ds.audio_fs == 24500
    assert ds.n_bins(0) == 100  # 24414 samples lack a part of one
    assert np.allclose(ds.stims[0][0].numpy(), want[:24500], atol=1e-6)
    time = np.arange(2000, 20000) / 24500
    assert np.abs(ds.stims[0][0].numpy()[2000:20000] - np.sin(2 * np.pi * 300 * time)).max() < 1e-5
    assert "24414.0625 to 24500 Hz" in str(ds.load_report.notes)
    with pytest.raises(ValueError, match=r"audio_fs=44100 Hz at dt_ms=5 gives 220.5.*44000 or 44200"):
        made({"s": x}, ["s"], 5.0, sounds_fs=24414.0625, audio_fs=44100)


@pytest.mark.parametrize(
    ("n", "fs", "dt", "want"),
    [(8000, 16000, 10.0, 50), (7999, 16000, 10.0, 49), (12207, 24414.0625, 10.0, 50),
     (12206, 24414.0625, 10.0, 49), (8159, 16000, 10.0, 50), (79, 16000, 10.0, 0)],
)  # fmt: skip
def test_whole_bins_of_a_sound(n: int, fs: float, dt: float, want: int) -> None:
    assert bins_of(n, Fraction(fs), Fraction(dt)) == want


def test_silence_before_and_after_is_in_the_clip() -> None:
    x = np.random.default_rng(0).normal(size=8080)  # half a bin more than 50
    ds = made({"s": x}, ["s"], sounds_fs=RATE, pre_ms=30.0, post_ms=20.0)
    want = np.concatenate([np.zeros(480), x, np.zeros(320 - 80)])  # the tail is in the time after
    assert np.array_equal(ds.stims[0][0].numpy(), want.astype(np.float32))
    assert ds.load_report.count("sounds cut to whole bins") == 0
    assert ds.facts["pre_ms"] == 30.0
    cut = made({"s": x}, ["s"], sounds_fs=RATE)
    assert cut.load_report.count("sounds cut to whole bins") == 1
    assert cut.n_bins(0) == 50
    with pytest.raises(ValueError, match=r"pre_ms=15 is 1.5 bins.*10 or 20"):
        made({"s": x}, ["s"], sounds_fs=RATE, pre_ms=15.0)


def test_equal_sounds_under_two_names() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-3000, 3000, 4800).astype(np.int16)
    sounds = {"a": x, "b": rng.normal(size=4800), "c": x / 32768}
    names = ["a", "c", "b", "a", "c"]
    ds = made(sounds, names, sounds_fs=RATE)
    assert [row["name"] for row in ds.stim_meta] == ["a", "b"]
    assert ds.stim_meta[0]["other_names"] == ["c"]
    assert ds.responses[0][0].shape[0] == 4
    assert ds.load_report.count("equal sounds under two names") == 1
    kept = made(sounds, names, sounds_fs=RATE, on_equal_sounds="keep")
    assert [row["name"] for row in kept.stim_meta] == ["a", "b", "c"]
    assert kept.stim_meta[0]["source_sha256"] == kept.stim_meta[2]["source_sha256"]
    with pytest.raises(ValueError, match="equal sounds under two names: a = c"):
        made(sounds, names, sounds_fs=RATE, on_equal_sounds="error")


def test_level_is_left_alone() -> None:
    x = np.random.default_rng(0).normal(size=4800) * 7
    assert np.array_equal(made({"s": x}, ["s"], sounds_fs=RATE).stims[0][0].numpy(), x.astype(np.float32))
    ds = made({"s": x}, ["s"], sounds_fs=RATE, level="peak")
    assert float(ds.stims[0].abs().max()) == pytest.approx(1.0)
    assert ds.level_factor == pytest.approx(1 / np.abs(x).max())


@pytest.mark.parametrize(
    ("sounds", "rest", "error", "text"),
    [
        ({"s": np.zeros(800)}, {}, ValueError, "without a rate.*sounds_fs"),
        ({"s": np.zeros(800)}, {"sounds_fs": -1}, ValueError, "above 0"),
        ({"s": np.zeros(800)}, {"sounds_fs": "fast"}, TypeError, "sample rate in Hz"),
        ({"s": np.zeros(800, complex)}, {"sounds_fs": RATE}, TypeError, "real numbers"),
        ({"s": np.zeros(800, np.int64)}, {"sounds_fs": RATE}, ValueError, "full scale is unknown"),
        ({"s": np.zeros(0)}, {"sounds_fs": RATE}, ValueError, "holds no samples"),
        ({"s": np.zeros(80)}, {"sounds_fs": RATE}, ValueError, "shorter than one bin"),
        ({"s": (np.zeros(8), 8000)}, {"sounds_fs": RATE}, ValueError, "rate 8000, and sounds_fs says 16000"),
        ([np.zeros(800)], {"sounds_fs": RATE}, TypeError, "a folder of sound files, or a dictionary"),
    ],
)  # fmt: skip
def test_wrong_sounds(sounds: Any, rest: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        made(sounds, ["s"], **rest)


def test_samples_without_a_rate_are_at_the_rate_of_the_dataset() -> None:
    samples = np.random.default_rng(0).normal(size=8000)
    trials = {"stimulus": ["a", "b"], "onset": [1.0, 3.0]}
    sounds = {"a": samples, "b": (samples[:4000], 8000)}
    ds = AudioNeuralDataset.from_trials(
        sounds, trials, {"u": [1.1]}, 10.0, 16000, check_alignment=False, on_equal_sounds="keep"
    )
    assert ds.audio_fs == 16000
    assert [ds.n_bins(clip) for clip in range(2)] == [50, 50]
    assert ds.load_report.count("rate of sounds") == 1
    with pytest.raises(ValueError, match="sounds_fs"):
        AudioNeuralDataset.from_trials(sounds, trials, {"u": [1.1]}, 10.0, check_alignment=False)
