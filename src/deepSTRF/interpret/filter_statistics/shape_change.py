"""Shape change: the complexity of a neuron's filters after alignment along the lag axis.

Alignment alternates between the mean filter and the shift of each filter that correlates best with it, until
no filter moves (Keshishian et al. 2020, doi 10.7554/eLife.53445).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepSTRF._validation import check_choice, check_positive_int, checked, checked_but
from deepSTRF.interpret.filter_statistics.complexity import complexity
from deepSTRF.interpret.filter_statistics.ensembles import Filters, ensembles, per_neuron
from deepSTRF.interpret.filter_statistics.temporal_hold import default_max_delay

#: Lags over which the centre of the mean filter is smoothed before its peak is taken.
SMOOTHED = 9
#: Scores this close, relative to the best possible one, are equal: the first shift then wins.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Alignment:
    """One neuron's filters, moved along the lag axis to match each other.

    Attributes
    ----------
    filters : Tensor (T, L, F). Aligned filters.
    shifts : Tensor (T,). By how many lags each was moved, positive towards the present.
    iterations : int. Rounds taken.
    converged : bool. Whether the last round moved nothing.
    excluded : int. Bins left as they are because they hold NaN or are cut off; they are zero in `filters`.
    """

    filters: Tensor
    shifts: Tensor
    iterations: int
    converged: bool
    excluded: int


@checked_but("max_shift")
def find_shifts(filters: Tensor, reference: Tensor, max_shift: int) -> Tensor:
    """Circular shift of each filter along the lag axis that correlates best with a reference.

    A circular shift keeps mean and norm, so the best Pearson correlation is the largest product, and all
    products come from one Fourier transform.

    Parameters
    ----------
    filters : Tensor (T, L, F)
        Filters.
    reference : Tensor (L, F)
        The filter that they are to match.
    max_shift : int
        Largest shift in lags in both directions; at most L.

    Returns
    -------
    Tensor
        (T,) whole lags, positive towards the end of the axis. Filters without any variation stay: 0. Of equal
        shifts the first is taken.

    Raises
    ------
    ValueError
        For filters and reference that do not fit, or a shift beyond them.

    Examples
    --------
    >>> one = torch.eye(5)
    >>> find_shifts(torch.stack([one, one.roll(2, 0)]), one, 2).tolist()
    [0, -2]
    """
    if filters.ndim != 3 or filters.shape[1:] != reference.shape:
        raise ValueError(
            f"filters must be (T, L, F) and reference (L, F), got {tuple(filters.shape)} and "
            f"{tuple(reference.shape)}"
        )
    lags = filters.shape[1]
    if isinstance(max_shift, bool) or not isinstance(max_shift, int) or not 0 <= max_shift <= lags:
        raise ValueError(f"max_shift must be a whole number of lags, 0 .. {lags}, got {max_shift!r}")
    spectrum, target = torch.fft.rfft(filters, dim=1), torch.fft.rfft(reference, dim=0)
    cross = torch.einsum("tkf,kf->tk", spectrum.conj(), target)
    return _best(
        cross,
        filters.shape[1],
        max_shift,
        filters.flatten(1).norm(dim=1) * reference.norm(),
        _varies(filters),
    )


@checked
def shape_change(
    dstrfs: Filters, iterations: int = 100, span: int | None = None, *, fill: str = "wrap"
) -> Tensor:
    """Shape change of each neuron: the complexity of its filters after alignment along the lag axis.

    Parameters
    ----------
    dstrfs : Tensor or array (T, N, L, F), path or DynamicSTRF
        Filters.
    iterations : int
        Most rounds of alignment.
    span : int, optional
        Zero lags at either end, B; None is ``max(L - 10, min(L, 5))``.
    fill : {"wrap", "zero"}
        See `align_filters`.

    Returns
    -------
    Tensor
        (N,), 1 for a neuron whose filter only moves or grows; NaN for one whose filters are all zero.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> shape_change(torch.eye(4).view(4, 1, 4, 1))
    tensor([1.], dtype=torch.float64)
    """
    aligned = align_filters(dstrfs, iterations, span, fill=fill)
    return per_neuron([float(complexity(one.filters.unsqueeze(1))[0]) for one in aligned])


@checked
def align_filters(
    dstrfs: Filters, iterations: int = 100, span: int | None = None, *, fill: str = "wrap"
) -> list[Alignment]:
    """Filters of each neuron, moved along the lag axis so that they match.

    In rounds: the mean over time is the reference; each filter takes its best circular shift of up to
    ``L // 2 + B`` lags; the centre of the mean's magnitude moves to the middle; until nothing moves. At last
    the common shift is chosen that keeps most inside the window of L lags, which is cut out.

    Parameters
    ----------
    dstrfs : Tensor or array (T, N, L, F), path or DynamicSTRF
        Filters.
    iterations : int
        Most rounds.
    span : int, optional
        Zero lags at either end, B; None is ``max(L - 10, min(L, 5))``.
    fill : {"wrap", "zero"}
        What moves in at the end of the axis: what moved out at the other end, as published, or zeros. With
        zeros the best shift is that of the largest product with the mean, and entries that
        end outside the window are cut off.

    Returns
    -------
    list of Alignment
        One per neuron.

    Examples
    --------
    >>> align_filters(torch.eye(4).view(4, 1, 4, 1))[0].converged
    True
    """
    rounds = check_positive_int("iterations", iterations)
    check_choice("fill", fill, ("wrap", "zero"))
    align = _align if fill == "wrap" else _align_filled
    found = []
    for filters, valid in ensembles(dstrfs):
        added = default_max_delay(filters.shape[1]) if span is None else check_positive_int("span", span)
        found.append(align(filters, int((~valid).sum()), rounds, added))
    return found


def _align(filters: Tensor, excluded: int, rounds: int, span: int) -> Alignment:
    n_bins, lags, _ = filters.shape
    padded = torch.nn.functional.pad(filters, (0, 0, span, span))
    length, farthest = padded.shape[1], lags // 2 + span
    # a shift turns phases, so the filters are transformed once, however many rounds there are
    spectrum = torch.fft.rfft(padded, dim=1)
    wave = torch.arange(spectrum.shape[1], device=filters.device)
    turns = torch.exp(-2j * torch.pi * torch.arange(length, device=filters.device).double() / length)
    size, varies = padded.abs().sum(2), _varies(padded)
    shifts = torch.zeros(n_bins, dtype=torch.long, device=filters.device)
    for done in range(1, rounds + 1):  # noqa: B007  (returned as iterations)
        phase = turns[(shifts.unsqueeze(1) * wave) % length]
        mean = torch.einsum("tk,tkf->kf", phase, spectrum) / n_bins
        cross = torch.einsum("tkf,kf->tk", spectrum.conj(), mean) * phase.conj()
        scale = padded.flatten(1).norm(dim=1) * torch.fft.irfft(mean, length, dim=0).norm()
        step = _best(cross, length, farthest, scale, varies)
        shifts = shifts + step
        shifts = shifts + _recentring(_rolled(size, shifts).mean(0))
        if not bool(step.any()):
            break
    shifts = shifts + _fitting(_rolled(size, shifts).mean(0), lags, span)
    aligned = _rolled(padded, shifts)[:, span : span + lags]
    shifts = (shifts + length // 2) % length - length // 2
    return Alignment(aligned, shifts, done, not bool(step.any()), excluded)


def _align_filled(filters: Tensor, excluded: int, rounds: int, span: int) -> Alignment:
    """As `_align`, on an axis so long that no allowed shift moves anything over its end."""
    n_bins, lags, _ = filters.shape
    farthest = lags // 2 + span
    padded = torch.nn.functional.pad(filters, (0, 0, farthest, farthest))
    length, varies, scale = padded.shape[1], _varies(padded), padded.flatten(1).norm(dim=1)
    spectrum, size = torch.fft.rfft(padded, dim=1), padded.abs().sum(2)
    shifts = torch.zeros(n_bins, dtype=torch.long, device=filters.device)
    for done in range(1, rounds + 1):  # noqa: B007  (returned as iterations)
        mean = _moved(padded, shifts).mean(0)
        centre = shifts.new_tensor([_recentring(_moved(size, shifts).mean(0))])
        mean = _moved(mean.unsqueeze(0), centre)[0]
        cross = torch.einsum("tkf,kf->tk", spectrum.conj(), torch.fft.rfft(mean, dim=0))
        best = _best(cross, length, farthest, scale * mean.norm(), varies)
        still = bool((best == shifts).all())
        shifts = best
        if still:
            break
    shifts = shifts + _fitting(_moved(size, shifts).mean(0), lags, span, farthest)
    return Alignment(_moved(padded, shifts)[:, farthest : farthest + lags], shifts, done, still, excluded)


def _moved(rows: Tensor, shifts: Tensor) -> Tensor:
    """Move each row (T, L, ...) along its second axis by its own shift; zeros follow."""
    length = rows.shape[1]
    source = torch.arange(length, device=rows.device) - shifts.unsqueeze(1)
    inside = (source >= 0) & (source < length)
    taken = rows[torch.arange(len(rows), device=rows.device).unsqueeze(1), source.clamp(0, length - 1)]
    return taken * inside.view(*inside.shape, *[1] * (rows.ndim - 2))


def _best(cross: Tensor, length: int, farthest: int, scale: Tensor, varies: Tensor) -> Tensor:
    """Shift of the largest product, from the cross-spectra (T, K) of circular products."""
    product = torch.fft.irfft(cross, length, dim=1)
    # of equal shifts the first: filters spread evenly over lags then all go to one place
    order = torch.arange(-farthest, farthest + 1, device=cross.device)
    scores = product[:, order % length]
    equal = scores >= scores.amax(1, keepdim=True) - (ROUNDING * scale).unsqueeze(1)
    return torch.where(varies, order[equal.to(torch.int8).argmax(1)], 0)


def _varies(filters: Tensor) -> Tensor:
    flat = filters.flatten(1)
    return flat.amax(1) > flat.amin(1)


def _rolled(rows: Tensor, shifts: Tensor) -> Tensor:
    """Roll each row (T, L, ...) along its second axis by its own shift."""
    length = rows.shape[1]
    source = (torch.arange(length, device=rows.device) - shifts.unsqueeze(1)) % length
    return rows[torch.arange(len(rows), device=rows.device).unsqueeze(1), source]


def _recentring(profile: Tensor) -> int:
    """The shift that puts the peak of the smoothed profile into the middle."""
    length, half = len(profile), SMOOTHED // 2
    around = torch.arange(-half, half + 1, device=profile.device)
    index = (torch.arange(length, device=profile.device).unsqueeze(1) + around) % length
    return length // 2 - int(profile[index].mean(1).argmax())


def _fitting(profile: Tensor, lags: int, span: int, start: int | None = None) -> int:
    """The common shift, at most ``span``, that keeps most inside the window, which begins at ``start``."""
    first = span if start is None else start
    inside = {
        shift: float(profile.roll(shift)[first : first + lags].sum())
        for shift in sorted(range(-span, span + 1), key=abs)
    }
    most = max(inside.values())
    return next(shift for shift, held in inside.items() if held >= most * (1 - ROUNDING))
