"""The arguments of `Fitter` for named choices: those of the experiments, for one fit and for series."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import torch

from deepSTRF.crossval import fit_folds
from deepSTRF.datasets import plan_folds
from deepSTRF.experiments import ExperimentConfig
from deepSTRF.metrics import poisson_loss
from deepSTRF.models.audio import GatedNet
from deepSTRF.registry import MODELS
from deepSTRF.training import (
    BandShift,
    Callback,
    Fitter,
    WeightAveraging,
    auto_config,
    fit_multi_seed,
    fit_settings,
    make_loaders,
)
from deepSTRF.training.optimization import SCHEDULES  # inner: one list of names
from deepSTRF.training.settings import FitCallbacks  # inner: which choices a state belongs to

CHOICES = {
    "learning_rate": 0.02, "weight_decay": 0.1, "epochs": 4, "schedule": "wsd", "grad_clip": 1.0,
    "weight_average": 0.9, "band_shift": 1,
}  # fmt: skip


def test_the_defaults_are_those_of_an_experiment():
    arguments = inspect.signature(fit_settings).parameters
    config = ExperimentConfig()
    shared = {item.name for item in fields(config)} & set(arguments)
    assert set(arguments) - shared == {"callbacks"}
    assert all(getattr(config, name) == arguments[name].default for name in shared)
    from deepSTRF.experiments.config import SCHEDULES as NAMES

    assert NAMES == SCHEDULES


def test_the_defaults_are_a_fit_written_out(kit, recording):
    def fit(**settings):
        loaders = kit.loaders(recording, generator=torch.Generator().manual_seed(2))
        fitter = Fitter(kit.linear(), *loaders, seed=0, **settings)
        fitter.fit()
        return fitter.model.state_dict()

    by_hand = fit(
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0),
        max_epochs=3, patience=30,
    )  # fmt: skip
    named = fit(**fit_settings(learning_rate=0.01, epochs=3))
    assert all(torch.equal(by_hand[name], named[name]) for name in by_hand)


def test_each_choice_becomes_its_argument():
    settings = fit_settings(loss="poisson", **CHOICES)
    assert set(settings) == {
        "loss_fn", "optimizer", "scheduler", "grad_clip", "max_epochs", "patience", "callbacks",
    }  # fmt: skip
    assert settings["loss_fn"] is poisson_loss
    (group,) = settings["optimizer"](torch.nn.Linear(2, 2)).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.1)
    average, shift = settings["callbacks"](0)
    assert isinstance(average, WeightAveraging)
    assert isinstance(shift, BandShift)
    assert (average.decay, shift.max_bands) == (0.9, 1)
    assert settings["callbacks"](0)[0] is not average, "each fit has its own"
    assert fit_settings(loss=torch.nn.functional.mse_loss)["loss_fn"] is torch.nn.functional.mse_loss


@pytest.mark.parametrize(
    ("choices", "patience"),
    [
        ({}, 30),
        ({"patience": 4}, 4),
        ({"schedule": "wsd", "epochs": 60}, 60),
        ({"schedule": "cosine", "epochs": 40}, 40),
        ({"schedule": "cosine", "epochs": 40, "patience": 7}, 7),
    ],
)
def test_a_rate_that_decays_is_not_stopped_by_patience_unless_asked(choices, patience):
    assert fit_settings(**choices)["patience"] == patience


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"schedule": "onecycle"}, "schedule"),
        ({"epochs": 0}, "epochs"),
        ({"patience": 0}, "patience"),
        ({"weight_average": 1.0}, "decay"),
        ({"band_shift": -1}, "max_bands"),
        ({"loss": "poison"}, "poisson"),
        ({"callbacks": [Callback()]}, "function of the seed"),
    ],
)
def test_an_illegal_choice_is_an_error_at_once(wrong, text):
    with pytest.raises((ValueError, TypeError), match=text):
        fit_settings(**wrong)


class Own(Callback):
    made: list[int] = []

    def __init__(self, seed):
        self.made.append(seed)


def test_the_same_dictionary_suits_one_fit_several_seeds_and_folds(kit, recording, tmp_path):
    Own.made.clear()
    settings = fit_settings(**CHOICES, callbacks=lambda seed: [Own(seed)])
    fitter = Fitter(kit.linear(), *kit.loaders(recording), seed=7, **settings)
    assert len(fitter.fit()) == 4
    assert [type(one) for one in fitter.callbacks if isinstance(one, Own | WeightAveraging | BandShift)] == [
        WeightAveraging, BandShift, Own,
    ]  # fmt: skip
    views = [recording.select(clips=clips) for clips in ([0, 1, 2], [3], [4])]
    result = fit_multi_seed(
        lambda seed: kit.linear(), lambda seed: make_loaders(*views, seed=seed), seeds=[3, 8],
        fitter_kwargs=settings,
    )  # fmt: skip
    assert [len(history) for history in result["per_seed_histories"]] == [4, 4]
    config = auto_config(kit.linear(), settings)
    assert config["scheduler"]["epochs"] == 4
    assert config["grad_clip"] == 1.0
    assert Own.made == [7, 3, 8]

    plan = plan_folds(recording, crossval=True)

    def folds(**choices):
        arguments = fit_settings(**{**CHOICES, **choices})
        callbacks, _ = arguments.pop("callbacks"), arguments.pop("patience")  # without validation clips
        return fit_folds(
            lambda seed: kit.linear(), recording, plan, tmp_path / "folds", callbacks=callbacks,
            fitter_kwargs=arguments, only=["model-001"],
        )  # fmt: skip

    folds()
    folds()  # reads
    for other in ({"weight_average": 0.8}, {"schedule": "cosine"}, {"band_shift": 0}):
        with pytest.raises(ValueError, match=r"there, .* now"):
            folds(**other)


def test_callbacks_say_which_fit_they_belong_to():
    assert FitCallbacks(0.9, 2, True, None).describe() == "WeightAveraging(decay=0.9), BandShift(max_bands=2)"
    assert FitCallbacks(0.0, 0, False, None).describe() == ""


def test_standardised_bands_are_asked_of_the_model(kit, recording):
    settings = fit_settings(standardize=True, epochs=1)
    with pytest.raises(ValueError, match=r"build it with Linear\(\.\.\., standardize=True\)"):
        Fitter(kit.linear(), *kit.loaders(recording), **settings).fit()
    fitter = Fitter(kit.linear(standardize=True), *kit.loaders(recording), **settings)
    assert len(fitter.fit()) == 1
    assert fitter.model.standardizer.fitted


def test_the_best_model_is_fitted_as_its_page_says(kit, recording):
    model = GatedNet(kit.BANDS, kit.NEURONS, standardize=True, kernel_size=3, core_size=4)
    settings = fit_settings(**{**GatedNet.recommended, "epochs": 2})
    assert len(Fitter(model, *kit.loaders(recording), seed=0, **settings).fit()) == 2


def test_recommendations_of_every_model_are_taken_whole() -> None:
    advised = {name: entry.recommended for name, entry in MODELS.items() if entry.recommended}
    assert "gatednet" in advised
    for name, choices in advised.items():
        assert ExperimentConfig.recommended(name).model == name
        assert fit_settings(**choices)["max_epochs"] == choices["epochs"]
