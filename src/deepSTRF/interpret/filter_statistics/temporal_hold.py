"""Temporal hold: the number of bins for which a neuron's filter follows one event of the stimulus.

With D_t the filter (L, F) at bin t, S_n a shift by n lags towards the present and r Pearson correlation over
lags and bands, delay n compares

    r0 = r(D_t, D_{t+n})        the filter as it is (standing still),
    r1 = r(D_t, S_n D_{t+n})    the filter moved back (following the event),

over t, by a one-sided signed-rank test of r0 < r1. The hold is the largest n up to which every delay is
significant at `ALPHA` (Keshishian et al. 2020, doi 10.7554/eLife.53445). The published test takes bins for
independent; ``null="blocks"`` flips whole stretches of correlated bins instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF._validation import FloatArray, check_choice, check_positive_int, checked
from deepSTRF.interpret.filter_statistics.ensembles import Filters, ensembles, per_neuron

#: Level of each step of the published measure.
ALPHA = 0.001
#: Differences of correlations below this are rounding.
ROUNDING = 1e-9
#: Random sign flips of the block null: enough for p-values of one in a thousand.
FLIPS = 4999


@dataclass(frozen=True)
class TemporalHold:
    """The temporal hold of N neurons, and its tests at A delays.

    Attributes
    ----------
    hold : Tensor (N,). Bins: the longest delay up to which following an event is better than standing still
        at every delay.
    p_value : Tensor (A, N). For each delay; NaN where there was nothing to compare.
    effect : Tensor (A, N). Median gain in correlation from following.
    rank_biserial : Tensor (A, N). Rank-biserial correlation: share of ranks in favour of following less that
        against it, -1 to 1.
    block : Tensor (A, N). Bins whose signs were flipped together; 1 for the published test.
    excluded : Tensor (A, N). Pairs of bins left out because one of them is constant or holds NaN or is cut
        off.
    """

    hold: Tensor
    p_value: Tensor
    effect: Tensor
    rank_biserial: Tensor
    block: Tensor
    excluded: Tensor


@checked
def temporal_hold(dstrfs: Filters, max_delay: int | None = None) -> Tensor:
    """Temporal hold of each neuron in bins: the published measure.

    At delay n, correlations of each filter with the one n bins later, as it is and moved back by n lags, are
    compared by a one-sided Wilcoxon signed-rank test. The hold is the largest n up to which p < 0.001
    at every delay.

    Parameters
    ----------
    dstrfs : Tensor or array (T, N, L, F), path or DynamicSTRF
        Filters, most recent lag last.
    max_delay : int, optional
        Longest delay in bins, A; None is ``max(L - 10, min(L, 5))``.

    Returns
    -------
    Tensor
        (N,) bins, 0 to A; NaN for a neuron whose filters are all constant.

    Raises
    ------
    ValueError, TypeError
        For filters of another shape, or no more bins than ``max_delay``.

    Notes
    -----
    The test takes neighbouring bins for independent, which they are not: it finds holds in noise that is
    smooth. `hold_statistics` with ``null="blocks"`` does not.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> temporal_hold(torch.rand(1, 1, 6, 2).expand(40, 1, 6, 2), max_delay=3)
    tensor([0.], dtype=torch.float64)
    """
    return hold_statistics(dstrfs, max_delay, null="wilcoxon").hold


@checked
def hold_statistics(
    dstrfs: Filters,
    max_delay: int | None = None,
    *,
    null: str = "blocks",
    alpha: float = ALPHA,
    seed: int = 0,
) -> TemporalHold:
    """Temporal hold with effect sizes, and with a test that accounts for autocorrelation.

    ``null="blocks"`` flips the signs of whole stretches of bins, as long as differences stay correlated, in
    place of single bins. As delays are tested in order until the first that fails, no correction for their
    number is needed (a fixed sequence).

    Parameters
    ----------
    dstrfs : Tensor or array (T, N, L, F), path or DynamicSTRF
        Filters, most recent lag last.
    max_delay : int, optional
        Longest delay in bins, A; None is ``max(L - 10, min(L, 5))``.
    null : {"blocks", "wilcoxon"}
        Null distribution of the signed ranks: flips of stretches, or the published test.
    alpha : float
        Level of each delay. A clip of fewer than 10 independent stretches cannot reach 0.001.
    seed : int
        Of the random flips.

    Returns
    -------
    TemporalHold
        Hold, p-values, effects, and what was left out.

    Raises
    ------
    ValueError, TypeError
        For filters of another shape, or no more bins than ``max_delay``.

    Notes
    -----
    On Gaussian noise without any hold, smoothed over 3 and 8 bins (standard deviation), 300 to 3000 bins, the
    published test rejects 18 to 28% of clips at the level 0.001, flips of stretches up to 0.8%; at 0.05 it is
    30 to 40% and 4 to 12%.

    Examples
    --------
    >>> hold_statistics(torch.rand(1, 1, 6, 2).expand(60, 1, 6, 2), max_delay=3).hold
    tensor([0.], dtype=torch.float64)
    """
    check_choice("null", null, ("blocks", "wilcoxon"))
    columns = [_hold(f, valid, max_delay, null, alpha, seed) for f, valid in ensembles(dstrfs)]
    tables = torch.from_numpy(np.stack([table for _, table in columns], axis=-1))  # (5, A, N)
    return TemporalHold(per_neuron([hold for hold, _ in columns]), *tables)


def default_max_delay(lags: int) -> int:
    """Return the longest delay by default: ``max(L - 10, min(L, 5))`` bins."""
    return max(lags - 10, min(lags, 5))


def _hold(
    filters: Tensor, valid: Tensor, max_delay: int | None, null: str, alpha: float, seed: int
) -> tuple[float, FloatArray]:
    """Hold, and (5, A): p-value, effect, rank-biserial correlation, block, excluded pairs."""
    n_bins, lags = filters.shape[:2]
    delays = default_max_delay(lags) if max_delay is None else check_positive_int("max_delay", max_delay)
    if n_bins <= delays:
        raise ValueError(
            f"{n_bins} bins are too few for a max_delay of {delays}: give a longer clip or a "
            "smaller max_delay"
        )
    table = np.full((5, delays), np.nan)
    hold: float | None = None
    for n, standing, following in _correlations(filters, valid, delays):
        gain = following - standing
        table[4, n - 1] = int(np.isnan(gain).sum())
        gain = gain[~np.isnan(gain)]
        if len(gain):
            table[:4, n - 1] = _tested(gain, null, seed)
        # without a p-value there is no hold
        if hold is None and not table[0, n - 1] < alpha:
            hold = n - 1
    if np.isnan(table[0]).all():
        return torch.nan, table
    return (delays if hold is None else hold), table


def _correlations(filters: Tensor, valid: Tensor, delays: int) -> list[tuple[int, FloatArray, FloatArray]]:
    """For each delay n: r0 and r1 (T - A,), NaN where undefined.

    As many zero lags as there are delays are added at the recent end, so that nothing is moved out.
    """
    lags, bands = filters.shape[1:]
    count = len(filters) - delays
    size = (lags + delays) * bands
    sums, squares = filters.sum((1, 2)), filters.square().sum((1, 2))
    spread = squares - sums.square() / size
    defined = valid & (spread > ROUNDING * squares)
    now = filters[:count]
    found = []
    for n in range(1, delays + 1):
        later = filters[n : n + count]
        offset = sums[:count] * sums[n : n + count] / size
        scale = (spread[:count] * spread[n : n + count]).sqrt()
        both = defined[:count] & defined[n : n + count]
        pair = []
        for moved in (0, n):
            kept = max(0, lags - moved)
            product = (now[:, lags - kept :] * later[:, :kept]).sum((1, 2))
            pair.append(torch.where(both, (product - offset) / scale, torch.nan).numpy())
        found.append((n, pair[0], pair[1]))
    return found


def _tested(gain: FloatArray, null: str, seed: int) -> tuple[float, float, float, float]:
    """p-value, median, rank-biserial correlation and block of differences r1 - r0 in the order of time."""
    from scipy.stats import rankdata, wilcoxon

    gain = np.where(np.abs(gain) < ROUNDING, 0.0, gain)
    moving = gain != 0
    if not moving.any():
        return 1.0, 0.0, 0.0, 1.0
    signed = np.zeros_like(gain)
    signed[moving] = np.sign(gain[moving]) * rankdata(np.abs(gain[moving]))
    biserial = float(signed.sum() / np.abs(signed).sum())
    if null == "wilcoxon":
        p = float(wilcoxon(gain[moving], alternative="greater").pvalue)
        return p, float(np.median(gain)), biserial, 1.0
    block = _correlated_stretch(signed)
    starts = np.arange(0, len(signed), block)
    shares = np.add.reduceat(signed, starts)
    flips = np.random.default_rng(seed).integers(0, 2, size=(FLIPS, len(shares))) * 2 - 1
    p = (1 + int((flips @ shares >= shares.sum() * (1 - ROUNDING)).sum())) / (1 + FLIPS)
    return p, float(np.median(gain)), biserial, float(block)


def _correlated_stretch(values: FloatArray) -> int:
    """Bins until the autocorrelation first falls to zero."""
    centred = torch.from_numpy(values - values.mean())
    n = len(centred)
    spectrum = torch.fft.rfft(functional.pad(centred, (0, n)))
    autocorrelation = torch.fft.irfft(spectrum.abs().square())[:n]
    fallen = (autocorrelation <= 1e-12 * autocorrelation[0]).nonzero()
    return int(fallen[0]) if len(fallen) and int(fallen[0]) > 0 else 1
