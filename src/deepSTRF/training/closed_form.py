"""Fits in closed form inside an experiment: one call where other models need epochs.

A new one is a file with a function ``solver(train, validation, *, wav2spec, standardize, warmup_ms,
**options)`` that is registered in `deepSTRF.registry.SOLVERS` and returns a `ClosedFormFit`, and its module's
name in `deepSTRF.training.building.ROOMS`. Its name then stands in a model's place.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from deepSTRF.datasets import NeuralDataset
from deepSTRF.registry import SOLVERS
from deepSTRF.training.building import build_front_end, check_choices
from deepSTRF.training.experiment_config import ExperimentConfig

__all__ = ["ClosedFormFit", "is_closed_form", "solve"]


class ClosedFormFit(Protocol):
    """What a fit in closed form returns.

    Examples
    --------
    >>> from deepSTRF.training.ridge import RidgeFit
    >>> all(hasattr(RidgeFit, name) for name in ("facts", "notes"))
    True
    """

    @property
    def model(self) -> nn.Module:
        """The fitted model, an ordinary one."""
        ...

    def facts(self) -> dict[str, Any]:
        """Facts about the fit for the protocol card."""
        ...

    def notes(self) -> list[tuple[str, str]]:
        """(level, sentence) pairs for the reader of a run."""
        ...


def is_closed_form(name: str) -> bool:
    """Say whether a model name of an experiment stands for a fit in closed form.

    Parameters
    ----------
    name : str
        ``ExperimentConfig.model``, already checked.

    Returns
    -------
    bool
        Whether `solve` fits it.

    Examples
    --------
    >>> is_closed_form("linear")
    False
    """
    return name in SOLVERS


def solve(config: ExperimentConfig, train: NeuralDataset, validation: NeuralDataset | None) -> ClosedFormFit:
    """Fit an experiment's model in closed form.

    Parameters
    ----------
    config : ExperimentConfig
        Name and options of the fit and of the front-end.
    train, validation : NeuralDataset
        Clips to fit, and to choose by; None where the options leave nothing to choose.

    Returns
    -------
    ClosedFormFit
        The model and facts about the fit.

    Raises
    ------
    ValueError, TypeError
        For an unknown name or option.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> config = ExperimentConfig(model="ridge", model_options={"n_lags": 8})
    >>> type(solve(config, ds.select(clips=[0, 1]), ds.select(clips=[2])).model).__name__
    'Linear'
    """
    check_choices(config)
    options = dict(config.model_options)
    if config.standardize:
        options["standardize"] = True
    fit: ClosedFormFit = SOLVERS.get(config.model)(
        train,
        validation,
        wav2spec=build_front_end(config, train),
        warmup_ms=config.warmup_ms,
        **options,
    )
    return fit
