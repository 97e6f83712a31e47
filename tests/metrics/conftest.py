"""Recordings with every awkwardness, and the metrics written out plainly: NumPy, one neuron at a time."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

KINDS = ("dense", "ended early", "gaps", "fewer repeats", "missing pairs", "single repeat", "silent neuron",
         "one neuron", "one clip", "two repeats")  # fmt: skip


def make_case(
    kind: str, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (pred (B, N, 1, T), responses (B, N, R, T)) of one kind."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_clips = 1 if kind == "one clip" else 4
    n_neurons = 1 if kind == "one neuron" else 5
    n_repeats = 2 if kind == "two repeats" else 5
    n_bins = 40
    signal = normal(n_clips, n_neurons, 1, n_bins) + 2 * normal(n_clips, n_neurons, 1, 1) + 5
    responses = signal + 0.7 * normal(n_clips, n_neurons, n_repeats, n_bins)
    pred = signal + 0.5 * normal(n_clips, n_neurons, 1, n_bins)
    nan = torch.nan
    if kind == "ended early":
        responses[0, :, 3, 25:] = nan
        responses[2, 1, 0, 10:] = nan
    elif kind == "gaps":
        responses[torch.rand(responses.shape, generator=generator) < 0.2] = nan
    elif kind == "fewer repeats":
        responses[1, :, 2:] = nan
        responses[2, 3, 4:] = nan
        responses[3, :, :, 30:] = nan  # a shorter clip
    elif kind == "missing pairs":
        responses[0, 0] = nan
        responses[1:, 1] = nan
        responses[:, 4] = nan  # never recorded
    elif kind == "single repeat":
        responses[:, 0, 1:] = nan
        responses[0, 1, 1:] = nan
    elif kind == "silent neuron":
        responses[:, 0] = 0.0
        responses[:, 2] = 0.1
    return pred.to(dtype), responses.to(dtype)


def series(pred: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One neuron's prediction (B, T) and PSTH over all bins that hold data, as two long series."""
    x, y = [], []
    for clip in range(len(pred)):
        for bin_ in range(pred.shape[-1]):
            repeats = [value for value in responses[clip, :, bin_] if not np.isnan(value)]
            if repeats:
                x.append(pred[clip, bin_])
                y.append(sum(repeats) / len(repeats))
    return np.array(x), np.array(y)


def is_flat(x: np.ndarray) -> bool:
    return len(x) < 2 or float(np.ptp(x)) <= 1e-12 * float(np.abs(x).max())


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    if is_flat(x) or is_flat(y):
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])


def pairs_of(responses: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Pairs of distinct repeats of one clip (R, T) with the bins both hold, two at least."""
    found = []
    for r, s in itertools.combinations(range(len(responses)), 2):
        common = ~np.isnan(responses[r]) & ~np.isnan(responses[s])
        if common.sum() > 1:
            found.append((r, s, common))
    return found


def n_repeated(responses: np.ndarray) -> int:
    return int(((~np.isnan(responses)).sum(0) > 1).sum())


def clip_powers(responses: np.ndarray) -> tuple[float, float]:
    """Signal and noise power of one clip (R, T): covariance, and half the variance of the difference."""
    signal = [np.cov(responses[r][c], responses[s][c])[0, 1] for r, s, c in pairs_of(responses)]
    noise = [np.var(responses[r][c] - responses[s][c], ddof=1) / 2 for r, s, c in pairs_of(responses)]
    return float(np.mean(signal)), float(np.mean(noise))


def powers_by_clip(responses: np.ndarray) -> tuple[float, float]:
    """Bin-weighted means over clips, (B, R, T)."""
    weights, signals, noises = [], [], []
    for clip in responses:
        if pairs_of(clip):
            signal, noise = clip_powers(clip)
            weights.append(n_repeated(clip))
            signals.append(signal)
            noises.append(noise)
    if not weights:
        return np.nan, np.nan
    return float(np.average(signals, weights=weights)), float(np.average(noises, weights=weights))


def powers_concatenated(responses: np.ndarray) -> tuple[float, float]:
    """The same on the concatenated clips, for responses without NaN."""
    return clip_powers(np.concatenate(list(responses), axis=1))


def clip_prediction_moments(pred: np.ndarray, responses: np.ndarray) -> tuple[float, float]:
    """Variance of a prediction and covariance with the repeats over the pairs behind the signal power."""
    variance, covariance = [], []
    for r, s, c in pairs_of(responses):
        variance.append(np.var(pred[c], ddof=1))
        covariance.append(
            np.cov(pred[c], responses[r][c])[0, 1] / 2 + np.cov(pred[c], responses[s][c])[0, 1] / 2
        )
    return float(np.mean(variance)), float(np.mean(covariance))


def cc_norm(pred: np.ndarray, responses: np.ndarray, centring: str) -> float:
    """Schoppe's normalised correlation of one neuron, (B, T) and (B, R, T); "concat" without NaN only."""
    if max((~np.isnan(clip)).sum(0).max() for clip in responses) < 2:
        return correlation(*series(pred, responses))
    signal = powers_concatenated(responses)[0] if centring == "concat" else powers_by_clip(responses)[0]
    if centring == "clip":
        weights, variances, covariances = [], [], []
        for p, y in zip(pred, responses, strict=True):
            if pairs_of(y):
                variance, covariance = clip_prediction_moments(p, y)
                weights.append(n_repeated(y))
                variances.append(variance)
                covariances.append(covariance)
        variance, covariance = (
            np.average(variances, weights=weights),
            np.average(covariances, weights=weights),
        )
    else:
        matrix = np.cov(*series(pred, responses))
        variance, covariance = matrix[0, 0], matrix[0, 1]
    if not signal > 1e-12:
        return np.nan
    return float(covariance / np.sqrt(variance * signal))


def half_split_ceiling(responses: np.ndarray) -> float:
    """Spearman-Brown ceiling of one series (R, T) from every half-split there is."""
    responses = responses[~np.isnan(responses).all(1)]
    n_repeats = len(responses)
    half = n_repeats // 2
    found = []
    for first in itertools.combinations(range(n_repeats), half):
        rest = [r for r in range(n_repeats) if r not in first]
        for second in itertools.combinations(rest, half):
            with np.errstate(invalid="ignore"):
                a, b = (np.array([_mean(column) for column in responses[list(h)].T]) for h in (first, second))
            both = ~np.isnan(a) & ~np.isnan(b)
            r = correlation(a[both], b[both])
            found.append(0.0 if np.isnan(r) else r)
    rho = float(np.mean(found))
    ratio = n_repeats / half
    return float(np.sqrt(ratio * rho / (1 + (ratio - 1) * rho))) if rho > 0 else np.nan


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


@pytest.fixture(scope="session")
def ref() -> SimpleNamespace:
    """The plain implementations above."""
    return SimpleNamespace(
        make_case=make_case, kinds=KINDS, series=series, correlation=correlation, clip_powers=clip_powers,
        powers_by_clip=powers_by_clip, powers_concatenated=powers_concatenated, cc_norm=cc_norm,
        half_split_ceiling=half_split_ceiling, pairs_of=pairs_of, is_flat=is_flat,
    )  # fmt: skip
