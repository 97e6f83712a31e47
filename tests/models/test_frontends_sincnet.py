"""SincNet: documented cutoffs, independent float64 references, legality of every learned value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import SincNet

NS1 = {
    "n_filters": 34,
    "kernel_size": 753,
    "f_min": 500.0,
    "f_max": 22627.0,
    "envelope": True,
    "env_window_ms": 10.0,
}


def mel_edges(f_min: float, f_max: float, n: int) -> np.ndarray:
    mel = np.linspace(2595 * np.log10(1 + f_min / 700), 2595 * np.log10(1 + f_max / 700), n + 1)
    return 700 * (10 ** (mel / 2595) - 1)


def bandpass(low: float, high: float, size: int) -> np.ndarray:
    """Complex taps from the definition, edges in cycles per sample, oldest first."""
    n = np.arange(size) - (size - 1) / 2
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(size) / (size - 1))
    real = 2 * high * np.sinc(2 * high * n) - 2 * low * np.sinc(2 * low * n)
    with np.errstate(invalid="ignore", divide="ignore"):
        partner = np.where(
            n == 0, 0.0, (np.cos(2 * np.pi * low * n) - np.cos(2 * np.pi * high * n)) / (np.pi * n)
        )
    return window * (real + 1j * partner)


def test_documented_start() -> None:
    sincnet = SincNet(48000, **NS1)
    edges = mel_edges(500, 22627, 34)
    np.testing.assert_allclose(sincnet.f1.detach().numpy(), edges[:-1], rtol=1e-6)
    np.testing.assert_allclose(sincnet.f2.detach().numpy(), edges[1:], rtol=1e-6)
    assert sincnet.f1[0].item() == 500.0
    assert sincnet.f2[-1].item() == 22627.0
    np.testing.assert_allclose(sincnet.f1[:3].detach().numpy(), [500, 609.43, 728.85], atol=0.01)
    linear = SincNet(16000, n_filters=4, init="linear", f_min=1000.0, f_max=5000.0)
    np.testing.assert_allclose(linear.f1.detach().numpy(), [1000, 2000, 3000, 4000], rtol=1e-6)
    np.testing.assert_allclose(linear.f2.detach().numpy(), [2000, 3000, 4000, 5000], rtol=1e-6)
    assert SincNet(16000, n_filters=3).f2[-1].item() == 8000.0
    with pytest.raises(AttributeError):
        sincnet.f1 = torch.zeros(34)


def test_counts() -> None:
    for options in ({}, {"parameterization": "hz"}, {"envelope": False}):
        sincnet = SincNet(48000, **{**NS1, **options})
        assert sum(p.numel() for p in sincnet.parameters()) == 68
        assert Linear(34, 9, 119, wav2spec=sincnet).count_trainable_params() == 36839


@pytest.mark.parametrize("norm", ["unit", "peak"])
@pytest.mark.parametrize("size", [101, 64, 41])
def test_signed_mode_agrees_with_an_independent_computation(norm: str, size: int) -> None:
    sincnet = SincNet(8000, n_filters=3, kernel_size=size, activation="symlog", norm=norm).double()
    x = torch.randn(1, 1, 20 * 40, dtype=torch.float64)
    edges = mel_edges(300, 4000, 3) / 8000
    with torch.no_grad():
        ours = sincnet(x)[0, 0].numpy()
    for channel in range(3):
        taps = bandpass(edges[channel], edges[channel + 1], size).real
        if norm == "peak":
            taps = taps / (2 * (edges[channel + 1] - edges[channel]))
        y = np.convolve(x[0, 0].numpy(), taps[::-1])[: 20 * 40][39::40]
        np.testing.assert_allclose(ours[channel], np.sign(y) * np.log1p(np.abs(y)), atol=1e-12)


@pytest.mark.parametrize("norm", [None, "start", "unit", "peak"])
def test_envelope_agrees_with_an_independent_computation(norm: str | None) -> None:
    options = {"kernel_size": 101, "envelope": True, "env_window_ms": 10.0, "max_stride": 1, "norm": norm}
    sincnet = SincNet(8000, 3, **options).double()
    x = torch.randn(1, 1, 30 * 40, dtype=torch.float64)
    window = np.sin(np.pi * (np.arange(80) + 0.5) / 80) ** 2
    edges = mel_edges(300, 4000, 3) / 8000
    with torch.no_grad():
        ours = sincnet(x)[0, 0].numpy()
    for channel in range(3):
        low, high = edges[channel], edges[channel + 1]
        gain = 1.0 if norm == "unit" else 1 / (2 * (high - low))
        z = gain * np.convolve(x[0, 0].numpy(), bandpass(low, high, 101)[::-1])[:1200]
        envelope = np.convolve(np.sqrt(np.abs(z) ** 2 + 1e-9), window / window.sum())[:1200][39::40]
        np.testing.assert_allclose(ours[channel], np.log1p(envelope), atol=1e-9)


def test_gain_while_a_band_widens() -> None:
    tone = 0.5 * torch.sin(2 * math.pi * 2000 * torch.arange(4000) / 16000).reshape(1, 1, -1)
    level = {}
    for norm in ("start", "unit", "peak"):
        sincnet = SincNet(
            16000, 1, 501, f_min=1500.0, f_max=2500.0, envelope=True, activation="none", norm=norm
        )
        before = float(sincnet(tone)[..., -1].detach())
        with torch.no_grad():
            sincnet.width_shift += 0.5
        level[norm] = (before, float(sincnet(tone)[..., -1].detach()))
    assert level["unit"] == pytest.approx((0.5, 0.5), rel=0.02)
    assert level["start"] == pytest.approx((4.0, 4.0), rel=0.02)
    assert level["peak"][1] < 0.7 * level["peak"][0]


def test_published_form() -> None:
    options = {"n_filters": 3, "kernel_size": 101, "envelope": True, "rectify": "abs", "activation": "none"}
    sincnet = SincNet(8000, parameterization="hz", **options).double()
    assert set(sincnet.plan.strides) == {1}
    x = torch.randn(1, 1, 1200, dtype=torch.float64)
    edges = mel_edges(300, 4000, 3) / 8000
    with torch.no_grad():
        ours = sincnet(x)[0, 0].numpy()
    for channel in range(3):
        y = np.convolve(x[0, 0].numpy(), bandpass(edges[channel], edges[channel + 1], 101).real)[:1200]
        np.testing.assert_allclose(ours[channel], np.abs(y).reshape(30, 40).mean(1), atol=1e-6)


def test_envelope_of_a_tone_is_its_amplitude_without_ripple() -> None:
    analytic = SincNet(48000, **NS1, activation="none", norm="unit")
    published = SincNet(48000, **{**NS1, "env_window_ms": 5.0}, activation="none", rectify="abs")
    for channel in (0, 10):
        tone = 0.7 * torch.sin(2 * math.pi * analytic.frequencies_hz[channel] * torch.arange(24000) / 48000)
        with torch.no_grad():
            smooth = analytic(tone[None, None])[0, 0, channel, 30:]
            rippled = published(tone[None, None])[0, 0, channel, 30:]
        assert float((smooth.max() - smooth.min()) / smooth.mean()) < 1e-2
        if channel == 10:
            assert float(smooth.mean()) == pytest.approx(0.7, rel=0.05)
        assert float(rippled.mean()) == pytest.approx(float(smooth.mean()) * 2 / math.pi, rel=0.02)


def test_click_latency_is_half_the_kernel() -> None:
    sincnet = SincNet(16000, n_filters=4, kernel_size=321, hop_ms=0.25, envelope=True, env_window_ms=0.25)
    click = torch.zeros(1, 1, 200 * 4)
    click[..., 0] = 1.0
    with torch.no_grad():
        peak_ms = sincnet(click)[0, 0].argmax(-1) * 0.25
    np.testing.assert_allclose(peak_ms.numpy(), 10.0, atol=0.3)
    assert sincnet.latency_ms == pytest.approx(10.0 + 0.03, abs=0.05)


@pytest.mark.parametrize("options", [{}, {"parameterization": "hertz"}])
def test_ten_thousand_random_steps_stay_legal(options: dict[str, str]) -> None:
    sincnet = SincNet(48000, **NS1, **options)
    generator = torch.Generator().manual_seed(0)
    step = 100.0 if options else 0.05
    width = (sincnet.f2 - sincnet.f1).detach()
    floor = torch.minimum(torch.full_like(width, 48000 / 753), width / 2)
    with torch.no_grad():
        for _ in range(10_000):
            for parameter in sincnet.parameters():
                parameter += step * torch.randn(34, generator=generator)
        for scale in (1.0, 1e3):
            for parameter in sincnet.parameters():
                parameter *= scale
            low, high = sincnet.f1.double(), sincnet.f2.double()
            assert bool((low >= 1.0).all())
            assert bool((low < high).all())
            assert bool((high <= 24000).all())
            if not options:
                assert bool((high - low >= floor * (1 - 1e-4)).all())
                assert bool((high - low <= 2 * width * (1 + 1e-4)).all())
    out = sincnet(torch.randn(1, 1, 2400))
    out.sum().backward()
    assert bool(torch.isfinite(out).all())
    for parameter in sincnet.parameters():
        assert bool(torch.isfinite(parameter.grad).all())


def test_no_channel_dies_at_a_limit() -> None:
    sincnet = SincNet(16000, n_filters=6, kernel_size=251, envelope=True)
    for center, width in ((9.0, 5.0), (-9.0, 5.0), (9.0, -5.0), (-9.0, -5.0)):
        with torch.no_grad():
            sincnet.center_shift.fill_(center)
            sincnet.width_shift.fill_(width)
        sincnet.zero_grad()
        sincnet(torch.randn(1, 1, 1600)).square().sum().backward()
        for parameter in sincnet.parameters():
            assert bool((parameter.grad != 0).all())


def test_raw_hertz_takes_any_value() -> None:
    sincnet = SincNet(16000, n_filters=2, parameterization="hz")
    with torch.no_grad():
        sincnet.low_hz_.copy_(torch.tensor([-1234.0, 1e9]))
        sincnet.band_hz_.copy_(torch.tensor([1e6, 0.0]))
    assert sincnet.f1.tolist() == [1234.0, 7999.0]
    assert sincnet.f2.tolist() == [8000.0, 8000.0]


def test_refuses() -> None:
    for wrong, match in (
        ({"f_max": 20000.0}, "Nyquist"), ({"f_min": 0.5}, "f_min"), ({"env_window_ms": 1.0}, "env_window_ms"),
        ({"activation": "relu"}, "activation"), ({"init": "bark"}, "init"), ({"rectify": "half"}, "rectify"),
        ({"parameterization": "mel"}, "parameterization"), ({"norm": "l2"}, "norm"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"max_stride": -1, "envelope": True}, "max_stride"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            SincNet(16000, **wrong)
    with pytest.raises(TypeError, match="envelope"):
        SincNet(16000, envelope=1)


def test_compiles() -> None:
    sincnet = SincNet(16000, n_filters=3, kernel_size=101, envelope=True)
    x = torch.randn(1, 1, 800)
    torch._dynamo.reset()  # a function is compiled for so many modules of a process only
    compiled = torch.compile(sincnet, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), sincnet(x), rtol=1e-5, atol=1e-6)
