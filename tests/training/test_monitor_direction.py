"""The direction of the monitored score follows from the score; a contradiction is an error."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepSTRF.crossval import fit_folds
from deepSTRF.datasets import plan_folds
from deepSTRF.metrics import corrcoef, mse_loss, normalized_corrcoef, poisson_loss
from deepSTRF.models.audio import Linear
from deepSTRF.registry import LOSSES, METRICS
from deepSTRF.training import Fitter, auto_config, fit_multi_seed, make_loaders
from deepSTRF.training.objective import monitor_mode


def a_score(pred, responses):
    return 0.0


def stated(better):
    def score(pred, responses):
        return 0.0

    score.higher_is_better = better
    return score


@pytest.mark.parametrize(
    ("key", "metric", "direction"),
    [
        ("loss", None, "min"),
        ("cc_norm", None, "max"),
        ("cc", corrcoef, "max"),
        ("mine", functools.partial(normalized_corrcoef, centring="clip"), "max"),
        ("mine", mse_loss, "min"),
        ("mine", functools.partial(poisson_loss, reduction="none"), "min"),
        ("mine", nn.functional.mse_loss, "min"),
        ("mine", nn.L1Loss(), "min"),
        ("mine", stated(False), "min"),
        ("mse", stated(True), "max"),  # the function says so
        ("cc", mse_loss, "min"),
        ("mse", a_score, "min"),
        ("fve", a_score, "max"),
    ],
)
@pytest.mark.parametrize("part", ["val", "train"])
def test_known_directions(part, key, metric, direction):
    metrics = None if metric is None else {key: metric}
    monitor = f"{part}_{key}"
    assert monitor_mode(monitor, None, metrics) == direction
    assert monitor_mode(monitor, direction, metrics) == direction
    wrong = {"min": "max", "max": "min"}[direction]
    with pytest.raises(ValueError, match=f"mode='{wrong}' contradicts monitor='{monitor}'"):
        monitor_mode(monitor, wrong, metrics)


def test_every_registered_metric_and_loss_has_its_direction():
    for name in METRICS:
        assert monitor_mode(f"val_{name}", None) == ("max" if METRICS.get(name).higher_is_better else "min")
    for name in LOSSES:
        assert monitor_mode("val_x", None, {"x": LOSSES.get(name)}) == "min"


def test_functions_of_unknown_direction():
    assert monitor_mode("val_s", None, {"s": a_score}) == "max"  # as documented
    assert monitor_mode("val_s", "min", {"s": a_score}) == "min"
    for name in ("mae", "my_loss", "Error", "rmse_of_rates", "nll"):
        with pytest.raises(ValueError, match=r"is a smaller .* better, as its name says"):
            monitor_mode(f"val_{name}", None, {name: a_score})
        assert monitor_mode(f"val_{name}", "max", {name: a_score}) == "max"
    for name in ("glossary", "maestro", "terrors"):
        assert monitor_mode(f"val_{name}", None, {name: a_score}) == "max"
    with pytest.raises(ValueError, match="mode must be 'max' or 'min', or None"):
        monitor_mode("val_cc", "largest")


def scripted(values):
    """A metric that returns one number after the other, one per validation pass."""
    left = iter(values)
    return lambda pred, responses: next(left)


@pytest.fixture
def loaders(kit, recording):
    return kit.loaders(recording)


@pytest.mark.parametrize(
    ("name", "mode", "best"), [("mse", None, 2), ("fve", None, 1), ("mine", None, 1), ("mine", "min", 2)]
)
def test_the_best_epoch_is_the_best(kit, loaders, name, mode, best):
    values = [3.0, 4.0, 1.0, 2.0]
    fitter = Fitter(
        kit.linear(), *loaders, max_epochs=4, monitor=f"val_{name}", mode=mode, progress=False,
        val_metrics={name: scripted(values)}, track_train_metrics=False,
    )  # fmt: skip
    fitter.fit()
    assert (fitter.best_epoch, fitter.best_score) == (best, values[best])


@pytest.mark.parametrize("key", ["val_loss", "train_loss"])
def test_losses_end_with_the_lowest(kit, loaders, key):
    fitter = Fitter(kit.linear(), *loaders, max_epochs=5, monitor=key, progress=False)
    history = fitter.fit()
    assert fitter.mode == "min"
    assert fitter.best_epoch == int(np.argmin([record[key] for record in history]))
    with pytest.raises(ValueError, match="contradicts"):
        Fitter(kit.linear(), *loaders, monitor=key, mode="max")


def test_schedules_follow(kit, loaders):
    def plateau(optimizer):
        return ReduceLROnPlateau(optimizer, patience=0)  # mode "min"

    Fitter(kit.linear(), *loaders, monitor="val_loss", scheduler=plateau)
    with pytest.raises(ValueError, match="ReduceLROnPlateau has mode='min', the fit has mode='max'"):
        Fitter(kit.linear(), *loaders, scheduler=plateau)
    config = auto_config(kit.linear(), fitter_kwargs={"monitor": "val_loss", "scheduler": plateau})
    assert "ReduceLROnPlateau" in str(config)


def test_the_best_seed_has_the_lowest_loss(kit, recording):
    views = recording.select(clips=range(4)), recording.select(clips=[4]), recording.select(clips=[5])
    result = fit_multi_seed(
        lambda seed: Linear(recording.F, 3, 4), lambda seed: make_loaders(*views, seed=seed), n_seeds=3,
        fitter_kwargs={"max_epochs": 2, "monitor": "val_loss"},
    )  # fmt: skip
    losses = result["per_seed_val_loss"].flatten()
    assert result["seeds"].index(result["best_seed"]) == int(torch.argmin(losses))


def test_folds_follow(recording, tmp_path):
    fits = fit_folds(
        lambda seed: Linear(recording.F, 3, 4), recording, plan_folds(recording, crossval=True), tmp_path,
        n_validation=2, only=["model-000"], progress=False,
        fitter_kwargs={"max_epochs": 3, "monitor": "val_loss", "scheduler": lambda o: ReduceLROnPlateau(o)},
    )  # fmt: skip
    assert fits.has("model-000")
