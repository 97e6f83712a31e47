"""Explain a fitted model: what its neurons listen to, into the folder of its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepSTRF import __version__
from deepSTRF.report.bands import Bands
from deepSTRF.report.bars import Begin, open_bars
from deepSTRF.report.explaining.confidence import explain_confidence
from deepSTRF.report.explaining.dynamics import explain_dynamics
from deepSTRF.report.explaining.excerpts import choose_excerpts
from deepSTRF.report.explaining.fields import explain_fields, explain_sounds, explain_tuning
from deepSTRF.report.explaining.probing import explain_probes
from deepSTRF.report.explaining.subject import Skipped, Subject
from deepSTRF.report.explanation import Explanation
from deepSTRF.training.building import load_dataset
from deepSTRF.training.experiment import split_of
from deepSTRF.training.receptive_fields import receptive_fields
from deepSTRF.training.run_folder import EXPLAIN, Run
from deepSTRF.training.run_scores import MAIN_SCORE

__all__ = ["choose_neurons", "explain_run"]

#: Neurons that are explained in full unless others are named: those with the best test score.
BEST = 4
#: The most that may be named; their filters over time must fit into memory, and their figures on a page.
MOST = 12

Say = Callable[[str], None]

#: Parts in order; the title is what the command and the report call them.
PARTS: dict[str, Callable[[Subject], dict[str, Any]]] = {
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
    say: Say | None = None,
) -> Explanation:
    """Compute what explains the model of a run, and write it to the folder ``explain`` of the run.

    Receptive fields and the tuning of all neurons; for some neurons the modulation transfer function, the
    receptive field as a sound, dynamic STRFs along the test clip to which they respond most, with a movie,
    their statistics over several test clips, and the answers to probe sounds. What does not apply to the
    model or recording is skipped, and the explanation says why. `deepSTRF.report.write_report` shows all of
    it.

    Parameters
    ----------
    run : Run
        A finished run.
    neurons : sequence of int or str, optional
        Indices or names, at most 12; None is the four with the best test score.
    seed : int, optional
        Which seed's model; None is the best on validation.
    overwrite : bool
        Replace an explanation of other neurons or another seed.
    download : bool
        Let the recording fetch missing files.
    progress : bool or 'auto'
        Progress bars on stderr; 'auto' when it is a terminal.
    say : callable, optional
        Called with one sentence per part that was skipped.

    Returns
    -------
    Explanation
        As it lies on disk. One that is there already, of the same neurons and seed, is read.

    Raises
    ------
    IndexError, ValueError
        For neurons or a seed that the run does not have.
    FileExistsError
        When another explanation lies there.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.training.experiment import ExperimentConfig, run_experiment
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 2, "n_clips": 5, "n_repeats": 4}, epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = explain_run(run_experiment(config, folder, progress=False), [0], progress=False)
    ...     found.names, found.skipped, sorted(found.tables)
    (['sim000'], [], ['nonlinearity', 'probes', 'tuning'])
    """
    model = run.load_model(seed)
    chosen = choose_neurons(run, neurons)
    used = run.best_seed if seed is None else seed
    choices = {"neurons": chosen, "seed": used}
    there = None if overwrite else Explanation.load(run.path)
    if there is not None:
        _compare(run.path, there, choices)
        return there
    folder = run.path / EXPLAIN
    folder.mkdir(exist_ok=True)
    Explanation.clear(run.path)
    with open_bars(progress) as begin:
        subject = _subject(run, model, chosen, folder, begin, download)
        facts, skipped = _explain(subject, say or _quiet)
    names = {"names": subject.names, "best_seed": run.best_seed, "version": __version__}
    Explanation.seal(run.path, {**choices, **names, **facts, "skipped": skipped})
    made = Explanation.load(run.path)
    if made is None:
        raise FileNotFoundError(f"{folder} vanished while it was written; run the same command again")
    return made


def choose_neurons(run: Run, neurons: Sequence[int | str] | None = None) -> list[int]:
    """Return indices of neurons from indices and names, or of the best ones.

    Parameters
    ----------
    run : Run
        The run.
    neurons : sequence of int or str, optional
        Indices (negative ones count from the end; text that is a number is one, too) or names. None is the
        four with the best test score.

    Returns
    -------
    list of int
        In the order given, best first by default.

    Raises
    ------
    ValueError, IndexError
        For an unknown name or index, one that is named twice, none or more than 12.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> scores = SimpleNamespace(neurons=["a", "b", "c"], per_neuron=lambda: {
    ...     "cc_norm": np.array([0.1, np.nan, 0.5])})
    >>> run = SimpleNamespace(scores=scores)
    >>> choose_neurons(run), choose_neurons(run, ["b", -1])
    ([2, 0], [1, 2])
    """
    names = list(run.scores.neurons)
    if neurons is None:
        scores = run.scores.per_neuron()[MAIN_SCORE]
        valid = np.flatnonzero(np.isfinite(scores))
        best: NDArray[np.intp] = valid[np.argsort(-scores[valid], kind="stable")][:BEST]
        return [int(neuron) for neuron in best] or list(range(min(BEST, len(names))))
    chosen = [_index_of(neuron, names) for neuron in neurons]
    if not chosen or len(set(chosen)) < len(chosen) or len(chosen) > MOST:
        raise ValueError(f"neurons must name 1 to {MOST} different neurons, got {list(neurons)}")
    return chosen


def _index_of(neuron: int | str, names: list[str]) -> int:
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


def _compare(folder: Path, there: Explanation, choices: dict[str, Any]) -> None:
    differences = [
        f"{name} {there.facts.get(name)}, not {value}"
        for name, value in choices.items()
        if there.facts.get(name) != value
    ]
    if differences:
        raise FileExistsError(
            f"{folder} holds another explanation ({'; '.join(differences)}); replace it with --overwrite"
        )


def _subject(run: Run, model: Any, chosen: list[int], folder: Path, begin: Begin, download: bool) -> Subject:
    views: tuple[Any, ...] = ()
    missing, excerpts = "", []
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
    return Subject(
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


def _explain(subject: Subject, tell: Say) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Do every part; one that fails takes no other with it."""
    facts: dict[str, Any] = {}
    skipped: list[tuple[str, str]] = []
    for title, part in PARTS.items():
        try:
            facts.update(part(subject))
        except Skipped as reason:
            skipped.append((title, str(reason)))
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            skipped.append((title, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    for title, why in skipped:
        tell(f"Skipped {title}: {why}")
    return facts, skipped


def _quiet(sentence: str) -> None:
    """Say nothing."""
