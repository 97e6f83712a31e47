"""Analysis of the fitted model of a run, written to the folder ``explain`` of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deepSTRF import __version__
from deepSTRF.experiments.build import load_dataset
from deepSTRF.experiments.config import FieldError
from deepSTRF.experiments.examples import receptive_fields
from deepSTRF.experiments.run import split_of
from deepSTRF.experiments.run_folder import EXPLAIN, MAIN_SCORE, Run
from deepSTRF.report.explain.dynamics import explain_dynamics, explain_probes
from deepSTRF.report.explain.fields import explain_confidence, explain_fields, explain_sounds, explain_tuning
from deepSTRF.report.explain.target import Begin, Excerpt, Skipped, Target, choose_excerpts, no_progress
from deepSTRF.report.explanation import Explanation
from deepSTRF.report.parts import Bands
from deepSTRF.training.callbacks import shows_progress

#: Neurons that are explained in full unless others are named: those with the best test score.
BEST = 4
#: The most that may be named; their filters over time must fit into memory.
MOST = 12

#: Analyses in order, by their names in messages and in the report.
ANALYSES: dict[str, Callable[[Target], dict[str, Any]]] = {
    "receptive fields": explain_fields,
    "tuning": explain_tuning,
    "confidence bands": explain_confidence,
    "sounds": explain_sounds,
    "dynamic STRFs": explain_dynamics,
    "probes": explain_probes,
}


def explain_run(
    run: Run,
    neurons: Sequence[int | str] | None = None,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    download: bool = False,
    progress: bool | Literal["auto"] = "auto",
    log: Callable[[str], None] | None = None,
) -> Explanation:
    """Analyse the fitted model of a run, and write the results to the folder ``explain`` of the run.

    Receptive fields and tuning of all neurons; for some neurons the modulation transfer function, the
    receptive field as a sound, dynamic STRFs along the test clip to which they respond most, with a movie,
    their statistics over several test clips, and responses to probe sounds. Analyses that do not apply to the
    model or recording are skipped, with the reason. `deepSTRF.report.write_report` shows the results.

    Parameters
    ----------
    run : Run
        A finished run.
    neurons : sequence of int or str, optional
        Indices or names, at most 12; None is the four with the best test score.
    seed : int, optional
        Seed of the model; None is the best on validation.
    overwrite : bool
        Replace an explanation of other neurons or another seed.
    download : bool
        Download missing files of the recording.
    progress : bool or 'auto'
        Progress bars on stderr; 'auto' when it is a terminal.
    log : callable, optional
        Called with one message per skipped analysis.

    Returns
    -------
    Explanation
        Tables, arrays, sounds and the movie in the folder (`deepSTRF.report.explanation.Explanation`). An
        existing one of the same neurons and seed is read.

    Raises
    ------
    IndexError, ValueError
        For neurons or a seed that the run does not have.
    FileExistsError
        When there is an explanation of other neurons or another seed.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.experiments import ExperimentConfig, run_experiment
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 2, "n_clips": 5, "n_repeats": 4}, epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = explain_run(run_experiment(config, folder, progress=False), [0], progress=False)
    ...     found.names, found.skipped, sorted(found.tables)
    (['sim000'], [], ['nonlinearity', 'probes', 'tuning'])
    """
    model = run.load_model(seed)
    chosen = choose_neurons(run, neurons)
    choices = {"neurons": chosen, "seed": run.best_seed if seed is None else seed}
    existing = None if overwrite else Explanation.load(run.path)
    if existing is not None:
        _compare(run.path, existing, choices)
        return existing
    folder = run.path / EXPLAIN
    folder.mkdir(exist_ok=True)
    Explanation.clear(run.path)
    with open_bars(progress) as begin:
        target = _target(run, model, chosen, folder, begin, download)
        facts, skipped = _analyse(target)
    if log is not None:
        for title, reason in skipped:
            log(f"Skipped {title}: {reason}")
    names = {"names": target.names, "best_seed": run.best_seed, "version": __version__}
    Explanation.seal(run.path, {**choices, **names, **facts, "skipped": skipped})
    made = Explanation.load(run.path)
    if made is None:
        raise FileNotFoundError(f"{folder} vanished while it was written; run the same command again")
    return made


def choose_neurons(run: Run, neurons: Sequence[int | str] | None = None) -> list[int]:
    """Indices of neurons from indices (negative ones count from the end) and names; None is the best four.

    Text that is a number is an index. Unknown, repeated, no or too many neurons are an error.
    """
    names = list(run.scores.neurons)
    if neurons is None:
        scores = run.scores.per_neuron()[MAIN_SCORE]
        valid = np.flatnonzero(np.isfinite(scores))
        best = valid[np.argsort(-scores[valid], kind="stable")][:BEST]
        return [int(neuron) for neuron in best] or list(range(min(BEST, len(names))))
    chosen = [_index_of(neuron, names) for neuron in neurons]
    if not chosen or len(set(chosen)) < len(chosen) or len(chosen) > MOST:
        raise FieldError("{neurons} must name 1 to {0} different neurons, got {1}", MOST, list(neurons))
    return chosen


def _index_of(neuron: int | str, names: list[str]) -> int:
    """Index of one neuron, from an index or a name."""
    if isinstance(neuron, str) and neuron in names:
        return names.index(neuron)
    try:
        index = int(neuron)
    except ValueError:
        raise ValueError(
            f"there is no neuron {neuron!r}; the run has {len(names)}, from {names[0]!r} to {names[-1]!r}: "
            "give names, or indices as in the report's table"
        ) from None
    if not -len(names) <= index < len(names):
        raise IndexError(f"neuron {index} does not exist; the run has {len(names)}, counted from 0")
    return index % len(names)


def _compare(folder: Path, existing: Explanation, choices: dict[str, Any]) -> None:
    """Raise FileExistsError when an explanation is of other neurons or another seed."""
    differences = [
        f"{name} {existing.facts.get(name)}, not {value}"
        for name, value in choices.items()
        if existing.facts.get(name) != value
    ]
    if differences:
        raise FileExistsError(
            f"{folder} holds another explanation ({'; '.join(differences)}); replace it with --overwrite"
        )


def _target(run: Run, model: Any, chosen: list[int], folder: Path, begin: Begin, download: bool) -> Target:
    """The model of a run with its test clips, where the recording is available."""
    views: tuple[Any, ...] = ()
    excerpts: list[Excerpt] = []
    missing = ""
    count = begin("recording", 1)
    try:
        whole = load_dataset(run.config, download=download)
        views = split_of(run.config, whole).apply(whole)
        excerpts = choose_excerpts(views[2], chosen)
    except (FileNotFoundError, ValueError) as error:
        missing = f"it needs the test clips of the recording: {error}"
    count(1)
    bands = Bands(run.facts.get("frequencies_hz"))
    names = list(run.scores.neurons)
    return Target(
        model=model,
        fields=bands.of_fields(receptive_fields(model)),
        neurons=chosen,
        names=[names[neuron] for neuron in chosen],
        all_names=names,
        dt_ms=float(run.facts["dt_ms"]),
        bands=bands,
        excerpt=excerpts[0] if excerpts else None,
        others=excerpts[1:],
        dataset=views[2] if views else None,
        views=views,
        config=run.config,
        missing=missing,
        folder=folder,
        begin=begin,
    )


def _analyse(target: Target) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Run all analyses; one that fails is skipped, the others are done all the same."""
    facts: dict[str, Any] = {}
    skipped: list[tuple[str, str]] = []
    for title, analysis in ANALYSES.items():
        try:
            facts.update(analysis(target))
        except Skipped as reason:
            skipped.append((title, str(reason)))
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            skipped.append((title, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    return facts, skipped


@contextmanager
def open_bars(progress: bool | Literal["auto"] = "auto") -> Iterator[Begin]:
    """Open a display with one bar per step, on stderr."""
    if not shows_progress(progress):
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        running: list[tuple[TaskID, int]] = []

        def finish() -> None:
            for task, total in running:
                bars.update(task, completed=total)
            running.clear()

        def begin(title: str, total: int) -> Callable[[int], None]:
            finish()
            task = bars.add_task(title, total=total)
            running.append((task, total))
            return lambda done: bars.advance(task, done)

        yield begin
        finish()
