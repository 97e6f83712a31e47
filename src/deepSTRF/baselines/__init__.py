"""Linear models without gradient descent: ridge and its relatives, decoders, and starts of other models."""

from deepSTRF.baselines.boosting import BoostingFit, fit_boosting
from deepSTRF.baselines.decoder import DecoderFit, fit_decoder
from deepSTRF.baselines.evidence import EvidenceFit, fit_evidence
from deepSTRF.baselines.linear_fit import LinearFit
from deepSTRF.baselines.ridge import RidgeFit, fit_ridge
from deepSTRF.baselines.ridge_folds import fit_ridge_folds
from deepSTRF.baselines.start import start_from_ridge
from deepSTRF.baselines.tikhonov import TikhonovFit, fit_tikhonov

__all__ = [
    "BoostingFit",
    "DecoderFit",
    "EvidenceFit",
    "LinearFit",
    "RidgeFit",
    "TikhonovFit",
    "fit_boosting",
    "fit_decoder",
    "fit_evidence",
    "fit_ridge",
    "fit_ridge_folds",
    "fit_tikhonov",
    "start_from_ridge",
]
