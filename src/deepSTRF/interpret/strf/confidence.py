"""Confidence of STRFs: standard errors and bands by jackknife or bootstrap over clips, for any fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import (
    FloatArray,
    NeuronSelection,
    as_numbers,
    check_choice,
    check_positive_int,
    check_positive_number,
    checked_but,
    neuron_indices,
)


@dataclass(frozen=True)
class StrfConfidence:
    """Linear STRFs with their uncertainty.

    Attributes
    ----------
    estimate : array (K, F, T). STRFs fitted on all clips, the current frame last.
    standard_error : array (K, F, T). NaN for a neuron with data in fewer than two clips.
    low, high : array (K, F, T). Pointwise band of the given level: each weight by itself, not all of them at
        once.
    neurons : list of int. Which neurons of the recording these are.
    n_clips : int array (K,). Clips in which each neuron has data: what the uncertainty rests on.
    method : str. "jackknife" or "bootstrap".
    level : float. Level of the band.
    n_fits : int. Fits that were made, the one on all clips included.
    """

    estimate: FloatArray
    standard_error: FloatArray
    low: FloatArray
    high: FloatArray
    neurons: list[int]
    n_clips: NDArray[np.int64]
    method: str
    level: float
    n_fits: int

    @property
    def z(self) -> FloatArray:
        """(K, F, T) weights in standard errors; 0 where a weight is 0, NaN where the error is unknown."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = self.estimate / self.standard_error
        return np.where((self.estimate == 0) & (self.standard_error == 0), 0.0, z)

    @property
    def significant(self) -> NDArray[np.bool_]:
        """(K, F, T) whether the band leaves out zero, weight by weight (no correction for their number)."""
        return (self.low > 0) | (self.high < 0)


@checked_but("fit", "neurons")
def strf_confidence(
    dataset: Any,
    fit: Callable[[Any], Any],
    *,
    method: str = "jackknife",
    n_bootstrap: int = 200,
    level: float = 0.95,
    neurons: NeuronSelection = None,
    seed: int = 0,
    unit: str | None = None,
) -> StrfConfidence:
    """Refit a linear model with clips left out, or drawn with replacement, and return bands of its STRFs.

    Clips are the units, because neighbouring bins share sound and response. Fix the penalty beforehand, on
    validation clips: a penalty chosen anew in each refit would count as uncertainty of the neuron.

    Parameters
    ----------
    dataset : NeuralDataset
        The training clips. Its ``select(clips=...)`` must accept repeated clips for the bootstrap.
    fit : callable
        Takes a dataset and returns STRFs (N, F, T) or (N, 1, F, T), a model with ``STRF_gradmap()``, or an
        object whose ``model`` is one: ``lambda clips: fit_ridge(clips, n_lags=9, lambdas=30.0)``.
    method : {"jackknife", "bootstrap"}
        Leave out one clip at a time (as many fits as clips; the band is the estimate plus and minus t
        standard errors), or draw as many clips as there are, ``n_bootstrap`` times. Draws vary less than new
        clips would, so their standard deviation is widened by ``sqrt(n / (n - 1))``, and the band lies
        between percentiles that are widened accordingly (Hesterberg 2015): plain ones of 10 clips hold the
        truth in 90 % of cases, not 95.
    n_bootstrap : int
        Draws.
    level : float
        Level of the band, between 0 and 1.
    neurons : int, slice or sequence of int, optional
        Which neurons to return; negative numbers count from the end. None is all.
    seed : int
        Of the draws.
    unit : {None, "sd", "raw"}
        Of the weights of models, see `Linear.STRF_weight`; the standard deviations are those of all clips.

    Returns
    -------
    StrfConfidence
        Estimates, errors and bands. A clip in which a neuron has no data is not counted for it.

    Raises
    ------
    ValueError, TypeError, IndexError
        For an illegal argument, fewer than two clips, or a fit that returns other shapes.

    References
    ----------
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 11 and 13, doi 10.1201/9780429246593;
    Hesterberg 2015, doi 10.1080/00031305.2015.1089789.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.baselines import fit_ridge
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=5, n_repeats=4, clip_seconds=0.5)
    >>> bands = strf_confidence(ds, lambda clips: fit_ridge(clips, n_lags=4, lambdas=100.0))
    >>> bands.estimate.shape, bands.n_fits
    ((2, 24, 4), 6)
    """
    check_choice("method", method, ("jackknife", "bootstrap"))
    if check_positive_int("n_bootstrap", n_bootstrap) < 2:
        raise ValueError("n_bootstrap must be at least 2: one draw has no spread")
    _check(dataset, fit, level)
    # (S, N) which neuron has data in which clip
    blocks = (dataset.response_block(clip) for clip in range(len(dataset)))
    has_data = np.stack([(~block.isnan()).flatten(1).any(1).cpu().numpy() for block in blocks])
    n_neurons = has_data.shape[1]
    chosen = neuron_indices(neurons, n_neurons)
    has_data = has_data[:, chosen]
    estimate, scale = _estimate(fit(dataset), n_neurons, unit)
    estimate = estimate[chosen]
    refits, informed = [], []
    n_all = len(has_data)
    if method == "jackknife":
        draws = [[clip for clip in range(n_all) if clip != left_out] for left_out in range(n_all)]
    else:
        rng = np.random.default_rng(seed)
        draws = [rng.integers(n_all, size=n_all).tolist() for _ in range(n_bootstrap)]
    for clips in draws:
        refit = _strfs(fit(dataset.select(clips=clips)), n_neurons)[chosen]
        if refit.shape == estimate.shape:
            refit = refit * scale
        if refit.shape != estimate.shape:
            raise ValueError(f"fit returned {refit.shape} STRFs for some clips and {estimate.shape} for all")
        refits.append(refit)
        # not informative: leaving out a clip without data (jackknife), a draw of such clips only (bootstrap)
        left_out = sorted(set(range(n_all)) - set(clips))
        informed.append(has_data[left_out[0]] if method == "jackknife" else has_data[clips].any(0))
    stack, counts = np.stack(refits), np.stack(informed)
    n_clips = has_data.sum(0).astype(np.int64)
    if method == "jackknife":
        error, low, high = _jackknife(estimate, stack, counts, level)
    else:
        error, low, high = _bootstrap(estimate, stack, counts, n_clips, level)
    return StrfConfidence(estimate, error, low, high, chosen, n_clips, method, level, len(stack) + 1)


def _check(dataset: Any, fit: Any, level: float) -> None:
    """Refuse a fit that is no function, a level outside of 0 to 1, and datasets of fewer than two clips."""
    if not callable(fit):
        raise TypeError(
            "fit must be callable: it takes a dataset and returns STRFs or a model, for instance "
            f"lambda clips: fit_ridge(clips, lambdas=30.0); got {type(fit).__name__}"
        )
    if not check_positive_number("level", level) < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}")
    if not hasattr(dataset, "response_block") or not hasattr(dataset, "select"):
        raise TypeError(
            "dataset must be a NeuralDataset, whose clips can be selected, got "
            f"{type(dataset).__name__}; NeuralDataset.from_arrays(stims, responses, dt_ms=...) makes one"
        )
    if len(dataset) < 2:
        raise ValueError(f"uncertainty over clips needs at least 2 clips, the dataset has {len(dataset)}")


def _estimate(fitted: Any, n_neurons: int, unit: str | None) -> tuple[FloatArray, FloatArray]:
    """STRFs (N, F, T) of the fit on all clips in a unit, and the factor (F or 1, 1) of raw ones."""
    check_choice("unit", unit, (None, "sd", "raw"))
    raw, model = _strfs(fitted, n_neurons), getattr(fitted, "model", fitted)
    std = getattr(model, "band_std", None)
    if unit == "sd" and std is None:
        raise ValueError("unit='sd' needs a fit that returns fitted models, which know their bands")
    scale = np.ones((1, 1)) if std is None or unit == "raw" else as_numbers(std)[:, None]
    return raw * scale, scale


def _strfs(fitted: Any, n_neurons: int) -> FloatArray:
    """STRFs (N, F, T) from what a fit returned, those of a model per unit of the spectrogram."""
    model = getattr(fitted, "model", fitted)
    if hasattr(model, "STRF_gradmap"):
        model = model.STRF_gradmap(**({"unit": "raw"} if hasattr(model, "band_std") else {}))
    values = as_numbers(model, "STRFs of fit")
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 3 or len(values) != n_neurons:
        raise ValueError(
            f"fit must return STRFs ({n_neurons}, F, T), a model with STRF_gradmap(), or an object with "
            f".model; it returned shape {values.shape}"
        )
    return values


def _jackknife(
    estimate: FloatArray, stack: FloatArray, counts: NDArray[np.bool_], level: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Standard error and band (K, F, T) of refits (S, K, F, T), of those that count (S, K)."""
    from scipy import stats

    weight = counts[:, :, None, None].astype(np.float64)  # (S, K, 1, 1)
    n = weight.sum(0)
    safe = np.maximum(n, 1.0)
    mean = (stack * weight).sum(0) / safe
    spread = ((stack - mean) ** 2 * weight).sum(0)
    error = np.where(n >= 2, np.sqrt((n - 1.0).clip(min=0.0) / safe * spread), np.nan)
    half_width = stats.t.ppf(0.5 + 0.5 * level, np.maximum(n - 1.0, 1.0)) * error
    return error, estimate - half_width, estimate + half_width


def _bootstrap(
    estimate: FloatArray,
    stack: FloatArray,
    counts: NDArray[np.bool_],
    n_clips: NDArray[np.int64],
    level: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Standard error and band (K, F, T) of draws (S, K, F, T), of those that count (S, K)."""
    from scipy import stats

    error, low, high = (np.full_like(estimate, math.nan) for _ in range(3))
    for neuron in range(len(estimate)):
        draws = stack[counts[:, neuron], neuron]
        n = int(n_clips[neuron])
        if len(draws) >= 2 and n >= 2:
            wider = math.sqrt(n / (n - 1.0))
            error[neuron] = wider * draws.std(axis=0, ddof=1)
            tail = 100.0 * float(stats.norm.cdf(wider * stats.t.ppf(0.5 - 0.5 * level, n - 1)))
            low[neuron], high[neuron] = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return error, low, high
