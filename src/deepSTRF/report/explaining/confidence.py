"""Confidence bands of STRFs that are fitted in closed form, where refits are cheap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from deepSTRF.interpret import StrfConfidence, strf_confidence
from deepSTRF.report.explaining.subject import Skipped, Subject
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
        ``refits``: fits per neuron; ``without_band``: neurons that heard too few clips, and why.

    Raises
    ------
    Skipped
        Without the recording, or when none of the neurons heard enough clips.
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
    bands: list[StrfConfidence | None] = []
    reasons = []
    for neuron in subject.neurons:
        alone, check = train.select(neurons=[neuron]), validation.select(neurons=[neuron])
        try:
            chosen: Any = solve(config, alone, check)
        except ValueError as error:  # it heard too few clips: the others have their bands
            reasons.append(f"{subject.all_names[neuron]}: {error}")
            bands.append(None)
            count(n_fits + 1)
            continue
        count(1)
        options = {**config.model_options, "lambdas": float(chosen.lambdas[0])}
        fixed = replace(config, model_options=options)

        def refit(clips: Any, fixed: Any = fixed) -> Any:
            count(1)
            return solve(fixed, clips, None)

        if len(alone) < 2:
            reasons.append(f"{subject.all_names[neuron]}: it heard one training clip")
            bands.append(None)
            count(n_fits)
            continue
        bands.append(strf_confidence(alone, refit))
    if not any(bands):
        raise Skipped("; ".join(reasons))
    known = {"estimate": subject.needs_fields().maps[list(subject.neurons)].astype(np.float32)}
    known |= {name: np.full_like(known["estimate"], np.nan) for name in ("low", "high")}
    for row, band in enumerate(bands):
        if band is not None:
            for name, values in known.items():
                values[row] = getattr(band, name)[0]
    subject.write("confidence", known)
    return {"refits": n_fits, "without_band": reasons}
