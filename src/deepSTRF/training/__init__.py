"""Fitting models to recordings: the fit, many seeds, checks before it, scores and the protocol after it."""

from deepSTRF.training.caching import FrontEndCache
from deepSTRF.training.count_fitter import CountFitter
from deepSTRF.training.errors import DamagedFileError, FitDivergedError, StateMismatchError
from deepSTRF.training.evaluation import score_model
from deepSTRF.training.experiment import ExperimentConfig, Run, run_experiment
from deepSTRF.training.fitter import Fitter
from deepSTRF.training.folds import FoldFits, predict_folds, score_folds
from deepSTRF.training.folds_fit import fit_folds
from deepSTRF.training.folds_preset import dynamic_strf_settings
from deepSTRF.training.history import MeanScore, history_rows, mean_score
from deepSTRF.training.loaders import make_loaders
from deepSTRF.training.model_rules import ModelRuleError
from deepSTRF.training.multi_seed import fit_multi_seed
from deepSTRF.training.protocol import ProtocolCard
from deepSTRF.training.ridge import RidgeFit, fit_ridge
from deepSTRF.training.ridge_start import start_from_ridge
from deepSTRF.training.run_config import auto_config, slug_from_config
from deepSTRF.training.score_table import ScoreTable
from deepSTRF.training.seeds import make_generator, seeded, set_random_seed
from deepSTRF.training.tb_log import TensorBoardSeedLogger, make_tensorboard_logger_factory
from deepSTRF.training.validate import ModelCheck, validate_model
from deepSTRF.training.wandb_log import WandbSeedLogger, make_wandb_logger_factory

__all__ = [
    "CountFitter",
    "DamagedFileError",
    "ExperimentConfig",
    "FitDivergedError",
    "Fitter",
    "FoldFits",
    "FrontEndCache",
    "MeanScore",
    "ModelCheck",
    "ModelRuleError",
    "ProtocolCard",
    "RidgeFit",
    "Run",
    "ScoreTable",
    "StateMismatchError",
    "TensorBoardSeedLogger",
    "WandbSeedLogger",
    "auto_config",
    "dynamic_strf_settings",
    "fit_folds",
    "fit_multi_seed",
    "fit_ridge",
    "history_rows",
    "make_generator",
    "make_loaders",
    "make_tensorboard_logger_factory",
    "make_wandb_logger_factory",
    "mean_score",
    "predict_folds",
    "run_experiment",
    "score_folds",
    "score_model",
    "seeded",
    "set_random_seed",
    "slug_from_config",
    "start_from_ridge",
    "validate_model",
]
