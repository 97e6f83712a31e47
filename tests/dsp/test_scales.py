"""Frequency scales: published values, exact inverses, every kind of input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.dsp import (
    ERB_bandwidth,
    ERB_to_Hz,
    Greenwood,
    Hz_to_bark,
    Hz_to_ERB,
    Hz_to_mel,
    bark_to_Hz,
    frequency_scale,
    inverse_Greenwood,
    mel_to_Hz,
)
from deepSTRF.dsp.scales import SCALES  # the names behind frequency_scale

PAIRS: list[tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = [
    ("htk", Hz_to_mel, mel_to_Hz),
    ("slaney", lambda f: Hz_to_mel(f, "slaney"), lambda m: mel_to_Hz(m, "slaney")),
    ("erb", Hz_to_ERB, ERB_to_Hz),
    ("bark", Hz_to_bark, bark_to_Hz),
    ("greenwood", inverse_Greenwood, Greenwood),
]
FREQUENCIES = [30.0, 60.0, 440.0, 999.999, 1000.0, 1000.001, 8000.0, 22627.0, 80000.0]


@pytest.mark.parametrize(("_name", "forward", "back"), PAIRS, ids=[p[0] for p in PAIRS])
def test_round_trip_of_every_kind(
    _name: str, forward: Callable[[Any], Any], back: Callable[[Any], Any]
) -> None:
    for f in FREQUENCIES:
        value = forward(f)
        assert type(value) is float
        assert back(value) == pytest.approx(f, rel=1e-12)
    array = np.array(FREQUENCIES)
    np.testing.assert_allclose(back(forward(array)), array, rtol=1e-12)
    tensor = torch.tensor(FREQUENCIES, dtype=torch.float64)
    torch.testing.assert_close(back(forward(tensor)), tensor, rtol=1e-12, atol=0)
    single = torch.tensor(FREQUENCIES)
    assert forward(single).dtype == torch.float32
    torch.testing.assert_close(back(forward(single)), single, rtol=2e-4, atol=0)
    np.testing.assert_allclose(forward(array), [forward(f) for f in FREQUENCIES])
    np.testing.assert_allclose(forward(array), forward(tensor).numpy(), rtol=1e-12)


@pytest.mark.parametrize(("_name", "forward", "_back"), PAIRS, ids=[p[0] for p in PAIRS])
def test_ascending_with_finite_gradients(_name: str, forward: Callable[[Any], Any], _back: object) -> None:
    f = torch.linspace(30, 24000, 500, dtype=torch.float64, requires_grad=True)
    value = forward(f)
    assert bool((value.diff() > 0).all())
    value.sum().backward()
    assert bool(torch.isfinite(f.grad).all())
    assert bool((f.grad > 0).all())


def test_published_values() -> None:
    assert Hz_to_mel(1000.0) == pytest.approx(999.9855)
    assert Hz_to_mel(1000.0, "slaney") == pytest.approx(15.0)
    assert Hz_to_mel(6400.0, "slaney") == pytest.approx(42.0)
    assert Hz_to_ERB(1000.0) == pytest.approx(15.621, abs=1e-3)
    np.testing.assert_allclose(
        ERB_bandwidth(np.array([60.0, 500.0, 1000.0])), [31.18, 78.67, 132.64], atol=6e-3
    )
    assert Hz_to_bark(1000.0) == pytest.approx(8.527, abs=1e-3)
    assert Greenwood(0.0) == pytest.approx(165.4 * 0.12)
    assert inverse_Greenwood(Greenwood(0.2)) == pytest.approx(0.2)  # an earlier package returned 0.116


def test_integers_and_lists_are_numbers_too() -> None:
    assert Hz_to_mel(1000) == Hz_to_mel(1000.0)
    assert Hz_to_mel(np.int64(1000)) == Hz_to_mel(1000.0)
    np.testing.assert_allclose(Hz_to_ERB([100, 200]), [Hz_to_ERB(100.0), Hz_to_ERB(200.0)])
    assert Hz_to_mel(torch.tensor([1000])).dtype == torch.float32
    assert Hz_to_mel(np.array([1000])).dtype == np.float64


def test_unknown_variants_list_the_legal_ones() -> None:
    for call in (lambda: Hz_to_mel(1.0, "x"), lambda: mel_to_Hz(1.0, "x")):
        with pytest.raises(ValueError, match="'htk' or 'slaney'"):
            call()
    for call in (lambda: Greenwood(0.1, "gryphon"), lambda: inverse_Greenwood(10.0, "gryphon")):
        with pytest.raises(ValueError, match="'human'"):
            call()
    with pytest.raises(ValueError, match="'erb'"):
        frequency_scale("cents")


@pytest.mark.parametrize("name", sorted(SCALES))
def test_points_are_equally_spaced_with_exact_ends(name: str) -> None:
    scale = frequency_scale(name.upper())
    points = scale.points(500, 8000, 12)
    assert points.dtype == torch.float64
    assert points[0] == 500
    assert points[-1] == 8000
    steps = scale.from_hz(points).diff()
    torch.testing.assert_close(steps, steps[:1].expand(11), rtol=1e-9, atol=0)
    assert scale.points(500.0, 8000.0, 1).tolist() == [500.0]


def test_tables_are_read_only() -> None:
    with pytest.raises(TypeError):
        SCALES["mine"] = SCALES["erb"]  # type: ignore[index]


def test_slaney_mel_agrees_with_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    f = np.array(FREQUENCIES)
    np.testing.assert_allclose(Hz_to_mel(f, "slaney"), librosa.hz_to_mel(f), rtol=1e-12)
    np.testing.assert_allclose(Hz_to_mel(f), librosa.hz_to_mel(f, htk=True), rtol=1e-12)
