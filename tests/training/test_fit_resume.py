"""A fit that was killed and started again ends where it would have ended."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepSTRF.training import Fitter, StateMismatchError

HERE = Path(__file__).parent


class Mortal(Fitter):
    """A fit that kills its process in the middle of an epoch."""

    die_at, steps = 0, 0

    def compute_loss(self, pred, responses):
        self.steps += self.model.training
        if self.steps == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute_loss(pred, responses)


def mortal_fit(kit, folder, die_at, seed):
    """A fit with everything random in it: shuffling by its own generator, dropout by the global one."""
    generator = torch.Generator().manual_seed(8)
    model = kit.linear(kit.DroppingBands())
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    fitter = Mortal(
        model,
        *kit.loaders(kit.waveform_recording(), batch_size=2, generator=generator),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 3),
        max_epochs=7,
        patience=20,
        state_path=folder / "fit.state",
        ckpt_path=folder / "best.pt",
        track_per_cell_best=True,
    )
    fitter.die_at = die_at
    return model, fitter.fit()


PROGRAM = """
import importlib.util, pathlib, sys
import torch

def load(name):
    spec = importlib.util.spec_from_file_location(name, f"{sys.argv[1]}/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

torch.set_num_threads(int(sys.argv[3]))
load("test_fit_resume").mortal_fit(load("conftest").Kit, pathlib.Path(sys.argv[2]), die_at=8, seed=3)
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_and_started_again(kit, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    arguments = [str(HERE), str(killed), str(torch.get_num_threads())]
    died = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    stored = torch.load(killed / "fit.state", weights_only=True)["content"]
    assert len(stored["history"]["columns"]["epoch"]) == 3, "three epochs of two steps were over"
    model, history = mortal_fit(kit, whole, die_at=0, seed=3)
    other, again = mortal_fit(kit, killed, die_at=0, seed=99)  # what is random comes from the state
    assert len(again) == 7
    for a, b in zip(history, again, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)
    weights = other.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def schedulers():
    make = torch.optim.lr_scheduler
    yield lambda optimizer: make.StepLR(optimizer, 2)
    yield lambda optimizer: make.CosineAnnealingLR(optimizer, 6)
    yield lambda optimizer: make.ReduceLROnPlateau(optimizer, mode="max", patience=0)
    yield lambda optimizer: make.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    yield lambda optimizer: make.SequentialLR(
        optimizer, [make.ConstantLR(optimizer, 0.5, 2), make.ExponentialLR(optimizer, 0.9)], [2]
    )


class Stops(Fitter):
    """Ends like a killed process does: without the last word."""

    at = 99

    def on_epoch_end(self, epoch, record):
        if epoch == self.at:
            raise SystemExit


@pytest.mark.parametrize("number", range(5))
def test_schedulers_go_on_where_they_were(kit, recording, tmp_path, number):
    results = []
    for stop in (99, 3):
        for at in (stop, 99):
            torch.manual_seed(4)
            fitter = Stops(
                kit.linear(), *kit.loaders(recording), scheduler=list(schedulers())[number], max_epochs=6,
                state_path=tmp_path / f"{stop}.state", seed=1,
            )  # fmt: skip
            fitter.at = at
            try:
                fitter.fit()
            except SystemExit:
                continue
        results.append((fitter.model.state_dict(), fitter.optimizer.param_groups[0]["lr"]))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())


def test_a_finished_fit_returns_at_once_and_a_longer_one_goes_on(kit, recording, tmp_path):
    def fitter(epochs):
        return Stops(
            kit.linear(), *kit.loaders(recording), max_epochs=epochs, state_path=tmp_path / "s", patience=50
        )

    torch.manual_seed(1)
    first = fitter(3)
    first.fit()
    again = fitter(3)
    assert len(again.fit()) == 3
    assert all(torch.equal(v, first.model.state_dict()[k]) for k, v in again.model.state_dict().items())
    assert again.best_epoch == first.best_epoch
    longer = fitter(5)
    assert [record["epoch"] for record in longer.fit()] == [0, 1, 2, 3, 4]
    torch.manual_seed(1)
    straight = Fitter(kit.linear(), *kit.loaders(recording), max_epochs=5, patience=50)
    straight.fit()
    assert all(torch.equal(v, straight.model.state_dict()[k]) for k, v in longer.model.state_dict().items())


def test_what_a_hook_adds_to_the_record_survives(kit, recording, tmp_path):
    import numpy as np

    class Adding(Stops):
        def on_epoch_end(self, epoch, record):
            record |= {"a": np.float64(0.5), "b": torch.ones(2, requires_grad=True), "c": {1}, "d": "text"}
            super().on_epoch_end(epoch, record)

    def fitter(epochs):
        return Adding(kit.linear(), *kit.loaders(recording), max_epochs=epochs, state_path=tmp_path / "s")

    fitter(2).fit()
    first = fitter(3).fit()[0]
    assert (first["a"], first["b"].tolist(), first["c"], first["d"]) == (0.5, [1.0, 1.0], "{1}", "text")


def test_a_fit_that_ran_out_of_patience_stays_finished(kit, recording, tmp_path):
    def fitter():
        return Fitter(
            kit.linear(), *kit.loaders(recording), patience=2, state_path=tmp_path / "s", monitor="val_s",
            val_metrics={"s": lambda p, r: 0.5}, track_train_metrics=False,
        )  # fmt: skip

    assert len(fitter().fit()) == len(fitter().fit()) == 3


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        ({"norm": "none"}, "model: the file has 'Linear with"),
        ({"loss": True}, "loss: the file has 'mse_loss'"),
        ({"lr": 0.5}, "optimizer: "),
        ({"clips": (4,)}, "validation data: the file has '2 clips"),
        ({"train": range(3)}, "training data: the file has '4 clips"),
        ({"warmup_ms": 10.0}, "warmup_ms"),
        ({"dataset": True}, "training data: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_another_fit_does_not_resume_and_says_what_differs(kit, recording, tmp_path, change, aspect):
    from deepSTRF.metrics import poisson_loss

    path = tmp_path / "fit.state"
    Fitter(kit.linear(), *kit.loaders(recording), max_epochs=1, state_path=path).fit()
    before = path.read_bytes()
    model = kit.linear(norm=change.get("norm", "batch"))
    dataset = kit.spectrogram_recording(seed=1) if "dataset" in change else recording
    loaders = kit.loaders(dataset, val=change.get("clips", (4, 5)), train=change.get("train", range(4)))
    options = {"warmup_ms": change["warmup_ms"]} if "warmup_ms" in change else {}
    if "loss" in change:
        options["loss_fn"] = functools.partial(poisson_loss, log_input=True)
    if "lr" in change:
        options["optimizer"] = lambda model: torch.optim.AdamW(model.parameters(), lr=change["lr"])
    fitter = Fitter(model, *loaders, max_epochs=1, state_path=path, **options)
    with pytest.raises(StateMismatchError, match=aspect):
        fitter.fit()
    assert path.read_bytes() == before
