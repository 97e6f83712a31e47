"""The Fitter's signature, history, early stopping, files and hooks, as the user documents need them."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from deepSTRF import _files as fit_files
from deepSTRF.datasets import neural_collate
from deepSTRF.metrics import corrcoef, normalized_corrcoef
from deepSTRF.training import Fitter

# one class per rule, documented under ModelRuleError
from deepSTRF.training.validate import NeuronCountError, NoGradientError, OutputRankError


def scripted(kit, dataset, values, **options):
    """A Fitter whose custom metric returns ``values`` one epoch after the other."""
    values = iter(values)
    metrics = {"score": lambda pred, responses: next(values)}
    options = {"monitor": "val_score", "track_train_metrics": False, "val_metrics": metrics} | options
    return Fitter(kit.linear(), *kit.loaders(dataset), **options)


def test_history_has_the_documented_keys_and_shapes(kit, recording):
    history = Fitter(kit.linear(), *kit.loaders(recording), max_epochs=3).fit()
    assert [record["epoch"] for record in history] == [0, 1, 2]
    for record in history:
        assert list(record) == [
            "epoch", "train_loss", "train_cc", "train_cc_norm", "val_loss", "val_cc", "val_cc_norm",
        ]  # fmt: skip
        assert isinstance(record["train_loss"], float)
        assert isinstance(record["val_loss"], float)
        for key in ("train_cc", "train_cc_norm", "val_cc", "val_cc_norm"):
            assert record[key].shape == (kit.NEURONS,)
            assert record[key].device.type == "cpu"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_equal_the_metrics_on_the_concatenated_clips(kit, ragged_recording, batch_size):
    model = kit.linear()
    train, val = kit.loaders(ragged_recording, val=range(6), batch_size=batch_size)
    fitter = Fitter(model, train, val, max_epochs=2)
    fitter.fit()
    scores = fitter.evaluate(val)
    whole = neural_collate([ragged_recording[clip] for clip in range(6)])
    with torch.no_grad():
        pred = model(whole["stims"])
    assert torch.allclose(
        scores["cc"], corrcoef(pred, whole["responses"], reduction="none").double(), atol=1e-6
    )
    wanted = normalized_corrcoef(pred, whole["responses"], reduction="none").double()
    assert torch.allclose(scores["cc_norm"], wanted, atol=1e-6)
    assert list(scores) == ["loss", "cc", "cc_norm"]
    assert isinstance(scores["loss"], float)


@pytest.mark.parametrize("patience", [1, 4])
def test_a_constant_monitor_gives_patience_plus_one_epochs(kit, recording, patience):
    fitter = scripted(kit, recording, [0.5] * 99, patience=patience)
    assert len(fitter.fit()) == patience + 1
    assert (fitter.best_epoch, fitter.best_score) == (0, 0.5)


def test_the_fit_ends_with_the_weights_of_the_best_epoch(kit, recording):
    class Watching(Fitter):
        snapshots = ()

        def on_epoch_end(self, epoch, record):
            self.snapshots = [*self.snapshots, {k: v.clone() for k, v in self.model.state_dict().items()}]

    scores = iter([0.1, 0.5, 0.9, 0.2, 0.3])
    fitter = Watching(
        kit.linear(), *kit.loaders(recording), val_metrics={"s": lambda p, r: next(scores)}, monitor="val_s",
        patience=2, track_train_metrics=False,
    )  # fmt: skip
    assert len(fitter.fit()) == 5
    best = fitter.snapshots[2]
    assert all(torch.equal(value, best[name]) for name, value in fitter.model.state_dict().items())
    assert not torch.equal(best["readout.bn.running_mean"], fitter.snapshots[4]["readout.bn.running_mean"])
    assert not fitter.model.training


def test_mode_min_follows_the_loss(kit, recording):
    fitter = Fitter(kit.linear(), *kit.loaders(recording), monitor="val_loss", mode="min", max_epochs=4)
    history = fitter.fit()
    assert fitter.best_score == min(record["val_loss"] for record in history)


def test_an_interrupted_fit_keeps_the_best_weights_and_the_history(kit, recording):
    class Interrupted(Fitter):
        def on_epoch_end(self, epoch, record):
            if epoch == 2:
                raise KeyboardInterrupt

    fitter = Interrupted(kit.linear(), *kit.loaders(recording), max_epochs=9)
    with pytest.raises(KeyboardInterrupt):
        fitter.fit()
    assert len(fitter.history) == 3
    val = kit.loaders(recording)[1]
    assert float(fitter.evaluate(val)["cc_norm"].nanmean()) == pytest.approx(fitter.best_score, abs=1e-9)


@pytest.mark.parametrize("key", ["val_typo", "cc_norm", "train_cc"])
def test_an_unknown_monitor_fails_before_the_first_epoch_and_lists_the_keys(kit, recording, key):
    fitter = Fitter(kit.linear(), *kit.loaders(recording), monitor=key, track_train_metrics=False)
    with pytest.raises(KeyError, match=f"{key}.*train_loss, val_cc, val_cc_norm, val_loss"):
        fitter.fit()
    assert fitter.history == []


def test_custom_metrics_replace_the_default_ones(kit, ragged_recording):
    shapes = []

    def spread(pred, responses):
        shapes.append((tuple(pred.shape), tuple(responses.shape)))
        assert bool(pred.isfinite().all())
        return pred.std(dim=(0, 2, 3))

    fitter = Fitter(
        kit.linear(), *kit.loaders(ragged_recording), max_epochs=2, monitor="val_spread",
        val_metrics={"spread": spread, "scalar": lambda p, r: torch.tensor(0.5)},
    )  # fmt: skip
    record = fitter.fit()[-1]
    assert sorted(record) == [
        "epoch", "train_loss", "train_scalar", "train_spread", "val_loss", "val_scalar", "val_spread"
    ]  # fmt: skip
    assert record["val_scalar"] == 0.5
    assert shapes[0] == ((4, 4, 1, 60), (4, 4, 5, 60)), "padded to the longest clip"
    assert shapes[1] == ((2, 4, 1, 41), (2, 4, 5, 41))
    with pytest.raises(TypeError, match=r"val_metrics\['x'\] must be callable"):
        Fitter(kit.linear(), *kit.loaders(ragged_recording), val_metrics={"x": 3}).fit()


def test_hooks_get_what_they_are_documented_to_get(kit, recording):
    calls = []

    class Own(Fitter):
        def compute_loss(self, pred, responses):
            calls.append((tuple(pred.shape), tuple(responses.shape), self.batch.extras["stim_meta"][0]))
            return (pred - responses.mean(2, keepdim=True)).square().mean()

        def on_epoch_end(self, epoch, record):
            calls.append((epoch, record["val_loss"]))

    history = Own(kit.linear(), *kit.loaders(recording), max_epochs=1).fit()
    assert len(calls) == 7
    assert calls[0][:2] == ((1, 4, 1, 60), (1, 4, 5, 60)), "an own loss gets the repeats"
    assert isinstance(calls[0][2], dict)
    assert calls[-1] == (0, history[0]["val_loss"])


def test_a_model_with_further_inputs_through_its_loader(kit, recording):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = kit.linear()

        def forward(self, x, gain):
            return self.linear(x) * gain

    def with_behaviour(items):
        return neural_collate(items) | {"behav": torch.full((len(items), 1, 1, 1), 2.0)}

    class Own(Fitter):
        def predict_batch(self, batch):
            return self.model(batch.inputs, batch.extras["behav"].to(self.device))

    loader = DataLoader(recording, batch_size=2, collate_fn=with_behaviour)
    fitter = Own(Gated(), loader, loader, max_epochs=2)
    assert len(fitter.fit()) == 2
    assert "collate_fn" in fitter.data_path["train"]


def test_fit_again_is_a_fit_of_its_own(kit, recording):
    fitter = Fitter(kit.linear(), *kit.loaders(recording), max_epochs=3, patience=3)
    first = fitter.fit()
    again = fitter.fit()
    assert len(first) == len(again) == 3
    assert first is not again
    assert again[0]["train_loss"] < first[0]["train_loss"], "it starts from the weights of the first"


def test_default_optimizer_is_adamw(kit, recording):
    optimizer = Fitter(kit.linear(), *kit.loaders(recording)).optimizer
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.AdamW
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-4)


# ---------------------------------------------------------------------------------------------- files


def test_the_checkpoint_is_the_best_state_and_parents_are_made(kit, recording, tmp_path):
    path = tmp_path / "new" / "best.pt"
    fitter = Fitter(kit.linear(), *kit.loaders(recording), max_epochs=3, ckpt_path=path)
    fitter.fit()
    saved = torch.load(path, weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in fitter.model.state_dict().items())
    assert [entry.name for entry in path.parent.iterdir()] == ["best.pt"]


def test_an_existing_file_is_never_read(kit, recording):
    """The notebook passes an empty temporary file; an old run may have left any weights there."""
    name = tempfile.NamedTemporaryFile(suffix=".pt", delete=False).name  # noqa: SIM115
    try:
        Fitter(kit.linear(), *kit.loaders(recording), max_epochs=1, ckpt_path=name).fit()
        Path(name).write_bytes(b"weights of somebody else")
        fitter = scripted(kit, recording, [0.5, float("nan")], ckpt_path=name, max_epochs=1)
        fitter.fit()
        assert torch.load(name, weights_only=True).keys() == fitter.model.state_dict().keys()
    finally:
        os.unlink(name)


def test_a_full_disk_costs_a_warning_not_the_run(kit, recording, tmp_path, monkeypatch):
    path, state = tmp_path / "best.pt", tmp_path / "fit.state"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fit_files.os, "fsync", full)
    fitter = Fitter(kit.linear(), *kit.loaders(recording), max_epochs=3, ckpt_path=path, state_path=state)
    with pytest.warns(RuntimeWarning, match="could not be written .*No space left on device"):
        history = fitter.fit()
    assert len(history) == 3
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.pt"]
    val = kit.loaders(recording)[1]
    assert float(fitter.evaluate(val)["cc_norm"].nanmean()) == pytest.approx(fitter.best_score, abs=1e-9)


def test_a_checkpoint_that_failed_is_written_at_the_end(kit, recording, tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    real, calls = os.replace, []

    def sometimes_full(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments)

    monkeypatch.setattr(fit_files.os, "replace", sometimes_full)
    fitter = scripted(kit, recording, [0.9, 0.5, 0.4], ckpt_path=path, patience=2)
    with pytest.warns(RuntimeWarning, match="ckpt_path"):
        fitter.fit()
    assert len(torch.load(path, weights_only=True)) == len(fitter.model.state_dict())


# --------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"mode": "up"}, ValueError, "mode must be 'max' or 'min'"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"max_epochs": 0}, ValueError, "max_epochs must be at least 1"),
        ({"max_epochs": 2.5}, TypeError, "max_epochs must be an integer"),
        ({"min_delta": -1}, ValueError, "min_delta"),
        ({"grad_clip": float("nan")}, ValueError, "grad_clip"),
        ({"warmup_ms": -5}, ValueError, "warmup_ms"),
        ({"precision": "half"}, ValueError, "precision must be one of 'float32', 'bf16', 'fp16'"),
        ({"precision": "fp16"}, ValueError, "fp16.*needs a CUDA device.*use 'bf16'"),
        ({"device": "tpu9"}, ValueError, "device must be like"),
        ({"device": "cuda:7"}, ValueError, "PyTorch sees .* use device='cpu'"),
        ({"loss_fn": "mse"}, TypeError, "loss_fn must be callable"),
        ({"optimizer": 3}, TypeError, "optimizer must be"),
        ({"optimizer": lambda model: 3}, TypeError, "optimizer must be"),
        ({"scheduler": 3}, TypeError, "scheduler must be"),
        ({"track_per_cell_best": True, "monitor": "val_loss", "mode": "min"}, ValueError, "per-cell monitor"),
        ({"clip_bytes": -1}, ValueError, "max_bytes"),
        ({"progress": "maybe"}, ValueError, "progress must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_illegal_arguments(kit, recording, options, error, text):
    with pytest.raises(error, match=text):
        Fitter(kit.linear(), *kit.loaders(recording), max_epochs=1, **options).fit() if (
            "max_epochs" not in options
        ) else Fitter(kit.linear(), *kit.loaders(recording), **options)


def test_numpy_integers_are_whole_numbers(kit, recording):
    options = {"max_epochs": np.int64(1), "patience": np.int32(2)}
    assert len(Fitter(kit.linear(), *kit.loaders(recording), **options).fit()) == 1


def test_an_optimizer_of_another_model(kit, recording):
    other = torch.optim.AdamW(kit.linear().parameters())
    with pytest.raises(ValueError, match=r"none of this model's trainable parameters"):
        Fitter(kit.linear(), *kit.loaders(recording), optimizer=other)


def test_what_is_no_loader_or_has_no_batches(kit, recording):
    train, val = kit.loaders(recording)
    with pytest.raises(TypeError, match=r"train_loader must be a DataLoader.*make_loaders"):
        Fitter(kit.linear(), recording, val)
    empty = DataLoader(recording, batch_size=7, drop_last=True, collate_fn=neural_collate)
    with pytest.raises(ValueError, match=r"val_loader has no batches"):
        Fitter(kit.linear(), train, empty)
    with pytest.raises(
        TypeError, match=r"must yield dictionaries with 'stims' and 'responses'.*neural_collate"
    ):
        Fitter(kit.linear(), DataLoader([torch.ones(2)]), val).fit()


def test_models_that_cannot_be_fitted(kit, recording):
    loaders = kit.loaders(recording)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        Fitter(lambda x: x, *loaders)
    with pytest.raises(ValueError, match="no trainable parameter"):
        Fitter(kit.linear().requires_grad_(False), *loaders)
    with pytest.raises(NeuronCountError, match="out_neurons=4"):
        Fitter(kit.linear(neurons=9), *loaders).fit()

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = kit.linear()

        def forward(self, x):
            return self.linear(x).squeeze(2)

    class Detached(Squeezed):
        def forward(self, x):
            return self.linear(x).detach()

    with pytest.raises(OutputRankError, match=r"unsqueeze\(2\)"):
        Fitter(Squeezed(), *loaders).fit()
    with pytest.raises(NoGradientError, match="detaches"):
        Fitter(Detached(), *loaders).fit()
