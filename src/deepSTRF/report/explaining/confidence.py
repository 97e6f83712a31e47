"""Confidence bands of STRFs that are fitted in closed form, where refits are cheap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from deepSTRF.interpret import strf_confidence
from deepSTRF.report.explaining.subject import Subject
from deepSTRF.training.closed_form import is_closed_form, solve

__all__ = ["explain_confidence"]


def explain_confidence(subject: Subject) -> dict[str, Any]:
    """Refit with one training clip left out at a time, and keep the bands of the neurons chosen.

    Each neuron keeps the penalty that validation clips chose for it: one chosen anew in each refit would
    count as uncertainty of the neuron. A model that is not fitted in closed form has no bands.

    Parameters
    ----------
    subject : Subject
        What is explained.

    Returns
    -------
    dict
        ``refits``: fits per neuron.

    Raises
    ------
    Skipped
        Without the recording.
    ValueError
        From the fits.

    Examples
    --------
    >>> explain_confidence(Subject(model=None))
    {}
    """
    config = subject.config
    if config is None or not is_closed_form(config.model):
        return {}
    subject.needs_excerpt()
    train, validation, _ = subject.views
    n_fits = len(train) + 1
    count = subject.begin("confidence", len(subject.neurons) * (n_fits + 1))
    bands = []
    for neuron in subject.neurons:
        alone, check = train.select(neurons=[neuron]), validation.select(neurons=[neuron])
        chosen: Any = solve(config, alone, check)
        count(1)
        options = {**config.model_options, "lambdas": float(chosen.lambdas[0])}
        fixed = replace(config, model_options=options)

        def refit(clips: Any, fixed: Any = fixed) -> Any:
            count(1)
            return solve(fixed, clips, None)

        bands.append(strf_confidence(alone, refit))
    arrays = {
        name: np.concatenate([getattr(band, name) for band in bands]) for name in ("estimate", "low", "high")
    }
    subject.write("confidence", {name: value.astype(np.float32) for name, value in arrays.items()})
    return {"refits": n_fits}
