"""An experiment's configuration as an estimator of `deepSTRF.crossval.cross_validate`.

The folds take the place of its dataset, split and run folder; all other choices are those of the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from deepSTRF.baselines.linear_fit import fits_without_validation
from deepSTRF.crossval.estimators import RIDGE, Fitted, median_epochs, solved
from deepSTRF.datasets import NeuralDataset
from deepSTRF.experiments.build import (
    as_fitted,
    check_choices,
    is_closed_form,
    option_names,
    solve,
    solver_options,
)
from deepSTRF.experiments.config import ExperimentConfig, FieldError, closest
from deepSTRF.experiments.run import fit_once
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.registry import ESTIMATORS, MODELS, SOLVERS, WAV2SPEC
from deepSTRF.training.validate import validate_model

__all__ = ["ConfigEstimator"]

#: Fields that the folds take the place of.
OF_THE_FOLDS = ("dataset", "dataset_options", "split", "normalize_responses", "refit", "seeds", "out")


@ESTIMATORS.register("ExperimentConfig")
@dataclass(frozen=True)
class ConfigEstimator:
    """A model, front-end and training of a configuration, fitted to any clips."""

    config: ExperimentConfig

    def __post_init__(self) -> None:
        if self.config.normalize_responses is not None:
            raise FieldError(
                "{normalize_responses} belongs to the recording here: cross_validate(config, "
                "ds.normalized(...)); leave it out of the configuration"
            )
        # dataset and split are not looked at, so they need not be there
        own = dataclasses.replace(
            self.config, dataset="synthetic", dataset_options={}, split=None, refit=False
        )
        check_choices(own)
        object.__setattr__(self, "config", as_fitted(own))

    @property
    def name(self) -> str:
        """Model, and front-end where there is one."""
        return self.config.model + (f" on {self.config.wav2spec}" if self.config.wav2spec else "")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its fits."""
        return self.config.seeds

    @property
    def warmup_ms(self) -> float:
        """Onset of every clip that is left out."""
        return self.config.warmup_ms

    @property
    def refits(self) -> bool:
        """A network can be fitted for given epochs; a solver, where validation clips choose nothing."""
        if is_closed_form(self.config.model):
            return fits_without_validation(SOLVERS.get(self.config.model), self.config.model_options)
        return self.config.start != "ridge"  # whose penalty validation clips choose

    @property
    def needs_validation(self) -> bool:
        """Whether validation clips choose options of a solver, or the ridge estimate at the start."""
        return not self.refits

    @property
    def chooses_epochs(self) -> bool:
        """Whether validation clips choose the epochs."""
        return not is_closed_form(self.config.model)

    def changed(self, options: Mapping[str, Any]) -> ConfigEstimator:
        """The same with other fields, or options of the model or front-end by their own names."""
        config = self.config
        known = {item.name for item in fields(config)} - set(OF_THE_FOLDS)
        named = {key: value for key, value in options.items() if key in known}
        config = dataclasses.replace(config, **named)  # the model first: it has the options
        for key, value in options.items():
            if key not in known:
                table = _table_of(config, key, sorted(known))
                changed: dict[str, Any] = {table: {**getattr(config, table), key: value}}
                config = dataclasses.replace(config, **changed)
        return ConfigEstimator(config)

    def fit_views(self, train: NeuralDataset, validation: NeuralDataset | None, seed: int) -> Fitted:
        """Fit as a run does."""
        if is_closed_form(self.config.model):
            fitted = solved(solve(self.config, train, validation))
            validate_model(fitted.model, train)
            return fitted
        fitter = fit_once(self.config, seed, train, validation)
        best = None if validation is None or fitter.best_epoch is None else fitter.best_epoch + 1
        return Fitted(fitter.model.cpu(), best)

    def refit(self, train: NeuralDataset, first: Sequence[Fitted], seed: int) -> Fitted:
        """Fit to all clips, a network for as many epochs as the first fits chose."""
        if is_closed_form(self.config.model):
            return self.fit_views(train, None, seed)
        decays = self.config.schedule != "constant"  # its best epochs are the last
        chosen = None if decays else median_epochs(first)
        epochs = self.config.epochs if chosen is None else chosen
        again = dataclasses.replace(self.config, epochs=epochs, patience=epochs)
        model = fit_once(again, seed, train, None).model.cpu()
        fitted: Any = model
        if isinstance(fitted.fitted_on, FittedOn):
            fitted.fitted_on = dataclasses.replace(fitted.fitted_on, validation_sounds=())
        return Fitted(model, epochs)

    def ridge_options(self, ds: NeuralDataset) -> dict[str, Any] | None:
        """Arguments of `fit_ridge`, where that is the model."""
        return solver_options(self.config, ds) if self.config.model == RIDGE else None

    def describe(self) -> str:
        """The configuration, without what the folds take the place of."""
        return "ExperimentConfig\n" + self.config.to_toml()


def _table_of(config: ExperimentConfig, option: str, known: Sequence[str]) -> str:
    """The field that holds an option: of the model, else of the front-end."""
    entry: Any = SOLVERS.get(config.model) if is_closed_form(config.model) else MODELS.get(config.model)
    legal = {"model_options": option_names(entry)}
    if config.wav2spec is not None:
        legal["wav2spec_options"] = [*option_names(WAV2SPEC.get(config.wav2spec)), "n_filters"]
    for table, names in legal.items():
        if option in names:
            return table
    every = [*known, *(name for names in legal.values() for name in names)]
    raise ValueError(
        f"an experiment has no choice {option!r} that folds could make, and model {config.model!r} no such "
        f"option; there are {', '.join(every)}.{closest(option, every)}"
    )
