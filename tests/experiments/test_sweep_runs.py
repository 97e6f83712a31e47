"""Running sweeps: every fit once, also when processes are killed, fits fail or two run at a time."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from deepSTRF import _files as files
from deepSTRF.datasets.audio.synthetic import SyntheticDataset
from deepSTRF.experiments import (
    ExperimentConfig,
    Run,
    Sweep,
    SweepResults,
    engines,  # inner: deaths of workers without processes
    run,  # inner: where a fit is interrupted
    run_experiment,
    run_sweep,
    sweep_fits,  # inner: the same
)
from deepSTRF.experiments.engines import Answer
from deepSTRF.experiments.sweep_progress import results_table

# from Python 3.12 on, a fork of a process with threads warns; a child that hangs is killed as the others are
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
#: The cheapest fit that has scores.
DATA = {"n_neurons": 2, "n_clips": 5, "n_repeats": 4, "clip_seconds": 0.5}


def small(n: int, model: str = "ridge") -> Sweep:
    """As many fits of different recordings."""
    base = {"dataset_options": DATA, "split": "3/1/1", "model": model, "epochs": 1}
    base["model_options"] = {"n_lags": 2} if model == "ridge" else {"temporal_window_size": 2}
    return Sweep(base, {"dataset_options.seed": list(range(n))})


def events(out: Path) -> Counter[tuple[str, str]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return Counter((line["event"], line["fit"]) for line in lines)


def numbers(results: SweepResults) -> dict[str, dict[str, dict[str, float]]]:
    return {fit.name: {split: dict(scores) for split, scores in fit.scores.items()} for fit in results.fits}


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> SweepResults:
    """Eight fits, one after another; tests only read them."""
    return run_sweep(small(8), tmp_path_factory.mktemp("serial") / "sweep", progress=False)


def test_each_fit_is_the_run_of_its_configuration(serial, tmp_path):
    assert [fit.status for fit in serial.fits] == ["done"] * 8
    assert len(serial.fitted) == 8
    assert serial.read == ()
    name, config = list(small(8).configs().items())[3]
    alone = run_experiment(config, tmp_path / "alone", progress=False)
    run = serial.run(name)
    assert run.scores.to_csv() == alone.scores.to_csv()
    (row,) = [r for r in alone.scores.summary() if (r.split, r.metric) == ("test", "cc_norm")]
    assert serial.fits[3].test == row.mean
    assert serial.fits[3].n_neurons == row.n
    same = zip(run.load_model().state_dict().values(), alone.load_model().state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_a_sweep_that_is_finished_fits_nothing(serial):
    before = (serial.out / "log.jsonl").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (serial.out / "fits").rglob("*")}
    for n_jobs in (1, 2):
        again = run_sweep(small(8), serial.out, n_jobs=n_jobs, progress=False)
        assert (len(again.fitted), len(again.read)) == (0, 8)
        assert numbers(again) == numbers(serial)
    assert (serial.out / "log.jsonl").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in (serial.out / "fits").rglob("*")} == stamps
    assert numbers(SweepResults.load(serial.out)) == numbers(serial)


def test_the_folder_holds_the_table(serial):
    rows = list(csv.DictReader((serial.out / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["test"]) for row in rows] == pytest.approx([fit.test for fit in serial.fits])
    tree = json.loads((serial.out / "results.json").read_text(encoding="utf-8"))
    assert len(tree["fits"]) == 8
    assert ExperimentConfig.from_toml_text(tree["fits"][0]["config"]) == serial.fits[0].config
    assert "validation" in tree["notes"][0]
    assert {path.name for path in serial.out.iterdir()} == {
        "fits", "log.jsonl", "results.json", "sweep.toml", "table.csv",
    }  # fmt: skip
    assert len(list((serial.out / "fits").iterdir())) == 8  # no lock is left


def test_a_sweep_grows_in_its_folder(tmp_path):
    run_sweep(small(2), tmp_path, progress=False)
    more = run_sweep(small(3), tmp_path, progress=False)
    assert (len(more.fitted), len(more.read)) == (1, 2)


def test_a_failing_fit_is_reported_and_the_rest_goes_on(tmp_path):
    base = {"dataset_options": DATA, "split": "3/1/1", "model": "ridge"}
    # 3/1/1 does not add up for six clips
    made = [
        {"name": str(seed), "dataset_options": {"n_clips": n, "seed": seed}}
        for seed, n in enumerate((5, 6, 5))
    ]
    sweep = Sweep(base, {"a": made})
    results = run_sweep(sweep, tmp_path, progress=False)
    assert [fit.status for fit in results.fits] == ["done", "failed", "done"]
    (failed,) = results.failed
    assert "3/1/1" in failed.error
    assert "Traceback" in failed.traceback
    assert "parse_split" in failed.traceback
    (report,) = (tmp_path / "fits").glob("*.failed.json")
    assert "deepstrf fit" in json.loads(report.read_text(encoding="utf-8"))["command"]
    with pytest.raises(FileNotFoundError, match="failed"):
        results.run("a=1")
    with pytest.raises(KeyError, match="no fit 'b'"):
        results.run("b")
    again = run_sweep(sweep, tmp_path, progress=False)  # it stays failed
    assert (len(again.fitted), len(again.failed)) == (0, 1)
    assert again.failed[0].traceback == failed.traceback
    retried = run_sweep(sweep, tmp_path, retry_failed=True, progress=False)
    assert len(retried.failed) == 1
    assert sum(count for (event, _), count in events(tmp_path).items() if event == "failed") == 2


def test_what_failed_by_a_passing_cause_is_done_when_retried(tmp_path, monkeypatch):
    def broken(*_args, **_options):
        raise OSError("the disk is away")

    monkeypatch.setattr(sweep_fits, "run_experiment", broken)
    assert len(run_sweep(small(1), tmp_path, progress=False).failed) == 1
    monkeypatch.undo()
    assert len(run_sweep(small(1), tmp_path, progress=False).failed) == 1
    results = run_sweep(small(1), tmp_path, retry_failed=True, progress=False)
    assert (results.failed, len(results.fitted)) == ([], 1)
    assert not list((tmp_path / "fits").glob("*.failed.json"))


def test_a_damaged_result_is_not_read_as_a_number(tmp_path):
    results = run_sweep(small(1), tmp_path, progress=False)
    scores = results.fits[0].path / "scores.csv"
    scores.write_bytes(scores.read_bytes().replace(b"0.", b"1.", 1))
    again = run_sweep(small(1), tmp_path, progress=False)
    assert "damaged" in again.failed[0].error
    retried = run_sweep(small(1), tmp_path, retry_failed=True, progress=False)
    assert numbers(retried) == numbers(results)


def test_wrong_choices_are_refused_before_anything_is_fitted(tmp_path):
    sweep = Sweep({"dataset_options": DATA}, {"model": ["linear", "liner"]})
    with pytest.raises(ValueError, match="liner") as caught:
        run_sweep(sweep, tmp_path / "new", progress=False)
    assert "model=liner" in caught.value.__notes__[-1]
    assert not (tmp_path / "new").exists()


def test_another_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no sweep"):
        run_sweep(small(1), tmp_path, progress=False)
    with pytest.raises(FileExistsError, match="is a file"):
        run_sweep(small(1), tmp_path / "mine.txt", progress=False)


def test_engines_are_named_rightly(tmp_path):
    with pytest.raises(ValueError, match="n_jobs must be at least 1"):
        run_sweep(small(1), tmp_path, n_jobs=0)
    with pytest.raises(ValueError, match="the workers of the scheduler decide"):
        run_sweep(small(1), tmp_path, n_jobs=2, scheduler="tcp://localhost:1")
    assert engines.count_processes(-1) >= 1


def test_the_state_of_random_numbers_and_threads_is_left_alone(tmp_path):
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run_sweep(small(1, "linear"), tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


# ---- locks


def test_a_lock_is_held_by_one(tmp_path):
    path = tmp_path / "lock"
    with files.held_lock(path) as first, files.held_lock(path) as second:
        assert (first, second) == (True, False)
        assert path.exists()
    assert not path.exists()
    with files.held_lock(path) as third:
        assert third


def test_a_lock_file_that_a_killed_process_left_is_no_lock(tmp_path):
    path = tmp_path / "lock"
    code = "import sys, os; from deepSTRF._files import held_lock\nwith held_lock(sys.argv[1]): os._exit(7)"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 7
    assert path.exists()
    with files.held_lock(path) as mine:
        assert mine


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files, "_lock_at_once", refuse)
    with pytest.warns(UserWarning, match="has no locks"), files.held_lock(tmp_path / "lock") as mine:
        assert mine


def test_many_threads_take_a_lock_in_turn(tmp_path):
    inside, most, taken = [], [], []

    def work():
        while True:
            with files.held_lock(tmp_path / "lock") as mine:
                if mine:
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
                    taken.append(1)
                    return

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(taken), max(most)) == (12, 1)


def test_a_fit_that_another_process_works_on_is_left_to_it(tmp_path):
    """The other one finishes it meanwhile."""
    sweep = small(2)
    taken = sweep.fits()[0]
    (tmp_path / "fits").mkdir()
    job = sweep_fits.Job(tmp_path, False, False)
    lock = tmp_path / "fits" / f"{taken.folder}.lock"
    with contextlib.ExitStack() as held:
        assert held.enter_context(files.held_lock(lock))
        assert sweep_fits.fit_planned(taken, job) == "busy"
        (tmp_path / "sweep.toml").write_text(sweep.to_toml(), encoding="utf-8")
        end = threading.Timer(1.5, held.pop_all().close)
        end.start()
        results = run_sweep(sweep, tmp_path, progress=False)
        end.join()
    assert [fit.status for fit in results.fits] == ["done", "done"]
    assert set(events(tmp_path).values()) == {1}


def test_results_are_read_where_the_recording_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SyntheticDataset(**DATA).save("mine.npz")
    sweep = Sweep(
        {"dataset": "mine.npz", "split": "3/1/1", "model": "ridge"}, {"model_options.n_lags": [1, 2]}
    )
    done = run_sweep(sweep, "sweep", progress=False)
    Path("mine.npz").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = SweepResults.load("../sweep")
    assert [fit.test for fit in found.fits] == [fit.test for fit in done.fits]


def test_a_fit_that_was_interrupted_goes_on_after_its_recording_has_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SyntheticDataset(**DATA).save("mine.npz")
    sweep = Sweep({"dataset": "mine.npz", "split": "3/1/1", "epochs": 2})
    monkeypatch.setattr(run, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, "sweep", progress=False)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    Path("inner").mkdir()
    Path("mine.npz").rename("inner/mine.npz")
    moved = Sweep({"dataset": "inner/mine.npz", "split": "3/1/1", "epochs": 2})
    assert [fit.error for fit in run_sweep(moved, "sweep", progress=False).fits] == [""]


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_folder_in_which_a_process_has_just_begun_is_a_sweeps(tmp_path):
    (tmp_path / "fits").mkdir()
    (tmp_path / ".sweep.toml.abc-1-2.tmp").touch()
    assert len(run_sweep(small(1), tmp_path, progress=False).fitted) == 1


def test_a_full_disk_ends_the_sweep_and_no_fit_has_failed(tmp_path, monkeypatch):
    run_experiment = sweep_fits.run_experiment
    calls = []

    def full(config, folder, **options):
        calls.append(folder)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "run.json"))
        return run_experiment(config, folder, **options)

    monkeypatch.setattr(sweep_fits, "run_experiment", full)
    with pytest.raises(OSError, match="No space left"):
        run_sweep(small(3), tmp_path, progress=False)
    assert [fit.status for fit in SweepResults.load(tmp_path).fits] == ["done", "missing", "missing"]
    monkeypatch.undo()
    assert len(run_sweep(small(3), tmp_path, progress=False).fitted) == 2


def test_a_disk_that_is_full_elsewhere_is_a_failed_fit(tmp_path, monkeypatch):
    def full(config, folder, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/x")

    monkeypatch.setattr(sweep_fits, "run_experiment", full)
    assert [fit.status for fit in run_sweep(small(2), tmp_path, progress=False).fits] == ["failed"] * 2


def test_a_finished_sweep_writes_nothing(tmp_path):
    run_sweep(small(1), tmp_path, progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    run_sweep(small(1), tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_workers_know_the_models_of_a_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert answer.stdout.split() == ["done", "done"], answer.stdout + answer.stderr


SCRIPT = """
from deepSTRF.experiments import Sweep, run_sweep
from deepSTRF.models.audio import Linear
from deepSTRF.registry import MODELS

@MODELS.register("of_a_script")
class OfAScript(Linear):
    pass

if __name__ == "__main__":
    data = {"n_neurons": 2, "n_clips": 5, "n_repeats": 4, "clip_seconds": 0.5}
    sweep = Sweep({"dataset_options": data, "model": "of_a_script", "epochs": 1}, {"seeds": [0, 1]})
    print(*(fit.status + fit.error for fit in run_sweep(sweep, "sweep", n_jobs=2, progress=False).fits))
"""


def test_a_split_without_its_fold_is_refused_at_once(tmp_path):
    sweep = Sweep({"dataset_options": DATA, "split": "kfold:3", "model": "ridge"})
    with pytest.raises(ValueError, match="names no fold"):
        run_sweep(sweep, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="are 0 to 2"):
        Sweep({"split": "kfold:3"}, {"fold": [0, 3]})


def test_what_does_not_answer_as_dask_does_is_named(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    import dask

    monkeypatch.setattr(engines, "SECONDS_TO_ANSWER", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ConnectionError, match="nothing of Dask answers within"),
    ):
        run_sweep(small(1), tmp_path, scheduler=f"tcp://127.0.0.1:{mute.getsockname()[1]}", progress=False)
    with pytest.raises(ConnectionError, match="empty"):
        run_sweep(small(1), tmp_path, scheduler="", progress=False)


# ---- workers that die


class Mortal(engines.HereEngine):
    """An engine whose worker dies during some calls."""

    def __init__(self, deaths: dict[str, int], for_good: bool = False) -> None:
        super().__init__()
        self.deaths, self.for_good, self.started = Counter(deaths), for_good, Counter()

    def start(self, name, call):
        self.started[name] += 1
        if self.started[name] <= self.deaths[name]:
            self.answers.put(Answer(name, died="killed", for_good=self.for_good))
        else:
            super().start(name, call)


@pytest.mark.parametrize(
    ("deaths", "for_good", "fails"), [(1, False, 0), (3, False, 0), (4, False, 1), (1, True, 1)]
)
def test_a_fit_whose_worker_died_is_started_again_three_times(tmp_path, monkeypatch, deaths, for_good, fails):
    engine = Mortal({"dataset_options.seed=1": deaths}, for_good)
    monkeypatch.setattr(sweep_fits, "_engine", lambda *_: engine)
    results = run_sweep(small(3), tmp_path, progress=False)
    assert len(results.failed) == fails
    assert len(results.fitted) == 3 - fails
    if fails:
        assert "died during this fit" in results.failed[0].error
        assert engine.started["dataset_options.seed=1"] == (1 if for_good else 4)


def test_workers_that_cannot_run_anything_end_the_sweep(tmp_path, monkeypatch):
    class Unable(engines.HereEngine):
        def start(self, name, call):
            self.answers.put(Answer(name, impossible="ModuleNotFoundError: no deepSTRF"))

    monkeypatch.setattr(sweep_fits, "_engine", lambda *_: Unable())
    with pytest.raises(RuntimeError, match="no deepSTRF"):
        run_sweep(small(1), tmp_path, progress=False)


# ---- seeds of one choice, trained together


NETWORK = {"dataset_options": {**DATA, "n_clips": 8}, "split": "5/2/1", "model": "linear", "epochs": 4}


def scores_of(results: SweepResults) -> dict[str, str]:
    return {fit.name: (fit.path / "scores.csv").read_text(encoding="utf-8") for fit in results.fits}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> SweepResults:
    """Two choices with four seeds each; tests only read them."""
    grid = {"learning_rate": [1e-3, 1e-2], "seeds": [0, 1, 2, 7]}
    return run_sweep(Sweep(NETWORK, grid), tmp_path_factory.mktemp("seeds") / "sweep", progress=False)


def test_seeds_trained_together_are_separate_fits_within_rounding(seeds, tmp_path):
    apart = run_sweep(seeds.sweep, tmp_path, together=False, progress=False)
    for one, other in zip(seeds.fits, apart.fits, strict=True):
        first, second = Run.load(one.path), Run.load(other.path)
        assert one.status == "done"
        assert one.config == other.config
        assert first.best_epochs == second.best_epochs
        assert first.scores.seeds == second.scores.seeds == list(one.config.seeds)
        for part, values in first.scores.values.items():
            for metric, found in values.items():
                assert found == pytest.approx(second.scores.values[part][metric], abs=1e-5, nan_ok=True)
        for rows, own in zip(first.histories.values(), second.histories.values(), strict=True):
            assert [list(row) for row in rows] == [list(row) for row in own]
            for row, its in zip(rows, own, strict=True):
                assert [row[key] for key in row] == pytest.approx([its[key] for key in row], rel=2e-3)
        assert {path.name for path in one.path.rglob("*")} == {path.name for path in other.path.rglob("*")}
        assert first.facts["recording"] == second.facts["recording"]
        rows = dict(first.protocol)
        (said,) = set(rows) - set(dict(second.protocol))
        assert "together" in f"{said} {rows[said]}"
    assert scores_of(seeds) != scores_of(apart)  # they were trained together


def test_seeds_trained_together_have_the_same_last_digits_with_every_engine(seeds, tmp_path):
    results = run_sweep(seeds.sweep, tmp_path, n_jobs=2, progress=False)
    assert scores_of(results) == scores_of(seeds)


@pytest.mark.parametrize("n_written", [0, 1, 3])
def test_seeds_that_were_interrupted_go_on_to_the_last_digit(seeds, tmp_path, monkeypatch, n_written):
    written = run._collect
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > n_written:
            raise KeyboardInterrupt
        return written(*args)

    monkeypatch.setattr(run, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(seeds.sweep, tmp_path, progress=False)
    monkeypatch.undo()
    assert [fit.status for fit in SweepResults.load(tmp_path).fits].count("done") == n_written
    results = run_sweep(seeds.sweep, tmp_path, progress=False)
    assert (len(results.fitted), len(results.read)) == (8 - n_written, n_written)
    assert scores_of(results) == scores_of(seeds)
    assert max(count for (event, _), count in events(tmp_path).items() if event == "end") == 1


@pytest.fixture(scope="module")
def patient(tmp_path_factory) -> SweepResults:
    """Four seeds that stop at different epochs; tests only read them."""
    base = {**NETWORK, "model": "linear_nonlinear", "epochs": 30, "patience": 2, "learning_rate": 3e-2}
    base["dataset_options"] = {**NETWORK["dataset_options"], "n_neurons": 7}
    results = run_sweep(
        Sweep(base, {"seeds": [0, 1, 2, 4]}), tmp_path_factory.mktemp("patient") / "sweep", progress=False
    )
    lengths = {len(rows) for fit in results.fits for rows in Run.load(fit.path).histories.values()}
    assert len(lengths) > 2
    return results


@pytest.mark.parametrize("kept", [(0,), (1, 2), (0, 1, 3)])
def test_the_last_digits_do_not_depend_on_what_was_done_before(patient, tmp_path, kept):
    # seeds stop one after another, after which fewer are summed at once
    shutil.copytree(patient.out, tmp_path / "sweep")
    for place, fit in enumerate(patient.fits):
        if place not in kept:
            shutil.rmtree(tmp_path / "sweep" / "fits" / fit.path.name)
    results = run_sweep(patient.sweep, tmp_path / "sweep", progress=False)
    assert (len(results.fitted), len(results.read)) == (4 - len(kept), len(kept))
    assert scores_of(results) == scores_of(patient)
    assert max(events(results.out).values()) == 2  # those that were deleted


def test_seeds_in_one_fit_are_trained_together_too(seeds, tmp_path):
    results = run_sweep(Sweep(NETWORK, {"seeds": [[0, 1, 2], [7]]}), tmp_path, progress=False)
    fits = {fit.choices["seeds"]: Run.load(fit.path) for fit in results.fits}
    alone = {
        fit.choices["seeds"]: Run.load(fit.path)
        for fit in seeds.fits
        if fit.choices["learning_rate"] == "0.001"
    }
    assert fits["0,1,2"].scores.seeds == [0, 1, 2]
    for place, seed in enumerate("012"):
        found = fits["0,1,2"].scores.values["test"]["cc_norm"][place]
        np.testing.assert_array_equal(found, alone[seed].scores.values["test"]["cc_norm"][0])
    assert fits["7"].scores.to_csv() == alone["7"].scores.to_csv()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "ridge", "model_options": {"n_lags": 2}},
        {"model": "convnet2d", "epochs": 1},  # slower in a stack
        {"model": "statenet", "epochs": 1},  # cannot be stacked
        {"start": "ridge"},
        {"refit": True},
        {"weight_average": 0.9},
        {"band_shift": 1},
        {"dataset_options": {**DATA, "n_neurons": 65}, "split": "3/1/1", "epochs": 1},
        {"wav2spec": "leaf", "epochs": 1, "dataset_options": DATA, "split": "3/1/1"},
        {"loss": "mse", "seeds": [3]},
    ],
)
def test_where_nothing_is_gained_every_fit_is_made_alone(tmp_path, changes):
    grid = {"seeds": changes.get("seeds", [0, 1])}
    results = run_sweep(Sweep({**NETWORK, **changes}, grid), tmp_path / "sweep", progress=False)
    assert [fit.status for fit in results.fits] == ["done"] * len(grid["seeds"]), results.failed
    last = results.fits[-1]
    alone = run_experiment(last.config, tmp_path / "alone", progress=False)
    assert Run.load(last.path).scores.to_csv() == alone.scores.to_csv()
    counts = events(tmp_path / "sweep")
    assert set(counts.values()) == {1}


def test_seeds_that_fail_say_so_each_and_the_others_go_on(tmp_path, monkeypatch):
    grid = {"learning_rate": [1e-3, 1e30], "seeds": [0, 1, 2]}
    results = run_sweep(Sweep(NETWORK, grid), tmp_path / "rates", progress=False)
    assert [fit.status for fit in results.fits] == ["done"] * 3 + ["failed"] * 3
    assert all("became inf" in fit.error and "fit_once" in fit.traceback for fit in results.failed)
    again = run_sweep(Sweep(NETWORK, grid), tmp_path / "rates", progress=False)
    assert (len(again.fitted), len(again.failed)) == (0, 3)
    split = run_sweep(
        Sweep({**NETWORK, "split": "1/1/1"}, {"seeds": [0, 1]}), tmp_path / "split", progress=False
    )
    assert ["1/1/1" in fit.error for fit in split.fits] == [True, True]
    # what only the stack cannot do is done alone
    monkeypatch.setattr(run, "fit_seeds_stacked", lambda *_, **__: 1 / 0)
    done = run_sweep(Sweep(NETWORK, {"seeds": [0, 1]}), tmp_path / "stack", progress=False)
    assert [fit.status for fit in done.fits] == ["done", "done"]


@pytest.mark.parametrize(("deaths", "starts"), [(1, 2), (4, 5)])
def test_seeds_whose_worker_dies_are_started_again_together_then_alone(tmp_path, monkeypatch, deaths, starts):
    sweep = Sweep(NETWORK, {"seeds": [0, 1, 2]})
    engine = Mortal({"seeds=0": deaths}, False)
    monkeypatch.setattr(sweep_fits, "_engine", lambda *_: engine)
    results = run_sweep(sweep, tmp_path, progress=False)
    assert len(results.fitted) == 3
    assert engine.started == {"seeds=0": starts} | ({} if deaths == 1 else {"seeds=1": 1, "seeds=2": 1})


def test_seeds_that_another_process_works_on_are_left_to_it(tmp_path, monkeypatch):
    sweep = Sweep(NETWORK, {"seeds": [0, 1, 2]})
    monkeypatch.setattr(sweep_fits, "AGAIN_SECONDS", 0.05)
    (tmp_path / "fits").mkdir()
    lock = tmp_path / "fits" / f"{sweep.fits()[1].folder}.lock"
    with files.held_lock(lock) as mine:
        assert mine
        thread = threading.Thread(target=run_sweep, args=(sweep, tmp_path), kwargs={"progress": False})
        thread.start()
        time.sleep(1.0)
        assert not (tmp_path / "log.jsonl").exists()
    thread.join(60)
    assert set(events(tmp_path).values()) == {1}
    assert len(events(tmp_path)) == 6


def test_which_seeds_are_trained_together_is_a_matter_of_the_sweep():
    fits = Sweep(NETWORK, {"learning_rate": [1e-3, 1e-2], "seeds": list(range(10))}).fits()
    every = [fit.name for fit in fits]
    tasks = list(sweep_fits._tasks(fits, every, True))
    assert [len(task.stack) for task in tasks] == [8, 2, 8, 2]
    assert sorted(name for task in tasks for name in task.fits) == sorted(every)
    left = list(sweep_fits._tasks(fits, every[7:9], True))
    assert [task.fits for task in left] == [(every[7],), (every[8],)]
    assert [task.stack for task in left] == [tasks[0].stack, tasks[1].stack]
    assert [task.stack for task in sweep_fits._tasks(fits, every, False)] == [()] * 20


def kill_a_worker(out: Path, after: int, stop: threading.Event, killed: list[str]) -> None:
    """Kill the process of a fit that has begun and not ended, once so many have begun."""
    while not stop.is_set():
        lines = []
        with contextlib.suppress(OSError, ValueError):
            lines = [
                json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
            ]
        ended = {line["fit"] for line in lines if line["event"] != "start"}
        open_ = [line for line in lines if line["fit"] not in ended]
        if len(lines) > after and open_ and open_[-1]["process"] != os.getpid():
            os.kill(open_[-1]["process"], signal.SIGKILL)
            killed.append(open_[-1]["fit"])
            return
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["joblib", "dask"])
def test_a_killed_worker_loses_only_its_own_fit(engine, tmp_path, serial):
    out, stop, killed = tmp_path / "sweep", threading.Event(), []
    thread = threading.Thread(target=kill_a_worker, args=(out, 4, stop, killed))
    with contextlib.ExitStack() as stack:
        where = {"n_jobs": 2}
        if engine == "dask":
            distributed = pytest.importorskip("distributed")
            cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
            where = {"scheduler": stack.enter_context(cluster).scheduler_address}
        thread.start()
        try:
            results = run_sweep(small(8), out, progress=False, **where)
        finally:
            stop.set()
            thread.join()
    assert len(killed) == 1
    assert numbers(results) == numbers(serial)
    counts = events(out)
    for fit in small(8).fits():
        ends, starts = counts["end", fit.folder], counts["start", fit.folder]
        if fit.folder != killed[0]:
            assert (starts, ends) == (1, 1)
        else:  # at its very end, its result was whole already: then it is read
            assert (starts, ends) in [(2, 1), (1, 0)]


@pytest.mark.slow
def test_a_scheduler_that_goes_away_ends_the_sweep_and_loses_nothing(tmp_path, serial):
    distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")

    def close():
        while not events(tmp_path).total() > 2:
            time.sleep(0.01)
        cluster.close()

    (tmp_path / "log.jsonl").touch()
    (tmp_path / "sweep.toml").touch()
    thread = threading.Thread(target=close)
    thread.start()
    with dask.config.set({"distributed.comm.timeouts.connect": "3s"}):
        with pytest.raises(ConnectionError, match="the same call goes on"):
            run_sweep(small(8), tmp_path, scheduler=cluster.scheduler_address, progress=False)
        thread.join()
        with pytest.raises(ConnectionError, match="no Dask scheduler answers"):
            run_sweep(small(8), tmp_path, scheduler="tcp://127.0.0.1:9", progress=False)
    results = run_sweep(small(8), tmp_path, progress=False)
    assert results.read
    assert numbers(results) == numbers(serial)
    assert max(count for (event, _), count in events(tmp_path).items() if event == "end") == 1


@FORKS
@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_goes_on(tmp_path, serial):
    """The driver itself: each child is a fork of this process, so that it begins at once."""
    pytest.importorskip("fcntl")
    out, moment = tmp_path / "sweep", torch.Generator().manual_seed(1)
    for _ in range(8):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                run_sweep(small(8), out, progress=False)
            os._exit(0)
        time.sleep(0.05 + 0.9 * float(torch.rand((), generator=moment)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    before = (
        {fit.name for fit in SweepResults.load(out).fits if fit.status == "done"}
        if (out / "sweep.toml").exists()
        else set()
    )
    results = run_sweep(small(8), out, progress=False)
    assert numbers(results) == numbers(serial)
    assert set(results.read) == before
    counts = events(out)
    assert all(counts["end", fit.folder] <= 1 for fit in small(8).fits())
    for fit in results.fits:
        assert Run.load(fit.path).scores.seeds == [0]


# ---- progress, command line


def test_lines_of_progress_say_what_was_fitted(tmp_path, capsys):
    run_sweep(small(2), tmp_path, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("2/2  dataset_options.seed=1: validation ")
    run_sweep(small(2), tmp_path)
    assert capsys.readouterr().err == ""


def test_the_live_table_fills(tmp_path, monkeypatch):
    import io

    from rich.console import Console

    from deepSTRF.experiments import sweep_progress  # inner: no terminal here

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(sweep_progress, "_console", lambda: console)
    run_sweep(small(3), tmp_path, progress=True)
    shown = screen.getvalue()
    assert "3 of 3 fits done, 0 failed, 0 running" in shown
    assert "Choose by the validation score" in shown


def test_no_number_is_cut_on_a_narrow_terminal(capsys):
    from rich.console import Console

    axes = ["model_options.n_lags", "model_options.penalties", "network"]
    row = {"fits": 10, "failed": 0, "missing": 2, "validation": -0.123, "validation sd": 0.456}
    row |= {"test": 0.789, "test sd": 0.321, "no score": 119}
    row |= dict(
        zip(axes, ("40", "[1.0, 10.0, 100.0, 1000.0]", "a rather long name of a network"), strict=True)
    )
    Console(width=80).print(results_table([row], axes))
    words = capsys.readouterr().out.split()
    assert {"-0.123", "0.456", "0.789", "0.321", "119", "n_lags"} <= set(words)
    assert not any("…" in word for word in words)
