"""A real recording from end to end: a receptor neuron, the envelope of a 2.5 kHz tone, spikes.

Data of nitime 0.12.1 (BSD-3-Clause, see recordings/): Rokem et al. 2006, J Neurophysiol 95, 2541. The
latency of such neurons is a few milliseconds.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.interpret import strf_tuning
from deepSTRF.models.audio import Linear, LinearNonlinear, StateNet
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.training import Fitter, make_loaders

FILE = Path(__file__).parent / "recordings" / "grasshopper_receptor.npz"
CARRIER_HZ, SOUND_FS, N_LAGS = 2500.0, 20000, 12
TRAIN, VALIDATION, TEST = range(12), range(12, 16), range(16, 20)


@functools.cache
def pieces(dt_ms):
    """Envelopes (T,) and counts (T,) of 20 s, in pieces of one second."""
    found = []
    with np.load(FILE) as stored:
        for call in (1, 2):
            step = float(stored["stimulus_step_us"]) / 1000.0
            envelope = stored[f"stimulus_volt_{call}"].astype(np.float64)
            envelope = envelope.reshape(-1, round(dt_ms / step)).mean(1)
            edges = np.arange(len(envelope) + 1) * dt_ms
            counts = np.histogram(stored[f"spike_times_us_{call}"] / 1000.0, edges)[0]
            n = round(1000.0 / dt_ms)
            found += [(envelope[i : i + n], counts[i : i + n]) for i in range(0, len(envelope), n)]
    assert sum(counts.sum() for _, counts in found) == 1797
    return found


def envelopes(dt_ms=2.0, gain=1.0):
    stims, counts = zip(*pieces(dt_ms), strict=True)
    return AudioNeuralDataset.from_arrays(
        [gain * stim[None] for stim in stims], [one[None, None] for one in counts], dt_ms,
        frequencies_hz=[CARRIER_HZ],
    )  # fmt: skip


def sounds():
    """The tone with the recorded envelope, in bins of 5 ms."""
    stims, counts = zip(*pieces(5.0), strict=True)
    fine = np.concatenate([stim for stim, _ in pieces(0.5)])
    seconds = np.arange(len(fine) * SOUND_FS // 2000) / SOUND_FS
    tone = np.interp(seconds, (np.arange(len(fine)) + 0.5) * 0.0005, fine)
    tone = (tone * np.sin(2 * np.pi * CARRIER_HZ * seconds)).reshape(len(stims), -1)
    return AudioNeuralDataset.from_arrays(
        list(tone), [one[None, None] for one in counts], 5.0, audio_fs=SOUND_FS
    )


def numpy_ridge(penalty, clips, test):
    """Closed form on z-scored envelopes, zero history, intercept not penalised: STRF and test correlation."""
    everything = np.concatenate([pieces(2.0)[clip][0] for clip in clips])
    mean, deviation = everything.mean(), everything.std()

    def design(some):
        rows, targets = [], []
        for clip in some:
            stim, counts = pieces(2.0)[clip]
            z = np.r_[np.zeros(N_LAGS - 1), (stim - mean) / deviation]
            rows.append(np.lib.stride_tricks.sliding_window_view(z, N_LAGS))  # the current bin last
            targets.append(counts)
        return np.concatenate(rows), np.concatenate(targets).astype(float)

    x, y = design(clips)
    centred = x - x.mean(0)
    weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(N_LAGS), centred.T @ (y - y.mean()))
    x, y = design(test)
    return weights, np.corrcoef(x @ weights, y)[0, 1], deviation


def test_ridge_has_the_weights_the_score_and_the_latency_of_plain_numpy():
    ds = envelopes()
    train, test = ds.select(clips=TRAIN), ds.select(clips=TEST)
    weights, score, deviation = numpy_ridge(30.0, TRAIN, TEST)
    model = fit_ridge(train, n_lags=N_LAGS, lambdas=30.0).model
    np.testing.assert_allclose(model.STRFs()[0, 0].numpy(), weights, atol=1e-6)
    np.testing.assert_allclose(
        model.STRF_gradmap(unit="raw")[0, 0, 0].numpy(), weights / deviation, atol=1e-5
    )
    rates, counts = (torch.cat(part, -1).double() for part in zip(
        *[(rate[0], test.response_block(clip)[0, 0]) for clip, rate in enumerate(model.predict(test))],
        strict=True,
    ))  # fmt: skip
    assert abs(np.corrcoef(rates, counts)[0, 1] - score) < 1e-6
    assert score > 0.2
    row = strf_tuning(model.STRFs(), ds.frequencies_hz, ds.dt).rows()[0]
    assert row["best_frequency_hz"] == CARRIER_HZ
    peak = 2.0 * (N_LAGS - 1 - weights.argmax())
    assert abs(row["latency_ms"] - peak) <= 1.0
    assert 4.0 < row["latency_ms"] < 8.0
    assert 1.0 < row["duration_ms"] < 5.0


@pytest.mark.parametrize("gain", [1e-3, 30.0])
def test_nothing_depends_on_the_level_of_the_envelope(gain):
    plain, louder = (
        fit_ridge(ds.select(clips=TRAIN), n_lags=N_LAGS, lambdas=30.0)
        for ds in (envelopes(), envelopes(gain=gain))
    )
    torch.testing.assert_close(louder.model.STRFs(), plain.model.STRFs(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        louder.model.STRFs(folded=True, unit="raw") * gain, plain.model.STRFs(folded=True, unit="raw"),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_a_front_end_finds_the_carrier():
    ds = sounds()
    train, validation = ds.select(clips=TRAIN), ds.select(clips=VALIDATION)
    fit = fit_ridge(train, validation, n_lags=8, wav2spec=make_wav2spec("mel", SOUND_FS, 5.0))
    row = strf_tuning(fit.model.STRF_gradmap(), fit.model.wav2spec.frequencies_hz, 5.0).rows()[0]
    assert abs(np.log2(row["best_frequency_hz"] / CARRIER_HZ)) < 0.25
    assert 0.0 < row["latency_ms"] < 10.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda: Linear(1, N_LAGS, 1, standardize=True),
        lambda: LinearNonlinear(1, N_LAGS, 1, standardize=True),
        lambda: StateNet(1, N_LAGS, 1, standardize=True),
    ],
    ids=["linear", "ln", "statenet"],
)
def test_gradient_fits_find_the_latency(build):
    ds = envelopes()
    train, validation, test = (ds.select(clips=clips) for clips in (TRAIN, VALIDATION, TEST))
    torch.manual_seed(0)
    fitter = Fitter(
        build(), *make_loaders(train, validation, seed=0), max_epochs=25, progress=False, seed=0,
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01), monitor="val_cc",
    )  # fmt: skip
    fitter.fit()
    _, score, _ = numpy_ridge(30.0, TRAIN, TEST)
    found = fitter.evaluate(make_loaders(test, test)[1])["cc"].item()
    assert found > 0.85 * score
    row = strf_tuning(fitter.model.STRF_gradmap(N_LAGS), None, ds.dt).rows()[0]
    assert 4.0 < row["latency_ms"] < 8.0
