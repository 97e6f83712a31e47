"""The average of the weights is that of a plain loop, is what is scored and kept, and resumes bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

from deepSTRF.training import (
    Callback,
    Fitter,
    StateMismatchError,
    WeightAveraging,
    fit_multi_seed,
    make_loaders,
)

DECAY = 0.6
RATE = 0.05


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)


def fitter_of(kit, recording, *callbacks, model=None, epochs=3, loader_seed=5, **options):
    model = kit.linear() if model is None else model
    loaders = kit.loaders(recording, generator=torch.Generator().manual_seed(loader_seed))
    options = {"optimizer": sgd, "loss_fn": plain_loss, "patience": 50, **options}
    return Fitter(model, *loaders, max_epochs=epochs, callbacks=callbacks, **options)


def plain_loss(pred, responses):
    """A loss without a unit: nothing is scaled or started before the first step."""
    valid = ~responses.isnan()
    return mse_loss(pred.expand_as(responses)[valid], responses[valid])


class Watch(Callback):
    """States of the model at the points of each epoch."""

    def __init__(self):
        self.steps, self.validated, self.trained = [], [], []

    def on_batch_end(self, fitter, batch, prediction, loss):
        self.steps.append(state_of(fitter.model))

    def on_epoch_end(self, fitter, epoch, record):
        self.validated.append(state_of(fitter.model))

    def on_loss(self, fitter, batch, prediction, loss):
        self.trained.append(state_of(fitter.model))


def state_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in {**first, **second})


def averages_of(start, steps, decay):
    """The average after each step, in float64, written out."""
    mean = {name: value.double() for name, value in start.items()}
    for done, weights in enumerate(steps):
        share = min(decay, (1 + done) / (10 + done))
        mean = {name: share * mean[name] + (1 - share) * weights[name].double() for name in mean}
        yield mean


def test_raw_weights_are_those_of_a_fit_without_and_averages_those_of_a_loop(kit, recording):
    start = state_of(kit.linear())
    alone, watch = Watch(), Watch()
    fitter_of(kit, recording, alone).fit()
    fitter = fitter_of(kit, recording, WeightAveraging(DECAY), watch)
    history = fitter.fit()
    assert len(watch.steps) == 12
    assert all(equal(*pair) for pair in zip(alone.steps, watch.steps, strict=True))
    trained = [name for name, value in kit.linear().named_parameters() if value.requires_grad]
    for done, found in zip(watch.steps[:-1], watch.trained[1:], strict=True):
        assert all(torch.equal(done[name], found[name]) for name in trained)
    expected = list(averages_of(start, watch.steps, DECAY))[3::4]  # four steps per epoch
    for mean, shown in zip(expected, watch.validated, strict=True):
        for name in trained:
            torch.testing.assert_close(shown[name].double(), mean[name], rtol=1e-5, atol=1e-7)
    # what is scored is the average, and the fit ends with the best one
    assert equal(state_of(fitter.model), watch.validated[fitter.best_epoch])
    assert fitter.evaluate(fitter.val_loader)["loss"] == history[fitter.best_epoch]["val_loss"]


def test_the_initial_weights_are_soon_forgotten(kit, recording):
    """With a decay of 0.99 and four steps, a constant one would keep 96 % of the initial weights."""
    start, watch = state_of(kit.linear()), Watch()
    fitter_of(kit, recording, WeightAveraging(0.99), watch, epochs=1).fit()
    for name, _ in kit.linear().named_parameters():
        moved = (watch.steps[-1][name] - start[name]).norm()
        assert (watch.validated[0][name] - watch.steps[-1][name]).norm() < 0.5 * moved or not moved


def test_frozen_parameters_and_buffers_stay_as_they_are(kit, sound_recording):
    model = kit.linear(kit.PowerBands(learnable=True))
    model.wav2spec.requires_grad_(False)
    model.register_buffer("counter", torch.zeros(2, dtype=torch.int64))
    model.register_buffer("mean", torch.zeros(2))

    class Count(Callback):
        def on_batch_end(self, fitter, batch, prediction, loss):
            fitter.model.counter += 1
            fitter.model.mean += 0.5

    before = model.wav2spec.filters.detach().clone()
    watch = Watch()
    fitter_of(kit, sound_recording, WeightAveraging(), Count(), watch, model=model).fit()
    assert torch.equal(model.wav2spec.filters, before)
    assert [state["counter"][0].item() for state in watch.validated] == [4, 8, 12]
    assert [state["mean"][0].item() for state in watch.validated] == [2.0, 4.0, 6.0]


def test_a_learned_front_end_is_averaged_and_its_bands_measured_with_the_kept_weights(kit, sound_recording):
    model, watch = kit.linear(kit.PowerBands(learnable=True)), Watch()
    start = state_of(model)
    fitter = fitter_of(kit, sound_recording, WeightAveraging(DECAY), watch, model=model)
    fitter.fit()
    expected = list(averages_of(start, watch.steps, DECAY))[4 * fitter.best_epoch + 3]
    assert not torch.equal(watch.steps[-1]["wav2spec.filters"], start["wav2spec.filters"])
    torch.testing.assert_close(model.wav2spec.filters.detach().double(), expected["wav2spec.filters"],
                               rtol=1e-5, atol=1e-7)  # fmt: skip
    clips = [sound_recording.stims[clip] for clip in range(4)]
    with torch.no_grad():
        bands = torch.cat([model.spectrogram(clip[None])[0, 0] for clip in clips], dim=-1).double()
    torch.testing.assert_close(model.band_std.double(), bands.std(dim=-1, correction=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("per_cell", [True, False])
def test_a_fit_that_was_stopped_and_resumed_is_the_undisturbed_one(kit, recording, tmp_path, per_cell, fast):
    def fit(epochs, name, loader_seed=5):
        fitter = fitter_of(
            kit, recording, WeightAveraging(DECAY), epochs=epochs, fast=fast, track_per_cell_best=per_cell,
            state_path=tmp_path / name, ckpt_path=tmp_path / f"{name}.pt", optimizer=adam, seed=1,
            loader_seed=loader_seed,
        )  # fmt: skip
        return fitter, fitter.fit()

    whole, expected = fit(6, "whole")
    fit(2, "parts")
    fit(3, "parts", loader_seed=6)  # its order comes from the state
    resumed, history = fit(6, "parts", loader_seed=7)
    assert [float(row["val_loss"]) for row in history] == [float(row["val_loss"]) for row in expected]
    assert equal(state_of(resumed.model), state_of(whole.model))
    assert equal(torch.load(tmp_path / "parts.pt"), torch.load(tmp_path / "whole.pt"))


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE)


def test_interrupted_in_an_epoch_it_resumes_and_leaves_the_best_average(kit, recording, tmp_path):
    class Interrupt(Callback):
        def __init__(self, epoch, hook):
            self.epoch, self.hook, self.steps = epoch, hook, 0

        def on_batch_end(self, fitter, batch, prediction, loss):
            self.steps += 1
            if self.hook == "step" and len(fitter.history) == self.epoch and self.steps % 4 == 2:
                raise KeyboardInterrupt

        def on_train_pass_end(self, fitter, epoch):
            if self.hook == "validation" and epoch == self.epoch:
                raise KeyboardInterrupt

    def fit(name, *callbacks):
        return fitter_of(
            kit, recording, WeightAveraging(DECAY), *callbacks, epochs=5, optimizer=adam, seed=1,
            state_path=tmp_path / name,
        )  # fmt: skip

    whole = fit("whole")
    whole.fit()
    for hook in ("step", "validation"):
        watch = Watch()
        stopped = fit(hook, watch, Interrupt(3, hook))
        with pytest.raises(KeyboardInterrupt):
            stopped.fit()
        assert len(watch.validated) == 3
        assert equal(state_of(stopped.model), watch.validated[stopped.best_epoch])
        resumed = fit(hook)
        resumed.fit()
        assert equal(state_of(resumed.model), state_of(whole.model))


def test_without_a_finished_epoch_the_model_is_as_before(kit, recording):
    class Fail(Callback):
        def on_train_pass_end(self, fitter, epoch):
            raise OSError

    model, begin = kit.linear(), {}

    class Begin(Callback):
        def on_fit_start(self, fitter):
            begin.update(state_of(fitter.model))

    with pytest.raises(OSError):
        fitter_of(kit, recording, Begin(), WeightAveraging(), Fail(), model=model).fit()
    assert equal(state_of(model), begin)


def test_a_second_fit_averages_from_where_the_model_is(kit, recording):
    fitter = fitter_of(kit, recording, WeightAveraging(DECAY), watch := Watch(), epochs=2)
    fitter.fit()
    start, done = state_of(fitter.model), len(watch.steps)
    fitter.fit()
    mean = list(averages_of(start, watch.steps[done:], DECAY))[3]
    for name, value in fitter.model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(watch.validated[2][name].double(), mean[name], rtol=1e-5, atol=1e-7)


def test_the_state_of_another_average_is_refused(kit, recording, tmp_path):
    def fit(*callbacks):
        return fitter_of(kit, recording, *callbacks, epochs=1, state_path=tmp_path / "s")

    fit(WeightAveraging(0.9)).fit()
    for other in ([WeightAveraging(0.8)], []):
        with pytest.raises(StateMismatchError, match=r"callbacks: the file has 'WeightAveraging\(decay=0\.9"):
            fit(*other).fit()


def test_in_a_series_each_fit_has_its_own(kit, recording):
    views = [recording.select(clips=clips) for clips in ([0, 1, 2], [3], [4])]
    result = fit_multi_seed(
        lambda seed: kit.linear(), lambda seed: make_loaders(*views, seed=seed), seeds=[3, 8],
        fitter_kwargs={"max_epochs": 2, "callbacks": lambda seed: [WeightAveraging()]},
    )  # fmt: skip
    for place, history in enumerate(result["per_seed_histories"]):
        best = max(history, key=lambda row: row["val_cc_norm"].nanmean())
        torch.testing.assert_close(result["per_seed_val_cc_norm"][place], best["val_cc_norm"].float())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_decay_lies_between_0_and_1(decay):
    with pytest.raises(ValueError, match="decay must lie between 0 and 1"):
        WeightAveraging(decay)


def test_a_fit_takes_one_average(kit, recording):
    with pytest.raises(ValueError, match="one WeightAveraging"):
        fitter_of(kit, recording, WeightAveraging(), WeightAveraging(0.9)).fit()
