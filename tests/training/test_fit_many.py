"""Many fits together give what separate fits give: histories, best epochs, weights, and who failed.

Compared in double precision, where only the order of sums differs. (In single precision the bias in front of
a batch normalisation follows rounding noise, in separate fits as well.)
"""

from __future__ import annotations

import importlib
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.metrics import corrcoef, poisson_loss
from deepSTRF.models.audio import DNet, Linear, StateNet
from deepSTRF.training import (
    Callback,
    FitDivergedError,
    Fitter,
    fit_many,
    fit_multi_seed,
    fit_settings,
    make_loaders,
    seeded,
    stacking,  # inner: what a trial call moves
)

BANDS, NEURONS, LENGTHS = 6, 6, (60, 45, 52, 60, 38, 41, 47, 70)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}
#: What follows the bias in front of a batch normalisation: predictions by an offset, and their losses.
LOOSE = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
SETTINGS = {
    "max_epochs": 6, "patience": 2, "monitor": "val_cc",
    "optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02),
}  # fmt: skip


def recording(missing: bool) -> AudioNeuralDataset:
    """Ragged clips; with ``missing`` each neuron has heard others of them, with other repeats."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(NEURONS, BANDS, 3, generator=generator)
    stims, responses = [], []
    for clip, length in enumerate(LENGTHS):
        stim = torch.rand(BANDS, length, generator=generator)
        drive = nn.functional.conv1d(nn.functional.pad(stim[None], (2, 0)), weight)[0].clamp(min=0.05)
        counts = torch.poisson(drive.unsqueeze(1).expand(-1, 5, -1).contiguous(), generator=generator)
        rows = []
        for neuron in range(NEURONS):
            if missing and clip < 6 and (clip + neuron) % 3 == 0:
                rows.append(torch.full((1, 1), torch.nan))
                continue
            own = counts[neuron]
            if missing and neuron % 2:
                own = own[:3].clone()
                own[1, 10:20] = torch.nan
            rows.append(own)
        stims.append(stim)
        responses.append(rows)
    return AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0)


@pytest.fixture(scope="module", params=[False, True], ids=["complete", "missing"])
def views(request):
    ds = recording(request.param)
    return ds.select(clips=range(6)), ds.select(clips=[6, 7])


@pytest.fixture(scope="module")
def complete():
    ds = recording(False)
    return ds.select(clips=range(6)), ds.select(clips=[6, 7])


def linear(seed, neurons=1, **options):
    return Linear(BANDS, 3, neurons, **options).double()


def alone(factory, views, per, index, seed, batch_size, arguments):
    """The separate fit that the documentation names."""
    if per == "neuron":
        views = [view.select(neurons=[index]) for view in views]
    with seeded(seed):
        model = factory(seed)
        loaders = make_loaders(*views, batch_size=batch_size, seed=seed)
        fitter = Fitter(model, *loaders, progress=False, **arguments)
        fitter.fit()
    return fitter, views[1]


def compare(factory, views, *, per="neuron", seeds=3, batch_size=1, chunk_size=None, **arguments):
    """Fit both ways and compare everything."""
    arguments = {**SETTINGS, **arguments}
    fits = fit_many(
        factory, *views, per=per, seeds=seeds, batch_size=batch_size, chunk_size=chunk_size,
        fitter_kwargs=arguments,
    )  # fmt: skip
    for index, seed in enumerate(fits.seeds):
        fitter, val = alone(factory, views, per, index, seed, batch_size, arguments)
        assert int(fits.best_epochs[index]) == fitter.best_epoch
        assert float(fits.best_scores[index]) == pytest.approx(fitter.best_score, rel=1e-6)
        assert len(fits.histories[index]) == len(fitter.history)
        for ours, own in zip(fits.histories[index], fitter.history, strict=True):
            assert ours.keys() == own.keys()
            for key, value in own.items():
                tolerance = LOOSE if "loss" in key else TOLERANCE
                torch.testing.assert_close(ours[key], value, **tolerance, msg=key)
        for key, value in fitter.history[fitter.best_epoch].items():
            if key != "epoch":
                kept = fits.scores[key][index]
                torch.testing.assert_close(kept, torch.as_tensor(value, dtype=torch.float64), **LOOSE)
        model = fits.models[index]
        assert model.fitted_on == fitter.model.fitted_on
        assert not model.training
        torch.testing.assert_close(model.band_std, fitter.model.band_std)
        for key, value in fitter.model.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, **LOOSE, msg=key)
        for ours, own in zip(model.predict(val), fitter.model.predict(val), strict=True):
            torch.testing.assert_close(ours, own, **LOOSE)
    together = fits.predict(views[1])
    for clip, made in enumerate(together):
        every = torch.stack([model.predict(val, clips=[clip])[0] for model, val in pairs_of(fits, views[1])])
        torch.testing.assert_close(made, every[:, 0] if per == "neuron" else every, **LOOSE)
    return fits


def pairs_of(fits, view):
    """Each model with its neurons in a view."""
    for index, model in enumerate(fits.models):
        yield model, view.select(neurons=[index]) if fits.per == "neuron" else view


def test_one_model_per_neuron(views):
    fits = compare(linear, views)
    assert fits.stacked
    assert len(fits) == NEURONS
    assert fits.scores["val_cc"].shape == (NEURONS, 1)


def test_each_neuron_with_a_seed_of_its_own_in_chunks(views):
    compare(linear, views, seeds=range(NEURONS), chunk_size=4)


def test_the_memory_of_a_step_bounds_how_many_are_stacked(complete, monkeypatch):
    module = importlib.import_module("deepSTRF.training.fit_many")
    sizes = []
    start = module._StackedFit.start
    monkeypatch.setattr(
        module._StackedFit, "start", lambda self: (sizes.append(len(self.chunk)), start(self))[1]
    )
    # a step of a Linear keeps at least its stimulus and its output, both in double precision
    monkeypatch.setattr(module, "STEP_BYTES", 3 * max(LENGTHS[:6]) * (BANDS + 1) * 8)
    whole = compare(linear, complete)
    assert sum(sizes) == len(whole) == NEURONS
    assert max(sizes) <= 3


def test_a_model_in_the_place_of_a_factory_is_named(complete):
    for wrong in (linear(0), "linear", None):
        with pytest.raises(TypeError, match=r"model_factory is called with a seed .*lambda seed"):
            fit_many(wrong, *complete)


def test_a_seed_of_numpy_is_a_seed(complete):
    options = {"fitter_kwargs": {"max_epochs": 2}}
    ours, same = (fit_many(linear, *complete, seeds=seed, **options) for seed in (np.int64(3), 3))
    assert ours.seeds == [3] * NEURONS
    assert torch.equal(ours.best_scores, same.best_scores)


def test_batches_warm_up_standardised_bands_and_a_limit_of_the_gradient(views):
    compare(
        lambda seed: linear(seed, norm="none", standardize=True), views, batch_size=2, grad_clip=0.05,
        warmup_ms=20.0,
    )  # fmt: skip


def test_poisson_and_a_rate_that_falls_when_a_neuron_waits(complete):
    fits = compare(
        lambda seed: linear(seed, output_activation="softplus", norm="none"), complete,
        loss_fn=poisson_loss, monitor="val_loss", max_epochs=12,
        scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, "min", 0.3, patience=0),
    )  # fmt: skip
    assert len({len(history) for history in fits.histories}) > 1  # they stop apart


def test_named_settings(complete):
    settings = fit_settings(epochs=8, schedule="wsd", learning_rate=0.02, grad_clip=1.0)
    compare(linear, complete, track_train_metrics=False, **settings)


def test_one_model_per_seed(views):
    fits = compare(lambda seed: linear(seed, NEURONS), views, per="seed", seeds=[0, 4, 9])
    assert fits.scores["val_cc_norm"].shape == (3, NEURONS)


def test_a_deeper_model_with_frozen_parts(complete):
    def factory(seed):
        model = DNet(BANDS, 3, n_hidden=3, out_neurons=1).double()
        next(model.core.parameters()).requires_grad_(False)
        return model

    compare(factory, complete, max_epochs=3)


def test_best_epochs_and_correlations_in_single_precision(complete):
    arguments = {**SETTINGS, "optimizer": None}
    fits = fit_many(lambda seed: Linear(BANDS, 3, 1), *complete, fitter_kwargs=arguments)
    for index in range(NEURONS):
        fitter, _ = alone(lambda seed: Linear(BANDS, 3, 1), complete, "neuron", index, 0, 1, arguments)
        assert int(fits.best_epochs[index]) == fitter.best_epoch
        best = fitter.history[fitter.best_epoch]
        for key in ("train_cc", "train_cc_norm", "val_cc", "val_cc_norm"):
            torch.testing.assert_close(fits.scores[key][index], best[key], rtol=0, atol=1e-5, equal_nan=True)


def test_models_are_made_anew_and_do_not_share_their_weights(complete):
    fits = fit_many(linear, *complete, fitter_kwargs={**SETTINGS, "max_epochs": 1})
    first, again, *rest = fits.models[0], fits.models[0], *fits.models[-2:]
    with torch.no_grad():
        first.readout.strf.kernel.weight.zero_()
    assert bool(again.readout.strf.kernel.weight.any())
    assert len(rest) == 2
    with pytest.raises(IndexError):
        fits.models[NEURONS]


def test_a_neuron_without_score_fails_alone():
    ds = recording(False)
    silent = [ds.response_block(clip).clone() for clip in range(len(ds))]
    for block in silent:
        block[1] = 0.0
    ds = AudioNeuralDataset.from_arrays(list(ds.stims), silent, dt_ms=5.0)
    views = ds.select(clips=range(6)), ds.select(clips=[6, 7])
    with pytest.warns(RuntimeWarning, match=r"1 of 6 fits have no result \(see \.failed\); neuron001"):
        fits = fit_many(linear, *views, fitter_kwargs=SETTINGS)
    assert list(fits.failed) == [1]
    assert (int(fits.best_epochs[1]), fits.histories[1]) == (-1, [])
    with pytest.raises(FitDivergedError):
        alone(linear, views, "neuron", 1, 0, 1, SETTINGS)
    fitter, _ = alone(linear, views, "neuron", 2, 0, 1, SETTINGS)
    assert int(fits.best_epochs[2]) == fitter.best_epoch
    assert bool(fits.scores["val_cc"][1].isnan())


def test_a_neuron_without_training_clips_fails_alone():
    ds = recording(False)
    rows = [[*ds.response_block(clip)] for clip in range(len(ds))]
    for clip in range(6):
        rows[clip][0] = torch.full((1, 1), torch.nan)
    ds = AudioNeuralDataset.from_arrays(list(ds.stims), rows, dt_ms=5.0)
    views = ds.select(clips=range(6)), ds.select(clips=[6, 7])
    with pytest.warns(RuntimeWarning, match="no training clip has data"):
        fits = fit_many(linear, *views, fitter_kwargs=SETTINGS)
    assert list(fits.failed) == [0]
    assert fits.models[0].O == 1


class _Watch(Callback):
    pass


class _Counting(Linear):
    """A model that keeps a state of its own, which no stack can hold."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * (1 + 0.1 * float(self.readout.strf.kernel.weight.detach().sum()))


class _Drawing(Linear):
    """A model that leaves out a part of the sound at times, by random numbers of Python."""

    def forward(self, x):
        return super().forward(x * (random.random() < 0.999) if self.training else x)


class _Annealed(Linear):
    """A model that follows the number of its steps, kept in a plain attribute."""

    steps = 0

    def forward(self, x):
        self.steps += self.training
        return super().forward((x * (1 + self.steps)).tanh() if self.training else x)


class _Scaled(Linear):
    """A model with a parameter that is one number, used twice."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.size = self.again = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return super().forward((x * self.size).tanh()) * self.again


def test_a_parameter_of_one_number(complete):
    compare(lambda seed: _Scaled(BANDS, 3, 1, norm="none").double(), complete, max_epochs=3)


@pytest.mark.parametrize("per", ["neuron", "seed"])
def test_random_numbers_of_the_caller_stay(complete, per):
    n = 1 if per == "neuron" else NEURONS
    found = []
    for fitted in (False, True):
        with seeded(9):
            if fitted:
                fit_many(lambda seed: linear(seed, n), *complete, per=per, fitter_kwargs=SETTINGS)
            found.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
    assert found[0] == found[1]


def test_random_numbers_of_other_threads_are_not_the_models_doing(complete, monkeypatch):
    drawn = iter(range(5))  # of a thread that draws in the first two calls
    monkeypatch.setattr(stacking, "_counts", lambda model: next(drawn, 5))
    few = [view.select(neurons=[0, 3]) for view in complete]
    assert fit_many(linear, *few, seeds=5, fitter_kwargs={"max_epochs": 1}).stacked


@pytest.mark.parametrize(
    ("factory", "arguments", "text"),
    [
        (lambda seed: _Drawing(BANDS, 3), {}, "draws random numbers"),
        (lambda seed: _Annealed(BANDS, 3), {}, "counts its calls"),
        (lambda seed: StateNet(BANDS, kernel_size=3, rnn_type="GRU"), {}, "holds a GRU"),
        (lambda seed: nn.Sequential(Linear(BANDS, 3), nn.Dropout(0.5)), {}, "has dropout"),
        (lambda seed: _Counting(BANDS, 3), {}, "torch.func cannot run _Counting"),
        (linear, {"optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.01)}, "its optimizer is SGD"),
        (linear, {"val_metrics": {"cc": corrcoef}}, "val_metrics"),
        (linear, {"callbacks": lambda seed: [_Watch()]}, "callbacks watch one fit"),
    ],
)
def test_what_cannot_be_stacked_is_fitted_one_after_another(complete, factory, arguments, text):
    arguments = {**SETTINGS, "max_epochs": 2, **arguments}
    few = [view.select(neurons=[0, 3]) for view in complete]
    with pytest.warns(UserWarning, match=f"{text}.*: the 2 models are fitted one after another"):
        fits = fit_many(factory, *few, seeds=5, fitter_kwargs=arguments)
    assert not fits.stacked
    for index in range(2):
        fitter, _ = alone(factory, few, "neuron", index, 5, 1, arguments)
        torch.testing.assert_close(fits.histories[index], fitter.history, rtol=0, atol=0, equal_nan=True)
        own, ours = fitter.model.state_dict(), fits.models[index].state_dict()
        assert all(torch.equal(ours[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"per": "clip"}, ValueError, "per must be one of"),
        ({"seeds": [1, 2]}, ValueError, "one for each of the 6 neurons"),
        ({"seeds": [1, 1], "per": "seed"}, ValueError, "all differ"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"per": "seed"}, ValueError, "out_neurons=6"),
        ({"fitter_kwargs": {"state_path": "x"}}, ValueError, "state_path is managed by fit_many"),
        ({"fitter_kwargs": {"monitor": "val_fve"}}, KeyError, "val_cc_norm"),
        ({"fitter_kwargs": {"loss_fn": poisson_loss}}, ValueError, "never negative"),
    ],
)
def test_mistakes_are_named(complete, options, error, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=text):
            fit_many(linear, *complete, **options)


def test_several_seeds_together_give_what_they_give_apart(complete, tmp_path):
    train, val = complete
    logged, tables = [], []
    for together in (False, True):
        log: list[tuple[int, int]] = []
        tables.append(
            fit_multi_seed(
                lambda seed: linear(seed, NEURONS, norm="none"),
                lambda seed: make_loaders(train, val, val, batch_size=2, seed=seed),
                seeds=[3, 1, 8], fitter_kwargs=SETTINGS, together=together,
                logger_factory=lambda seed, log=log: lambda record: log.append((seed, record["epoch"])),
                output_dir=tmp_path / str(together),
            )
        )  # fmt: skip
        logged.append(log)
    apart, at_once = tables
    assert apart.keys() == at_once.keys()
    assert logged[0] == logged[1]
    assert apart["best_seed"] == at_once["best_seed"]
    for key in apart:
        if key.startswith(("per_seed_val", "per_seed_test", "mean", "std", "best_state")):
            torch.testing.assert_close(at_once[key], apart[key], rtol=1e-6, atol=1e-6, equal_nan=True)
    names = [
        sorted(p.relative_to(tmp_path / f) for p in (tmp_path / f).rglob("*")) for f in ("False", "True")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("loaders", "text"),
    [
        (lambda views, seed: make_loaders(*views, views[1], seed=0), "does not draw from its seed"),
        (lambda views, seed: make_loaders(*views, views[1], seed=seed, bucket_by_length=True), "sampler or"),
        (
            lambda views, seed: make_loaders(
                *(view.select(clips=range(len(view))) for view in views), views[1], seed=seed
            ),
            "different data sets",
        ),
    ],
)
def test_seeds_whose_loaders_cannot_be_shared_are_fitted_apart(complete, loaders, text):
    with pytest.warns(UserWarning, match=f"{text}.*; the 2 seeds are fitted one after another"):
        result = fit_multi_seed(
            lambda seed: linear(seed, NEURONS), lambda seed: loaders(complete, seed), n_seeds=2,
            fitter_kwargs={**SETTINGS, "max_epochs": 1}, together=True,
        )  # fmt: skip
    assert len(result["per_seed_histories"]) == 2
