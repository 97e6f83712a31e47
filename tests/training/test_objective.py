"""A model with a loss of its own is trained on it by every kind of fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepSTRF.crossval import fit_folds
from deepSTRF.datasets import plan_folds
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.metrics import mse_loss, poisson_loss
from deepSTRF.models import NeuralModel
from deepSTRF.registry import MODELS
from deepSTRF.training import Fitter, ProtocolCard, fit_multi_seed, make_loaders

NAME = "squared error of two gains"


class TwoGains(NeuralModel):
    """Predicts the mean of two outputs per neuron; its loss compares each with the responses."""

    def __init__(self, n_frequency_bands=6, temporal_window_size=1, out_neurons=4):
        super().__init__(out_neurons)
        self.readout = nn.Conv2d(1, 2 * out_neurons, (n_frequency_bands, 1))
        self.losses = 0

    @property
    def own_loss(self):
        return NAME

    def forward_params(self, x):
        return self.readout(x).unflatten(1, (self.O, 2)).squeeze(3)  # (B, N, 2, T)

    def expected_counts(self, params):
        return params.mean(2, keepdim=True)

    def forward(self, x):
        return self.expected_counts(self.forward_params(x))

    def loss(self, params, responses, *, reduction="mean"):
        assert params.shape[2] == 2
        assert params.shape[3] == responses.shape[3]
        self.losses += 1
        return 7.0 + (params - responses.nanmean(2, keepdim=True)).square().nanmean((0, 2, 3))


def test_a_plain_fitter_trains_it_on_its_own_loss(kit, recording):
    model = TwoGains()
    train, val = kit.loaders(recording)
    fitter = Fitter(model, train, val, max_epochs=3, warmup_ms=10.0)
    history = fitter.fit()
    assert model.losses == 3 * (4 + 2)
    assert 7.0 < history[-1]["train_loss"] < history[0]["train_loss"]
    assert 7.0 < history[-1]["val_loss"] == pytest.approx(fitter.evaluate(val)["loss"], rel=0.5)
    assert fitter.loss_fn == model.loss
    card = ProtocolCard.collect(recording, model=model, training=fitter)
    assert card.training["loss"] == NAME


def test_another_loss_needs_the_explicit_argument(kit, recording):
    for loss in (poisson_loss, mse_loss):
        with pytest.raises(ValueError, match=r"TwoGains is trained on its own loss .*objective='loss_fn'"):
            Fitter(TwoGains(), *kit.loaders(recording), loss_fn=loss)
    model = TwoGains()
    history = Fitter(
        model, *kit.loaders(recording), loss_fn=mse_loss, objective="loss_fn", max_epochs=1
    ).fit()
    assert model.losses == 0
    assert history[0]["val_loss"] < 7
    assert Fitter(model, *kit.loaders(recording), objective="loss_fn").loss_fn is mse_loss
    with pytest.raises(ValueError, match="objective must be 'auto' or 'loss_fn'"):
        Fitter(model, *kit.loaders(recording), objective="mine")


def test_a_model_without_one_is_trained_on_the_loss_asked_for(kit, recording):
    model = kit.linear()
    assert model.own_loss is None
    assert Fitter(model, *kit.loaders(recording)).loss_fn is mse_loss
    positive = kit.linear(output_activation="softplus")
    assert Fitter(positive, *kit.loaders(recording), loss_fn=poisson_loss).loss_fn is poisson_loss
    x = torch.rand(1, 1, kit.BANDS, 9)
    assert torch.equal(model.expected_counts(model.forward_params(x)), model(x))
    with pytest.raises(NotImplementedError, match="no loss of its own"):
        model.loss(x, x)


def test_a_subclass_with_its_own_prediction_is_asked_for_its_own_loss(kit, recording):
    class Predicts(Fitter):
        def predict_batch(self, batch):
            return self.model(batch.inputs)

    with pytest.raises(ValueError, match="overrides predict_batch overrides compute_loss too"):
        Predicts(TwoGains(), *kit.loaders(recording)).fit()


def test_in_a_fit_of_several_seeds(recording):
    views = [recording.select(clips=clips) for clips in ([0, 1], [2], [3])]
    factories = (lambda seed: TwoGains(), lambda seed: make_loaders(*views, seed=seed))
    result = fit_multi_seed(*factories, 2, fitter_kwargs={"max_epochs": 1})
    assert bool((result["per_seed_test_loss"] > 7).all())
    with pytest.raises(ValueError, match="objective='loss_fn'"):
        fit_multi_seed(*factories, 2, fitter_kwargs={"max_epochs": 1, "loss_fn": mse_loss})
    result = fit_multi_seed(*factories, 2, fitter_kwargs={"max_epochs": 1, "objective": "loss_fn"})
    assert bool((result["per_seed_test_loss"] < 7).all())


def test_in_fits_over_folds(recording, tmp_path):
    import json

    plan = plan_folds(recording, crossval=True, n_folds=2)
    options = {"n_validation": 1, "fitter_kwargs": {"max_epochs": 1}}
    fits = fit_folds(lambda seed: TwoGains(), recording, plan, tmp_path / "own", **options)
    for fold in fits.manifest.folds:
        facts = json.loads((tmp_path / "own" / fold.name / "metadata.json").read_text())
        assert facts["history"][0]["val_loss"] > 7
    assert FoldsLoss.of(tmp_path / "own") == "TwoGains.loss"
    options["fitter_kwargs"] = {"max_epochs": 1, "loss_fn": mse_loss}
    with pytest.raises(ValueError, match="objective='loss_fn'"):
        fit_folds(lambda seed: TwoGains(), recording, plan, tmp_path / "other", **options)


class FoldsLoss:
    """The loss that a folder of folds was fitted with."""

    @staticmethod
    def of(folder):
        import json

        return json.loads((folder / "folds.json").read_text())["facts"]["fit"]["loss"]


def test_in_an_experiment(tmp_path, monkeypatch):
    MODELS.register("two-gains")(TwoGains)
    config = ExperimentConfig(
        model="two-gains", dataset_options={"n_neurons": 3, "n_clips": 5, "n_repeats": 4}, epochs=2
    )
    try:
        run = run_experiment(config, tmp_path / "run", progress=False)
        with pytest.raises(ValueError, match="objective='loss_fn'"):
            run_experiment(config.with_changes(loss="poisson"), tmp_path / "other", progress=False)
    finally:
        MODELS._entries.pop("two-gains", None)
    assert run.histories[0][0]["val_loss"] > 7
    assert dict(run.protocol)["Fit: loss"] == NAME
