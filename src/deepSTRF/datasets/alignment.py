"""Lag between stimulus and responses: a check of their alignment, run when arrays become a dataset.

The population PSTH is cross-correlated with the level of a few frequency bands. Levels are predictable from
one bin to the next, which smears the correlation over many lags, so each is whitened by an autoregressive
filter that the PSTH passes too (prewhitening: Box & Jenkins 1976, Time Series Analysis, chapter 11). A lag is
accepted when its correlation is far outside chance (Bartlett 1935, J. R. Stat. Soc. 98:536-543), holds in
many stretches of the recording, and clearly exceeds that of every normal lag. Short, quiet or random data
give no warning.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from deepSTRF._validation import outside_level
from deepSTRF.datasets.recording import Recording
from deepSTRF.datasets.responses import ClipResponses

__all__ = ["AlignmentReport", "check_alignment"]

Floats = npt.NDArray[np.float64]

#: About this many bins at most are used, in clips spread over the recording.
_MAX_BINS = 50_000
#: Stimulus bands are pooled to at most this many levels.
_MAX_LEVELS = 8
#: Principal components of the population beside its mean, and the neurons they are taken from.
_COMPONENTS, _MAX_NEURONS = 3, 64
#: Order of the whitening filter in bins.
_WHITENING_ORDER = 8
#: Lags are searched this far to both sides, and never further than a third of a clip.
_SEARCH_MS = 1000.0
#: Fewest bins, beyond the whitening filter and all lags, that are enough for an estimate.
_MIN_BINS = 200
#: A response is early when it leads by this many bins and this many ms: centred analysis windows of a
#: spectrogram and a jitter of one bin are normal.
_EARLY_BINS, _EARLY_MS = 2, 5.0
#: Smallest correlation, in units of its chance spread, that counts as a relation: beyond six sigma thousands
#: of tested lags together stay far below one false alarm in ten thousand.
_MIN_STRENGTH = 6.0
#: The products behind a correlation are summed in this many stretches. Without the strongest few, their sum
#: must exceed this many standard errors and be this share of the whole, and this share of them must agree in
#: sign, so that one loud event with one burst of spikes is no relation.
_STRETCHES, _STRONGEST, _MIN_ERRORS, _MIN_SHARE, _MIN_AGREEING = 24, 2, 4.0, 0.2, 0.7
#: An abnormal lag must exceed the best normal one by this factor (periodic sounds repeat their peak).
_MIN_ADVANTAGE = 1.25
#: Latencies of auditory neurons are 10 to 50 ms in cortex and shorter below (Heil 1997, doi
#: 10.1152/jn.1997.77.5.2616); responses that are no spikes, such as EEG, peak up to 300 ms after a sound.
_LATENCIES, _SPIKES_MS, _SLOW_MS = "10 to 50 ms in auditory cortex", 100.0, 300.0
#: Between the two, a lag is late unless the relation is this share as strong at some shorter lag: a slow
#: response begins early, one behind a baseline does not.
_EARLIER_SHARE = 0.5
#: Where the responses were longer than the stimulus, spikes beyond this lag that the excess explains, up to
#: this much, follow a baseline; so do slow responses that begin no earlier than the excess, less a smear.
_LATENCY_MS, _SMEAR_MS = 60.0, 20.0
#: No relation at any lag is worth a warning when odd and even repeats correlate this well for this long.
_MIN_RELIABILITY, _RELIABLE_S = 0.3, 10.0


@dataclass(frozen=True)
class AlignmentReport:
    """Result of the alignment check.

    Attributes
    ----------
    status : str
        "aligned"; "early" (responses lead the stimulus); "late"; "unclear" (no lag stands out); "too short".
    lag_bins : int or None
        Lag of the strongest relation, positive when responses follow the stimulus; None when there is none.
    lag_ms : float or None
        The same in ms.
    strength : float
        Its correlation in units of the spread expected by chance.
    message : str
        The numbers in a sentence, and the call that removes the fault if there is one.
    lags_ms, strengths : tuple of float
        The cross-correlogram: the largest strength of any stimulus level and response at each lag.
    """

    status: str
    lag_bins: int | None
    lag_ms: float | None
    strength: float
    message: str
    lags_ms: tuple[float, ...] = ()
    strengths: tuple[float, ...] = ()


def check_alignment(
    ds: Recording, *, warn_unclear: bool = True, max_latency_ms: float | None = None, excess: int = 0
) -> AlignmentReport:
    """Lag of the population response behind the stimulus; see `NeuralDataset.check_alignment`.

    ``excess``: bins that all responses were longer than their stimuli before they were cut.
    """
    clips = [clip for clip, responses in enumerate(ds.response_storage.clips) if responses.heard.size]
    total = sum(ds.n_bins(clip) for clip in clips)
    if total > _MAX_BINS:
        count = max(1, len(clips) * _MAX_BINS // total)
        clips = [clips[i] for i in np.unique(np.linspace(0, len(clips) - 1, count).astype(int))]
    levels = [_levels(ds, clip) for clip in clips]
    series = _join(levels, _population(ds, clips), ds.dt)
    if series is None:
        return AlignmentReport("too short", None, None, 0.0, "too few bins to estimate a lag")
    is_trace = ds.recorded_kind == "trace"
    limits = (_SLOW_MS if is_trace else _SPIKES_MS, _SLOW_MS)
    if max_latency_ms is not None:
        limits = (max_latency_ms, max_latency_ms)
    lag, strength, is_normal, onset, curve = _find_lag(series, ds.dt, *limits)
    cut_ms = excess * ds.dt
    after_baseline = excess > 0 and (
        onset * ds.dt >= cut_ms - _SMEAR_MS if is_trace else _LATENCY_MS < lag * ds.dt <= cut_ms + _LATENCY_MS
    )
    report = _report(lag, ds.dt, strength, is_normal, cut_ms if after_baseline else 0.0)
    lags_ms = tuple(float(step * ds.dt) for step in range(-series.max_lag, series.max_lag + 1))
    report = replace(report, lags_ms=lags_ms, strengths=tuple(curve.tolist()))
    alarm = report.status in ("early", "late")
    if report.status == "unclear" and warn_unclear:
        alarm = _is_reliable(ds, clips)
    if alarm:
        warnings.warn(f"{ds.name}: {report.message}", UserWarning, stacklevel=outside_level())
    return report


def _levels(ds: Recording, clip: int) -> Floats:
    """(G, T) levels of one stimulus: pooled bands, or low and high frequency energy of a waveform."""
    hop = ds.samples_per_bin
    n_bins = min(ds.stimulus_bins(clip), _MAX_BINS)
    values = ds.stimulus_part(clip, 0, n_bins).numpy().astype(np.float64)
    if hop > 1:
        samples = values[0]
        both = np.stack([samples, np.diff(samples, prepend=samples[:1])])
        energy = np.sqrt((both.reshape(2, n_bins, hop) ** 2).mean(axis=2))
        floor = 1e-3 * energy.max(axis=1, keepdims=True) + np.finfo(float).tiny
        return np.asarray(np.log(energy + floor))
    bands = values.reshape(-1, values.shape[-1])
    groups = _level_groups(ds, len(bands))
    return np.stack([bands[group].mean(axis=0) for group in groups])


def _level_groups(ds: Recording, n_rows: int) -> list[npt.NDArray[np.int64]]:
    """Rows that are pooled: neighbours, of one feature where features are named.

    Where some features are bands of sound, only those count: responses may well lead a pupil or a movement.
    """
    rows = np.arange(n_rows)
    if not ds.features:
        return np.array_split(rows, min(_MAX_LEVELS, n_rows))
    known = {*getattr(ds, "feature_frequencies", ()), "spectrogram"}
    names = [name for name in ds.features if name in known] or list(ds.features)
    shares = {name: max(1, _MAX_LEVELS * ds.features[name] // n_rows) for name in names}
    return [
        group
        for name in names[:_MAX_LEVELS]
        for group in np.array_split(rows[ds.feature_rows(name)], min(shares[name], ds.features[name]))
    ]


def _population(ds: Recording, clips: list[int], repeats: slice = slice(None)) -> list[Floats]:
    """(C, T) per clip: mean response of all neurons (it may cancel), then principal components of some."""
    storage = ds.response_storage
    coverage = ds.nrn_masks[clips].sum(dim=0).numpy() if clips else np.zeros(storage.n_neurons)
    chosen = np.sort(np.argsort(-coverage, kind="stable")[:_MAX_NEURONS])
    means, traces = [], []
    for clip in clips:
        responses = _head(storage.clips[clip])
        psths = _neuron_psths(responses, repeats)
        means.append(_centred(psths.mean(axis=0)))
        rows = np.zeros((chosen.size, responses.n_bins))
        at = np.searchsorted(responses.heard, chosen)
        hit = np.flatnonzero(at < responses.heard.size)
        hit = hit[responses.heard[at[hit]] == chosen[hit]]
        rows[hit] = psths[at[hit]] - psths[at[hit]].mean(axis=1, keepdims=True)
        traces.append(rows)
    covariance = sum((rows @ rows.T for rows in traces), start=np.zeros((chosen.size, chosen.size)))
    loadings = np.linalg.eigh(covariance)[1][:, ::-1][:, :_COMPONENTS].T
    return [np.concatenate([mean[None], loadings @ rows]) for mean, rows in zip(means, traces, strict=True)]


def _head(responses: ClipResponses) -> ClipResponses:
    return responses if responses.n_bins <= _MAX_BINS else responses.cropped(_MAX_BINS)


def _neuron_psths(responses: ClipResponses, repeats: slice) -> Floats:
    """(H, T) mean over repeats as recorded; a bin without any value gets the neuron's mean."""
    complete = responses.is_counts and not responses.has_missing and not responses.context
    if repeats == slice(None) and complete:
        first = np.cumsum(responses.counts) - responses.counts
        sums = np.add.reduceat(responses.rows(), first, axis=0, dtype=np.float64)
        return np.asarray(sums / responses.counts[:, None])
    values = responses.values()[:, repeats]
    there = ~np.isnan(values)
    count = there.sum(axis=1)
    sums = np.where(there, values, 0.0).sum(axis=1, dtype=np.float64)
    means = sums.sum(axis=1, keepdims=True) / np.maximum(count.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.where(count > 0, sums / np.maximum(count, 1), means))


def _centred(values: Floats) -> Floats:
    return np.asarray(values - values.mean(axis=-1, keepdims=True))


@dataclass(frozen=True)
class _Series:
    """All clips end to end, each centred and followed by zeros so that no lag extends into the next."""

    levels: Floats  # (G, L)
    population: Floats  # (C, L)
    usable: npt.NDArray[np.bool_]  # (L,) bins whose whitened value needs no bin before the clip
    max_lag: int

    def whitened(self, level: int) -> tuple[Floats, Floats]:
        """One level (L,) through its prediction-error filter, and the population (C, L) through the same."""
        kernel = _whitening_filter(self.levels[level])
        filtered = [np.convolve(row, kernel)[: row.size] for row in (self.levels[level], *self.population)]
        both = np.where(self.usable, np.stack(filtered), 0.0)
        return both[0], both[1:]


def _whitening_filter(series: Floats) -> Floats:
    """Prediction-error filter (order + 1,) of a centred series, from its autocovariance."""
    order = _WHITENING_ORDER
    acov = np.array([series[: series.size - lag] @ series[lag:] for lag in range(order + 1)])
    if acov[0] <= 0:
        return np.concatenate([[1.0], np.zeros(order)])
    toeplitz = acov[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    toeplitz[np.diag_indices(order)] += 1e-3 * acov[0]  # keeps a nearly constant level solvable
    return np.concatenate([[1.0], -np.linalg.solve(toeplitz, acov[1:])])


def _join(levels: list[Floats], population: list[Floats], dt_ms: float) -> _Series | None:
    """All clips as one series; None when there are too few bins to estimate a lag."""
    order = _WHITENING_ORDER
    pairs = [(x[:, : y.shape[1]], y[:, : x.shape[1]]) for x, y in zip(levels, population, strict=True)]
    pairs = [(x, y) for x, y in pairs if y.shape[1] > 3 * order]
    bins = [y.shape[1] for _, y in pairs]
    max_lag = min(int(_SEARCH_MS / dt_ms), (min(bins, default=0) - order) // 3)
    if sum(bins) - order * len(bins) < _MIN_BINS or max_lag < _EARLY_BINS:
        return None
    gap = max_lag + order
    starts = np.cumsum([0, *(count + gap for count in bins)])
    joined_x = np.zeros((pairs[0][0].shape[0], int(starts[-1])))
    joined_y = np.zeros((pairs[0][1].shape[0], int(starts[-1])))
    usable = np.zeros(int(starts[-1]), dtype=bool)
    for (x, y), start, count in zip(pairs, starts, bins, strict=False):
        joined_x[:, start : start + count] = _centred(x)
        joined_y[:, start : start + count] = _centred(y)
        usable[start + order : start + count] = True
    return _Series(joined_x, joined_y, usable, max_lag)


def _find_lag(
    series: _Series, dt_ms: float, latest_ms: float, slow_ms: float
) -> tuple[int, float, bool | None, int, Floats]:
    """Strongest lag that holds over the whole recording, its strength, whether it is normal, and its onset.

    None instead of true or false: no lag holds, the strength is that of the best. The onset is the first lag
    of at least half the strength. Last comes the largest strength at every lag.
    """
    lags = np.arange(-series.max_lag, series.max_lag + 1)
    ms = lags * dt_ms
    soon = ((lags > -_EARLY_BINS) | (ms > -_EARLY_MS)) & (ms <= max(latest_ms, 2 * dt_ms))
    curve = np.zeros(lags.size)
    largest, found = 0.0, {True: (0.0, 0, 0), False: (0.0, 0, 0)}  # the best (ab)normal one
    for level in range(len(series.levels)):
        stimulus, population = series.whitened(level)
        for response, z in zip(population, np.abs(_correlation(stimulus, population, lags)), strict=True):
            largest, curve = max(largest, float(z.max())), np.maximum(curve, z)
            # a response that goes on for long is normal at later lags too, once it begins in time
            goes_on = (ms > 0) & (ms <= slow_ms) & (np.where(soon, z, 0.0).max() >= _EARLIER_SHARE * z)
            normal = soon | goes_on
            for kind, allowed in ((True, normal), (False, ~normal)):
                best = int(np.argmax(np.where(allowed, z, -1.0)))
                strength, lag = float(z[best]), int(lags[best])
                if strength > max(_MIN_STRENGTH, found[kind][0]) and _is_consistent(stimulus, response, lag):
                    onset = int(lags[np.argmax((lags >= min(0, lag)) & (z >= _EARLIER_SHARE * strength))])
                    found[kind] = (strength, lag, onset)
    is_normal = found[False][0] < _MIN_ADVANTAGE * found[True][0]
    strength, lag, onset = found[is_normal]
    return (lag, strength, is_normal, onset, curve) if strength > 0 else (0, largest, None, 0, curve)


def _correlation(stimulus: Floats, population: Floats, lags: npt.NDArray[np.int64]) -> Floats:
    """(C, lags) cross-correlation in units of its spread under independence (Bartlett)."""
    size = 1 << (stimulus.size - 1).bit_length()  # the gaps at the end keep the circle from closing
    fx, fy = np.fft.rfft(stimulus, size), np.fft.rfft(population, size)
    total = np.fft.irfft(np.conj(fx) * fy, size)[:, lags]
    # The sum over all lags of the product of both autocovariances, by Parseval; one number serves all lags.
    twice = np.full(fx.size, 2.0)
    twice[[0, -1]] = 1.0
    power = (twice * np.abs(fx) ** 2 * np.abs(fy) ** 2).sum(axis=-1) / size
    spread = np.sqrt(power / max(1, np.count_nonzero(stimulus)))[:, None]
    return np.asarray(np.divide(total, spread, out=np.zeros_like(total), where=spread > 0))


def _is_consistent(stimulus: Floats, response: Floats, lag: int) -> bool:
    """Whether the relation at a lag holds without the few stretches that contribute most to it."""
    products = stimulus * np.roll(response, -lag)
    products *= np.sign(products.sum())
    stretches = np.array_split(products, _STRETCHES)
    sums = np.array([part.sum() for part in stretches])
    squares = np.array([part @ part for part in stretches])
    rest = np.argsort(sums)[:-_STRONGEST]
    remaining = sums[rest].sum()
    if np.count_nonzero(sums[rest] > 0) < _MIN_AGREEING * rest.size or remaining < _MIN_SHARE * sums.sum():
        return False
    return bool(remaining > _MIN_ERRORS * math.sqrt(squares[rest].sum()))


def _report(
    lag: int, dt_ms: float, strength: float, normal: bool | None, baseline_ms: float
) -> AlignmentReport:
    """Assessment of a lag; ``baseline_ms``: length of what was cut where that explains the lag, else 0."""
    ms = lag * dt_ms
    if normal is None:
        text = (
            "no lag relates the responses to the stimulus level (the best reaches "
            f"{strength:.1f} times chance); with reliable responses this happens "
            "when clips and responses are in different orders"
        )
        return AlignmentReport("unclear", None, None, strength, text)
    numbers = f"the best lag is {ms:+g} ms ({lag:+d} bins, {strength:.1f} times chance)"
    if normal and not baseline_ms:
        text = f"responses follow the stimulus as they should: {numbers}"
        return AlignmentReport("aligned", lag, ms, strength, text)
    if lag < 0:
        text = (
            f"responses seem to come before their stimulus: {numbers}. Remove the first {-lag} bins of every "
            "stimulus (a silence or trigger delay that the responses lack), or check the order of the clips; "
            "if this is meant, pass check_alignment=False"
        )
        return AlignmentReport("early", lag, ms, strength, text)
    text = f"responses follow their stimulus implausibly late: {numbers}, latencies are {_LATENCIES}. "
    if baseline_ms:
        length = baseline_ms if ms >= baseline_ms else (lag - 1) * dt_ms
        text += (
            f"The responses were {baseline_ms:g} ms longer than the stimuli and were cut at their end, yet "
            "the excess lies at their start: a baseline before the stimulus. Pass its length instead, "
            f"from_arrays(..., pre_ms={length:g})"
        )
    else:
        text += (
            "A baseline before the stimulus in the responses? Then pass its length, from_arrays(..., pre_ms="
            f"...), by this lag about {max(ms - 50.0, 0.0):g} to {ms:g} ms. For slow signals pass "
            "max_latency_ms to ds.check_alignment"
        )
    return AlignmentReport("late", lag, ms, strength, f"{text}; if this is meant, pass check_alignment=False")


def _mean_psth(ds: Recording, clip: int, repeats: slice) -> Floats:
    return _centred(_neuron_psths(_head(ds.response_storage.clips[clip]), repeats).mean(axis=0))


def _is_reliable(ds: Recording, clips: list[int]) -> bool:
    """Whether odd and even repeats of the population agree over enough time."""
    repeated = [clip for clip in clips if int(ds.response_storage.clips[clip].counts.min()) > 1]
    seconds = sum(ds.n_bins(clip) for clip in repeated) * ds.dt / 1000.0
    if seconds < _RELIABLE_S:
        return False
    odd = np.concatenate([_mean_psth(ds, clip, slice(0, None, 2)) for clip in repeated])
    even = np.concatenate([_mean_psth(ds, clip, slice(1, None, 2)) for clip in repeated])
    spread = float(np.sqrt((odd @ odd) * (even @ even)))
    return spread > 0 and float(odd @ even) / spread > _MIN_RELIABILITY
