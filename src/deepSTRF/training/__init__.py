"""Fitting models to recordings: the fit, many seeds, checks before it, scores and the protocol after it."""

from deepSTRF.training.caching import FrontEndCache
from deepSTRF.training.errors import FitDivergedError, StateMismatchError
from deepSTRF.training.evaluation import score_model
from deepSTRF.training.experiment import ExperimentConfig, Run, run_experiment
from deepSTRF.training.fitter import Fitter
from deepSTRF.training.history import MeanScore, history_rows, mean_score
from deepSTRF.training.loaders import make_loaders
from deepSTRF.training.model_rules import ModelRuleError
from deepSTRF.training.multi_seed import fit_multi_seed
from deepSTRF.training.protocol import ProtocolCard
from deepSTRF.training.score_table import ScoreTable
from deepSTRF.training.seeds import make_generator, seeded, set_random_seed
from deepSTRF.training.validate import ModelCheck, validate_model

__all__ = [
    "ExperimentConfig",
    "FitDivergedError",
    "Fitter",
    "FrontEndCache",
    "MeanScore",
    "ModelCheck",
    "ModelRuleError",
    "ProtocolCard",
    "Run",
    "ScoreTable",
    "StateMismatchError",
    "fit_multi_seed",
    "history_rows",
    "make_generator",
    "make_loaders",
    "mean_score",
    "run_experiment",
    "score_model",
    "seeded",
    "set_random_seed",
    "validate_model",
]
