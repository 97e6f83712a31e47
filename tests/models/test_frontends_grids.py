"""Front-ends at the rates and bins of every recording: what they hear, how late, and what strides cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from deepSTRF.models.wav2spec import EarlierGammatone, EarlierLEAF, Gammatonegram, SincNet, make_wav2spec

KINDS = ("mel", "gammatone", "gammatonegram", "sincnet", "leaf")


def linear_form(kind: str, fs: float, dt_ms: float, **options: Any) -> nn.Module:
    """A front-end whose frames add up clicks: no compression (LEAF: its pooled magnitudes)."""
    if kind.startswith("earlier"):
        if kind == "earlier-gammatone":
            return EarlierGammatone(fs, hop_ms=dt_ms, compression="none", **options).double()
        front_end = EarlierLEAF(fs, hop_ms=dt_ms, **options)
        front_end.compress = lambda energy, state: (energy, state)
        return front_end.double()
    if kind == "leaf":
        front_end = make_wav2spec(kind, fs, dt_ms, compression="log", **options)
        front_end.compress = lambda energy, values, state: (energy, {})
        return front_end.double()
    more = {"activation": "none"} if kind == "sincnet" else {"compression": "none"}
    return make_wav2spec(kind, fs, dt_ms, **more, **options).double()


def clicks(front_end: nn.Module, frames: int, at: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One clip per place in a bin, and the sample of its click."""
    places = torch.arange(0, front_end.hop, step)
    x = torch.zeros(len(places), 1, front_end.hop * frames, dtype=torch.float64)
    x[torch.arange(len(places)), 0, at * front_end.hop + places] = 1000.0
    return x, at * front_end.hop + places


# ---- Every sample is heard


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fs", "dt_ms"), [
    (48000, 1.0), (48000, 2.0), (48000, 15.625), (48000, 20.0), (48000, 100 / 3), (16000, 8.0), (44100, 10.0),
    (96000, 5.0), (24414.0625, 5.12), (11000, 10.0),
])  # fmt: skip
def test_defaults_hear_a_click_wherever_it_falls(kind: str, fs: float, dt_ms: float) -> None:
    options = {"envelope": True} if kind == "sincnet" else {}
    front_end = linear_form(kind, fs, dt_ms, n_filters=12, **options)
    x, _ = clicks(front_end, 12, 4, max(1, front_end.hop // 30))
    with torch.no_grad():
        marks = front_end(x).amax((1, 2, 3))
    assert bool((marks > 0.1 * marks.max()).all())


@pytest.mark.parametrize(("fs", "dt_ms"), [(16000, 20.0), (44100, 10.0), (48000, 100 / 3), (96000, 5.0)])
def test_signed_samples_hear_every_sample(fs: float, dt_ms: float) -> None:
    front_end = linear_form("sincnet", fs, dt_ms)
    assert front_end.kernel_size >= front_end.hop
    x, _ = clicks(front_end, 12, 4, max(1, front_end.hop // 50))
    with torch.no_grad():
        assert bool((front_end(x).abs().amax((1, 2, 3)) > 1e-3).all())


def test_windows_that_are_left_out_follow_the_bin() -> None:
    assert [make_wav2spec("mel", 48000, dt).win for dt in (1.0, 4.0, 5.0, 10.0, 20.0)] == [
        480, 480, 480, 960, 1920,
    ]  # fmt: skip
    assert [Gammatonegram(48000, hop_ms=dt).window for dt in (1.0, 2.5, 4.0, 5.0, 10.0, 20.0)] == [
        48, 120, 120, 120, 480, 960,
    ]  # fmt: skip
    assert [SincNet(48000, hop_ms=dt).kernel_size for dt in (1.0, 5.0, 10.0, 20.0)] == [251, 251, 481, 961]
    assert SincNet(48000, hop_ms=20.0, envelope=True).kernel_size == 251


@pytest.mark.parametrize(("kind", "dt_ms", "options"), [
    ("mel", 10.0, {"win_ms": 10.0}), ("mel", 8.0, {"win_ms": 10.0}),
    ("mel", 5.0, {"win_ms": 5.0, "window": "hamming"}),
    ("gammatonegram", 20.0, {"window_ms": 2.5}), ("gammatonegram", 5.0, {"window_ms": 0.5, "f_min": 3000.0}),
    ("sincnet", 20.0, {"kernel_size": 251}),
])  # fmt: skip
def test_gaps_are_said(kind: str, dt_ms: float, options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="hears"):
        make_wav2spec(kind, 48000, dt_ms, **options)


@pytest.mark.parametrize(("kind", "options"), [
    ("mel", {"win_ms": 5.0, "window": "boxcar"}), ("mel", {"win_ms": 7.0}), ("mel", {"win_ms": 93.0}),
    ("gammatonegram", {"window_ms": 5.0}), ("sincnet", {"kernel_size": 7, "envelope": True}),
])  # fmt: skip
def test_windows_without_gaps_are_silent(kind: str, options: dict[str, Any]) -> None:
    make_wav2spec(kind, 48000, 5.0, **options)


# ---- Latency is the centroid of what a click leaves


@pytest.mark.parametrize(("kind", "fs", "dt_ms", "options"), [
    ("gammatone", 16000, 5.0, {}),
    ("gammatone", 16000, 5.0, {"f_min": 100.0}),
    ("gammatone", 16000, 5.0, {"f_min": 100.0, "kernel_ms": 10.0}),
    ("gammatone", 16000, 5.0, {"kernel_ms": 6.0, "rectify": "full"}),
    ("gammatone", 16000, 2.0, {"f_min": 50.0, "kernel_ms": 20.0, "rectify": "analytic"}),
    ("gammatone", 16000, 10.0, {"f_min": 60.0, "order": 2, "env_window_ms": 15.0}),
    ("sincnet", 16000, 5.0, {"envelope": True, "kernel_size": 401}),
    ("sincnet", 16000, 10.0, {"envelope": True, "rectify": "abs", "kernel_size": 64, "env_window_ms": 25.0}),
    ("earlier-gammatone", 16000, 5.0, {"f_min": 200.0}),
    ("earlier-leaf", 16000, 5.0, {}),
    ("leaf", 16000, 5.0, {}),
    ("leaf", 16000, 5.0, {"kernel_ms": 8.0, "pool_ms": 10.0}),
    ("leaf", 16000, 10.0, {"pool_window": "hard"}),
])  # fmt: skip
def test_latency_is_that_of_a_click(kind: str, fs: int, dt_ms: float, options: dict[str, Any]) -> None:
    front_end = linear_form(kind, fs, dt_ms, n_filters=8, **options)
    x, places = clicks(front_end, 90, 20, 4)
    with torch.no_grad():
        frames = front_end(x)[:, 0]
    # the floor of the magnitude is no part of the mark
    frames = (frames - frames[..., :1]).clamp_min(0.0)
    middle = (torch.arange(90, dtype=torch.float64) + 0.5) * front_end.hop
    late = middle - (places.double() + 0.5).unsqueeze(-1)
    truth = 1000.0 * (frames * late.unsqueeze(1)).sum((0, 2)) / frames.sum((0, 2)) / fs
    torch.testing.assert_close(front_end.channel_latency_ms, truth, rtol=0, atol=0.1)
    assert front_end.latency_ms == pytest.approx(float(truth.mean()), abs=0.05)


@pytest.mark.parametrize("dt_ms", [5.0, 20.0])
@pytest.mark.parametrize("window", ["hann", "boxcar"])
def test_latency_of_a_spectrogram(dt_ms: float, window: str) -> None:
    front_end = linear_form("mel", 16000, dt_ms, window=window)
    x, places = clicks(front_end, 12, 4, 1)
    with torch.no_grad():
        marks = front_end(x)[:, 0].sum(1)
    middle = (torch.arange(12, dtype=torch.float64) + 0.5) * front_end.hop
    late = middle - (places.double() + 0.5).unsqueeze(-1)
    truth = 1000.0 * float((marks * late).sum() / marks.sum()) / 16000
    assert front_end.latency_ms == pytest.approx(truth, abs=0.02)


# ---- Strides stay within their bound


def sounds(fs: float, n: int) -> dict[str, torch.Tensor]:
    noise = 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(1))
    trains = [torch.zeros(n), torch.zeros(n)]
    trains[0][::997], trains[1][::311] = 1.0, 0.3
    t = torch.arange(n) / fs

    def chord(*tones: float) -> torch.Tensor:
        return 0.1 * sum(torch.sin(2.0 * math.pi * f * t) for f in tones if f < fs / 2)

    return {
        "noise": noise, "clicks": trains[0], "dense clicks": trains[1], "two tones": chord(600, 1900, 6100),
        "tones": chord(200, 440, 1234, 3333, 7000), "harmonics": 0.5 * chord(*range(220, 8000, 220)),
    }  # fmt: skip


@pytest.mark.parametrize(("fs", "dt_ms"), [
    (16000, 1.0), (16000, 5.0), (48000, 1.0), (48000, 5.0), (44100, 10.0), (24414.0625, 5.12), (32000, 20.0),
])  # fmt: skip
@pytest.mark.parametrize(("kind", "options", "change"), [
    ("leaf", {}, {}),
    ("leaf", {"compression": "log", "pool_ms": 20.0}, {"bandwidth_shift": 3.0, "pooling_shift": -3.0}),
    ("sincnet", {"envelope": True, "kernel_size": 753}, {}),
    ("sincnet", {"envelope": True}, {"width_shift": 3.0}),
    ("gammatone", {"rectify": "analytic"}, {}),
    ("gammatone", {"rectify": "analytic", "compression": "pcen", "n_filters": 12}, {}),
])  # fmt: skip
def test_strides_at_every_rate_and_bin(
    kind: str, options: dict[str, Any], change: dict[str, float], fs: float, dt_ms: float
) -> None:
    strided = make_wav2spec(kind, fs, dt_ms, **options).eval()
    textbook = make_wav2spec(kind, fs, dt_ms, max_stride=1, **options).eval()
    n = strided.hop * max(30, int(0.2 * fs / strided.hop))
    for name, sound in sounds(fs, n).items():
        with torch.no_grad():
            for front_end in (strided, textbook):
                for parameter, value in change.items():
                    getattr(front_end, parameter).fill_(value)
            ours, exact = strided(sound[None, None]), textbook(sound[None, None])
        error = float((ours - exact).abs().max() / (exact.max() - exact.min()))
        assert error < 1e-2, name
