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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from deepSTRF import __version__
from deepSTRF._files import append_line, held_lock, write_sealed_json
from deepSTRF._validation import checked_but
from deepSTRF.experiments.build import check_choices
from deepSTRF.experiments.config import ExperimentConfig
from deepSTRF.experiments.engines import (
    RETRIES,
    Answer,
    Call,
    DaskEngine,
    Engine,
    HereEngine,
    ProcessEngine,
    count_processes,
)
from deepSTRF.experiments.run import fit_seeds, may_share_fits, run_experiment
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
FITTED, READ, BUSY, ALONE = "fitted", "read", "busy", "alone"
#: Seeds of several fits that are fitted together at most: a process that dies takes them all with it.
MOST_SEEDS = 8
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
    with _ONE_FIT, _locks([fit], job) as mine, _one_thread():
        if not mine:
            return BUSY

        def make(config: ExperimentConfig, folder: Path) -> None:
            run_experiment(
                config,
                folder,
                overwrite=True,  # what is there is damaged, interrupted, or of files that have been moved
                download=job.download,
                progress=False,
                callbacks=callbacks,
            )

        return _done(fit, job) or _make(fit, job, make, problems)


def fit_planned_seeds(fits: Sequence[PlannedFit], stack: Sequence[PlannedFit], job: Job) -> str | list[str]:
    """Fit a stack of seeds together, and keep what is left of it; returns "busy", or one word per fit.

    All seeds are fitted, also those that are done: how many are summed at once decides on the last digits.
    The word "alone" is of a fit that is to be made by itself: nothing would be gained, or it has to say why
    it fails.
    """
    _register(job)
    with _ONE_FIT, _locks(stack, job) as mine, _one_thread():
        if not mine:
            return BUSY
        found = {fit.name: _done(fit, job) for fit in fits}
        left = [fit for fit in fits if not found[fit.name]]
        made = None
        if left:
            with suppress(Exception):  # each fit says what is wrong with it, by itself
                made = fit_seeds([fit.config for fit in stack], download=job.download)
        for fit in left:
            found[fit.name] = _make(fit, job, made.write) if made and made.has(fit.config) else ALONE
        return list(found.values())


def _done(fit: PlannedFit, job: Job) -> str:
    """What there is of a fit, "read" or "failed"; empty when it is to be made."""
    status = read_result(job.out, fit).status
    if status == DONE:
        return READ
    return FAILED if status == FAILED and not job.retry_failed else ""


def _make(
    fit: PlannedFit, job: Job, make: Callable[[ExperimentConfig, Path], object], problems: Sequence[str] = ()
) -> str:
    """Make a fit whose lock is held; its error is reported beside its folder."""
    _log(job.out, "start", fit)
    try:
        make(fit.config, job.out / FITS / fit.folder)
    except Exception as error:
        if _is_disk(error, job.out):
            raise  # no fit of this sweep can be kept
        for problem in problems:
            error.add_note(problem)
        report_failure(job.out, fit, error)
        return FAILED
    failure_path(job.out, fit).unlink(missing_ok=True)
    _log(job.out, "end", fit)
    return FITTED


@contextmanager
def _locks(fits: Sequence[PlannedFit], job: Job) -> Iterator[bool]:
    """A block in which no other process works on these fits; False where one does."""
    (job.out / FITS).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        paths = [job.out / FITS / f"{fit.folder}.lock" for fit in fits]
        yield all(held.enter_context(held_lock(path)) for path in paths)


@contextmanager
def _one_thread() -> Iterator[None]:
    """A block with one thread: sums depend on their number, and each core has a process of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    together: bool = True,
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
    together : bool
        Let fits that differ in their seeds alone be trained at once (`fit_many`), up to eight, where that is
        faster: on a CPU, networks without convolutions and recurrent layers of PyTorch, of at most 64
        neurons. Their scores are those of separate fits but for rounding, and what training makes of it;
        False fits each by itself. Where one of them is missing, all are trained again and that one is kept:
        how many are summed at once decides on the last digits.
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
    takes its own fit with it (or the seeds that it trains together), which is started again by another one up
    to 3 times, and fails after that.
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
    driver = _Driver(fits, job, SweepProgress(fits, progress), together)
    try:
        if driver.waiting:
            with closing(_engine(n, scheduler, driver.n_waiting())) as engine:
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


@dataclass(frozen=True)
class _Task:
    """Fits that a worker makes in one call: one, or those that are left of a stack of seeds."""

    fits: tuple[str, ...]
    stack: tuple[str, ...] = ()


def _tasks(fits: Sequence[PlannedFit], waiting: Sequence[str], together: bool) -> Iterator[_Task]:
    """What is to be done for fits that wait.

    Which seeds make a stack is a matter of the sweep alone, not of what waits or of how many processes there
    are: numbers are then the same everywhere.
    """
    left = set(waiting)
    for stack in _stacks(fits):
        names = tuple(fit.name for fit in stack if fit.name in left)
        n_seeds = sum(len(fit.config.seeds) for fit in stack)
        if names and together and n_seeds > 1 and may_share_fits(stack[0].config):
            yield _Task(names, tuple(fit.name for fit in stack))
        else:
            yield from (_Task((name,)) for name in names)


def _stacks(fits: Sequence[PlannedFit]) -> list[list[PlannedFit]]:
    """Fits that differ in their seeds alone beside each other, up to `MOST_SEEDS` seeds."""
    found: list[list[PlannedFit]] = []
    last: dict[str, list[PlannedFit]] = {}
    for fit in fits:
        choice = replace(fit.config, seeds=(0,), out=None).to_toml()
        stack = last.get(choice)
        if stack is None or sum(len(one.config.seeds) for one in [*stack, fit]) > MOST_SEEDS:
            stack = last[choice] = []
            found.append(stack)
        stack.append(fit)
    return found


class _Driver:
    """Hands tasks to an engine until each fit has a result."""

    def __init__(self, fits: list[PlannedFit], job: Job, progress: SweepProgress, together: bool) -> None:
        self.fits = {fit.name: fit for fit in fits}
        self.job, self.progress = job, progress
        self.found: dict[str, FitResult] = {fit.name: read_result(job.out, fit) for fit in fits}
        self.fitted: set[str] = set()
        again = (MISSING, FAILED) if job.retry_failed else (MISSING,)
        missing = [name for name, result in self.found.items() if result.status in again]
        self.waiting = deque(_tasks(fits, missing, together))
        self.elsewhere: dict[_Task, float] = {}
        self.looks: Counter[_Task] = Counter()
        self.running: dict[str, _Task] = {}
        self.deaths: Counter[_Task] = Counter()
        for result in self.found.values():
            if result.status not in again:
                progress.add(result)

    def n_waiting(self) -> int:
        """Number of fits that wait."""
        return sum(len(task.fits) for task in self.waiting)

    def run(self, engine: Engine) -> None:
        """Run what waits."""
        while self.waiting or self.running or self.elsewhere:
            while self.waiting and engine.is_free():
                task = self.waiting.popleft()
                self.running[task.fits[0]] = task
                self.progress.begin(len(task.fits))
                engine.start(task.fits[0], self._call(task))
            with suppress(queue.Empty):
                self._take(engine.answers.get(timeout=TICK_SECONDS))
            engine.check()
            for task in [task for task, again in self.elsewhere.items() if again <= time.monotonic()]:
                del self.elsewhere[task]
                self.waiting.append(task)

    def _call(self, task: _Task) -> Call:
        fits = [self.fits[name] for name in task.fits]
        if task.stack:
            return functools.partial(fit_planned_seeds, fits, [self.fits[n] for n in task.stack], self.job)
        return functools.partial(fit_planned, fits[0], self.job)

    def _take(self, answer: Answer) -> None:
        task = self.running.pop(answer.name)
        if answer.impossible:
            raise RuntimeError(f"no worker can run the fit {answer.name!r}: {answer.impossible}")
        if answer.died:
            self.deaths[task] += 1
            if answer.for_good or self.deaths[task] > RETRIES:
                self._give_up(task, answer.died)
                return
        if answer.lost or answer.died:
            self.waiting.append(task)
            self.progress.defer(len(task.fits))
        elif answer.value == BUSY:
            wait = min(AGAIN_SECONDS * 1.5 ** self.looks[task], MOST_SECONDS)
            self.elsewhere[task] = time.monotonic() + wait
            self.looks[task] += 1
            self.progress.defer(len(task.fits))
        else:
            words = answer.value if task.stack else [answer.value]
            for name, word in zip(task.fits, words, strict=True):
                if word == ALONE:
                    self.waiting.append(_Task((name,)))
                    self.progress.defer(1)
                else:
                    self._read(name, made=word == FITTED)

    def _give_up(self, task: _Task, died: str) -> None:
        """Workers have died too often: what was made together is tried one by one, one fit has failed."""
        if task.stack:
            self.waiting.extend(_Task((name,)) for name in task.fits)
            self.progress.defer(len(task.fits))
            return
        (name,) = task.fits
        error = RuntimeError(
            f"the worker process died during this fit, {RETRIES + 1} times in a row (out of memory, or "
            f"killed); last: {died}"
        )
        report_failure(self.job.out, self.fits[name], error)
        self._read(name, made=False)

    def _read(self, name: str, *, made: bool) -> None:
        """Take the result of a fit that has ended."""
        result = self.found[name] = read_result(self.job.out, self.fits[name])
        if made:
            self.fitted.add(name)
        if result.status == MISSING:
            raise FileNotFoundError(
                f"a worker has made the fit {name!r}, and {result.path} is not here: workers and "
                "this process must share the folder of the sweep"
            )
        self.progress.add(result, was_running=True)

    def results(self, sweep: Sweep, folder: Path) -> SweepResults:
        """What is there now."""
        fits = [self.found[name] for name in self.fits]
        read = tuple(f.name for f in fits if f.status == DONE and f.name not in self.fitted)
        return SweepResults(
            sweep, folder, fits, tuple(name for name in self.fits if name in self.fitted), read
        )
