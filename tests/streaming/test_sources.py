"""Sound in pieces: files, pipes and devices give the samples of the whole sound, and say what was lost."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import threading
import tracemalloc
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

from deepSTRF._files import DamagedFileError
from deepSTRF.datasets.sounds import resampled
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.streaming import DeviceSource, FileSource, RawSource, sound_devices
from deepSTRF.streaming.sources import Overruns

_spec = importlib.util.spec_from_file_location(
    "fake_portaudio", Path(__file__).with_name("fake_portaudio.py")
)
fake_portaudio = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_portaudio)
FakePortAudio = fake_portaudio.FakePortAudio

MICROPHONE = {"name": "USB microphone", "max_input_channels": 2, "default_samplerate": 44100.0,
              "rates": (44100.0, 48000.0)}  # fmt: skip
SPEAKER = {"name": "Speakers", "max_input_channels": 0, "default_samplerate": 48000.0, "rates": (48000.0,)}
OLD = {"name": "Old line in", "max_input_channels": 2, "default_samplerate": 44100.0, "rates": (44100.0,),
       "not": (1,)}  # fmt: skip


def whole(source):
    pieces = list(source)
    assert all(piece.dtype == np.float32 and piece.ndim == 1 and piece.size for piece in pieces)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def until_it_fails(source, kind, match, before=None, after=None):
    """Chunks up to an error that was expected."""
    got = []

    def hear():
        for chunk in source:
            if before is not None:
                before()
            got.append(chunk)
            if after is not None:
                after(len(got))

    with source, pytest.raises(kind, match=match):
        hear()
    return got


def noise(seconds, fs, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * fs), channels))


# ---- files


@pytest.mark.parametrize("fs", [48000, 44100, 16000, 8000, 22050, 96000])
@pytest.mark.parametrize("chunk_ms", [1.0, 7.3, 1000.0])
def test_a_file_in_pieces_is_the_file_as_datasets_read_it(tmp_path, fs, chunk_ms):
    sound = noise(1.37, fs)[:, 0]
    soundfile.write(tmp_path / "a.wav", sound, fs, subtype="PCM_16")
    read, _ = soundfile.read(tmp_path / "a.wav")
    source = FileSource(tmp_path / "a.wav", 48000, chunk_ms=chunk_ms)
    got, wanted = whole(source), resampled(read, Fraction(fs), Fraction(48000))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=2e-7, rtol=0)
    assert source.seconds == pytest.approx(len(wanted) / 48000, abs=1e-12)
    assert (source.delay_ms == 0) == (fs == 48000)


def test_the_delay_of_resampling_is_what_is_held_back(tmp_path):
    """A step at a known sample comes out at most `delay_ms` after it went in."""
    fs, rate, piece = 44100, 48000, 44
    sound = np.ones(fs)
    source = RawSource(Slow(sound.astype("<f4").tobytes(), 4 * piece), fs, rate)
    went_in, came_out, worst = 0, 0, 0.0
    stream = source._stream
    for chunk in source:
        went_in, before = stream.given / 4 / fs, came_out / rate
        came_out += len(chunk)
        if went_in < 0.99:  # at the end the rest comes at once
            worst = max(worst, went_in - before)
    assert 0.8 * source.delay_ms - 1 < 1000 * worst < source.delay_ms + 2


@pytest.mark.parametrize(
    ("subtype", "scale"), [("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 0), ("PCM_U8", 2**-7)]
)
def test_levels_are_not_changed(tmp_path, subtype, scale):
    sound = noise(0.1, 8000)[:, 0] * 0.1
    sound[7] = 0.9
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype=subtype)
    np.testing.assert_allclose(whole(FileSource(tmp_path / "a.wav", 8000)), sound, atol=max(scale, 1e-7))


def test_samples_above_one_stay(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(80, 7.5), 8000, subtype="FLOAT")
    assert np.array_equal(whole(FileSource(tmp_path / "a.wav", 8000)), np.full(80, 7.5, np.float32))


def test_channels_are_chosen_and_never_guessed(tmp_path):
    sound = noise(0.2, 8000, 3)
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"3 channels .*channel=0"):
        FileSource(tmp_path / "a.wav", 8000)
    with pytest.raises(ValueError, match="channel=3"):
        FileSource(tmp_path / "a.wav", 8000, channel=3)
    np.testing.assert_allclose(whole(FileSource(tmp_path / "a.wav", 8000, channel=2)), sound[:, 2], atol=1e-7)
    mean = whole(FileSource(tmp_path / "a.wav", 8000, channel="mean"))
    np.testing.assert_allclose(mean, sound.mean(1), atol=1e-7)


def test_seconds_end_a_file_to_the_sample(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1, 44100), 44100)
    for fs, seconds in ((44100, 0.1234), (48000, 0.5)):
        source = FileSource(tmp_path / "a.wav", fs, seconds=seconds)
        assert len(whole(source)) == round(seconds * fs)
    assert len(whole(FileSource(tmp_path / "a.wav", 44100, seconds=9.0))) == 44100


def test_what_is_no_sound_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileSource(tmp_path / "nothing.wav", 8000)
    (tmp_path / "text.wav").write_text("this is no sound")
    with pytest.raises(DamagedFileError, match=r"text\.wav"):
        FileSource(tmp_path / "text.wav", 8000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    with pytest.raises(ValueError, match="no samples"):
        FileSource(tmp_path / "empty.wav", 8000)
    soundfile.write(tmp_path / "cut.wav", np.zeros(8000), 8000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:-2000])
    with pytest.raises(DamagedFileError, match="14000 of 16000 bytes"):
        FileSource(tmp_path / "cut.wav", 8000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match="no numbers"):
        whole(FileSource(tmp_path / "nan.wav", 8000))
    for name, value in (("chunk_ms", 0.0), ("seconds", -1.0)):
        with pytest.raises(ValueError, match=name):
            FileSource(tmp_path / "nan.wav", 8000, **{name: value})


def test_memory_does_not_grow_with_the_file(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(120 * 44100, np.float32), 44100, subtype="PCM_16")
    tracemalloc.start()
    n = sum(len(chunk) for chunk in FileSource(tmp_path / "long.wav", 48000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (n, peak < 3e6) == (120 * 48000, True)  # the file is 10 MB, in float64 46 MB


def test_a_file_is_closed_with_its_source_and_when_nobody_listens_on(tmp_path, monkeypatch):
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.full(4800, 0.1), 16000)
    opened = []
    kind = soundfile.SoundFile
    monkeypatch.setattr(soundfile, "SoundFile", lambda file: opened.append(kind(file)) or opened[-1])
    with FileSource(path, 48000, chunk_ms=10.0) as source:
        chunks = iter(source)
        next(chunks)
        assert not opened[-1].closed  # the others read headers
    assert opened[-1].closed
    assert list(chunks) == []  # not even what the resampler held back
    short = FileSource(path, 16000, chunk_ms=10.0, seconds=0.02)
    assert sum(map(len, short)) == 320
    assert opened[-1].closed


def test_a_source_is_heard_once(tmp_path):
    source = RawSource(io.BytesIO(bytes(400)), 8000, 8000)
    whole(source)
    with pytest.raises(ValueError, match="another source"):
        whole(source)


# ---- pipes


class Slow(io.RawIOBase):
    """A pipe that gives what the writer wrote at a time, which may end within a sample."""

    def __init__(self, data, *sizes):
        self.data, self.sizes, self.given, self.turn = data, sizes, 0, 0

    def read1(self, n):
        n = min(n, self.sizes[self.turn % len(self.sizes)])
        self.turn += 1
        piece = self.data[self.given : self.given + n]
        self.given += len(piece)
        return piece


@pytest.mark.parametrize("sizes", [(1,), (3, 5, 1), (4096,), (7, 40000)])
@pytest.mark.parametrize(("kind", "n_channels"), [("float32", 1), ("int16", 1), ("int16", 2), ("float32", 3)])
def test_raw_samples_in_any_pieces(sizes, kind, n_channels):
    sound = noise(0.1, 8000, n_channels)
    raw = (sound * 32768).astype("<i2") if kind == "int16" else sound.astype("<f4")
    source = RawSource(Slow(raw.tobytes(), *sizes), 8000, 8000, format=kind, n_channels=n_channels, channel=0)
    wanted = raw[:, 0] / 32768 if kind == "int16" else raw[:, 0]
    assert np.array_equal(whole(source), wanted.astype(np.float32))


def test_what_is_there_comes_at_once():
    """A slow writer is not waited for: 5 ms of samples are a chunk, not the start of 100 ms."""
    read, write = os.pipe()
    with open(read, "rb") as stream, open(write, "wb", buffering=0) as pipe:
        source = iter(RawSource(stream, 8000, 8000))
        for _ in range(3):
            pipe.write(np.ones(40, "<f4").tobytes())
            assert len(next(source)) == 40


def test_a_pipe_of_another_format_is_refused():
    data = (noise(0.1, 8000) * 32768).astype("<i2").tobytes()
    with pytest.raises(ValueError, match="is it float32"):
        whole(RawSource(io.BytesIO(data), 8000, 8000))
    file = io.BytesIO()
    soundfile.write(file, noise(0.1, 8000), 8000, format="WAV")
    with pytest.raises(ValueError, match="begins with RIFF"):
        whole(RawSource(io.BytesIO(file.getvalue()), 8000, 8000, format="int16"))
    with pytest.raises(ValueError, match=r"float32.*int16"):
        RawSource(io.BytesIO(b""), 8000, 8000, format="int24")
    for stream in ("song.raw", io.StringIO("text")):
        with pytest.raises(TypeError, match=r"stream .*(BinaryIO|binary file)"):
            RawSource(stream, 8000, 8000)
    with pytest.warns(UserWarning, match="3 of 4 bytes"):
        assert len(whole(RawSource(io.BytesIO(bytes(403)), 8000, 8000))) == 100
    assert whole(RawSource(io.BytesIO(b""), 44100, 8000)).size == 0


# ---- levels


def test_a_level_far_from_the_fit_is_warned_of_and_not_changed():
    loud = np.concatenate([np.full(8000, 1e-4), np.full(8000, 0.1), np.full(4000, 1e-4)]).astype("<f4")
    source = RawSource(io.BytesIO(loud.tobytes()), 8000, 8000)
    assert np.isnan(source.rms)
    assert np.array_equal(whole(source), loud)
    assert source.rms == pytest.approx(0.1, rel=1e-6)  # of the loudest second
    assert source.level_db(FittedOn(rms=0.1)) == pytest.approx(0.0, abs=1e-4)
    assert source.level_db(FittedOn(rms=1.0)) == pytest.approx(-20.0, abs=1e-4)
    assert np.isnan([source.level_db(None), source.level_db(FittedOn())]).all()
    assert source.level_db(FittedOn(level="rms")) == pytest.approx(-20.0, abs=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not source.warn_of_level(FittedOn(rms=0.9))
        assert not source.warn_of_level(None)
    with pytest.warns(UserWarning, match=r"24 dB below the sounds of the fit \(level='pascal'\)"):
        assert source.warn_of_level(FittedOn(rms=1.6, level="pascal"))
    with pytest.warns(UserWarning, match="40 dB above"):
        assert source.warn_of_level(FittedOn(rms=0.001))
    silent = RawSource(io.BytesIO(bytes(4000)), 8000, 8000)
    whole(silent)
    with pytest.warns(UserWarning, match="silent"):
        assert silent.warn_of_level(FittedOn(rms=0.1))


def test_a_fit_remembers_the_level_of_its_sounds():
    from deepSTRF.datasets.audio import AudioNeuralDataset

    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, s, 8000) for s in (0.1, 0.2, 0.4)]
    counts = [rng.poisson(1.0, (1, 1, 200)) for _ in sounds]
    ds = AudioNeuralDataset.from_arrays(sounds, counts, dt_ms=5.0, audio_fs=8000)
    joined = np.concatenate([sounds[2], sounds[0]]).astype(np.float32).astype(float)
    fitted = FittedOn.of(ds, clips=[0, 2])
    assert fitted.rms == pytest.approx(np.sqrt(np.mean(joined**2)), rel=1e-5)
    assert FittedOn.of(ds, clips=[2, 0]).rms == fitted.rms
    with_level = AudioNeuralDataset.from_arrays(sounds, counts, dt_ms=5.0, audio_fs=8000, level="rms")
    assert FittedOn.of(with_level).rms == pytest.approx(1.0, rel=1e-5)
    bands = AudioNeuralDataset.from_arrays([np.ones((3, 200))], counts[:1], dt_ms=5.0)
    assert FittedOn.of(bands).rms is None


# ---- devices


@pytest.fixture
def plugged(monkeypatch):
    def plug(*devices, sound=None, **behaviour):
        fake = FakePortAudio(list(devices), np.zeros((0, 2)) if sound is None else sound, **behaviour)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        return fake

    return plug


def test_devices_are_listed(plugged):
    plugged(SPEAKER, MICROPHONE)
    assert sound_devices() == [(1, "USB microphone", 2, 44100.0)]


def test_a_device_gives_what_it_hears_until_it_is_unplugged(plugged):
    sound = noise(0.5, 48000, 2)
    fake = plugged(SPEAKER, MICROPHONE, sound=sound, script={40: "unplug"})
    source = DeviceSource("usb", 48000)
    got = until_it_fails(source, OSError, "USB microphone has stopped: is it unplugged")
    assert np.array_equal(np.concatenate(got), sound[: 40 * 480, 0].astype(np.float32))
    stream = fake.opened[0]
    assert (stream.rate, stream.channels, stream.block, stream.device, stream.closed) == (
        48000,
        1,
        480,
        1,
        True,
    )
    assert source.delay_ms == pytest.approx(12)
    assert source.overruns == Overruns()


def test_a_device_that_falls_silent_is_lost(plugged, monkeypatch):
    monkeypatch.setattr("deepSTRF.streaming.sources.LOST_AFTER_S", 0.3)
    fake = plugged(MICROPHONE, sound=noise(0.5, 48000, 2), script={2: "hang"})
    until_it_fails(DeviceSource(None, 48000), OSError, r"no sound for 0\.3 s")
    assert fake.opened[0].closed


def test_closing_from_another_thread_ends_the_iteration(plugged):
    fake = plugged(MICROPHONE, sound=noise(0.5, 48000, 2), script={2: "hang"})
    source = DeviceSource(0, 48000)
    timer = threading.Timer(0.2, source.close)
    timer.start()
    assert len(whole(source)) == 960
    assert fake.opened[0].closed


@pytest.mark.parametrize("channel", [None, 0, 1, "mean"])
def test_stereo(plugged, channel):
    sound = noise(0.1, 48000, 2)
    fake = plugged(MICROPHONE, sound=sound)
    with DeviceSource("microphone", 48000, channel=channel, seconds=0.1) as source:
        got = whole(source)
    wanted = sound.astype(np.float32).astype(float)
    wanted = wanted.mean(1) if channel == "mean" else wanted[:, channel or 0]
    assert np.array_equal(got, wanted.astype(np.float32))
    assert fake.opened[0].channels == {None: 1, 0: 1, 1: 2, "mean": 2}[channel]
    with pytest.raises(ValueError, match="channels 0 to 1"):
        DeviceSource("microphone", 48000, channel=2)


def test_a_device_with_another_rate_is_resampled(plugged):
    sound = noise(1.0, 44100, 2)
    fake = plugged(OLD, sound=sound)
    with DeviceSource("old", 48000, channel=1, seconds=0.9) as source:
        got = whole(source)
    assert (fake.opened[0].rate, fake.opened[0].block, len(got)) == (44100, 441, 43200)
    one = sound[:, 1].astype(np.float32).astype(float)
    wanted = resampled(one, Fraction(44100), Fraction(48000))[: len(got)]
    np.testing.assert_allclose(got, wanted, atol=2e-7)
    assert source.delay_ms > 12 + 5
    with pytest.raises(ValueError, match=r"does not run at 48000 Hz .*usual rate 44100 Hz"):
        DeviceSource("old", 48000, rate_in=48000, channel=1)
    with pytest.raises(ValueError, match=r"Invalid number of channels.*has 2 channels"):
        DeviceSource("old", 48000)  # it has no mode with one channel
    asked = DeviceSource("old", 16000, rate_in=44100, channel="mean")
    assert (asked.rate_in, asked.rate) == (44100, 16000)


def test_unknown_devices(plugged):
    plugged(SPEAKER, MICROPHONE, OLD)
    with pytest.raises(ValueError, match=r"'flute'.*there are 'USB microphone', 'Old line in'"):
        DeviceSource("flute", 48000)
    with pytest.raises(ValueError, match="no input device 7"):
        DeviceSource(7, 48000)
    with pytest.raises(ValueError, match="no input device 7"):
        DeviceSource(7, 48000)
    with pytest.raises(ValueError, match="'Speakers' has no input"):
        DeviceSource("speak", 48000)
    plugged()
    with pytest.raises(ValueError, match="no input is connected"):
        DeviceSource(None, 48000)


def test_a_device_at_its_own_pace_loses_nothing(plugged):
    sound = noise(0.5, 48000, 2)
    plugged(MICROPHONE, sound=sound, pace=2.0)
    with DeviceSource(0, 48000, seconds=0.4) as source:
        assert np.array_equal(whole(source), sound[:19200, 0].astype(np.float32))
    assert source.overruns == Overruns()


def test_an_overrun_becomes_silence_of_the_same_length(plugged):
    """The queue holds 5 blocks; the model sleeps until all 50 were played: 5 heard, 45 lost."""
    sound = 1 + noise(0.5, 48000, 2)
    fake = plugged(MICROPHONE, sound=sound)
    source = DeviceSource(0, 48000, queue_ms=50.0)
    got = until_it_fails(source, OSError, "has stopped", before=lambda: fake.opened[0].heard.wait(10))
    heard = np.concatenate(got)
    assert all(len(chunk) <= 480 for chunk in got)
    lost = round(source.overruns.seconds * 48000)
    assert (source.overruns.count, len(heard) + lost) == (1, len(sound))  # what was lost last is not followed
    assert np.array_equal(heard, sound[: len(heard), 0].astype(np.float32))
    assert "1 overrun" in str(source.overruns)


def test_time_is_right_after_an_overrun(plugged):
    """Blocks 5 to 19 find a full queue; block 20 waits for room: it stands where it was played."""
    sound = 1 + noise(0.3, 48000, 2)
    full, room = threading.Event(), threading.Event()

    def wait():
        full.set()
        assert room.wait(10)

    plugged(MICROPHONE, sound=sound, script={20: wait})
    source = DeviceSource(0, 48000, queue_ms=50.0)
    got = until_it_fails(
        source, OSError, "has stopped", lambda: full.wait(10), lambda n: room.set() if n == 3 else None
    )
    heard = np.concatenate(got)
    wanted = sound[: len(heard), 0].astype(np.float32)
    silent = heard == 0
    n_lost = int(silent.sum())
    assert n_lost > 0
    assert n_lost % 480 == 0
    assert np.array_equal(heard[~silent], wanted[~silent])
    first = np.flatnonzero(silent)[0]
    assert silent[first : 20 * 480].all()
    assert not silent[20 * 480 :][:480].any()
    assert source.overruns.seconds * 48000 >= n_lost


def test_samples_that_the_device_lost_are_silence_by_its_clock(plugged):
    sound = 1 + noise(0.3, 48000, 2)
    plugged(MICROPHONE, sound=sound, script={4: ("overflow", 1234)})
    with DeviceSource(0, 48000, seconds=0.25) as source:
        heard = whole(source)
    assert source.overruns == Overruns(1, 1234 / 48000)
    at = 4 * 480
    assert (heard[at : at + 1234] == 0).all()
    heard[at : at + 1234] = sound[at : at + 1234, 0]
    assert np.array_equal(heard, sound[: len(heard), 0].astype(np.float32))


def test_a_device_without_a_clock_says_that_time_is_not_exact(plugged):
    plugged(MICROPHONE, sound=noise(0.3, 48000, 2), script={4: ("overflow", 1234)}, adc=False)
    with DeviceSource(0, 48000, seconds=0.2) as source:
        whole(source)
    assert source.overruns == Overruns(1, 0.0, 1)
    assert "1 of unknown length" in str(source.overruns)


def test_stop_ends_at_the_first_overrun(plugged):
    sound = noise(0.5, 48000, 2)
    fake = plugged(MICROPHONE, sound=sound)
    source = DeviceSource(0, 48000, queue_ms=50.0, overrun="stop")
    played = lambda: fake.opened[0].heard.wait(10)  # noqa: E731
    got = until_it_fails(source, RuntimeError, "fell behind USB microphone", before=played)
    heard = np.concatenate(got)
    assert 5 * 480 <= len(heard) <= 6 * 480
    assert np.array_equal(heard, sound[: len(heard), 0].astype(np.float32))  # nothing false before the end
    with pytest.raises(ValueError, match="overrun"):
        DeviceSource(0, 48000, overrun="ignore")


def test_without_the_package_or_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ImportError, match=r"\[live\]"):
        sound_devices()
    monkeypatch.delitem(sys.modules, "sounddevice")

    def fails(name):
        raise OSError("PortAudio library not found")

    monkeypatch.setattr("deepSTRF._optional.importlib.import_module", fails)
    with pytest.raises(ImportError, match="apt install libportaudio2"):
        DeviceSource(None, 48000)
