"""A number that is none stops the fit, names the cause, and costs no good weights."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from deepSTRF.datasets import neural_collate
from deepSTRF.training import FitDivergedError, Fitter

# the guard as on a GPU, which is not here
from deepSTRF.training.callbacks import NonFiniteGuard, check_monitor
from deepSTRF.training.data import Batch  # inner: tested by itself


def fails(fitter, match):
    with pytest.raises(FitDivergedError, match=match) as caught:
        fitter.fit()
    assert all(bool(torch.isfinite(value).all()) for value in fitter.model.state_dict().values())
    return caught.value


def poisoned_loader(dataset, clip, value=math.nan, where="stims"):
    """A loader whose collate function spoils one clip."""

    def collate(items):
        batch = neural_collate(items)
        for row, meta in enumerate(batch["stim_meta"]):
            if meta.get("number") == clip:
                batch[where][row, ..., 7] = value
        return batch

    for number, meta in enumerate(dataset.stim_meta):
        meta["number"] = number
    return DataLoader(Subset(dataset, range(4)), collate_fn=collate)


def test_it_is_an_arithmetic_error_with_its_place(kit, recording):
    model = kit.linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    fitter = Fitter(model, *kit.loaders(recording, shuffle=False), optimizer=optimizer)
    error = fails(fitter, r"epoch 0, batch \d \(clip \d\).*learning rate")
    assert isinstance(error, ArithmeticError)
    assert not isinstance(error, ValueError)
    assert (error.epoch, error.clips) == (0, (error.batch,))
    assert fitter.history == []
    error.add_note("seed 3")
    sent = pickle.loads(pickle.dumps(error))  # as from a process of joblib
    assert (type(sent), str(sent), sent.__notes__) == (FitDivergedError, str(error), ["seed 3"])
    assert (sent.epoch, sent.batch, sent.clips) == (error.epoch, error.batch, error.clips)


def test_a_nan_stimulus_is_named(kit, recording):
    train = poisoned_loader(kit.spectrogram_recording(), clip=2)
    error = fails(
        Fitter(kit.linear(), train, kit.loaders(recording)[1]), "batch 2.*stimulus of this clip holds NaN"
    )
    assert error.batch == 2


def test_infinite_responses_are_named(kit, recording):
    train = poisoned_loader(kit.spectrogram_recording(), 1, math.inf, "responses")
    fails(Fitter(kit.linear(), train, kit.loaders(recording)[1]), "responses of this clip hold infinite")


def test_a_logarithm_of_a_negative_rate_is_named(kit, recording):
    def naive_poisson(pred, responses):
        return (pred - responses.mean(2, keepdim=True) * pred.log()).mean()

    fails(Fitter(kit.linear(), *kit.loaders(recording), loss_fn=naive_poisson), "positive output_activation")


def test_an_infinite_gradient_stops_before_the_step(kit, recording):
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = kit.linear(norm="none")

        def forward(self, x):
            return (self.linear(x) * 0).abs().sqrt()  # finite, with an infinite slope

    fails(Fitter(Rooted(), *kit.loaders(recording)), "gradient norm became")


def test_divergence_later_restores_the_best_epoch(kit, recording):
    class Exploding(Fitter):
        def on_epoch_end(self, epoch, record):
            self.kept = {name: value.clone() for name, value in self.model.state_dict().items()}
            if epoch == 1:
                self.optimizer.param_groups[0]["lr"] = 1e30

    model = kit.linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scores = iter([0.1, 0.2, 0.3])
    fitter = Exploding(
        model, *kit.loaders(recording), optimizer=optimizer, monitor="val_s", track_train_metrics=False,
        val_metrics={"s": lambda p, r: next(scores)},
    )  # fmt: skip
    error = fails(fitter, "epoch 2")
    assert error.epoch == 2
    assert len(fitter.history) == 2
    assert all(torch.equal(value, fitter.kept[name]) for name, value in model.state_dict().items())


def test_a_monitor_without_any_number_names_the_cause(kit, recording):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.level.expand(x.shape[0], 4, 1, x.shape[-1])

    fails(
        Fitter(Constant(), *kit.loaders(recording)), "val_cc_norm is nan for all 4 .*prediction is constant"
    )
    fails(Fitter(Constant(), *kit.loaders(recording), monitor="val_cc"), "constant for every neuron")


def test_silent_neurons_are_left_out_of_the_mean_and_counted(kit):
    import numpy as np

    from deepSTRF.datasets.audio import AudioNeuralDataset

    whole = kit.spectrogram_recording()
    blocks = [np.asarray(whole.response_block(clip)).copy() for clip in range(6)]
    for block in blocks:
        block[3] = 0
    dataset = AudioNeuralDataset.from_arrays(
        [s[0] for s in whole.stims], blocks, dt_ms=5.0, check_alignment=False
    )
    fitter = Fitter(kit.linear(), *kit.loaders(dataset), max_epochs=2)
    record = fitter.fit()[-1]
    assert math.isnan(record["val_cc_norm"][3])
    assert not record["val_cc_norm"][:3].isnan().any()
    assert fitter.best_score == pytest.approx(
        float(fitter.history[fitter.best_epoch]["val_cc_norm"][:3].mean())
    )


def test_a_single_repeat_is_scored_by_the_raw_correlation(kit):
    dataset = kit.spectrogram_recording(repeats=1)
    record = Fitter(kit.linear(), *kit.loaders(dataset), max_epochs=2).fit()[-1]
    assert torch.allclose(record["val_cc"], record["val_cc_norm"])


def test_check_monitor_leaves_nan_neurons_out():
    assert check_monitor("val_cc", torch.tensor([0.5, math.nan, 1.0]), 0, {}) == 0.75
    with pytest.raises(FitDivergedError, match="loss is not finite either"):
        check_monitor("val_cc", math.nan, 3, {"train_loss": 0.5, "val_loss": math.inf})
    with pytest.raises(FitDivergedError, match="is inf"):
        check_monitor("val_cc", math.inf, 3, {})


def test_steps_examined_at_the_end_of_the_epoch_name_the_first_bad_one():
    """The way a GPU goes: nothing is read until the epoch is over."""
    guard = NonFiniteGuard()
    fitter = SimpleNamespace(model=nn.Linear(1, 1), device=torch.device("cuda"))
    guard.on_epoch_start(fitter, 4)
    pred = torch.zeros(1, 1, 1, 3)
    for number, loss in enumerate([0.5, math.nan, math.nan]):
        batch = Batch(pred, False, pred, torch.ones(1), (number + 10,), (3,), 0, lambda item: pred[item])
        guard.on_loss(fitter, batch, pred, torch.tensor(loss))
        guard.on_batch_end(fitter, batch, pred, torch.tensor(loss))
    with pytest.raises(FitDivergedError, match=r"loss became nan in epoch 4, batch 1 \(clip 11\)"):
        guard.on_train_pass_end(fitter, 4)
