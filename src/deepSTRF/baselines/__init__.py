"""Closed-form linear models: ridge STRFs, and gradient fits that start from them."""

from deepSTRF.baselines.linear_fit import LinearFit
from deepSTRF.baselines.ridge import RidgeFit, fit_ridge
from deepSTRF.baselines.start import start_from_ridge

__all__ = ["LinearFit", "RidgeFit", "fit_ridge", "start_from_ridge"]
