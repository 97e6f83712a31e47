"""Closed-form linear models: ridge STRFs, and gradient fits that start from them."""

from deepSTRF.baselines.linear_fit import LinearFit
from deepSTRF.baselines.ridge import RidgeFit, fit_ridge
from deepSTRF.baselines.ridge_folds import fit_ridge_folds
from deepSTRF.baselines.start import start_from_ridge

__all__ = ["LinearFit", "RidgeFit", "fit_ridge", "fit_ridge_folds", "start_from_ridge"]
