"""Sweeps under kills: `python benchmarks/verify_sweeps.py [--fits 200] [--kills 50] [serial|dask|joblib|kills ...]`.

200 small fits, one after another; the same on a Dask LocalCluster of two worker processes, and in two processes of
joblib, one killed on the way each time: all results there, none made twice, the same numbers to the last digit;
continued, nothing is fitted. Then a process that runs the sweep is killed (SIGKILL) at 50 random moments and
continued: nothing lost, nothing fitted again that was finished. What was fitted, and how often, is counted from the
log of starts and ends. `serial` runs always: the others are compared with it. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from deepSTRF.experiments import Sweep, SweepResults, run_sweep

PARTS = ("serial", "dask", "joblib", "kills")
#: The cheapest fit that has scores.
DATA = {"n_neurons": 2, "n_clips": 5, "n_repeats": 4, "clip_seconds": 0.5}
SEED = 0


def sweep_of(n_fits: int) -> Sweep:
    """Per recording five fits in closed form and five networks of one epoch, three of them one with three seeds."""
    ridge = [{"model": "ridge", "model_options.n_lags": n} for n in range(1, 6)]
    lags_and_seeds = [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]
    linear = [
        {"model": "linear", "model_options.temporal_window_size": n, "seeds": [seed]}
        for n, seed in lags_and_seeds
    ]
    base = {"dataset_options": DATA, "split": "3/1/1", "epochs": 1}
    return Sweep(base, {"dataset_options.seed": list(range(n_fits // 10)), "network": [*ridge, *linear]})


def log_of(out: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return []


def starts_and_lost(out: Path) -> tuple[Counter[str], set[str]]:
    """How often each fit was started, and the fits at which a process was at work that never wrote again."""
    lines = log_of(out)
    last = {line["process"]: line for line in lines}
    lost = {line["fit"] for line in last.values() if line["event"] == "start"}
    return Counter(line["fit"] for line in lines if line["event"] == "start"), lost


def numbers(results: SweepResults) -> dict[str, Any]:
    """Every score of every neuron, as it was written."""
    return {fit.name: (fit.path / "scores.csv").read_text(encoding="utf-8") for fit in results.fits}


def kill_one(out: Path, after: int, stop: threading.Event, killed: list[str]) -> None:
    """Kill the process of a fit that has begun and not ended, once so many fits have begun."""
    while not stop.is_set():
        lines = log_of(out)
        ended = {line["fit"] for line in lines if line["event"] != "start"}
        at_work = [line for line in lines if line["fit"] not in ended]
        if len(lines) > 2 * after and at_work:
            os.kill(at_work[-1]["process"], signal.SIGKILL)
            killed.append(at_work[-1]["fit"])
            return
        time.sleep(0.002)


def check(results: SweepResults, serial: SweepResults, killed: list[str]) -> str:
    """Compare with the serial sweep, count fits; one line about it."""
    assert [fit.status for fit in results.fits] == ["done"] * len(serial.fits), results.failed
    assert numbers(results) == numbers(serial)
    starts, lost = starts_and_lost(results.out)
    ends = Counter(line["fit"] for line in log_of(results.out) if line["event"] == "end")
    assert max(ends.values()) == 1
    assert sum(starts.values()) - len(starts) <= len(lost)
    assert all(fit in lost for fit, count in starts.items() if count > 1)
    assert set(killed) <= lost
    assert set(starts) - set(ends) <= lost  # killed after the result was whole
    again = run_sweep(results.sweep, results.out, progress=False)
    assert not again.fitted
    return (
        f"{len(results.fits)} results, {len(results.failed)} failed, {len(lost)} processes lost at work, "
        f"{sum(starts.values()) - len(starts)} fits started again, {sum(ends.values())} ends, numbers equal; "
        f"continued: {len(again.fitted)} fitted"
    )


def with_a_kill(sweep: Sweep, out: Path, serial: SweepResults, **where: Any) -> str:
    stop, killed = threading.Event(), []
    thread = threading.Thread(target=kill_one, args=(out, len(serial.fits) // 3, stop, killed))
    thread.start()
    try:
        results = run_sweep(sweep, out, progress=False, **where)
    finally:
        stop.set()
        thread.join()
    assert len(killed) == 1
    return check(results, serial, killed)


def on_dask(sweep: Sweep, out: Path, serial: SweepResults) -> str:
    import dask
    from distributed import LocalCluster

    # a busy machine takes longer than the usual 15 s to start a worker again, and the cluster would give it up
    dask.config.set({"distributed.deploy.lost-worker-timeout": "300s"})
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        return with_a_kill(sweep, out, serial, scheduler=cluster.scheduler_address)


def in_processes(sweep: Sweep, out: Path, serial: SweepResults) -> str:
    return with_a_kill(sweep, out, serial, n_jobs=2)


def killed_often(sweep: Sweep, out: Path, serial: SweepResults, n_kills: int, seconds: float) -> str:
    """Each child is a fork of this process, so that it begins at once; ``seconds`` took the serial sweep."""
    moments, began = random.Random(SEED), time.monotonic()
    SweepResults.load(serial.out)
    # so that most fits are made in the course of the kills: each child reads what is there, and goes on
    longest = 1.5 * seconds / n_kills + 2 * (time.monotonic() - began)
    finished: set[str] = set()
    interrupted = repeated = 0
    for _ in range(n_kills):
        n_lines = len(log_of(out))
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                run_sweep(sweep, out, progress=False)
            os._exit(0)
        time.sleep(moments.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        new = log_of(out)[n_lines:]
        begun = {line["fit"] for line in new if line["event"] == "start"}
        repeated += len(begun & finished)
        complete = (
            {fit.path.name for fit in SweepResults.load(out).fits if fit.status == "done"}
            if (out / "sweep.toml").exists()
            else set()
        )
        assert finished <= complete, "a result was lost"
        interrupted += len(begun - complete)
        finished = complete
    before = len(finished)
    n_lines = len(log_of(out))
    results = run_sweep(sweep, out, progress=False)
    repeated += len({line["fit"] for line in log_of(out)[n_lines:]} & finished)
    assert repeated == 0
    assert len(results.fitted) == len(serial.fits) - before
    assert numbers(results) == numbers(serial)
    ends = Counter(line["fit"] for line in log_of(out) if line["event"] == "end")
    assert max(ends.values()) == 1
    assert not run_sweep(sweep, out, progress=False).fitted
    return (
        f"{n_kills} kills, {interrupted} fits interrupted, {before} results there after the last kill, "
        f"{len(results.fitted)} fitted then; 0 lost, 0 repeated, numbers equal"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--fits", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    sweep = sweep_of(arguments.fits)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def report(part: str, started: float, text: str) -> None:
            print(f"{part}: {text} ({time.monotonic() - started:.0f} s)", flush=True)

        started = time.monotonic()
        serial = run_sweep(sweep, root / "serial", progress=False)
        seconds = time.monotonic() - started
        report("serial", started, check(serial, serial, []))
        for part, run in (("dask", on_dask), ("joblib", in_processes)):
            if part in parts:
                started = time.monotonic()
                report(part, started, run(sweep, root / part, serial))
        if "kills" in parts:
            started = time.monotonic()
            report("kills", started, killed_often(sweep, root / "kills", serial, arguments.kills, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
