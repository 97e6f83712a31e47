"""Receptive fields, tuning, stimuli and probes per standard deviation of each band, by every route."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_ridge, start_from_ridge
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig
from deepSTRF.experiments.build import build_front_end  # inner: tested by itself
from deepSTRF.interpret import exciting_spectrogram, strf_confidence, strf_tuning
from deepSTRF.interpret.dstrf import dstrf
from deepSTRF.interpret.probes import Presentation, ripple_responses
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear, LinearNonlinear, NetworkReceptiveField, StateNet
from deepSTRF.models.wav2spec import CausalMelSpectrogram, SincNet
from deepSTRF.training import Fitter, make_loaders

F, T, DRIVEN, LAG = 12, 400, 3, 2
HERTZ = 500.0 * 2.0 ** (np.arange(F) / 2)
#: Two bands that hardly vary, one that never does.
SCALE = np.r_[np.ones(9), 0.02, 0.02, 0.0]


def recording(scale=SCALE, seed=0, n_clips=12):
    rng = np.random.default_rng(seed)
    smooth = np.ones(8) / 8
    stims = [
        np.apply_along_axis(np.convolve, 1, rng.normal(size=(F, T)), smooth, "same") * scale[:, None]
        for _ in range(n_clips)
    ]
    counts = [rng.poisson(np.clip(0.2 + 0.3 * np.roll(s[DRIVEN], LAG), 0, None), (1, 10, T)) for s in stims]
    arguments = {"dt_ms": 5.0, "frequencies_hz": HERTZ, "check_alignment": False}
    ds = AudioNeuralDataset.from_arrays(stims, counts, **arguments)
    return ds.select(clips=range(n_clips - 3)), ds.select(clips=range(n_clips - 3, n_clips)), stims


def fitted(build, train, val, *, epochs=6, lr=0.02):
    torch.manual_seed(0)
    model = build()
    loaders = make_loaders(train, val, batch_size=1, seed=0)
    fitter = Fitter(
        model, *loaders, max_epochs=epochs, progress=False, seed=0,
        optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=lr),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"band\(s\) 11 \(counted from 0\) never vary"):
        fitter.fit()
    return model


def true_deviation(stims, n_clips=9):
    return np.concatenate(stims[:n_clips], axis=1).std(axis=1)


def routes(train, val):
    with pytest.warns(UserWarning, match="never vary"):
        ridge = fit_ridge(train, val, n_lags=9)
    with pytest.warns(UserWarning, match="never vary"):
        plain = fit_ridge(train, val, n_lags=9, standardize=False, lambdas=[0.003, 0.03, 0.3])
    yield "ridge", ridge.model
    yield "ridge, raw bands", plain.model
    yield "started", start_from_ridge(Linear(F, 9, 1, standardize=True), ridge)
    yield "linear", fitted(lambda: Linear(F, 9, 1, standardize=True), train, val)
    yield "ln", fitted(lambda: LinearNonlinear(F, 9, 1, standardize=True), train, val)
    yield "statenet", fitted(lambda: StateNet(F, out_neurons=1, standardize=True), train, val, epochs=8)


def test_tuning_finds_the_driven_band_by_every_route():
    train, val, stims = recording()
    for name, model in routes(train, val):
        np.testing.assert_allclose(model.band_std.numpy(), true_deviation(stims), rtol=1e-5, atol=0)
        raw, sd = (model.STRF_gradmap(9, unit=unit)[:, 0].numpy() for unit in ("raw", "sd"))
        np.testing.assert_allclose(sd, raw * true_deviation(stims)[:, None], rtol=1e-4, atol=1e-9)
        np.testing.assert_array_equal(sd, model.STRF_gradmap(9)[:, 0].numpy())
        assert (sd[:, -1] == 0).all()
        row = strf_tuning(sd, HERTZ, 5.0).rows()[0]
        assert abs(np.log2(row["best_frequency_hz"] / HERTZ[DRIVEN])) < 0.3, (name, row)
        if name in ("ridge", "ridge, raw bands", "started"):  # the others are not at their end
            assert abs(row["latency_ms"] - 5.0 * LAG) < 5.0, (name, row)
    # the case that was reported: per unit of the spectrogram the peak lies in a band that hardly varies
    with pytest.warns(UserWarning, match="never vary"):
        model = fit_ridge(train, val, n_lags=9).model
    assert strf_tuning(model.STRF_gradmap(unit="raw"), HERTZ, 5.0)["best_frequency_hz"].item() > HERTZ[8]


def test_strf_weights_come_in_the_same_unit():
    train, val, stims = recording()
    deviation = true_deviation(stims)[:, None]
    with pytest.warns(UserWarning, match="never vary"):
        ridge = fit_ridge(train, val, n_lags=9)
    kernel = ridge.weight[:, 0].numpy()  # on standardised bands
    np.testing.assert_allclose(ridge.model.STRFs(unit="raw").numpy(), kernel, atol=1e-6)
    np.testing.assert_allclose(ridge.model.STRFs().numpy(), kernel, atol=1e-6)
    np.testing.assert_allclose(ridge.model.STRFs(folded=True).numpy(), kernel, atol=1e-6)
    expected = np.divide(kernel, deviation, out=np.zeros_like(kernel), where=deviation > 0)
    np.testing.assert_allclose(
        ridge.model.STRFs(folded=True, unit="raw").numpy(), expected, rtol=1e-4, atol=1e-6
    )
    with pytest.warns(UserWarning, match="never vary"):
        plain = fit_ridge(train, val, n_lags=9, standardize=False, lambdas=0.03)
    np.testing.assert_allclose(
        plain.model.STRFs().numpy(), plain.weight[:, 0].numpy() * deviation, rtol=1e-4, atol=1e-8
    )
    hidden = fitted(lambda: NetworkReceptiveField(F, 9, out_neurons=1, n_hidden=2), train, val, epochs=1)
    raw = hidden.STRFs(None, unit="raw").numpy()
    assert np.abs(raw[:, -1]).max() > 0  # nothing trains the weights of a band that never varies
    np.testing.assert_allclose(hidden.STRFs(None).numpy(), raw * deviation, rtol=1e-4, atol=1e-8)


def test_a_model_that_was_never_fitted_stays_raw():
    model = Linear(F, 9, 2, norm="none")
    assert model.band_std is None
    assert "band_std" not in model.state_dict()
    assert torch.equal(model.STRFs(), model.readout.strf.kernel.weight[:, 0].detach())
    assert torch.equal(model.STRF_gradmap(), model.STRF_gradmap(unit="raw"))
    for call in (model.STRFs, model.STRF_gradmap):
        with pytest.raises(ValueError, match=r"measure_bands"):
            call(unit="sd")
        with pytest.raises(ValueError, match="unit must be one of"):
            call(unit="db")
    with pytest.raises(ValueError, match="fitted model"):
        dstrf(model, torch.zeros(F, 20), unit="sd")
    with pytest.raises(ValueError, match="fitted model"):
        exciting_spectrogram(model, unit="sd")


def test_the_deviations_are_saved_with_the_model_and_not_among_its_weights(tmp_path):
    train, val, _ = recording()
    model = fitted(lambda: Linear(F, 9, 1), train, val, epochs=1)
    model.save_pretrained(tmp_path / "model")
    again = NeuralModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again.band_std, model.band_std)
    assert torch.equal(again.STRFs(), model.STRFs())
    assert torch.equal(copy.deepcopy(model).double().band_std, model.band_std.double())
    # weights alone are as they always were: names, and what other tools make of them
    assert model.state_dict().keys() == Linear(F, 9, 1).state_dict().keys()
    assert torch.equal(load(Linear(F, 9, 1), model.state_dict()).STRFs(), model.STRFs(unit="raw"))


def load(model, state):
    model.load_state_dict(state)
    return model


def songs(fs=16000, seconds=1.0, top=3000.0, n=5):
    """Noise that ends at a frequency, in 16 bits."""
    rng = np.random.default_rng(1)
    for _ in range(n):
        spectrum = np.fft.rfft(rng.normal(size=int(fs * seconds)))
        spectrum[np.fft.rfftfreq(int(fs * seconds), 1 / fs) > top] = 0
        sound = np.fft.irfft(spectrum)
        yield np.round(sound / np.abs(sound).max() * 30000) / 32768


def hearing(front_end):
    rng = np.random.default_rng(2)
    sounds = list(songs())
    counts = [rng.poisson(0.3, (1, 4, 200)) for _ in sounds]
    ds = AudioNeuralDataset.from_arrays(sounds, counts, 5.0, audio_fs=16000, check_alignment=False)
    return ds.select(clips=[0, 1, 2]), ds.select(clips=[3, 4]), Linear(8, 3, 1, wav2spec=front_end), sounds


@pytest.mark.parametrize("kind", ["ridge", "fitter"])
def test_bands_without_power_are_named(kind):
    train, val, model, _ = hearing(CausalMelSpectrogram(16000, n_mels=8))
    beyond = model.wav2spec.frequencies_hz > 3300
    fit = {
        "ridge": lambda: fit_ridge(train, val, n_lags=3, wav2spec=model.wav2spec),
        "fitter": lambda: Fitter(model, *make_loaders(train, val), max_epochs=1, progress=False).fit(),
    }[kind]
    with pytest.warns(UserWarning, match=rf"{int(beyond.sum())} of 8 bands .* no power .*f_max=(29|30)\d\d"):
        fit()
    follows = CausalMelSpectrogram(16000, n_mels=8, f_max=3000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_ridge(train, val, n_lags=3, wav2spec=follows)


def test_a_front_end_that_learns_is_measured_after_the_fit():
    train, val, model, _ = hearing(SincNet(16000, n_filters=8, f_max=2800.0))
    before = torch.cat([model.spectrogram(stim[None]).detach() for stim in train.stims], dim=-1).std(-1)
    fitter = Fitter(
        model, *make_loaders(train, val), max_epochs=2, progress=False,
        optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.05),
    )  # fmt: skip
    fitter.fit()
    frames = torch.cat([model.spectrogram(stim[None]).detach() for stim in train.stims], dim=-1)
    torch.testing.assert_close(model.band_std, frames.std(-1, correction=0)[0, 0], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(model.band_std, before[0, 0], rtol=1e-3)


def test_one_band_has_latency_and_duration():
    kernel = np.array([[0.0, 0.0, 0.5, 1.0, 0.2, 0.0]])
    for hertz in ([2500.0], None):
        row = strf_tuning(kernel, hertz, dt_ms=2.0).rows()[0]
        whole = strf_tuning(np.vstack([kernel, 0 * kernel]), [1000.0, 2000.0], dt_ms=2.0).rows()[0]
        for name in ("latency_ms", "duration_ms", "duration_known", "rf_duration_ms", "peak_weight"):
            assert row[name] == whole[name]
        assert np.isnan(row["bandwidth_octaves"])
        assert not row["bandwidth_known"]
        assert np.isnan(row["best_frequency_hz"]) == (hertz is None)
    # a sinusoid in time of 25 Hz
    wave = np.sin(2 * np.pi * 25.0 * 0.002 * np.arange(100))[None]
    assert abs(strf_tuning(wave, None, 2.0)["best_rate_hz"].item() - 25.0) < 1.5
    assert np.isnan(strf_tuning(0 * wave, None, 2.0)["best_rate_hz"].item())
    with pytest.raises(ValueError, match="at least 2 bands"):
        strf_tuning(kernel, [2500.0], 2.0, gabor=True)


def test_stimuli_probes_and_filters_are_per_deviation():
    train, val, stims = recording()
    with pytest.warns(UserWarning, match="never vary"):
        model = fit_ridge(train, val, n_lags=9).model
    deviation = true_deviation(stims)[:, None]
    raw = model.STRF_gradmap(unit="raw")[0, 0].numpy()
    sd = raw * deviation
    best = exciting_spectrogram(model, energy=4.0)
    np.testing.assert_allclose(best.stimulus[0], 2.0 * sd / np.linalg.norm(sd), atol=1e-4)
    np.testing.assert_allclose(best.scale, deviation, rtol=1e-5)
    seen = torch.as_tensor(best.null + best.scale * best.stimulus[0], dtype=torch.float32)
    np.testing.assert_allclose(model(seen[None, None])[0, 0, 0, -1].item(), best.response[0], rtol=1e-4)
    old = exciting_spectrogram(model, energy=4.0, unit="raw")
    np.testing.assert_allclose(old.stimulus[0], 2.0 * raw / np.linalg.norm(raw), atol=1e-4)
    frames = torch.as_tensor(stims[0], dtype=torch.float32)
    plain, scaled = dstrf(model, frames), dstrf(model, frames, unit="sd")
    np.testing.assert_allclose(
        scaled.weights.numpy(), plain.weights.numpy() * deviation[:, 0], rtol=1e-4, atol=1e-7
    )
    torch.testing.assert_close(scaled.intercept, plain.intercept)
    presentation = Presentation(model, dt_ms=5.0, frequencies_hz=HERTZ)
    assert presentation.frequency_range() == (HERTZ[0], HERTZ[-2])
    flat = ripple_responses(presentation, [10.0], [0.0], domain="spectrogram")
    # all bands rise and fall together: the transform of the kernel, summed over bands in units of deviation
    lags = np.arange(9)[::-1] * 0.005
    expected = abs((sd.sum(axis=0) * np.exp(-2j * np.pi * 10.0 * lags)).sum())
    np.testing.assert_allclose(flat.amplitude[0, 0], 0.9 * expected, rtol=0.05)


def test_confidence_bands_are_in_the_unit_of_all_clips():
    train, _, stims = recording(np.r_[np.ones(10), 0.02, 0.02])
    fit = lambda clips: fit_ridge(clips, n_lags=4, lambdas=30.0)  # noqa: E731
    sd, raw = strf_confidence(train, fit), strf_confidence(train, fit, unit="raw")
    deviation = true_deviation(stims)[:, None]
    for name in ("estimate", "standard_error", "low", "high"):
        np.testing.assert_allclose(
            getattr(sd, name)[0], getattr(raw, name)[0] * deviation, rtol=1e-4, atol=1e-7
        )
    np.testing.assert_allclose(sd.estimate, fit(train).model.STRFs().numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("hearing", "given", "top"), [(None, {}, 16e3), ((250.0, 8e3), {}, 8e3),
                                                       ((250.0, 8e3), {"f_max": 12e3}, 12e3),
                                                       ((20.0, 9e4), {}, 16e3)])  # fmt: skip
def test_a_default_bank_ends_where_hearing_does(hearing, given, top):
    rng = np.random.default_rng(0)
    ds = AudioNeuralDataset.from_arrays(
        [rng.normal(size=32000)], [rng.poisson(1, (1, 2, 200))], 5.0, audio_fs=32000,
        hearing_range_hz=hearing, check_alignment=False,
    )  # fmt: skip
    config = ExperimentConfig(dataset="synthetic", wav2spec="mel", wav2spec_options=given)
    assert build_front_end(config, ds).f_max == top
