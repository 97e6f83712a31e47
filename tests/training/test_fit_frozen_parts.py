"""Parts that the user froze and put in eval mode stay as they are through a fit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deepSTRF.crossval import fit_folds
from deepSTRF.datasets import plan_folds
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import ConvNet2D, Linear, StateNet
from deepSTRF.models.prediction import parts_left_in_eval, start_training
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.training import Fitter, fit_multi_seed, make_loaders, validate_model

BANDS, NEURONS = 12, 3


@pytest.fixture(scope="module")
def ds():
    return SyntheticDataset(n_neurons=NEURONS, n_clips=4, n_repeats=4, clip_seconds=0.5, return_waveform=True)


def build(ds, cls=Linear, **options):
    front_end = make_wav2spec("leaf", ds.audio_fs, ds.dt, n_filters=BANDS)
    sizes = {"temporal_window_size": 5} if cls is Linear else {}
    return cls(BANDS, out_neurons=NEURONS, wav2spec=front_end, **sizes, **options)


def loaders(ds, seed=0):
    return make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]), seed=seed)


def fit(model, ds, **options):
    Fitter(model, *loaders(ds), max_epochs=2, progress=False, **options).fit()


def freeze(part, in_eval=True):
    part.requires_grad_(False)
    return part.eval() if in_eval else part


def snapshot(part):
    return {name: value.clone() for name, value in part.state_dict().items()}


def changed(part, before):
    return sorted(name for name, value in part.state_dict().items() if not torch.equal(value, before[name]))


def seen_modes(part):
    """Training flags of a part and all inside it, at each of its calls with gradients."""
    modes = set()

    def note(module, given, output):
        if torch.is_grad_enabled():
            modes.add(module.training)

    for inner in part.modules():
        inner.register_forward_hook(note)
    return modes


@pytest.mark.parametrize("fitted_before", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_a_frozen_readout_keeps_its_statistics(ds, fitted_before, fast):
    model = build(ds)
    if fitted_before:
        fit(model, ds)
    freeze(model.readout)
    before, front = snapshot(model.readout), snapshot(model.wav2spec)
    fit(model, ds, fast=fast)
    assert changed(model.readout, before) == []
    assert changed(model.wav2spec, front)
    assert not any(part.training for part in model.modules())


@pytest.mark.parametrize("fitted_before", [False, True])
def test_a_frozen_core_runs_without_dropout(ds, fitted_before):
    model = build(ds, StateNet, dropout=0.5, num_layers=2)
    if fitted_before:
        model.eval()
    freeze(model.core)
    core, front = seen_modes(model.core), seen_modes(model.wav2spec)
    fit(model, ds)
    assert (core, front) == ({False}, {True})


def test_dropout_runs_where_nothing_was_frozen(ds):
    model = build(ds, StateNet, dropout=0.5, num_layers=2).eval()  # as a fit or a file leaves a model
    modes = seen_modes(model)
    fit(model, ds)
    assert modes == {True}


def test_parts_frozen_alone_stay_in_train_mode(ds):
    model = build(ds)
    freeze(model.readout, in_eval=False)
    before = snapshot(model.readout)
    fit(model, ds)
    assert changed(model.readout, before) == [
        "bn.num_batches_tracked", "bn.running_mean", "bn.running_var",
    ]  # fmt: skip


def test_a_part_in_eval_mode_of_a_model_in_train_mode_stays_so(ds):
    model = build(ds)
    model.readout.bn.eval()  # gain and offset are trained, the statistics stay
    before = snapshot(model.readout.bn)
    fit(model, ds)
    assert changed(model.readout.bn, before) == ["bias", "weight"]


def test_parts_inside_frozen_parts_are_kept_one_by_one():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.BatchNorm1d(2), nn.Dropout())
    assert parts_left_in_eval(model) == []
    model.eval()
    assert parts_left_in_eval(model) == []
    freeze(model[0])
    model[0][1].train()  # dropout behind frozen weights, on purpose
    assert parts_left_in_eval(model) == [model[0], model[0][0]]
    start_training(model, parts_left_in_eval(model))
    assert [part.training for part in model.modules()] == [True, False, False, True, True, True]


def test_one_fit_after_the_other(ds):
    model = build(ds)
    freeze(model.readout)
    before = snapshot(model.readout)
    fitter = Fitter(model, *loaders(ds), max_epochs=1, progress=False)
    fitter.fit()
    fitter.fit()
    assert changed(model.readout, before) == []
    model.requires_grad_(True)
    Fitter(model, *loaders(ds), max_epochs=1, progress=False).fit()
    assert changed(model.readout, before)


def test_every_kind_of_fit(ds, tmp_path):
    first = build(ds)
    fit(first, ds)
    freeze(first.readout)
    before = snapshot(first.readout)

    def factory(seed):
        return copy.deepcopy(first)

    def three(seed):
        return make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]), ds.select(clips=[3]), seed=seed)

    result = fit_multi_seed(factory, three, n_seeds=1, fitter_kwargs={"max_epochs": 1})
    readout = {
        name.removeprefix("readout."): value
        for name, value in result["best_state_dict"].items()
        if name.startswith("readout.")
    }
    assert all(torch.equal(value, before[name]) for name, value in readout.items())
    fits = fit_folds(
        factory, ds, plan_folds(ds, crossval=True), tmp_path, only=["model-000"], progress=False,
        fitter_kwargs={"max_epochs": 1},
    )  # fmt: skip
    assert changed(fits.model("model-000").readout, before) == []


def test_checks_and_files_leave_modes_alone(ds, tmp_path):
    model = build(ds, ConvNet2D)
    freeze(model.readout)
    modes = [part.training for part in model.modules()]
    seen = seen_modes(model.readout)
    validate_model(model, ds)
    assert seen == {False}
    assert [part.training for part in model.modules()] == modes
    model.save_pretrained(tmp_path)
    assert [part.training for part in model.modules()] == modes
    assert not any(part.training for part in NeuralModel.from_pretrained(tmp_path).modules())
