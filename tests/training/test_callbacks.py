"""A user's callback works in every kind of fit, is called in order, and goes on in a resumed fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from deepSTRF.crossval import fit_folds
from deepSTRF.datasets import plan_folds
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.training import Callback, Fitter, fit_multi_seed, make_loaders


class Diary(Callback):
    """Notes every call, and adds to the record."""

    def __init__(self, seed=None):
        self.seed, self.calls, self.steps = seed, [], 0

    def on_fit_start(self, fitter):
        self.steps = 0
        self.calls.append("fit start")

    def on_epoch_start(self, fitter, epoch):
        self.calls.append(f"epoch {epoch}")

    def on_loss(self, fitter, batch, prediction, loss):
        assert loss.requires_grad
        self.calls.append("loss")

    def on_gradient(self, fitter, batch, prediction, norm):
        assert any(parameter.grad is not None for parameter in fitter.model.parameters())
        self.calls.append("gradient")

    def on_batch_end(self, fitter, batch, prediction, loss):
        assert prediction.shape[1] == batch.targets.shape[1]
        assert not prediction.requires_grad
        self.steps += 1
        self.calls.append("batch")

    def on_train_pass_end(self, fitter, epoch):
        self.calls.append("pass")

    def on_epoch_end(self, fitter, epoch, record):
        assert fitter.history[-1] is record
        assert fitter.best_epoch is not None
        record["steps"] = self.steps
        self.calls.append("epoch end")

    def on_fit_end(self, fitter):
        assert not fitter.model.training
        self.calls.append("fit end")

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        self.calls.append("loaded")


@pytest.fixture
def made():
    """A list of the callbacks that a factory has made."""
    return []


@pytest.fixture
def factory(made):
    def make(seed):
        made.append(Diary(seed))
        return made[-1:]

    return make


def test_the_hooks_are_called_in_order(kit, recording):
    diary = Diary()
    fitter = Fitter(kit.linear(), *kit.loaders(recording, train=[0, 1]), max_epochs=2, callbacks=[diary])
    history = fitter.fit()
    epoch = ["loss", "gradient", "batch"] * 2 + ["pass", "epoch end"]
    assert diary.calls == ["fit start", "epoch 0", *epoch, "epoch 1", *epoch, "fit end"]
    assert [record["steps"] for record in history] == [2, 4]
    assert diary in fitter.callbacks


def test_a_callback_is_told_of_the_end_of_a_fit_that_failed_and_may_stop_one(kit, recording):
    class Stop(Callback):
        def on_batch_end(self, fitter, batch, prediction, loss):
            fitter.should_stop = len(fitter.history) == 2

    assert len(Fitter(kit.linear(), *kit.loaders(recording), callbacks=[Stop()]).fit()) == 3

    class Fail(Callback):
        def on_epoch_end(self, fitter, epoch, record):
            raise KeyboardInterrupt

        def on_fit_end(self, fitter):
            raise OSError("the disk is full")

    diary = Diary()
    fitter = Fitter(kit.linear(), *kit.loaders(recording), callbacks=[Fail(), diary])
    with pytest.raises(OSError, match="disk is full"):
        fitter.fit()
    assert diary.calls[-1] == "fit end"


def test_best_weights_are_back_when_a_callback_looks_at_the_end(kit, recording):
    class Last(Callback):
        def on_fit_end(self, fitter):
            self.state = {name: value.clone() for name, value in fitter.model.state_dict().items()}

    last = Last()
    fitter = Fitter(kit.linear(), *kit.loaders(recording), max_epochs=6, patience=2, callbacks=[last])
    fitter.fit()
    assert all(torch.equal(value, last.state[name]) for name, value in fitter.best_weights.state.items())


@pytest.mark.parametrize("wrong", [Diary, lambda seed: Diary(), [Diary], [lambda record: None], Diary()])
def test_one_fit_takes_a_list_of_instances(kit, recording, wrong):
    with pytest.raises(TypeError, match="callbacks"):
        Fitter(kit.linear(), *kit.loaders(recording), callbacks=wrong)


@pytest.mark.parametrize("seed", [None, 7])
def test_one_fit_takes_a_function_of_the_seed_as_a_series_does(kit, recording, made, factory, seed):
    fitter = Fitter(kit.linear(), *kit.loaders(recording), callbacks=factory, seed=seed)
    assert [diary.seed for diary in made] == [seed or 0]
    assert made[0] in fitter.callbacks


def test_a_callback_may_change_training_batches_and_no_others(kit, recording):
    class Silence(Callback):
        def on_batch_start(self, fitter, batch):
            assert fitter.model.training
            self.given = batch.inputs
            return dataclasses.replace(batch, inputs=torch.zeros_like(batch.inputs))

        def on_loss(self, fitter, batch, prediction, loss):
            assert not batch.inputs.any()

    silence, model, heard = Silence(), kit.linear(), {True: [], False: []}
    model.register_forward_pre_hook(lambda m, args: heard[m.training].append(bool(args[0].any())))
    Fitter(model, *kit.loaders(recording), max_epochs=2, callbacks=[silence]).fit()
    assert heard == {True: [False] * 8, False: [True] * 4}
    assert silence.given.any(), "the clip itself stays"


@pytest.mark.parametrize("made", [None, torch.zeros(1)])
def test_a_callback_that_returns_no_batch_is_named(kit, recording, made):
    class Forgetful(Callback):
        def on_batch_start(self, fitter, batch):
            return made

    with pytest.raises(TypeError, match=r"Forgetful\.on_batch_start must return the batch"):
        Fitter(kit.linear(), *kit.loaders(recording), max_epochs=1, callbacks=[Forgetful()]).fit()


def test_in_a_fit_of_several_seeds(kit, recording, made, factory):
    views = [recording.select(clips=clips) for clips in ([0, 1], [2], [3])]
    result = fit_multi_seed(
        lambda seed: kit.linear(), lambda seed: make_loaders(*views, seed=seed), seeds=[3, 8],
        fitter_kwargs={"max_epochs": 2, "callbacks": factory},
    )  # fmt: skip
    assert [diary.seed for diary in made] == [3, 8]
    assert [record["steps"] for record in result["per_seed_histories"][1]] == [2, 4]
    for wrong in ([Diary()], Diary()):
        with pytest.raises(TypeError, match=r"function of the seed.*lambda seed: \[MyCallback\(\)\]"):
            fit_multi_seed(None, None, 1, fitter_kwargs={"callbacks": wrong})


def test_in_fits_over_folds(kit, recording, made, factory, tmp_path):
    plan = plan_folds(recording, crossval=True)
    options = {"fitter_kwargs": {"max_epochs": 1}, "only": ["model-001", "model-004"], "seed": 10}
    fit_folds(lambda seed: kit.linear(), recording, plan, tmp_path, callbacks=factory, **options)
    assert [diary.seed for diary in made] == [11, 14]
    assert [diary.steps for diary in made] == [5, 5]
    with pytest.raises(TypeError, match="callbacks must be a function of the seed"):
        fit_folds(lambda seed: kit.linear(), recording, plan, tmp_path, callbacks=[Diary()])
    with pytest.raises(ValueError, match="callbacks is managed by fit_folds"):
        fit_folds(lambda seed: kit.linear(), recording, plan, tmp_path, fitter_kwargs={"callbacks": factory})


def test_in_an_experiment(made, factory, tmp_path):
    config = ExperimentConfig(
        dataset_options={"n_neurons": 3, "n_clips": 5, "n_repeats": 4}, epochs=2, seeds=(0, 1)
    )
    run = run_experiment(config, tmp_path / "run", callbacks=factory, progress=False)
    assert [diary.seed for diary in made] == [0, 1]
    assert run.histories[1][-1]["steps"] == made[1].steps > 0
    with pytest.raises(TypeError, match="callbacks must be a function of the seed"):
        run_experiment(config, tmp_path / "other", callbacks=[Diary()])


def test_its_state_goes_on_in_a_resumed_fit(kit, recording, tmp_path):
    def fitter(epochs, *callbacks):
        return Fitter(
            kit.linear(), *kit.loaders(recording), max_epochs=epochs, state_path=tmp_path / "s",
            callbacks=callbacks,
        )  # fmt: skip

    fitter(2, Diary(), Diary()).fit()
    first, second = Diary(), Diary()
    history = fitter(3, first, second, Callback()).fit()  # a further callback starts from nothing
    assert first.calls[:3] == ["fit start", "loaded", "epoch 2"]
    assert (first.steps, second.steps) == (12, 12)
    assert [record["steps"] for record in history] == [4, 8, 12]
    assert len(fitter(3).fit()) == 3  # and one that is gone is not missed


def test_a_state_that_no_file_can_hold_is_named(kit, recording, tmp_path):
    class Opaque(Callback):
        def state_dict(self):
            return {"seen": [{1, 2}]}

    options = {"max_epochs": 1, "callbacks": [Opaque()]}
    with pytest.raises(TypeError, match="state_dict of the callback Opaque holds a set"):
        Fitter(kit.linear(), *kit.loaders(recording), state_path=tmp_path / "s", **options).fit()
    assert len(Fitter(kit.linear(), *kit.loaders(recording), **options).fit()) == 1


def test_a_logger_is_a_callback_too(kit, recording):
    from deepSTRF.training.loggers import SeedLogger  # the base class of the exported loggers

    class Lines(SeedLogger):
        lines = ()

        def write(self, record, step):
            self.lines = [*self.lines, step]

        def write_final(self, record):
            pass

        def end(self):
            pass

    with Lines(0) as logger:
        Fitter(kit.linear(), *kit.loaders(recording), max_epochs=2, callbacks=[logger]).fit()
    assert logger.lines == [0, 1]
