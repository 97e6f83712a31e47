"""One loss under one name: traits of loss functions, sums over unequal batches."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from deepSTRF.metrics import mse_loss, negative_binomial_loss, poisson_loss
from deepSTRF.training import Fitter

# sums and traits behind the losses of a fit
from deepSTRF.training.objective import LossMeter, LossTraits, loss_traits, mean_over_neurons


def test_our_losses_take_the_psth_and_give_one_value_per_neuron():
    assert loss_traits(mse_loss) == LossTraits(True, True, False, unit_degree=2)
    of_logs = functools.partial(poisson_loss, log_input=True)
    assert loss_traits(of_logs) == LossTraits(True, True, False, unit_degree=1, log_input=True)


def test_counting_repeats_needs_the_repeats():
    by_repeats = functools.partial(mse_loss, weighting="repeats")
    assert loss_traits(by_repeats) == LossTraits(False, True, True, unit_degree=2)
    assert loss_traits(functools.partial(mse_loss, reduction="mean")).per_neuron is False


def test_a_full_likelihood_needs_the_repeats():
    full = functools.partial(negative_binomial_loss, full=True)
    assert not loss_traits(full).accepts_psth
    assert loss_traits(negative_binomial_loss).accepts_psth


def test_a_loss_of_ones_own_gets_repeats_unless_it_says_otherwise():
    def mine(pred, responses, reduction="mean"):
        return (pred - responses).square().mean()

    assert loss_traits(mine) == LossTraits(False, False, False), "torch's reduction='none' is not per neuron"
    mine.accepts_psth = True
    assert loss_traits(mine).accepts_psth
    assert loss_traits(torch.nn.MSELoss()) == LossTraits(False, False, False)
    with pytest.raises(TypeError, match="loss_fn must be callable"):
        loss_traits("mse")


def test_mean_over_neurons_leaves_out_the_unheard_and_keeps_their_gradient_zero():
    loss = torch.tensor([1.0, 3.0, 7.0], requires_grad=True)
    total = mean_over_neurons(loss, torch.tensor([5.0, 5.0, 0.0]))
    total.backward()
    assert total.item() == 2.0
    assert loss.grad.tolist() == [0.5, 0.5, 0.0]
    assert mean_over_neurons(torch.tensor([math.nan]), torch.zeros(1)).item() == 0.0
    with pytest.raises(ValueError, match="scalar or one value per neuron"):
        mean_over_neurons(torch.zeros(2, 2), torch.ones(2))


def test_the_meter_weighs_bins_not_batches():
    meter = LossMeter()
    meter.add(torch.tensor([1.0, 2.0]), torch.tensor([90.0, 10.0]))
    meter.add(torch.tensor([2.0, math.nan]), torch.tensor([10.0, 0.0]))
    assert meter.result() == pytest.approx((1.1 + 2.0) / 2)
    scalars = LossMeter()
    scalars.add(torch.tensor(1.0), torch.tensor([30.0, 60.0]))
    scalars.add(torch.tensor(3.0), torch.tensor([5.0, 5.0]))
    assert scalars.result() == pytest.approx(1.2)
    assert math.isnan(LossMeter().result())


def test_a_loss_that_is_nan_where_there_is_data_shows():
    meter = LossMeter()
    meter.add(torch.tensor([math.nan, 1.0]), torch.tensor([10.0, 10.0]))
    assert math.isnan(meter.result())


def test_train_and_validation_loss_are_the_same_quantity(kit, ragged_recording):
    """Training that changes nothing: both losses of the same clips agree, whatever the batches are."""
    results = set()
    for batch_size in (1, 2, 4):
        model = kit.linear(norm="none")
        train, val = kit.loaders(ragged_recording, batch_size=batch_size, val=range(4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        record = Fitter(model, train, val, optimizer=optimizer, max_epochs=1).fit()[0]
        assert record["train_loss"] == pytest.approx(record["val_loss"], rel=1e-6)
        results.add(round(record["val_loss"], 6))
    assert len(results) == 1


def test_the_loss_equals_one_call_on_the_concatenated_clips(kit, ragged_recording):
    model = kit.linear()
    train, val = kit.loaders(ragged_recording, val=range(6))
    fitter = Fitter(model, train, val, max_epochs=1)
    whole = next(iter(kit.loaders(ragged_recording, val=range(6), batch_size=6)[1]))
    model.eval()
    with torch.no_grad():
        wanted = mse_loss(model(whole["stims"]), whole["responses"])
    assert fitter.evaluate(val)["loss"] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(mse_loss, weighting="repeats"),
        functools.partial(poisson_loss, log_input=True),
        lambda pred, responses: (pred - responses.nanmean(2, keepdim=True)).square().nanmean(),
        torch.nn.MSELoss(),
    ],
    ids=["repeats", "poisson", "own scalar", "module"],
)
def test_every_kind_of_loss_fits(kit, recording, loss, fast):
    if isinstance(loss, torch.nn.Module):
        plain = loss

        def loss(pred, responses):
            return plain(pred.expand_as(responses), responses)

    history = Fitter(kit.linear(), *kit.loaders(recording), loss_fn=loss, max_epochs=8, fast=fast).fit()
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_a_neuron_nobody_recorded_changes_nothing_for_the_others(kit):
    """A missing neuron gives NaN losses, and must leave the gradients of the rest alone."""
    import numpy as np

    from deepSTRF.datasets.audio import AudioNeuralDataset

    whole = kit.spectrogram_recording()
    stims = [whole.stims[s][0] for s in range(6)]
    blocks = [np.asarray(whole.response_block(s)).copy() for s in range(6)]
    for block in blocks[:4]:
        block[1] = np.nan  # neuron 1 heard only the validation clips
    holed = AudioNeuralDataset.from_arrays(stims, blocks, dt_ms=5.0)
    models = []
    for dataset in (whole, holed):
        model = kit.linear(norm="none")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)  # so small that four steps add up
        fitter = Fitter(
            model, *kit.loaders(dataset, shuffle=False), optimizer=optimizer, max_epochs=1, monitor="val_cc"
        )
        record = fitter.fit()[0]
        assert np.isfinite(record["train_loss"])
        models.append(model.readout.strf.STRF_weight())
    start = kit.linear(norm="none").readout.strf.STRF_weight()
    assert torch.equal(models[1][1], start[1]), "no data, no step"
    step, wanted = models[1][[0, 2, 3]] - start[[0, 2, 3]], models[0][[0, 2, 3]] - start[[0, 2, 3]]
    assert torch.allclose(step, wanted * 4 / 3, rtol=2e-2, atol=1e-6), (
        "the mean is over the neurons with data"
    )
