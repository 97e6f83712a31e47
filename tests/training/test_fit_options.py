"""Schedulers, clipping, precision, warm-up, per-neuron best weights, standardisation, seeds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deepSTRF.models import LinearReadout, STRFReadout
from deepSTRF.training import Fitter

# which tensors belong to single neurons is decided without a fit
from deepSTRF.training.callbacks import PerNeuronBest, cpu_state, per_neuron_tensors


def sgd(lr):
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr)


# ------------------------------------------------------------------------------------------ schedulers


def test_a_scheduler_moves_once_per_epoch(kit, recording):
    rates = []

    class Watching(Fitter):
        def on_epoch_end(self, epoch, record):
            rates.append(self.optimizer.param_groups[0]["lr"])

    model = kit.linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    Watching(model, *kit.loaders(recording), optimizer=optimizer, scheduler=scheduler, max_epochs=3).fit()
    assert rates == pytest.approx([5e-4, 2.5e-4, 1.25e-4])


def test_a_plateau_is_fed_the_monitored_score(kit, recording):
    scores = iter([0.5, 0.5, 0.5, 0.5])
    fitter = Fitter(
        kit.linear(), *kit.loaders(recording), max_epochs=4, monitor="val_s", track_train_metrics=False,
        val_metrics={"s": lambda p, r: next(scores)}, optimizer=sgd(1.0e-3),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.1, patience=1
        ),
    )  # fmt: skip
    fitter.fit()
    assert fitter.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert fitter.scheduler.best == 0.5


def test_schedulers_that_cannot_work(kit, recording):
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(ValueError, match=r"mode='min', the fit has mode='max'.*build it with mode='max'"):
        Fitter(kit.linear(), *kit.loaders(recording), scheduler=plateau)
    foreign = torch.optim.lr_scheduler.StepLR(sgd(0.1)(kit.linear()), 2)
    with pytest.raises(ValueError, match="belongs to another optimizer"):
        Fitter(kit.linear(), *kit.loaders(recording), scheduler=foreign)


# ------------------------------------------------------------------------- clipping, precision, warm-up


def test_the_gradient_is_clipped(kit, recording):
    def step(limit):
        model = kit.linear(norm="none")
        start = cpu_state(model)
        train, val = kit.loaders(recording, train=[0])
        Fitter(model, train, val, optimizer=sgd(1.0), grad_clip=limit, max_epochs=1, monitor="val_cc").fit()
        moves = [(value - start[name]).flatten() for name, value in model.named_parameters()]
        return float(torch.cat([move.detach() for move in moves]).norm())

    assert step(0.01) == pytest.approx(0.01, rel=1e-3)
    assert step(1e9) == pytest.approx(step(None), rel=1e-6)
    assert step(None) > 0.05


def test_bf16_trains_and_keeps_parameters_and_scores_in_float32(kit, recording):
    plain, mixed = (
        Fitter(kit.linear(), *kit.loaders(recording, shuffle=False), max_epochs=5, precision=precision)
        for precision in ("float32", "bf16")
    )
    one, two = plain.fit(), mixed.fit()
    assert all(value.dtype == torch.float32 for value in mixed.model.parameters())
    assert two[-1]["train_loss"] == pytest.approx(one[-1]["train_loss"], rel=0.02)
    assert two[-1]["train_loss"] != one[-1]["train_loss"]


def test_the_warm_up_is_left_out_of_loss_and_scores_alike(kit):
    import numpy as np

    from deepSTRF.datasets.audio import AudioNeuralDataset
    from deepSTRF.training import score_model

    whole = kit.spectrogram_recording()
    loud = [np.asarray(whole.response_block(clip)).copy() for clip in range(6)]
    for block in loud:
        block[..., :4] = 50.0  # an onset artefact of 20 ms
    spoiled = AudioNeuralDataset.from_arrays(
        [stim[0] for stim in whole.stims], loud, dt_ms=5.0, check_alignment=False
    )
    results = []
    for dataset in (whole, spoiled):
        model = kit.linear()
        fitter = Fitter(model, *kit.loaders(dataset, shuffle=False), max_epochs=2, warmup_ms=17.0)
        history = fitter.fit()
        table = score_model(model, dataset.select(clips=[4, 5]), warmup_ms=17.0, n_bootstrap=0)
        results.append((model.state_dict(), history[-1], table))
    (one, first, table), (two, second, other) = results
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert all(torch.equal(torch.as_tensor(first[k]), torch.as_tensor(second[k])) for k in first)
    assert table["cc"].tolist() == other["cc"].tolist()
    assert table["snr"].tolist() == other["snr"].tolist()
    assert torch.allclose(first["val_cc_norm"], torch.from_numpy(table["cc_norm"]), atol=1e-6)


def test_a_warm_up_that_swallows_a_clip(kit, ragged_recording):
    from deepSTRF.training import score_model

    fitter = Fitter(kit.linear(), *kit.loaders(ragged_recording), warmup_ms=195.0)
    with pytest.raises(ValueError, match="warmup_ms covers 39 bins, but clip 4 has only 38"):
        fitter.fit()
    with pytest.raises(ValueError, match="clip 4 has only 38"):
        score_model(kit.linear().eval(), ragged_recording, warmup_ms=195.0)


def test_a_warm_up_needs_a_bin_width(kit, recording):
    from torch.utils.data import DataLoader

    train, val = kit.loaders(recording)
    nameless = DataLoader([recording[0]], collate_fn=train.collate_fn)
    with pytest.raises(ValueError, match="has no attribute dt"):
        Fitter(kit.linear(), nameless, val, warmup_ms=5.0).fit()


# -------------------------------------------------------------------------------- each neuron at its best


def test_each_neuron_ends_at_its_own_best_epoch(kit, recording):
    script = torch.tensor([[0.1, 0.9, 0.2, math.nan], [0.5, 0.1, 0.3, math.nan], [0.4, 0.1, 0.9, math.nan]])
    rows = iter(script)
    states = []

    class Watching(Fitter):
        def on_epoch_end(self, epoch, record):
            states.append({name: value.clone() for name, value in self.model.readout.state_dict().items()})

    fitter = Watching(
        kit.linear(), *kit.loaders(recording), monitor="val_s", max_epochs=3, track_train_metrics=False,
        val_metrics={"s": lambda p, r: next(rows)}, track_per_cell_best=True,
    )  # fmt: skip
    fitter.fit()
    assert fitter.best_epoch == 2
    final = fitter.model.readout.state_dict()
    for neuron, epoch in enumerate([1, 0, 2, 2]):  # the last never scored: it follows the best epoch
        for name, value in final.items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(value[neuron], states[epoch][name][neuron]), (neuron, name)


def test_per_cell_best_is_never_worse_on_validation_when_nothing_is_shared(kit, ragged_recording):
    scores = {}
    for per_cell in (False, True):
        train, val = kit.loaders(ragged_recording)
        fitter = Fitter(
            kit.linear(), train, val, optimizer=sgd(0.5), max_epochs=12, patience=12, seed=0,
            track_per_cell_best=per_cell,
        )  # fmt: skip
        history = fitter.fit()
        scores[per_cell] = fitter.evaluate(val)["cc_norm"]
        scores[per_cell, "history"] = [record["train_loss"] for record in history]
    assert scores[False, "history"] == scores[True, "history"], "the training itself is unchanged"
    gain = (scores[True] - scores[False]).nan_to_num()
    assert bool((gain >= -1e-6).all())
    assert bool((gain > 1e-5).any())


def test_per_cell_weights_are_what_the_checkpoint_holds(kit, recording, tmp_path):
    path = tmp_path / "best.pt"
    fitter = Fitter(
        kit.linear(), *kit.loaders(recording), max_epochs=4, track_per_cell_best=True, ckpt_path=path
    )
    fitter.fit()
    saved = torch.load(path, weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in fitter.model.state_dict().items())


def test_which_tensors_are_per_neuron_is_known_not_guessed():
    """A hidden layer as wide as the population has the right shape and is shared all the same."""
    strf = STRFReadout(F=4, T=3, C_in=1, out_neurons=5)
    assert not any(name.endswith("num_batches_tracked") for name in per_neuron_tensors(strf, 5))
    assert len(per_neuron_tensors(strf, 5)) == len(strf.state_dict()) - 1
    hidden = LinearReadout(in_features=5, out_neurons=5, hidden=5)
    assert per_neuron_tensors(hidden, 5) == ["fc.2.weight", "fc.2.bias"]
    assert per_neuron_tensors(LinearReadout(3, 5), 5) == ["fc.weight", "fc.bias"]

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.shared = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5, 5))

    with pytest.raises(ValueError, match="per_neuron_parameters"):
        per_neuron_tensors(Own(), 5)

    class Declared(Own):
        def per_neuron_parameters(self):
            return ["gain"]

    assert per_neuron_tensors(Declared(), 5) == ["gain"]
    with pytest.raises(ValueError, match=r"'gain' per neuron, but it is .5,."):
        per_neuron_tensors(Declared(), 6)


def test_per_cell_best_needs_a_population_model_and_one_score_per_neuron(kit, recording):
    with pytest.raises(ValueError, match=r"needs a model with a readout"):
        PerNeuronBest(nn.Linear(2, 2), "max")
    fitter = Fitter(
        kit.linear(), *kit.loaders(recording), monitor="val_s", val_metrics={"s": lambda p, r: 0.5},
        track_per_cell_best=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"per-cell monitor"):
        fitter.fit()


# ----------------------------------------------------------------------------- standardisation and seeds


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("sound", [False, True])
def test_an_unfitted_standardisation_is_measured_on_the_training_clips(kit, fast, sound):
    dataset = kit.waveform_recording(kit.RAGGED) if sound else kit.spectrogram_recording(kit.RAGGED)
    front_end = kit.PowerBands() if sound else None
    model, by_hand = (kit.linear(front_end, standardize=True) for _ in range(2))
    by_hand.fit_standardization([dataset.stims[clip] for clip in (0, 2, 5)])
    state = torch.get_rng_state()
    train, val = kit.loaders(dataset, train=(5, 0, 2), val=(1,), shuffle=False)
    fitter = Fitter(model, train, val, max_epochs=1, fast=fast)
    torch.set_rng_state(state)
    fitter.fit()
    assert torch.allclose(model.standardizer.mean, by_hand.standardizer.mean, atol=1e-6)
    assert torch.allclose(model.standardizer.std, by_hand.standardizer.std, atol=1e-6)


def test_a_fitted_standardisation_is_left_alone(kit, recording):
    model = kit.linear(standardize=True)
    model.fit_standardization([recording.stims[0]])
    before = model.standardizer.mean.clone()
    Fitter(model, *kit.loaders(recording), max_epochs=1).fit()
    assert torch.equal(model.standardizer.mean, before)


def test_a_seed_makes_the_fit_repeatable_and_leaves_the_process_alone(kit, recording):
    results, draws = [], []
    for outside in (1, 2):
        model = kit.linear()
        torch.manual_seed(outside)
        Fitter(model, *kit.loaders(recording), max_epochs=3, seed=5).fit()
        draws.append(float(torch.rand(())))
        torch.manual_seed(outside)
        assert draws[-1] == float(torch.rand(())), "as if nothing had been drawn"
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_two_seeded_runs_are_bit_identical(kit, sound_recording):
    from deepSTRF.training import seeded

    runs = []
    for _ in range(2):
        with seeded(9):
            model = kit.linear(kit.DroppingBands())
            history = Fitter(model, *kit.loaders(sound_recording), max_epochs=3).fit()
        runs.append((model.state_dict(), history))
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())
    assert [r["train_loss"] for r in runs[0][1]] == [r["train_loss"] for r in runs[1][1]]
