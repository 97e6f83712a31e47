"""The search with Optuna: pruning, resuming, the choice by validation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import numpy as np
import pytest

from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio.synthetic import SyntheticDataset
from deepSTRF.experiments import (
    Run,
    SearchResults,
    optuna_search,  # inner: where a search is interrupted
    search,
)

optuna = pytest.importorskip("optuna")

# from Python 3.12 on, a fork of a process with threads warns; a child that hangs is killed as the others are
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
DATA = {"n_neurons": 2, "n_clips": 6, "n_repeats": 4, "clip_seconds": 0.5}
RIDGE = {"dataset_options": DATA, "split": "kfold:3", "model": "ridge"}
LAGS = {"model_options.n_lags": {"low": 1, "high": 30}}
#: A rate at which nothing is learned in a few epochs falls behind at once.
NETWORK = {"dataset_options": DATA, "split": "4/1/1", "model": "linear", "epochs": 8}
RATES = {"learning_rate": {"low": 1e-9, "high": 1e-2, "log": True}}


def values(results: SearchResults) -> list[tuple[str, float, tuple]]:
    return [(t.status, round(t.validation, 12), tuple(t.choices.items())) for t in results.trials]


def test_the_score_of_a_trial_is_the_mean_over_its_folds(tmp_path):
    results = search(LAGS, RIDGE, tmp_path, n_trials=3, folds=[0, 2], progress=False)
    for trial in results.trials:
        runs = [Run.load(path) for path in trial.paths]
        assert [run.config.split for run in runs] == ["kfold:3:fold=0", "kfold:3:fold=2"]
        assert {run.config.model_options["n_lags"] for run in runs} == set(trial.choices.values())
        scores = [np.nanmean(run.scores.values["validation"]["cc_norm"]) for run in runs]
        assert trial.validation == pytest.approx(np.mean(scores), abs=1e-12)
    assert results.best.validation == max(trial.validation for trial in results.trials)
    assert results.best_config.split == "kfold:3"
    assert results.best_config.model_options == {"n_lags": results.best.choices["model_options.n_lags"]}
    rows = results.to_csv().splitlines()
    assert (len(rows), rows[0]) == (4, "trial,status,validation,model_options.n_lags,error")
    assert json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))["trials"][1]["trial"] == 1
    assert set(results.table()[0]) == {"trial", "status", "validation", "model_options.n_lags", "error"}


def test_a_search_goes_on_with_the_draws_of_an_uninterrupted_one(tmp_path):
    whole = search(LAGS, RIDGE, tmp_path / "a", n_trials=4, folds=[0], progress=False)
    search(LAGS, RIDGE, tmp_path / "b", n_trials=2, folds=[0], progress=False)
    parts = search(LAGS, RIDGE, tmp_path / "b", n_trials=4, folds=[0], progress=False)
    assert values(parts) == values(whole)
    log = (tmp_path / "b" / "log.jsonl").read_bytes()
    again = search(LAGS, RIDGE, tmp_path / "b", n_trials=4, folds=[0], progress=False)
    assert values(again) == values(whole)
    assert (tmp_path / "b" / "log.jsonl").read_bytes() == log  # nothing was fitted again
    with pytest.raises(ValueError, match="holds another search"):
        search(LAGS, RIDGE, tmp_path / "b", n_trials=4, folds=[1], progress=False)


def test_trials_that_fall_behind_are_pruned(tmp_path):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    results = search(RATES, NETWORK, tmp_path, n_trials=8, pruner=pruner, progress=False)
    pruned = [trial for trial in results.trials if trial.status == "pruned"]
    assert pruned
    assert results.best.status == "done"
    folders = {path.name for path in (tmp_path / "fits").iterdir()}
    assert folders == {path.name for trial in results.trials for path in trial.paths}  # theirs are removed
    # an interruption changes nothing: each epoch is reported once
    study = optuna.load_study(study_name="deepSTRF", storage=f"sqlite:///{tmp_path / 'search.db'}")
    for trial in study.trials:
        reported = list(trial.intermediate_values)
        assert reported == list(range(len(reported)))
        assert len(reported) == 8 or trial.state.name == "PRUNED"
        best = list(trial.intermediate_values.values())
        assert best == sorted(best)  # the best so far
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_without_a_pruner_every_trial_ends(tmp_path):
    base = {**NETWORK, "epochs": 2, "seeds": (0, 1)}
    results = search(RATES, base, tmp_path, n_trials=2, pruner="none", progress=False)
    assert [trial.status for trial in results.trials] == ["done", "done"]
    run = Run.load(results.trials[0].paths[0])
    assert results.trials[0].validation == pytest.approx(run.scores.values["validation"]["cc_norm"].mean())


@FORKS
@pytest.mark.slow
def test_a_search_killed_at_any_moment_ends_as_it_would_have(tmp_path):
    pytest.importorskip("fcntl")
    arguments = {"n_trials": 6, "pruner": optuna.pruners.MedianPruner(2, 1), "progress": False}
    whole = search(RATES, NETWORK, tmp_path / "whole", **arguments)
    moments = np.random.default_rng(0)
    for _ in range(6):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                search(RATES, NETWORK, tmp_path / "killed", **arguments)
            os._exit(0)
        time.sleep(moments.uniform(0.2, 2.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert values(search(RATES, NETWORK, tmp_path / "killed", **arguments)) == values(whole)


def test_an_interrupted_trial_goes_on(tmp_path, monkeypatch):
    whole = search(RATES, NETWORK, tmp_path / "whole", n_trials=2, pruner="none", progress=False)

    class Interrupted(BaseException):
        pass

    report = optuna_search._Progress.report

    def interrupt(self, epoch, best):
        if epoch == 4:
            raise Interrupted
        report(self, epoch, best)

    monkeypatch.setattr(optuna_search._Progress, "report", interrupt)
    with pytest.raises(Interrupted):
        search(RATES, NETWORK, tmp_path / "cut", n_trials=2, pruner="none", progress=False)
    monkeypatch.undo()
    results = search(RATES, NETWORK, tmp_path / "cut", n_trials=2, pruner="none", progress=False)
    assert values(results) == values(whole)


def test_a_trial_that_fails_is_told_and_the_rest_goes_on(tmp_path):
    space = {"network": [{"name": "bad", "dataset_options.n_clips": 4}, {"name": "good"}]}
    base = {**NETWORK, "epochs": 1}
    results = search(space, base, tmp_path, n_trials=5, progress=False)
    assert {(t.choices["network"], t.status) for t in results.trials} == {("bad", "failed"), ("good", "done")}
    assert "4/1/1" in next(t.error for t in results.trials if t.status == "failed")
    assert results.best.choices == {"network": "good"}


def test_a_trial_of_several_seeds_goes_on_in_the_second(tmp_path, monkeypatch):
    base = {**NETWORK, "epochs": 4, "seeds": (0, 1)}

    class Interrupted(BaseException):
        pass

    report = optuna_search._Progress.report

    def interrupt(self, epoch, best):
        if self.finished and epoch == 2:
            raise Interrupted
        report(self, epoch, best)

    options = {"n_trials": 1, "pruner": "none", "progress": False}
    search(RATES, base, tmp_path / "whole", **options)
    monkeypatch.setattr(optuna_search._Progress, "report", interrupt)
    with pytest.raises(Interrupted):
        search(RATES, base, tmp_path / "cut", **options)
    monkeypatch.undo()
    search(RATES, base, tmp_path / "cut", **options)
    addresses = [f"sqlite:///{tmp_path / name / 'search.db'}" for name in ("whole", "cut")]
    studies = [optuna.load_study(study_name="deepSTRF", storage=address) for address in addresses]
    whole, cut = (study.trials[0].intermediate_values for study in studies)
    assert len(whole) == 8
    assert cut == whole


def test_a_recording_that_has_changed_ends_a_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = {"dataset": "mine.npz", "split": "4/1/1", "model": "ridge"}
    SyntheticDataset(**DATA).save("mine.npz")
    search(LAGS, base, "out", n_trials=2, progress=False)
    SyntheticDataset(**{**DATA, "seed": 1}).save("mine.npz")
    with pytest.raises(ValueError, match="recording has changed"):
        search(LAGS, base, "out", n_trials=3, progress=False)
    SyntheticDataset(**DATA).save("mine.npz")
    assert len(search(LAGS, base, "out", n_trials=3, progress=False).trials) == 3


def test_a_trial_without_a_score_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    sounds = [draw.standard_normal((4, 100)) for _ in range(5)]
    counts = [draw.poisson(1.0, (2, 1, 100)) * float(clip < 3) for clip in range(5)]  # silent in validation
    NeuralDataset.from_arrays(sounds, counts, dt_ms=5.0).save("silent.npz")
    base = {"dataset": "silent.npz", "split": "3/1/1", "model": "ridge"}
    found = search({"model_options.n_lags": [1, 2]}, base, "out", n_trials=1, progress=False)
    assert [(trial.status, trial.error) for trial in found.trials] == [
        ("failed", "no neuron has a score on the validation clips")
    ]
    assert found.best_config is None


def test_ranges_of_numpy_and_a_storage_that_is_none(tmp_path):
    space = {"model_options.n_lags": {"low": np.int64(1), "high": np.int64(9), "step": 4}}
    found = search(space, RIDGE, tmp_path / "a", n_trials=3, folds=[0], progress=False)
    assert {trial.choices["model_options.n_lags"] for trial in found.trials} <= {1, 5, 9}
    (tmp_path / "junk.db").write_text("this is no database" * 50, encoding="utf-8")
    for storage, error in ((tmp_path / "junk.db", ValueError), ("nosuch://x", ValueError), (3, TypeError)):
        with pytest.raises(error, match="storage"):
            search(space, RIDGE, tmp_path / "b", folds=[0], storage=storage, progress=False)


@FORKS
@pytest.mark.slow
def test_searches_that_begin_together_share_the_trials(tmp_path):
    pytest.importorskip("fcntl")
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            with contextlib.suppress(BaseException):
                search(RATES, {**NETWORK, "epochs": 2}, tmp_path, n_trials=9, progress=False)
                code = 0
            os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    found = search(RATES, {**NETWORK, "epochs": 2}, tmp_path, n_trials=9, progress=False)
    assert [trial.number for trial in found.trials] == list(range(9))
    assert len({trial.choices["learning_rate"] for trial in found.trials}) == 9  # no draw is made twice


def test_a_trial_that_ends_while_it_is_looked_at_is_not_taken_over(tmp_path, monkeypatch):
    one = optuna_search._Search(RATES, NETWORK, tmp_path, (), 0, False)
    study = one.open_study(optuna, None, "none")
    trial = study.ask()
    read = study.trials
    study.tell(trial, 0.5)
    looks = iter((read, study.trials))
    monkeypatch.setattr(type(study), "trials", property(lambda self: next(looks)))
    assert one._abandoned(study) is None


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({}, {}, "space is empty"),
        ({"lr": {"low": 0, "high": 1}}, {}, "'lr' must be a field"),
        ({"epochs": {"low": 1}}, {}, "'epochs' must be a field"),
        ({"epochs": {"low": 3, "high": 1}}, {}, "'epochs'"),
        ({"fold": [0, 1]}, {}, "folds are no choice"),
        ({"epochs": {"low": 1, "high": 5, "step": 0.5}}, {}, "step must be a whole number above 0"),
        ({"epochs": {"low": 1, "high": 5}}, {"folds": [0]}, "completes a split"),
        ({"split": ["kfold:3"]}, {}, "names no fold; give folds"),
        ({"split": ["kfold:3"]}, {"folds": [0, 0]}, "must differ"),
        ({"model": ["liner"]}, {}, "liner"),
        ({"epochs": [1, 2]}, {"pruner": "best"}, "pruner must be"),
        ({"epochs": [1, 2]}, {"n_trials": 0}, "n_trials must be at least 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, space, options, message):
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        search(space, NETWORK, tmp_path, progress=False, **options)


FILE = """
[dataset]
options = { n_neurons = 2, n_clips = 6, n_repeats = 4, clip_seconds = 0.5 }
split = "kfold:3"
[model]
name = "ridge"
[search]
n_trials = 2
folds = [0, 1]
[search.space]
standardize = [true, false]
model_options.n_lags = { low = 1, high = 9 }
"""


def test_a_search_from_a_file(tmp_path, monkeypatch, capsys):
    from deepSTRF.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "lags.toml").write_text(FILE, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["search", "lags.toml"])
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (0, "")
    assert "Best on validation: trial" in out
    assert "deepstrf fit" in out
    with pytest.raises(SystemExit) as end:
        main(["search", "lags.toml", "--trials", "3"])
    assert capsys.readouterr().out.count("trial ") == 4
    (tmp_path / "lags.toml").write_text(FILE.replace("n_trials", "trials"), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["search", "lags.toml"])
    assert end.value.code == 2
    assert "[search] has no key 'trials'" in capsys.readouterr().err
