"""A run fitted anew on training and validation clips: against the two fits made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.experiments.build import build_model, load_dataset  # inner: the same model is built by hand
from deepSTRF.models.audio import Linear
from deepSTRF.training import Callback, Fitter, fit_settings, make_loaders, score_model

OPTIONS = {"n_neurons": 3, "n_clips": 6, "n_repeats": 5}


def config(**changes: object) -> ExperimentConfig:
    choices = {"dataset_options": OPTIONS, "split": "3/2/1", "epochs": 6, "patience": 2, "calibrate": False}
    return ExperimentConfig(**{**choices, "learning_rate": 0.02, "refit": True, **changes})


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_second_fit_by_hand(tmp_path: Path, schedule: str) -> None:
    chosen = config(schedule=schedule)
    run = run_experiment(chosen, tmp_path / "run", progress=False)
    ds = load_dataset(chosen)
    first = run_experiment(config(schedule=schedule, refit=False), tmp_path / "first", progress=False)
    epochs = chosen.epochs if schedule != "constant" else first.best_epochs[0] + 1
    torch.manual_seed(0)
    model = build_model(chosen, ds)
    assert isinstance(model, Linear)
    loaders = make_loaders(ds.select(clips=[0, 1, 2, 3, 4]), ds.select(clips=[0]), seed=0)
    settings = fit_settings(learning_rate=0.02, epochs=epochs, patience=epochs, schedule=schedule)
    fitter = Fitter(model, *loaders, seed=0, progress=False, monitor="train_loss", mode="min", **settings)
    fitter.fit()
    expected = score_model(model, ds.select(clips=[5])).columns["cc_norm"]
    if fitter.best_epoch == epochs - 1:  # by hand the best epoch is kept, and it is the last
        assert run.scores.values["test"]["cc_norm"][0] == pytest.approx(expected, abs=1e-6)
    # what validated is the first fit, which had not heard the validation clips
    for key, values in first.scores.values["validation"].items():
        assert run.scores.values["validation"][key] == pytest.approx(values, abs=1e-6, nan_ok=True), key
    assert run.histories == first.histories
    assert run.load_model().fitted_on.validation_sounds == ()  # all of them trained it
    assert len(run.load_model().fitted_on.sounds) == 5
    assert dict(run.protocol)["Fit: refit"].startswith("on training and validation clips")


def test_a_refit_has_its_own_folder_and_is_resumed(tmp_path: Path) -> None:
    assert config().default_folder() != config(refit=False).default_folder()
    assert "--refit" in config().command()
    run = run_experiment(config(), tmp_path / "run", progress=False)
    again = run_experiment(config(), tmp_path / "run", progress=False)
    assert (run.scores.values["test"]["cc"] == again.scores.values["test"]["cc"]).all()
    assert not (tmp_path / "run" / "state").exists()


def test_an_interrupted_refit_goes_on(tmp_path: Path) -> None:
    class Stop(Callback):
        def __init__(self, last: int) -> None:
            self.left = last

        def on_epoch_end(self, fitter: Any, epoch: int, record: dict[str, Any]) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    chosen = config(schedule="cosine")
    whole = run_experiment(chosen, tmp_path / "whole", progress=False, callbacks=lambda seed: [Stop(-1)])
    stops = iter([Stop(-1), Stop(2)])  # in the second epoch of the second fit
    with pytest.raises(KeyboardInterrupt):
        run_experiment(chosen, tmp_path / "run", progress=False, callbacks=lambda seed: [next(stops)])
    assert sorted(path.name for path in (tmp_path / "run" / "state").glob("*.pt")) == [
        "seed0-refit.pt",
        "seed0.pt",
    ]
    run = run_experiment(chosen, tmp_path / "run", progress=False, callbacks=lambda seed: [Stop(-1)])
    assert (run.scores.values["test"]["cc"] == whole.scores.values["test"]["cc"]).all()
    assert not (tmp_path / "run" / "state").exists()


def test_what_does_not_go_together(tmp_path: Path) -> None:
    for changes, text in (({"model": "ridge"}, "leave out refit"), ({"start": "ridge"}, "leave out refit")):
        with pytest.raises(ValueError, match=text):
            run_experiment(config(**changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
