"""Fitting models to recordings: the fit, many seeds, checks before it, scores and the protocol after it."""

from typing import Any

from deepSTRF._files import DamagedFileError
from deepSTRF._moved import find_moved
from deepSTRF.training.augmentation import BandShift
from deepSTRF.training.cache import FrontEndCache
from deepSTRF.training.callbacks import Callback, FitDivergedError
from deepSTRF.training.data import make_loaders
from deepSTRF.training.distillation import distilled
from deepSTRF.training.evaluation import ScoreTable, score_model, score_predictions
from deepSTRF.training.fit_many import ManyFits, fit_many
from deepSTRF.training.fitter import Fitter
from deepSTRF.training.loggers import (
    TensorBoardSeedLogger,
    WandbSeedLogger,
    make_tensorboard_logger_factory,
    make_wandb_logger_factory,
)
from deepSTRF.training.multi_seed import fit_multi_seed
from deepSTRF.training.objective import MeanScore, history_rows, mean_score
from deepSTRF.training.protocol import ProtocolCard
from deepSTRF.training.resume import StateMismatchError
from deepSTRF.training.run_config import auto_config, slug_from_config
from deepSTRF.training.seeds import make_generator, seeded, set_random_seed
from deepSTRF.training.settings import fit_settings
from deepSTRF.training.validate import ModelCheck, ModelRuleError, validate_model
from deepSTRF.training.weight_averaging import WeightAveraging

__all__ = [
    "BandShift",
    "Callback",
    "DamagedFileError",
    "FitDivergedError",
    "Fitter",
    "FrontEndCache",
    "ManyFits",
    "MeanScore",
    "ModelCheck",
    "ModelRuleError",
    "ProtocolCard",
    "ScoreTable",
    "StateMismatchError",
    "TensorBoardSeedLogger",
    "WandbSeedLogger",
    "WeightAveraging",
    "auto_config",
    "distilled",
    "fit_many",
    "fit_multi_seed",
    "fit_settings",
    "history_rows",
    "make_generator",
    "make_loaders",
    "make_tensorboard_logger_factory",
    "make_wandb_logger_factory",
    "mean_score",
    "score_model",
    "score_predictions",
    "seeded",
    "set_random_seed",
    "slug_from_config",
    "validate_model",
]


def __getattr__(name: str) -> Any:
    return find_moved(__name__, name)
