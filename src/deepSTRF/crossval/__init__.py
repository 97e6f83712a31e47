"""Cross-validation: fits over folds, scores of sounds that no fit has seen, and what follows from them."""

from deepSTRF.crossval.comparison import ModelComparison, compare_models
from deepSTRF.crossval.cross_validate import cross_validate
from deepSTRF.crossval.fit import dynamic_strf_settings, fit_folds
from deepSTRF.crossval.intervals import IntervalTable, score_intervals
from deepSTRF.crossval.nulls import NullTable, fdr, score_null
from deepSTRF.crossval.partition import VariancePartition, partition_variance
from deepSTRF.crossval.predict import FoldFits, predict_folds, score_folds
from deepSTRF.crossval.result import CrossValidation

__all__ = [
    "CrossValidation",
    "FoldFits",
    "IntervalTable",
    "ModelComparison",
    "NullTable",
    "VariancePartition",
    "compare_models",
    "cross_validate",
    "dynamic_strf_settings",
    "fdr",
    "fit_folds",
    "partition_variance",
    "predict_folds",
    "score_folds",
    "score_intervals",
    "score_null",
]
