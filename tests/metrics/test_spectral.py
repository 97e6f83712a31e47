"""Coherence against SciPy, and what it does on short, masked or silent clips."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch

from deepSTRF.metrics import coherence, coherence_spectrum


@pytest.mark.parametrize("segment", [None, 64])
def test_matches_scipy_on_one_clip(segment: int | None) -> None:
    psth = torch.randn(1, 3, 1, 2000, dtype=torch.float64)
    pred = psth + torch.randn_like(psth)
    spectrum = coherence_spectrum(pred, psth, 5.0, segment_bins=segment)
    for n in range(3):
        f, expected = scipy.signal.coherence(
            pred[0, n, 0].numpy(), psth[0, n, 0].numpy(), fs=200.0, nperseg=segment or 256
        )
        np.testing.assert_allclose(spectrum.frequencies_hz.numpy(), f)
        np.testing.assert_allclose(spectrum.values[n].numpy()[1:], expected[1:], rtol=1e-8)
        mean = coherence(pred, psth, 5.0, "none", segment_bins=segment)[n]
        assert float(mean) == pytest.approx(expected[1:].mean())


def test_clips_weigh_as_their_length() -> None:
    x, y = torch.randn(2, 1, 1, 1, 3000, dtype=torch.float64).unbind()
    two = coherence(x.reshape(2, 1, 1, 1500), y.reshape(2, 1, 1, 1500), 5.0)
    padded_x, padded_y = torch.zeros(2, 2, 1, 1, 1500, dtype=torch.float64).unbind()
    mask = torch.zeros(2, 1, 1, 1500, dtype=torch.bool)
    padded_x[0], padded_y[0], mask[0] = x[..., :1500], y[..., :1500], True
    padded_x[1, ..., :256], padded_y[1, ..., :256], mask[1, ..., :256] = x[..., -256:], y[..., -256:], True
    short = coherence_spectrum(padded_x, padded_y, 5.0, mask=mask)
    alone = coherence_spectrum(x[..., :1500], y[..., :1500], 5.0)
    assert short.n_segments.item() == alone.n_segments.item() + 1
    assert 0 < two < 0.3


def test_masked_segments_may_hold_nan() -> None:
    psth = torch.randn(1, 2, 1, 2000, dtype=torch.float64)
    pred = 2 * psth + 3
    psth[0, 1, 0, 700:720] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        coherence(pred, psth, 5.0)
    spectrum = coherence_spectrum(pred, psth, 5.0, mask=~torch.isnan(psth))
    assert spectrum.n_segments[0] > spectrum.n_segments[1]
    torch.testing.assert_close(
        coherence(pred, psth, 5.0, mask=~torch.isnan(psth)), torch.tensor(1.0).double()
    )


def test_silent_neurons_and_too_few_segments_are_nan() -> None:
    psth = torch.randn(1, 3, 1, 999)
    psth[0, 0] = 0.1
    mask = torch.ones(1, 3, 1, 999, dtype=torch.bool)
    mask[0, 2, 0, 400:] = False
    found = coherence(psth + torch.randn_like(psth), psth, 5.0, "none", mask=mask)
    assert torch.isnan(found).tolist() == [True, False, True]


def test_bad_options() -> None:
    psth = torch.randn(1, 1, 1, 999)
    with pytest.raises(ValueError, match="dt_ms"):
        coherence(psth, psth, 0.0)
    with pytest.raises(ValueError, match="segment_bins"):
        coherence(psth, psth, 5.0, segment_bins=4)


def test_scale_and_dc() -> None:
    psth = torch.rand(2, 2, 1, 999, dtype=torch.float64)
    pred = psth + torch.rand_like(psth)
    reference = coherence(pred, psth, 5.0, "none")
    torch.testing.assert_close(
        coherence(1e-9 * pred + 1e-3, 1e6 * psth + 1e9, 5.0, "none"), reference, rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(coherence(pred, psth, 5.0, "none", include_dc=True), reference)
    responses = psth + torch.rand(2, 2, 5, 999, dtype=torch.float64)
    torch.testing.assert_close(
        coherence(pred, responses, 5.0), coherence(pred, responses.mean(2, keepdim=True), 5.0)
    )
