"""Magnitude-squared coherence of prediction and PSTH: Welch's method (1967, 10.1109/TAU.1967.1161901)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from deepSTRF._validation import checked, outside_level
from deepSTRF.metrics._statistics import (
    ROUNDINGS_OF_A_MEAN,
    accumulator_dtype,
    check_pair,
    check_reduction,
    keep_where,
    reduce_neurons,
    resolve_target,
)

__all__ = ["CoherenceSpectrum", "coherence", "coherence_spectrum"]

LONGEST_SEGMENT = 256  # bins; SciPy's default
# One segment gives a coherence of exactly 1 for any two signals, S independent ones about 1/S by chance.
MIN_SEGMENTS = 6
SHORTEST_SEGMENT = 8  # bins: three frequencies between zero and Nyquist


@dataclass(frozen=True)
class CoherenceSpectrum:
    """Coherence per neuron and frequency."""

    frequencies_hz: Tensor  # (F,) modulation frequencies
    values: Tensor  # (N, F) in [0, 1]; NaN for neurons with too few segments or without variance
    n_segments: Tensor  # (N,) segments averaged, over all clips
    segment_bins: int  # length of a segment


@checked
def coherence_spectrum(
    pred: Tensor, gt: Tensor, dt_ms: float, *, mask: Tensor | None = None, segment_bins: int | None = None
) -> CoherenceSpectrum:
    """Magnitude-squared coherence between prediction and PSTH by Welch's method.

    Cross- and power spectra are averaged over half-overlapping Hann segments, mean removed, of all clips (so
    clips weigh as their length), then ``|P_xy|**2 / (P_xx * P_yy)``. By default the segment is as long as
    lets six of them fit into a clip, at most 256 bins. Averages over S segments exceed zero by about 1/S by
    chance.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted rates; any unit.
    gt : Tensor, shape (B, N, 1, T) or (B, N, R, T)
        A PSTH, or single repeats to be averaged.
    dt_ms : float
        Bin width in milliseconds.
    mask : Tensor of bool, optional
        True where a bin counts; segments that touch another bin are left out. Without it NaN is an error.
    segment_bins : int, optional
        Length of a segment in bins.

    Returns
    -------
    CoherenceSpectrum
        Frequencies from 0 (zero: what is left of the mean, meaningless) to Nyquist, and coherence (N, F).

    Raises
    ------
    ValueError
        When shapes disagree, a bin that counts holds NaN, or an option is out of range.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Welch (1967), 10.1109/TAU.1967.1161901.

    Examples
    --------
    >>> import torch
    >>> psth = torch.rand(2, 3, 1, 999, generator=torch.manual_seed(0))
    >>> spectrum = coherence_spectrum(psth, psth, dt_ms=5.0)
    >>> spectrum.segment_bins, tuple(spectrum.values.shape), spectrum.n_segments.tolist()
    (256, (3, 129), [12, 12, 12])
    """
    check_pair(pred, gt, mask)
    if not dt_ms > 0:
        raise ValueError(f"dt_ms is the bin width in milliseconds, > 0, got {dt_ms!r}; dataset.dt holds it")
    if segment_bins is not None and segment_bins < SHORTEST_SEGMENT:
        raise ValueError(f"segment_bins is a whole number >= {SHORTEST_SEGMENT}, got {segment_bins!r}")
    dtype = accumulator_dtype(gt.device)
    target = resolve_target(gt.detach().to(dtype), mask)
    valid = target.valid if mask is not None else None
    rate = pred.detach().to(dtype)
    missing = torch.isnan(rate) | torch.isnan(target.psth)
    if valid is not None:
        missing = missing & valid
    if bool(missing.any()):
        raise ValueError(
            f"{int(missing.sum())} bins hold NaN, and a spectrum cannot skip bins; pass "
            "mask=~torch.isnan(gt) to use only the segments without gaps"
        )
    n_batch, n_neurons, _, n_bins = pred.shape
    # the longest even segment of which enough, half overlapping, fit into a clip
    longest = min(LONGEST_SEGMENT, 2 * (n_bins // (MIN_SEGMENTS + 1)))
    segment = longest if segment_bins is None else min(segment_bins, n_bins)
    if segment < SHORTEST_SEGMENT:
        warnings.warn(
            f"coherence is NaN: clips of {n_bins} bins are too short for {MIN_SEGMENTS} segments of "
            f"{SHORTEST_SEGMENT} bins; use corrcoef, or clips of at least "
            f"{(MIN_SEGMENTS + 1) * SHORTEST_SEGMENT // 2} bins",
            stacklevel=outside_level(),
        )
        nothing = torch.full((n_neurons, 0), torch.nan, dtype=dtype, device=pred.device)
        return CoherenceSpectrum(nothing[0], nothing, torch.zeros_like(nothing[:, :1]).sum(1), 0)
    sums = [
        _spectra(
            rate[clip, :, 0], target.psth[clip, :, 0], None if valid is None else valid[clip, :, 0], segment
        )
        for clip in range(n_batch)
    ]
    power_x, power_y, real, imaginary, number, varies = (
        torch.stack(field).sum(0) for field in zip(*sums, strict=True)
    )
    root = power_x.sqrt() * power_y.sqrt()
    safe = torch.where(root > 0, root, torch.ones_like(root))
    values = ((real / safe).square() + (imaginary / safe).square()).clamp(max=1)
    known = (number >= MIN_SEGMENTS) & (varies > 0)
    frequencies = torch.fft.rfftfreq(segment, d=dt_ms / 1000, dtype=dtype, device=pred.device)
    return CoherenceSpectrum(frequencies, keep_where(known.unsqueeze(1), values), number, segment)


def _spectra(x: Tensor, y: Tensor, valid: Tensor | None, segment: int) -> tuple[Tensor, ...]:
    """Sums over one clip's segments: P_xx, P_yy, Re P_xy, Im P_xy (N, F); segments, both vary (N,)."""
    window = torch.hann_window(segment, periodic=True, dtype=x.dtype, device=x.device)
    hop = segment // 2
    if valid is None:
        number = torch.full((len(x),), (x.shape[1] - segment) // hop + 1, device=x.device)
        keep = torch.ones((), dtype=x.dtype, device=x.device)
    else:
        complete = valid.unfold(-1, segment, hop).all(-1)
        number, keep = complete.sum(-1), complete.unsqueeze(-1).to(x.dtype)
        x, y = torch.where(valid, x, 0.0), torch.where(valid, y, 0.0)
    spectra, varies = [], torch.ones_like(number, dtype=torch.bool)
    for series in (x, y):
        pieces = series.unfold(-1, segment, hop)
        level = pieces.mean(-1, keepdim=True)
        centred = (pieces - level) * keep
        rounding = ROUNDINGS_OF_A_MEAN * torch.finfo(x.dtype).eps * (level * keep).abs().amax((1, 2))
        varies = varies & (centred.abs().amax((1, 2)) > rounding)
        spectra.append(torch.fft.rfft(centred * window))
    first, second = spectra
    cross = (first.conj() * second).sum(1)
    return (
        first.abs().square().sum(1),
        second.abs().square().sum(1),
        cross.real,
        cross.imag,
        number,
        varies.to(number.dtype),
    )


@checked
def coherence(
    pred: Tensor,
    gt: Tensor,
    dt_ms: float,
    reduction: str = "mean",
    *,
    mask: Tensor | None = None,
    segment_bins: int | None = None,
    include_dc: bool = False,
) -> Tensor:
    """Magnitude-squared coherence between prediction and PSTH, averaged over frequencies.

    See `coherence_spectrum` for the estimate. Clips too short for several segments give NaN, with a warning.

    Parameters
    ----------
    pred : Tensor, shape (B, N, 1, T)
        Predicted rates; any unit.
    gt : Tensor, shape (B, N, 1, T) or (B, N, R, T)
        A PSTH, or single repeats to be averaged.
    dt_ms : float
        Bin width in milliseconds.
    reduction : {"mean", "none", "median", "sum"}
        What to do with the neuron axis, NaN neurons skipped; "none" returns shape (N,).
    mask : Tensor of bool, optional
        True where a bin counts; segments that touch another bin are left out. Without it NaN is an error.
    segment_bins : int, optional
        Length of a segment in bins; by default six fit into a clip, at most 256 bins each.
    include_dc : bool
        Whether to average frequency zero in, as SciPy does; segments have their mean removed, so it is
        meaningless.

    Returns
    -------
    Tensor, shape () or (N,)
        Coherence in [0, 1]; NaN with fewer than six segments or when a side is constant.

    Raises
    ------
    ValueError
        When shapes disagree, a bin that counts holds NaN, or an option is out of range.
    TypeError
        When ``mask`` is not bool.

    References
    ----------
    Welch (1967), 10.1109/TAU.1967.1161901.

    Examples
    --------
    >>> import torch
    >>> psth = torch.rand(1, 1, 1, 999, generator=torch.manual_seed(0))
    >>> round(coherence(3 * psth + 1, psth, dt_ms=5.0).item(), 6)
    1.0
    >>> coherence(torch.rand(1, 1, 1, 999), psth, dt_ms=5.0).item() < 0.4
    True
    """
    check_reduction(reduction)
    spectrum = coherence_spectrum(pred, gt, dt_ms, mask=mask, segment_bins=segment_bins)
    values = spectrum.values if include_dc else spectrum.values[:, 1:]
    return reduce_neurons(values.mean(1), reduction)
