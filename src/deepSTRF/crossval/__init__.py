"""Cross-validation: fits over folds, and predictions and scores of sounds that no fit has seen."""

from deepSTRF.crossval.cross_validate import cross_validate
from deepSTRF.crossval.fit import dynamic_strf_settings, fit_folds
from deepSTRF.crossval.predict import FoldFits, predict_folds, score_folds
from deepSTRF.crossval.result import CrossValidation

__all__ = [
    "CrossValidation",
    "FoldFits",
    "cross_validate",
    "dynamic_strf_settings",
    "fit_folds",
    "predict_folds",
    "score_folds",
]
