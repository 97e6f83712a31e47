"""Output gain and offset by least squares: right scale, equal correlations, else nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.datasets import NeuralDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.experiments.run import calibrate_output  # inner: tested by itself
from deepSTRF.models.audio import Linear

F, T, N = 4, 300, 3


@pytest.fixture
def fitted() -> tuple[Linear, NeuralDataset]:
    """A model whose predictions are right up to a gain of 20 and an offset of 5, neuron 2 up to the sign."""
    model = Linear(F, 3, N).eval()
    stims = [torch.randn(F, T) for _ in range(3)]
    rates = [model(stim[None, None])[0, :, 0].detach() for stim in stims]
    sign = torch.tensor([1.0, 1.0, -1.0])[:, None]
    responses = [(sign * rate / 20 + 5)[:, None].repeat(1, 2, 1) for rate in rates]
    responses[0][0, :, :40] = torch.nan
    return model, NeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)


def test_scale_is_right_and_correlations_stay(fitted):
    model, ds = fitted
    before = torch.cat(model.predict(ds), dim=-1)
    assert calibrate_output(model, ds) == 2
    after = torch.cat(model.predict(ds), dim=-1)
    target = torch.cat([ds.response_block(clip).mean(dim=1) for clip in range(3)], dim=-1)
    heard = ~target[0].isnan()
    for neuron in (0, 1):
        np.testing.assert_allclose(after[neuron, heard], target[neuron, heard], atol=2e-5)
    for neuron in range(N):
        assert float(torch.corrcoef(torch.stack([before[neuron], after[neuron]]))[0, 1]) == pytest.approx(
            1.0, abs=1e-5
        )
    assert float(after[2].mean()) == pytest.approx(float(target[2].mean()), abs=1e-4), (
        "its offset is its mean"
    )


def test_twice_is_once(fitted):
    model, ds = fitted
    calibrate_output(model, ds)
    once = torch.cat(model.predict(ds), dim=-1)
    calibrate_output(model, ds)
    np.testing.assert_allclose(torch.cat(model.predict(ds), dim=-1), once, atol=1e-5)


def test_warmup_bins_count_for_nothing(fitted):
    model, ds = fitted
    onset = [ds.response_block(clip).clone() for clip in range(3)]
    for block in onset:
        block[..., :10] = 1000.0
    odd = NeuralDataset.from_arrays(list(ds.stims), onset, dt_ms=5.0, check_alignment=False)
    calibrate_output(model, odd, warmup_ms=50.0)
    target = ds.response_block(1).mean(dim=1)[0]
    np.testing.assert_allclose(model.predict(ds, clips=[1])[0][0], target, atol=1e-4)


def test_models_with_an_output_nonlinearity_are_left_alone(fitted):
    model = Linear(F, 3, N, output_activation=nn.Softplus())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert calibrate_output(model, fitted[1]) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_constant_predictions_and_silent_neurons_stay_finite(fitted):
    model, ds = fitted
    with torch.no_grad():
        model.readout.bn.weight[1] = 0.0
    blocks = [ds.response_block(clip).clone() for clip in range(3)]
    for block in blocks:
        block[0] = 0.0
    silent = NeuralDataset.from_arrays(list(ds.stims), blocks, dt_ms=5.0, check_alignment=False)
    assert calibrate_output(model, silent) == 0
    assert torch.isfinite(torch.cat(model.predict(silent), dim=-1)).all()


@pytest.mark.parametrize(("model", "said"), [("linear", "output gain and offset"), ("nrf", "none")])
def test_the_protocol_says_only_what_was_done(tmp_path, model, said):
    config = ExperimentConfig(
        dataset_options={"n_neurons": 2, "n_clips": 5, "n_repeats": 3, "clip_seconds": 0.5},
        model=model,
        epochs=1,
    )
    run = run_experiment(config, tmp_path / "run", progress=False)
    (line,) = [value for name, value in run.protocol if name == "Fit: calibration"]
    assert line.startswith(said)
