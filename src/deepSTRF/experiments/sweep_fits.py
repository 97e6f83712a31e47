"""Running a sweep: every fit once, wherever there is a process for it, whatever is killed on the way.

Each fit has a run folder named after its key, and a lock beside it while a process works on it. What is
finished is read; what another process works on is left to it; the rest is fitted. A fit that fails is
reported in a file beside its folder, and the others go on.
"""

from __future__ import annotations

import datetime
import errno
import functools
import os
import pickle
import platform
import queue
import shlex
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from deepSTRF import __version__
from deepSTRF._files import append_line, held_lock, write_sealed_json
from deepSTRF._validation import checked_but
from deepSTRF.experiments.build import check_choices
from deepSTRF.experiments.engines import (
    RETRIES,
    Answer,
    DaskEngine,
    Engine,
    HereEngine,
    ProcessEngine,
    count_processes,
)
from deepSTRF.experiments.run import run_experiment
from deepSTRF.experiments.sweep import PlannedFit, Sweep, lacks_fold
from deepSTRF.experiments.sweep_progress import SweepProgress
from deepSTRF.experiments.sweep_results import (
    DONE,
    FAILED,
    FITS,
    LOG,
    MISSING,
    SWEEP_FILE,
    FitResult,
    SweepResults,
    failure_path,
    read_result,
    write_plan,
)
from deepSTRF.registry import entries_of_users, register_again
from deepSTRF.training.fitter import CallbackFactory

__all__ = [
    "AGAIN_SECONDS",
    "BUSY",
    "SEARCH_LOCK",
    "Job",
    "check_fits",
    "check_folder",
    "fit_planned",
    "run_sweep",
]

#: What a worker answers.
FITTED, READ, BUSY = "fitted", "read", "busy"
#: Seconds between two looks at a fit that another process works on, at first and at most, and at the engine.
AGAIN_SECONDS, MOST_SECONDS, TICK_SECONDS = 1.0, 15.0, 0.2
#: What a sweep or a search puts into its folder before the file that makes it one.
SEARCH_LOCK = "search.lock"
BEGUN = (FITS, LOG, SEARCH_LOCK)
#: What a disk answers that is full, or that nothing can be written to.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: Fits of one process run one after another: PyTorch's random numbers are of the process.
_ONE_FIT = threading.Lock()


# ---- One fit, in any process


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a sweep.

    ``entries`` are what a script has registered (kind, name, pickle): workers do not run it.
    """

    out: Path
    retry_failed: bool
    download: bool
    entries: tuple[tuple[str, str, bytes], ...] = ()


def _pickled_entries() -> tuple[tuple[str, str, bytes], ...]:
    """Entries of users by value where they are of a script; one that cannot be pickled is left out."""
    from joblib.externals.loky.cloudpickle_wrapper import dumps

    found = []
    for what, name, entry in entries_of_users():
        with suppress(Exception):  # a fit that needs it says that the name is unknown
            found.append((what, name, dumps(entry)))
    return tuple(found)


def _register(job: Job) -> list[str]:
    """Register what a script has registered in the process of `run_sweep`; returns what went wrong."""
    problems = []
    for what, name, pickled in job.entries:
        try:
            register_again(what, name, pickle.loads(pickled))
        except Exception as error:  # noqa: BLE001  (only fits that need it fail)
            text = f"{type(error).__name__}: {error}"
            problems.append(f"The {what} {name!r} of a script is not known to this worker ({text})")
    return problems


def fit_planned(fit: PlannedFit, job: Job, callbacks: CallbackFactory | None = None) -> str:
    """Fit one configuration of a sweep, unless that is done; return "fitted", "read", "failed" or "busy"."""
    problems = _register(job)
    folder = job.out / FITS / fit.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _ONE_FIT, held_lock(folder.with_name(f"{folder.name}.lock")) as mine:
        if not mine:
            return BUSY
        before = read_result(job.out, fit)
        if before.status == DONE:
            return READ
        if before.status == FAILED and not job.retry_failed:
            return FAILED
        _log(job.out, "start", fit)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums depend on their number, and each core has a process of its own
        try:
            run_experiment(
                fit.config,
                folder,
                overwrite=True,  # what is there is damaged, interrupted, or of files that have been moved
                download=job.download,
                progress=False,
                callbacks=callbacks,
            )
        except Exception as error:
            if _is_disk(error, job.out):
                raise  # no fit of this sweep can be kept
            for problem in problems:
                error.add_note(problem)
            report_failure(job.out, fit, error)
            return FAILED
        finally:
            torch.set_num_threads(threads)
        failure_path(job.out, fit).unlink(missing_ok=True)
        _log(job.out, "end", fit)
    return FITTED


def _is_disk(error: Exception, out: Path) -> bool:
    """Whether the disk of a sweep is full or cannot be written."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return False
    return error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(out)


def report_failure(out: Path, fit: PlannedFit, error: BaseException) -> None:
    """Write the error of a fit, with its traceback, beside its folder."""
    facts = {
        "name": fit.name,
        "key": fit.key,
        "error": f"{type(error).__name__}: {'. '.join([str(error), *getattr(error, '__notes__', ())])}",
        "traceback": "".join(traceback.format_exception(error)).splitlines(),
        "command": f"{fit.config.command()} --out {shlex.quote(os.fspath(out / FITS / fit.folder))}",
        "version": __version__,
        "machine": platform.node(),
        "time": _now(),
    }
    write_sealed_json(failure_path(out, fit), facts)
    _log(out, "failed", fit)


def _log(out: Path, event: str, fit: PlannedFit) -> None:
    facts = {"event": event, "fit": fit.folder, "name": fit.name, "time": _now()}
    append_line(out / LOG, {**facts, "process": os.getpid(), "machine": platform.node()})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


# ---- All of them


@checked_but("scheduler")
def run_sweep(
    sweep: Sweep,
    out: str | os.PathLike[str],
    *,
    n_jobs: int = 1,
    scheduler: Any = None,
    progress: bool | Literal["auto"] = "auto",
    retry_failed: bool = False,
    download: bool = False,
) -> SweepResults:
    """Run the fits of a sweep that its folder does not hold yet, and return the results of all.

    The same call goes on after a crash, a kill or a night: finished fits are read, interrupted ones resumed
    where they stopped, none is made twice. Fits are told apart by a hash of their choices and of a recording
    in files, so that a sweep may grow in the same folder. Several processes, also of several machines that
    share the folder, may run the same sweep at the same time: each takes what no other works on.

    Parameters
    ----------
    sweep : Sweep
        The sweep.
    out : path
        Its folder: run folders under ``fits/``, ``log.jsonl`` (start and end of each fit), ``sweep.toml``,
        ``table.csv``, ``results.json``.
    n_jobs : int
        Fits at a time, in worker processes of joblib; 1 runs them in this process, -1 is one per core.
    scheduler : str, distributed.Client or cluster, optional
        Address of a Dask scheduler ("tcp://host:8786"), a client or a cluster: the fits run on its workers,
        which need deepSTRF and the folder ``out`` (the extra ``distributed``).
    progress : bool or 'auto'
        A table that fills; 'auto' shows it on a terminal.
    retry_failed : bool
        Fit again what failed before; else it stays failed.
    download : bool
        Let recordings fetch missing files.

    Returns
    -------
    SweepResults
        Of every fit, the failed ones with their tracebacks.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        Before anything is fitted, for choices that do not go together; the text names the fit.
    FileExistsError
        When the folder holds something else.
    ConnectionError
        When the scheduler does not answer, or goes away on the way.

    Notes
    -----
    Each fit has one thread, so that its numbers are the same with every engine. A worker process that dies
    takes its own fit with it, which is started again by another one up to 3 times, and fails after that.
    Fits that share a process run one after another. Models registered in a script are sent to the workers;
    those of a file that the script imports have to be importable there, or are loaded with ``dask worker
    --preload my_models.py``.

    Examples
    --------
    >>> import tempfile
    >>> data = {"n_neurons": 3, "n_clips": 5, "n_repeats": 4}
    >>> sweep = Sweep({"dataset_options": data, "epochs": 2}, {"model": ["linear", "ridge"], "seeds": [0]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = run_sweep(sweep, folder, progress=False)
    >>> [fit.status for fit in results.fits], results.failed
    (['done', 'done'], [])
    """
    folder = Path(out)
    n = count_processes(n_jobs)
    fits = sweep.fits()
    check_fits(fits)
    check_folder(folder)
    if scheduler is not None and n_jobs != 1:
        raise ValueError(f"n_jobs={n_jobs} and a scheduler: the workers of the scheduler decide how many run")
    (folder / FITS).mkdir(parents=True, exist_ok=True)
    write_plan(folder, sweep, fits)
    entries = () if n == 1 and scheduler is None else _pickled_entries()
    job = Job(folder.absolute(), retry_failed, download, entries)
    driver = _Driver(fits, job, SweepProgress(fits, progress))
    try:
        if driver.waiting:
            with closing(_engine(n, scheduler, len(driver.waiting))) as engine:
                driver.run(engine)
    except BaseException:
        driver.progress.close()
        with suppress(OSError):  # the first error says more
            driver.results(sweep, folder).write()
        raise
    driver.progress.close()
    results = driver.results(sweep, folder)
    results.write()
    return results


def _engine(n: int, scheduler: Any, n_fits: int) -> Engine:
    if scheduler is not None:
        return DaskEngine(scheduler)
    return HereEngine() if n == 1 else ProcessEngine(min(n, n_fits))


def check_fits(fits: list[PlannedFit]) -> None:
    """Raise what the names and options of a fit would raise, with its name."""
    for fit in fits:
        try:
            check_choices(fit.config)
            if lacks_fold(fit.config.split):
                raise ValueError(
                    f"the split {fit.config.split!r} names no fold; add the axis 'fold': [0, 1, ...]"
                )
        except (ValueError, TypeError, KeyError, OSError) as error:
            error.add_note(f"The fit is {fit.name!r}")
            raise


def check_folder(folder: Path, ours: Sequence[str] = (SWEEP_FILE,)) -> None:
    """Raise FileExistsError for a folder of something else: not empty, and without any of our files."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the fits")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    begun = all(
        name in BEGUN or name.startswith(".") for name in names
    )  # by a process that begins, or died then
    if not begun and not any((folder / name).is_file() for name in ours):
        raise FileExistsError(f"{folder} is not empty and holds no sweep or search; name another folder")


class _Driver:
    """Hands fits to an engine until each has an answer."""

    def __init__(self, fits: list[PlannedFit], job: Job, progress: SweepProgress) -> None:
        self.fits = {fit.name: fit for fit in fits}
        self.job, self.progress = job, progress
        self.found: dict[str, FitResult] = {fit.name: read_result(job.out, fit) for fit in fits}
        self.fitted: set[str] = set()
        again = (MISSING, FAILED) if job.retry_failed else (MISSING,)
        self.waiting = deque(name for name, result in self.found.items() if result.status in again)
        self.elsewhere: dict[str, float] = {}
        self.looks: Counter[str] = Counter()
        self.running: set[str] = set()
        self.deaths: Counter[str] = Counter()
        for result in self.found.values():
            if result.name not in self.waiting:
                progress.add(result)

    def run(self, engine: Engine) -> None:
        """Run what waits."""
        while self.waiting or self.running or self.elsewhere:
            while self.waiting and engine.is_free():
                name = self.waiting.popleft()
                self.running.add(name)
                self.progress.begin()
                engine.start(name, functools.partial(fit_planned, self.fits[name], self.job))
            with suppress(queue.Empty):
                self._take(engine.answers.get(timeout=TICK_SECONDS))
            engine.check()
            for name in [name for name, again in self.elsewhere.items() if again <= time.monotonic()]:
                del self.elsewhere[name]
                self.waiting.append(name)

    def _take(self, answer: Answer) -> None:
        name, fit = answer.name, self.fits[answer.name]
        self.running.discard(name)
        if answer.impossible:
            raise RuntimeError(f"no worker can run the fit {name!r}: {answer.impossible}")
        if answer.lost:
            self.waiting.append(name)
            self.progress.defer()
            return
        if answer.value == BUSY:
            self.elsewhere[name] = time.monotonic() + min(
                AGAIN_SECONDS * 1.5 ** self.looks[name], MOST_SECONDS
            )
            self.looks[name] += 1
            self.progress.defer()
            return
        if answer.died:
            self.deaths[name] += 1
            if not answer.for_good and self.deaths[name] <= RETRIES:
                self.waiting.append(name)
                self.progress.defer()
                return
            error = RuntimeError(
                f"the worker process died during this fit, {RETRIES + 1} times in a row (out of memory, or "
                f"killed); last: {answer.died}"
            )
            report_failure(self.job.out, fit, error)
        elif answer.value == FITTED:
            self.fitted.add(name)
        self.found[name] = read_result(self.job.out, fit)
        if self.found[name].status == MISSING:
            raise FileNotFoundError(
                f"a worker has made the fit {name!r}, and {self.found[name].path} is not here: workers and "
                "this process must share the folder of the sweep"
            )
        self.progress.add(self.found[name], was_running=True)

    def results(self, sweep: Sweep, folder: Path) -> SweepResults:
        """What is there now."""
        fits = [self.found[name] for name in self.fits]
        read = tuple(f.name for f in fits if f.status == DONE and f.name not in self.fitted)
        return SweepResults(
            sweep, folder, fits, tuple(name for name in self.fits if name in self.fitted), read
        )
