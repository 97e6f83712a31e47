"""Start of the output at each neuron's own size: fits do not depend on the unit of the responses."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.metrics import poisson_loss
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import (
    ConvNet2D,
    DeepEncoder,
    DNet,
    Linear,
    LinearNonlinear,
    NetworkReceptiveField,
    StateNet,
    Transformer,
)
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.training import Fitter, callbacks, make_loaders

F, N, T = 8, 3, 120
#: Exact in binary numbers: a fit in another unit makes the same roundings.
FACTORS = (2.0**-22, 2.0**9)
MODELS = {
    "linear": lambda: Linear(F, 5, N),
    "linear, no norm": lambda: Linear(F, 5, N, norm="none"),
    "linear, sigmoid": lambda: Linear(F, 5, N, output_activation="sigmoid"),
    "linear, bounded": lambda: Linear(F, 5, N, output_activation=nn.Sigmoid()),
    "linear-nonlinear": lambda: LinearNonlinear(F, 5, N),
    "double exponential": lambda: LinearNonlinear(F, 5, N, output_activation="double_exponential"),
    "nrf": lambda: NetworkReceptiveField(F, 5, 4, N),
    "dnet": lambda: DNet(F, 5, 4, out_neurons=N),
    "convnet2d": lambda: ConvNet2D(F, out_neurons=N),
    "deep encoder": lambda: DeepEncoder(F, out_neurons=N),
    "transformer": lambda: Transformer(F, out_neurons=N, output_activation="softplus"),
    "statenet": lambda: StateNet(F, 3, out_neurons=N, num_layers=2),
}


def recording(factor: float = 1.0, offset: float = 0.0, n_clips: int = 4) -> NeuralDataset:
    rng = np.random.default_rng(0)
    stims = [rng.random((F, T)).astype("f4") for _ in range(n_clips)]
    counts = [rng.poisson((1 + np.arange(N))[:, None, None] * (0.2 + s[2]), (N, 4, T)) for s in stims]
    responses = [((c + offset) * factor).astype("f4") for c in counts]
    responses[0][0, :, :20] = np.nan
    return NeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)


def fitted(build, ds: NeuralDataset, **options) -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    model = build()
    loaders = make_loaders(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), seed=0)
    fitter = Fitter(model, *loaders, max_epochs=3, progress=False, seed=0, **options)
    return model, fitter.fit()


@pytest.mark.parametrize("name", MODELS)
def test_a_factor_on_the_responses_is_a_factor_on_the_predictions(name):
    model, history = fitted(MODELS[name], recording())
    want = torch.cat(model.predict(recording()), dim=1)
    for factor in FACTORS:
        other, scaled = fitted(MODELS[name], recording(factor))
        got = torch.cat(other.predict(recording(factor)), dim=1) / factor
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            [row["val_loss"] / factor**2 for row in scaled], [row["val_loss"] for row in history], rtol=1e-4
        )


def test_the_likelihood_of_counts_is_fitted_alike_in_spikes_per_second():
    build = MODELS["linear-nonlinear"]
    want, _ = fitted(build, recording(), loss_fn=poisson_loss)
    got, _ = fitted(build, recording(2.0**8), loss_fn=poisson_loss)
    for one, other in zip(want.predict(recording()), got.predict(recording(2.0**8)), strict=True):
        torch.testing.assert_close(other / 2.0**8, one, rtol=1e-3, atol=1e-4)


def test_log_rates_start_at_the_logarithm_of_the_mean():
    of_logs = functools.partial(poisson_loss, log_input=True)
    model, _ = fitted(MODELS["linear"], recording(), loss_fn=of_logs)
    mean = np.nanmean(psth_of_training_clips(recording()), axis=1)
    np.testing.assert_allclose(model.output_scale.offset, np.log(mean), rtol=1e-5)


def psth_of_training_clips(ds: NeuralDataset) -> np.ndarray:
    return np.concatenate([ds.response_block(clip).numpy().mean(axis=1) for clip in range(3)], axis=1)


@pytest.mark.parametrize("offset", [0.0, -3.0, 500.0], ids=["spikes", "negative", "far from zero"])
@pytest.mark.parametrize("name", ["linear", "statenet", "linear, sigmoid", "linear, bounded", "convnet2d"])
def test_predictions_start_within_the_range_of_the_responses(name, offset):
    ds = recording(7.0, offset)
    model, _ = fitted(MODELS[name], ds, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-12))
    psth = psth_of_training_clips(ds)
    start = torch.cat(model.predict(ds, clips=[0, 1, 2]), dim=1).numpy()
    mean, deviation = np.nanmean(psth, axis=1), np.nanstd(psth, axis=1)
    assert (np.abs(start.mean(1) - mean) < 2.5 * deviation).all()
    assert (start.std(1) < 4 * deviation).all()


def test_a_linear_output_starts_at_mean_and_half_the_deviation():
    ds = recording()
    model, _ = fitted(MODELS["linear"], ds)
    psth = psth_of_training_clips(ds)
    np.testing.assert_allclose(model.output_scale.offset, np.nanmean(psth, axis=1), rtol=1e-6)
    np.testing.assert_allclose(model.output_scale.scale, 0.5 * np.nanstd(psth, axis=1), rtol=1e-5)


def test_a_non_negative_output_stays_so_for_rates_and_reaches_negative_responses():
    rates, _ = fitted(MODELS["statenet"], recording())
    assert bool((rates.output_scale.offset == 0).all())
    assert float(torch.cat(rates.predict(recording()), dim=1).min()) >= 0
    traces, _ = fitted(MODELS["statenet"], recording(1.0, -3.0))
    lowest = np.nanmin(psth_of_training_clips(recording(1.0, -3.0)), axis=1)
    np.testing.assert_allclose(traces.output_scale.offset, lowest, rtol=1e-6)


def test_silent_and_missing_neurons_get_a_typical_scale():
    ds = recording()
    blocks = [ds.response_block(clip).clone() for clip in range(4)]
    for block in blocks:
        block[0], block[1] = 0.0, torch.nan
    odd = NeuralDataset.from_arrays(list(ds.stims), blocks, dt_ms=5.0, check_alignment=False)
    model, _ = fitted(MODELS["linear"], odd)
    scale = model.output_scale.scale
    assert bool(torch.isfinite(scale).all())
    torch.testing.assert_close(scale[:2], scale[2].repeat(2))


def test_a_second_fit_goes_on_and_a_saved_model_keeps_its_scale(tmp_path):
    ds = recording(300.0)
    model, _ = fitted(MODELS["statenet"], ds)
    scale = model.output_scale.scale.clone()
    model.save_pretrained(tmp_path / "model")
    again = NeuralModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(again.output_scale.scale, scale)
    assert again.output_scale.started
    louder = make_loaders(recording(900.0).select(clips=[0, 1, 2]), ds.select(clips=[3]), seed=0)
    Fitter(again, *louder, max_epochs=1, progress=False, seed=0).fit()
    torch.testing.assert_close(again.output_scale.scale, scale)


def test_a_fitted_core_starts_anew_for_another_population(tmp_path):
    model, _ = fitted(MODELS["statenet"], recording(300.0))
    model.save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="output_scale"):
        other = NeuralModel.from_pretrained(tmp_path / "model", extra_kwargs={"out_neurons": 2}, strict=False)
    assert not other.output_scale.started
    assert other.fitted_on is None or not other.fitted_on.neurons


class TwoDimensional(nn.Module):
    """An activation that takes batches of one size only."""

    def forward(self, x):
        return torch.nn.functional.softplus(x.reshape(x.shape[0], T, N))


def test_an_activation_that_takes_no_grid_gets_a_scale_only():
    model, _ = fitted(lambda: Linear(F, 5, N, output_activation=TwoDimensional()), recording(300.0))
    assert model.output_scale.started
    assert bool((model.output_scale.offset == 0).all())


def test_a_frozen_readout_keeps_its_scale():
    def frozen():
        model = MODELS["statenet"]()
        model.readout.requires_grad_(False)
        return model

    model, _ = fitted(frozen, recording(300.0))
    assert not model.output_scale.started


def test_a_state_of_an_earlier_version_predicts_what_it_did():
    model = MODELS["statenet"]()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("output_scale")}
    other = MODELS["statenet"]()
    other.load_state_dict(state)
    x = torch.rand(1, 1, F, 30)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))
    assert other.output_scale.started, "its weights are in the unit of the responses"


def test_streams_and_strfs_are_in_the_unit_of_the_responses():
    ds = recording(1000.0)
    model, _ = fitted(MODELS["linear"], ds)
    x = ds.stims[0].unsqueeze(0)
    with torch.no_grad():
        whole = model(x)
        state, parts = model.init_state(1), []
        for chunk in x.split(40, dim=-1):
            y, state = model.step(chunk, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        model.STRF_weight(folded=True), model.STRF_gradmap()[:, 0], rtol=1e-3, atol=1e-3 * float(whole.std())
    )


def test_losses_of_the_user_and_plain_modules_are_left_as_they_are():
    def own(pred, responses):
        return ((pred - responses.nanmean(2, keepdim=True)).nan_to_num() ** 2).mean()

    model, _ = fitted(MODELS["linear"], recording(100.0), loss_fn=own)
    assert not model.output_scale.started
    own.unit_degree = 2
    model, _ = fitted(MODELS["linear"], recording(100.0), loss_fn=own)
    assert model.output_scale.started


class OwnForward(Linear):
    """A user's forward, which knows nothing of the scale."""

    def forward(self, x):
        return self.readout(self.core(self.prefiltering(self.spectrogram(x))))


def test_a_forward_of_the_users_own_is_fitted_and_predicts_alike():
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.normal(size=80 * T) for _ in range(4)]
    counts = [rng.poisson(3.0, (N, 4, T)) for _ in range(4)]
    ds = AudioNeuralDataset.from_arrays(sounds, counts, dt_ms=5.0, audio_fs=16000, check_alignment=False)

    def build():
        return OwnForward(F, 5, N, wav2spec=make_wav2spec("mel", 16000, 5.0, n_filters=F))

    model, _ = fitted(build, ds)
    assert not model.output_scale.started
    x = ds.stims[0].unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(model.respond(model.spectrogram(x)), model(x))


@pytest.mark.parametrize("fast", [True, False])
def test_the_plain_loop_starts_alike(fast):
    model, _ = fitted(MODELS["linear"], recording(), fast=fast)
    reference, _ = fitted(MODELS["linear"], recording())
    torch.testing.assert_close(model.output_scale.scale, reference.output_scale.scale)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_psths_of_any_length_are_those_of_all_bins(monkeypatch, pairs, offset):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(callbacks, "VALUES_AT_ONCE", 200)
    heard = [rng.permutation(5)[: 2 + clip % 3] if pairs else np.arange(5) for clip in range(12)]
    psths = [offset + rng.random((len(rows), 1, 7 + 11 * clip)) for clip, rows in enumerate(heard)]
    psths[3][0, 0, 2:9] = np.nan
    psths[4][1] = np.nan
    given = [
        (torch.from_numpy(psth), torch.from_numpy(rows) if pairs else None)
        for psth, rows in zip(psths, heard, strict=True)
    ]
    found = callbacks.psth_moments(iter(given), 5)
    for neuron in range(5):
        own = [psth[rows == neuron].ravel() for psth, rows in zip(psths, heard, strict=True)]
        bins = np.concatenate(own)
        expected = np.nanmean(bins), np.nanstd(bins), np.nanmin(bins), np.nanmax(bins)
        np.testing.assert_allclose([float(values[neuron]) for values in found], expected, rtol=1e-9)
