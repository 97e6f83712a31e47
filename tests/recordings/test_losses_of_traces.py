"""Losses and heads of counts refuse a continuous signal by name, wherever a fit begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.crossval import fit_folds
from deepSTRF.datasets import plan_folds
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.metrics import mse_loss
from deepSTRF.models.audio import ICNet, Linear, LinearNonlinear
from deepSTRF.registry import LOSSES
from deepSTRF.training import Fitter, make_loaders
from deepSTRF.training.objective import loss_domains

COUNTS = [name for name, loss in LOSSES.items() if loss_domains(loss)[1] != "real"]


def eeg(n_clips: int = 4, waveform: bool = False) -> AudioNeuralDataset:
    rng = np.random.default_rng(0)
    names = [f"s{k}" for k in range(n_clips)]
    trials = {"stimulus": names, "onset": np.arange(n_clips) * 1.0}
    options: dict[str, Any] = {"dt_ms": 10.0, "unit": "uV", "check_alignment": False, "name": "my EEG"}
    if waveform:
        stimuli: Any = {name: rng.normal(size=8000) for name in names}
        options["sounds_fs"] = 8000
    else:
        stimuli = {name: {"spectrogram": rng.random((5, 100)), "onsets": rng.random(100)} for name in names}
    return AudioNeuralDataset.from_continuous(
        stimuli, rng.normal(size=(2, 500 * n_clips)), 500, trials, **options
    )


def parts(ds: AudioNeuralDataset) -> Any:
    return make_loaders(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), seed=0)


@pytest.mark.parametrize("name", COUNTS)
def test_fits_name_loss_kind_unit_and_what_is_legal(name: str, tmp_path: Path) -> None:
    ds, loss = eeg(), LOSSES.get(name)
    text = rf"(?s){name}_loss needs responses that are never negative.*'trace' in 'uV'.*mse_loss"

    def make(seed: int = 0) -> Linear:
        return LinearNonlinear(6, 3, out_neurons=2)

    with pytest.raises(ValueError, match=text):
        Fitter(make(), *parts(ds), loss_fn=loss, max_epochs=1, progress=False, seed=0).fit()
    with pytest.raises(ValueError, match=text):
        fit_folds(
            make,
            ds,
            plan_folds(ds, crossval=True, n_folds=2),
            tmp_path / "folds",
            progress=False,
            fitter_kwargs={"loss_fn": loss, "max_epochs": 1},
        )
    ds.save(tmp_path / "eeg.npz")
    config = ExperimentConfig(
        dataset=str(tmp_path / "eeg.npz"), model="linear_nonlinear", loss=name, split="2/1/1", epochs=1
    )
    with pytest.raises(ValueError, match=text):
        run_experiment(config, tmp_path / "run", progress=False)


def test_the_head_of_counts_names_a_way_that_a_signal_can_go() -> None:
    ds = eeg(waveform=True)
    model = ICNet(
        8000, 2, n_filters=4, encoder_channels=6, bottleneck_channels=5, head="categorical", dt_ms=10.0
    )
    with pytest.raises(ValueError, match=r"(?s)spike counts.*'trace' in 'uV'.*mse_loss") as caught:
        Fitter(model, *parts(ds), max_epochs=1, progress=False, seed=0).fit()
    assert "smooth" not in str(caught.value)


def test_losses_of_any_sign_fit_a_signal() -> None:
    ds = eeg()
    model = Linear(6, 3, out_neurons=2)
    Fitter(model, *parts(ds), loss_fn=mse_loss, max_epochs=1, progress=False, seed=0).fit()
    assert model.fitted_on is not None
    assert model.fitted_on.features == ("spectrogram", "onsets")
    with pytest.raises(ValueError, match=r"onsets, spectrogram .*spectrogram, onsets"):
        model.predict(ds.select(features=["onsets", "spectrogram"]))
    assert [tuple(rate.shape) for rate in model.predict(ds)] == [(2, 100)] * 4
    with pytest.raises(ValueError, match=r"per_second|'uV'|spikes"):
        model.predict(ds, unit="per_second")
    assert torch.isfinite(model.predict(ds)[0]).all()
