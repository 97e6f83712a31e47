"""CausalGammatone and Gammatonegram against scipy and against plain float64 computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import signal

from deepSTRF.models.wav2spec import CausalGammatone, Gammatonegram


def erb_points(f_min: float, f_max: float, n: int) -> np.ndarray:
    rate = np.linspace(21.4 * np.log10(0.00437 * f_min + 1), 21.4 * np.log10(0.00437 * f_max + 1), n)
    return (10 ** (rate / 21.4) - 1) / 0.00437


def impulse_response(center: float, fs: float, n_taps: int) -> np.ndarray:
    """Complex gammatone from its formula; the real part has unit peak gain."""
    t = np.arange(n_taps) / fs
    b = 1.019 * 24.7 * (0.00437 * center + 1)
    taps = t**3 * np.exp(-2 * np.pi * b * t) * np.exp(2j * np.pi * center * t)
    return taps / np.abs(np.fft.rfft(taps.real, 2**18)).max()


def test_no_parameters_and_documented_centres() -> None:
    bank = CausalGammatone(48000)
    assert not list(bank.parameters())
    assert not bank.state_dict()
    np.testing.assert_allclose(bank.frequencies_hz.numpy(), erb_points(500, 22627, 34), rtol=1e-6)
    assert bank.env_window == 480
    assert set(bank.plan.strides) == {1}


def test_a_click_is_heard_at_once_and_peaks_when_theory_says() -> None:
    # hop of one sample and window of one sample: the envelope itself
    bank = CausalGammatone(
        48000, 4, hop_ms=1 / 48, env_window_ms=1 / 48, rectify="analytic", compression="none"
    )
    click = torch.zeros(1, 1, 1200)
    click[..., 100] = 1.0
    envelope = bank(click)[0, 0].numpy()
    expected = 3 / (2 * math.pi * 1.019 * 24.7 * (0.00437 * bank.frequencies_hz.double().numpy() + 1)) * 48000
    np.testing.assert_allclose(envelope.argmax(-1) - 100, expected, atol=1.0)
    assert envelope[:, :100].max() < 1e-4


def test_click_is_not_time_reversed_at_the_frame_rate() -> None:
    frames = CausalGammatone(48000, 34, env_window_ms=5.0, compression="none")
    click = torch.zeros(1, 1, 20 * 240)
    click[..., 4 * 240 + 10] = 1.0
    peak = frames(click)[0, 0].argmax(-1)
    assert bool((peak[5:] == 4).all())  # the earlier package peaked in bins 7 and 8
    assert bool((peak[:5] <= 5).all())


def test_unit_peak_gain() -> None:
    for channel, taps in enumerate(CausalGammatone(48000, 5).impulse_responses.double().numpy()):
        assert np.abs(np.fft.rfft(taps, 2**17)).max() == pytest.approx(1.0, abs=1e-4), channel


@pytest.mark.parametrize("rectify", ["halfwave", "full", "analytic"])
@pytest.mark.parametrize("compression", ["none", "log", "cuberoot", "pcen"])
@pytest.mark.parametrize("kernel_ms", [25.0, None])  # cut short, by its taps; whole, from carried states
def test_agrees_with_an_independent_computation(
    rectify: str, compression: str, kernel_ms: float | None
) -> None:
    bank = CausalGammatone(
        16000, 4, rectify=rectify, compression=compression, kernel_ms=kernel_ms, max_stride=1
    ).double()
    rings = kernel_ms is None and rectify != "analytic"
    assert ("ringing" in bank.init_state(1)) is rings
    x = torch.randn(1, 1, 25 * 80, dtype=torch.float64)
    out = []
    for center, size in zip(erb_points(500, 8000, 4), bank.plan.kernel_sizes, strict=True):
        z = np.convolve(x[0, 0].numpy(), impulse_response(center, 16000, size))[:2000]
        level = {
            "halfwave": np.maximum(z.real, 0), "full": np.abs(z.real),
            "analytic": np.sqrt(np.abs(z) ** 2 + 1e-9),
        }[rectify]  # fmt: skip
        window = np.sin(np.pi * (np.arange(160) + 0.5) / 160) ** 2 if rectify == "analytic" else np.ones(160)
        out.append(np.convolve(level, window / window.sum())[:2000][79::80])
    energy = np.stack(out)
    if compression == "log":
        expected = np.log(np.maximum(energy, 1e-4))
    elif compression == "cuberoot":
        expected = np.cbrt(energy)
    elif compression == "pcen":
        a, memory, expected = np.exp(-5.0 / 197.5), 0.0, np.zeros_like(energy)
        for t in range(25):
            memory = a * memory + (1 - a) * energy[:, t]
            mean = memory / (1 - a ** (t + 1))
            expected[:, t] = (energy[:, t] / (1e-6 + mean) ** 0.98 + 2) ** 0.5 - 2**0.5
    else:
        expected = energy
    atol = 2e-6 if compression == "cuberoot" else 1e-6  # the reference reads the peak gain off a grid
    np.testing.assert_allclose(bank(x)[0, 0].numpy(), expected, atol=atol)


def test_kernels_are_long_enough_and_can_be_capped() -> None:
    bank = CausalGammatone(48000, f_min=60.0)
    assert bank.plan.max_kernel_size > 0.08 * 48000
    assert CausalGammatone(48000, f_min=60.0, kernel_ms=20.0).plan.max_kernel_size == 960


def test_hop_invariant_gain_control() -> None:
    assert CausalGammatone(16000, hop_ms=10.0, compression="pcen").pcen_tau_ms == 197.5


def test_refuses() -> None:
    for wrong, match in (
        ({"f_max": 9000.0}, "Nyquist"), ({"f_min": 0.0}, "f_min"), ({"env_window_ms": 1.0}, "env_window_ms"),
        ({"rectify": "square"}, "rectify"), ({"compression": "cubic"}, "compression"),
        ({"order": 0}, "order"),
        ({"kernel_ms": 1.0}, "kernel_ms"), ({"b_factor": 0.0}, "b_factor"),
        ({"pcen_start": "ones"}, "pcen_start"),
        ({"pcen_alpha": -1.0}, "pcen_alpha"), ({"log_floor": 0.0}, "log_floor"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            CausalGammatone(16000, **wrong)


# ------------------------------------------------------------------------------------------- the
# gammatone-gram


def scipy_gammatonegram(x: np.ndarray, fs: float, centers: np.ndarray, hop: int, window: int) -> np.ndarray:
    """Slaney's cascade with float64 scipy filters, then the root mean square over the start of each bin."""
    rows, period = [], 1 / fs
    for center in centers:
        decay = 1.019 * 2 * np.pi * (center / 9.26449 + 24.7)
        angle, e = 2 * np.pi * center * period, np.exp(-decay * period)
        plus, minus = np.sqrt(3 + 2**1.5), np.sqrt(3 - 2**1.5)
        factors = [np.cos(angle) + zero * np.sin(angle) for zero in (plus, -plus, minus, -minus)]
        v, g = np.exp(2j * angle), np.exp(1j * angle - decay * period)
        gain = np.abs(np.prod([v - g * k for k in factors]) * (period / e / (-e + 1 + v * (1 - 1 / e))) ** 4)
        y = x
        for factor in factors:
            y = signal.lfilter([period, -period * e * factor, 0], [1, -2 * np.cos(angle) * e, e**2], y)
        rows.append(np.sqrt(((y / gain) ** 2).reshape(-1, hop)[:, :window].mean(1)))
    return np.stack(rows)


@pytest.mark.parametrize("compression", ["none", "log1p", "log"])
def test_gammatonegram_agrees_with_a_float64_cascade(compression: str) -> None:
    bank = Gammatonegram(16000, n_filters=12, f_min=200.0, compression=compression)
    assert bank.window == 40
    x = torch.randn(1, 1, 40 * 80)
    corner = 9.26449 * 24.7
    steps = np.arange(1, 13) / 12
    centers = (-corner + (8000 + corner) * np.exp(steps * (np.log(200 + corner) - np.log(8000 + corner))))[
        ::-1
    ]
    np.testing.assert_allclose(bank.frequencies_hz.numpy(), centers, rtol=1e-5)
    expected = scipy_gammatonegram(x[0, 0].double().numpy(), 16000, centers, 80, 40)
    expected = {"none": expected, "log1p": np.log1p(expected), "log": np.log(np.maximum(expected, 1e-8))}[
        compression
    ]
    error = np.abs(bank(x)[0, 0].numpy() - expected).max() / np.abs(expected).max()
    assert error < 1e-4
    exact = np.abs(bank.double()(x.double())[0, 0].numpy() - expected).max() / np.abs(expected).max()
    assert exact < 1e-5


def test_gammatonegram_defaults_and_refusals() -> None:
    bank = Gammatonegram(48000)
    assert (bank.n_filters, bank.window, bank.f_max) == (50, 120, 8000.0)
    assert Gammatonegram(8000).f_max == 4000.0
    assert bank.frequencies_hz[0].item() == pytest.approx(1000.0)
    for wrong, match in (
        ({"window_ms": 6.0}, "window_ms"), ({"window_ms": 0.001}, "window_ms"),
        ({"compression": "pcen"}, "compression"),
        ({"f_max": 9000.0}, "Nyquist"), ({"f_min": 8000.0}, "f_min"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            Gammatonegram(16000, **wrong)
