"""Fitting models to recordings: the fit, many seeds, checks before it, scores and the protocol after it."""

from deepSTRF.training.caching import FrontEndCache
from deepSTRF.training.errors import FitDivergedError, StateMismatchError
from deepSTRF.training.fitter import Fitter
from deepSTRF.training.history import history_rows, mean_score
from deepSTRF.training.loaders import make_loaders
from deepSTRF.training.seeds import make_generator, seeded, set_random_seed

__all__ = [
    "FitDivergedError",
    "Fitter",
    "FrontEndCache",
    "StateMismatchError",
    "history_rows",
    "make_generator",
    "make_loaders",
    "mean_score",
    "seeded",
    "set_random_seed",
]
