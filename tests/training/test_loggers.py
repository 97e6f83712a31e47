"""Loggers of `fit_multi_seed`: with stand-ins everywhere, with the real packages where they are installed."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deepSTRF.models.audio import Linear
from deepSTRF.training import (
    FitDivergedError,
    TensorBoardSeedLogger,
    WandbSeedLogger,
    fit_multi_seed,
    make_tensorboard_logger_factory,
    make_wandb_logger_factory,
)

# what a logger is given, without the packages that draw it
from deepSTRF.training.loggers import Record

NAN = float("nan")


def needs(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed (extra 'log')"
    )


class FakeWriter:
    """Stands in for torch's SummaryWriter: keeps what it is given."""

    made: list[FakeWriter] = []

    def __init__(self, log_dir, purge_step=None):
        self.log_dir, self.purge_step, self.closed = log_dir, purge_step, False
        self.scalars, self.histograms, self.texts = {}, {}, {}
        FakeWriter.made.append(self)

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_histogram(self, tag, values, step):
        self.histograms[tag, step] = values

    def add_text(self, tag, text, step):
        self.texts[tag, step] = text

    def close(self):
        self.closed = True


class FakeRun:
    def __init__(self, options):
        self.options, self.rows, self.summary, self.exit_codes = options, {}, {}, []

    def log(self, values, step):
        self.rows[step] = values

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


@pytest.fixture
def board(monkeypatch):
    """A tensorboard that keeps its writers in a list."""
    monkeypatch.setattr(FakeWriter, "made", [])
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=FakeWriter))
    return FakeWriter


@pytest.fixture
def wandb_runs(monkeypatch):
    """A wandb that keeps its runs in a list."""
    runs = []

    def init(**options):
        runs.append(FakeRun(options))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Histogram=lambda v: ("hist", v)))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return runs


@pytest.fixture
def factories(kit, recording):
    def loader_factory(seed):
        train, val = kit.loaders(recording, generator=torch.Generator().manual_seed(seed))
        return train, val, val

    return lambda seed: Linear(kit.BANDS, 3, kit.NEURONS), loader_factory


EPOCH = {"epoch": 4, "train_loss": 0.5, "val_cc": torch.tensor([0.0, 1.0, NAN, 0.5])}
FINAL = {"val": {"loss": 0.25, "cc": torch.tensor([0.5, 1.0])}, "test": {"loss": torch.tensor(0.75)}}


def test_records_hold_numbers_vectors_and_texts():
    record = Record.of(
        {"a": np.float32(0.5), "b": True, "c": torch.full((3,), NAN), "d": np.array([1.0, np.inf]), "e": None}
    )
    assert record.numbers["a"] == 0.5
    assert record.numbers["b"] == 1.0
    assert math.isnan(record.numbers["c"])
    assert record.numbers["c/n_nan"] == 3
    assert "c/p50" not in record.numbers
    assert list(record.vectors) == ["d"]
    assert record.vectors["d"].tolist() == [1.0]
    assert record.numbers["d"] == math.inf
    assert record.texts == {"e": "None"}
    gradient = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    assert Record.of({"f": gradient}).vectors["f"].tolist() == [1.0, 1.0]


def test_tensorboard_curves(board, tmp_path):
    logger = TensorBoardSeedLogger(
        3, log_dir=tmp_path, group="g", config={"lr": 0.1, "o": {"b": [1, 2]}, "n": "x|y"}
    )
    assert board.made == [], "no file before the first record"
    logger({**EPOCH, "note": "seen"})
    logger.finalize(FINAL)
    logger.close()
    (writer,) = board.made
    assert writer.closed
    assert writer.purge_step == 4, "points of an earlier run in the same folder are hidden from here on"
    assert writer.log_dir == str(tmp_path / "g" / "g-seed3") == str(logger.path)
    numbers = {key: value for (key, step), value in writer.scalars.items() if step == 4}
    assert numbers == pytest.approx(
        {
            "train_loss": 0.5,
            "val_cc": 0.5,
            "val_cc/p10": 0.1,
            "val_cc/p50": 0.5,
            "val_cc/p90": 0.9,
            "val_cc/n_nan": 1,
        }
    )
    assert writer.histograms["val_cc/hist", 4].tolist() == [0.0, 1.0, 0.5]
    assert writer.texts["note", 4] == "seen"
    assert writer.scalars["final/val_cc", 0] == 0.75
    assert writer.scalars["final/test_loss", 0] == 0.75
    assert writer.histograms["final/val_cc/hist", 0].tolist() == [0.5, 1.0]
    assert writer.scalars["hparams/lr", 0] == 0.1
    assert writer.scalars["hparams/seed", 0] == 3
    assert writer.texts["hparams/o/b", 0] == "[1, 2]"
    assert "| n | x\\|y |" in writer.texts["config", 0]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ("default", "seed1")),
        ({"group": "g"}, ("g", "g-seed1")),
        ({"group": "g", "name": "n"}, ("g", "n-seed1")),
        ({"group": "../g", "name": "a/b"}, ("_g", "a_b-seed1")),
    ],
)
def test_names_of_runs(board, wandb_runs, tmp_path, options, parts):
    assert TensorBoardSeedLogger(1, log_dir=tmp_path, **options).path == tmp_path.joinpath(*parts)
    WandbSeedLogger(1, **options)
    assert wandb_runs[0].options["name"] == parts[1]


def test_wandb_curves(wandb_runs, tmp_path):
    environment = dict(os.environ)
    logger = WandbSeedLogger(3, project="p", group="g", dir=tmp_path / "new", config={"lr": NAN}, tags=["t"])
    logger(EPOCH)
    logger.finalize(FINAL)
    logger.close()
    logger.close()
    (run,) = wandb_runs
    assert run.options == {
        "project": "p", "entity": None, "group": "g", "name": "g-seed3", "dir": str(tmp_path / "new"),
        "mode": "offline", "config": {"lr": None, "seed": 3}, "reinit": "create_new", "tags": ["t"],
    }  # fmt: skip
    assert (tmp_path / "new").is_dir()
    row = run.rows[4]
    assert (row["train_loss"], row["val_cc"], row["val_cc/n_nan"]) == (0.5, 0.5, 1)
    kind, values = row["val_cc/hist"]
    assert kind == "hist"
    assert values.tolist() == [0.0, 1.0, 0.5]
    assert run.summary["final/val_cc"] == 0.75
    assert run.summary["final/test_loss"] == 0.75
    assert run.exit_codes == [0], "closed once"
    assert dict(os.environ) == environment


@pytest.mark.parametrize(
    ("variable", "mode", "passed"),
    [
        (None, None, "offline"),
        ("online", None, None),
        (None, "disabled", "disabled"),
        ("online", "offline", "offline"),
    ],
)
def test_the_mode_of_wandb_is_the_users(wandb_runs, monkeypatch, tmp_path, variable, mode, passed):
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    WandbSeedLogger(0, mode=mode, dir=tmp_path / "new")
    assert wandb_runs[0].options["mode"] == passed
    assert (tmp_path / "new").exists() == (mode != "disabled")


def test_a_block_closes_however_it_ends(wandb_runs):
    with WandbSeedLogger(0) as logger:
        logger(EPOCH)
    with pytest.raises(KeyError), WandbSeedLogger(1):
        raise KeyError("lost")
    WandbSeedLogger(2).close()
    assert [run.exit_codes for run in wandb_runs] == [[0], [1], [1]], "unfinished runs are marked as failed"
    with pytest.raises(ValueError, match="logger of seed 0 is closed"):
        logger(EPOCH)
    with pytest.raises(ValueError, match="is closed"):
        logger.finalize(FINAL)


def test_many_seeds_leave_one_run_each(board, wandb_runs, factories, tmp_path):
    for make in (make_tensorboard_logger_factory(log_dir=tmp_path), make_wandb_logger_factory(group="g")):
        fit_multi_seed(*factories, 2, fitter_kwargs={"max_epochs": 2}, logger_factory=make)
    assert [writer.closed for writer in board.made] == [True, True]
    assert [run.exit_codes for run in wandb_runs] == [[0], [0]]
    assert [list(run.rows) for run in wandb_runs] == [[0, 1], [0, 1]]
    assert not math.isnan(board.made[0].scalars["final/test_cc_norm", 0])
    assert wandb_runs[0].rows[1]["train_loss"] == board.made[0].scalars["train_loss", 1]


def test_a_logger_that_is_closed_at_once_leaves_its_settings(board, tmp_path):
    TensorBoardSeedLogger(3, log_dir=tmp_path, config={"model": "linear", "lr": 0.5}).close()
    (writer,) = board.made
    assert writer.closed
    assert writer.scalars == {("hparams/lr", 0): 0.5, ("hparams/seed", 0): 3.0}
    assert writer.texts["hparams/model", 0] == "linear"


@pytest.mark.filterwarnings("ignore:seed . diverged:RuntimeWarning")
def test_loggers_are_closed_when_a_fit_fails(board, wandb_runs, factories, tmp_path):
    def diverging(pred, responses):
        return pred.mean() * NAN

    for make in (make_tensorboard_logger_factory(log_dir=tmp_path), make_wandb_logger_factory()):
        with pytest.raises(FitDivergedError):
            fit_multi_seed(*factories, 2, fitter_kwargs={"loss_fn": diverging}, logger_factory=make)
    assert all(writer.closed for writer in board.made)
    assert [run.exit_codes for run in wandb_runs] == [[1], [1]]


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for make in (
        make_tensorboard_logger_factory,
        make_wandb_logger_factory,
        lambda: TensorBoardSeedLogger(0),
        lambda: WandbSeedLogger(0),
    ):
        with pytest.raises(ImportError, match=r"pip install -e .\.\[log\]"):
            make()


@needs("tensorboard")
def test_the_real_tensorboard_reads_it_back(factories, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def fit(epochs):
        make = make_tensorboard_logger_factory(log_dir=tmp_path, group="g", config={"model": "Linear"})
        fit_multi_seed(*factories, 2, fitter_kwargs={"max_epochs": epochs}, logger_factory=make)

    fit(3)
    fit(2)  # anew, in the same folders
    runs = sorted(path.name for path in (tmp_path / "g").iterdir())
    assert runs == ["g-seed0", "g-seed1"]
    events = EventAccumulator(str(tmp_path / "g" / "g-seed0"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [0, 1], "the earlier curve is replaced"
    tags = events.Tags()
    assert {"val_cc", "val_cc/p10", "val_cc/p90", "final/test_cc_norm", "hparams/seed"} <= set(
        tags["scalars"]
    )
    assert {"val_cc/hist", "final/val_cc/hist"} <= set(tags["histograms"])
    assert "config/text_summary" in tags["tensors"]


@needs("wandb")
@pytest.mark.filterwarnings("default")  # of wandb's own
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_real_wandb_keeps_one_run_per_seed(factories, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    quiet = {"silent": True}
    make = make_wandb_logger_factory(dir="runs", mode=mode, config={"lr": 0.1}, settings=quiet)
    fit_multi_seed(*factories, 2, fitter_kwargs={"max_epochs": 2}, logger_factory=make)
    found = list((tmp_path / "runs").glob("wandb/offline-run-*"))
    assert len(found) == (2 if mode == "offline" else 0)
    assert [path.name for path in tmp_path.iterdir()] == (["runs"] if mode == "offline" else [])
