"""What a reader of a run must know before believing its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.training.experiment_config import ExperimentConfig
from deepSTRF.training.run_scores import MAIN_SCORE, RunScores

__all__ = ["collect_notes", "first_names"]

#: So many names are listed before the rest is only counted.
MOST_NAMED = 8
#: Fewer validation clips make the choice of epoch and seed a matter of luck.
FEW_CLIPS = 2


def collect_notes(
    dataset: Any,
    scores: RunScores,
    config: ExperimentConfig,
    best_epochs: Mapping[int, int | None],
    reasons: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """Return (level, sentence) pairs, level "warning" or "info".

    Parameters
    ----------
    dataset : NeuralDataset
        The recording.
    scores : RunScores
        Its scores.
    config : ExperimentConfig
        All choices.
    best_epochs : mapping of seed to int or None
        Epoch (from 0) whose weights were kept.
    reasons : sequence of str
        Per neuron why it has no score; empty where it has one.

    Returns
    -------
    list of (str, str)
        Notes in the order of the page.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> ds = SimpleNamespace(describe=lambda: {"name": "d"}, load_report=SimpleNamespace(skipped=[]))
    >>> scores = RunScores(["a"], [0], {"test": {"cc_norm": np.array([[np.nan]])}})
    >>> collect_notes(ds, scores, ExperimentConfig(), {0: 3})
    [('warning', '1 of 1 neurons has no cc_norm on the test clips: a.')]
    """
    facts = dataset.describe()
    notes: list[tuple[str, str]] = []
    ahead = float(facts.get("look_ahead_ms") or 0.0)
    if ahead > 0:
        notes.append(
            (
                "warning",
                f"The spectrogram is not causal: each frame looks {ahead:g} ms ahead (alignment "
                f"{facts.get('alignment', 'native')!r}), as in the published scores. "
                "alignment='causal' gives one that does not.",
            )
        )
    skipped = list(dataset.load_report.skipped)
    if skipped:
        named = "; ".join(f"{name}: {reason}" for name, reason in skipped[:MOST_NAMED])
        more = f"; and {len(skipped) - MOST_NAMED} more" if len(skipped) > MOST_NAMED else ""
        notes.append(("warning", f"{len(skipped)} entries of the recording were left out ({named}{more})."))
    notes += _about_scores(scores, reasons)
    notes += _about_the_fit(config, best_epochs)
    return notes


def _about_scores(scores: RunScores, reasons: Sequence[str]) -> list[tuple[str, str]]:
    column = scores.per_neuron("test").get(MAIN_SCORE)
    if column is None:
        return []
    missing = [int(index) for index in np.flatnonzero(~np.isfinite(column))]
    notes = []
    if missing:
        why = {index: f" ({reasons[index]})" for index in missing if index < len(reasons) and reasons[index]}
        named = first_names([scores.neurons[index] + why.get(index, "") for index in missing])
        notes.append(
            (
                "warning",
                f"{len(missing)} of {column.size} neurons {'has' if len(missing) == 1 else 'have'} no "
                f"{MAIN_SCORE} on the test clips: {named}.",
            )
        )
    notes += _about_single_repeats(scores, column)
    above = int((column > 1.0).sum())
    if above:
        notes.append(
            (
                "info",
                f"{above} {'neuron scores' if above == 1 else 'neurons score'} above 1: the noise ceiling is "
                "an estimate, uncertain where few repeats carry little signal.",
            )
        )
    return notes


def _about_single_repeats(scores: RunScores, column: NDArray[np.float64]) -> list[tuple[str, str]]:
    """Neurons whose score is no noise-corrected one although it stands in that column."""
    snr = scores.per_neuron("test").get("snr")
    if snr is None:
        return []
    raw = [scores.neurons[index] for index in np.flatnonzero(np.isfinite(column) & np.isnan(snr))]
    if not raw:
        return []
    have, their = ("has", "its") if len(raw) == 1 else ("have", "their")
    text = (
        f"{len(raw)} of {column.size} neurons {have} no repeats to compare on the test clips: {their} "
        f"{MAIN_SCORE} is the plain correlation, not corrected for noise ({first_names(raw)})."
    )
    return [("warning", text)]


def first_names(names: Sequence[str]) -> str:
    """Return the first few names of a list in one line, and how many more there are.

    Parameters
    ----------
    names : sequence of str
        All names.

    Returns
    -------
    str
        At most `MOST_NAMED` of them.

    Examples
    --------
    >>> first_names(["a", "b"])
    'a, b'
    """
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _about_the_fit(config: ExperimentConfig, best_epochs: Mapping[int, int | None]) -> list[tuple[str, str]]:
    late = [seed for seed, epoch in best_epochs.items() if epoch is not None and epoch == config.epochs - 1]
    if not late:
        return []
    seeds = ", ".join(map(str, late))
    which = f"The fits of seeds {seeds} were" if len(late) > 1 else f"The fit of seed {seeds} was"
    which = "The fit was" if len(best_epochs) == 1 else which
    return [
        ("info", f"{which} still improving at the last epoch ({config.epochs}); more epochs may help."),
    ]
