"""Banks of overlapping triangular filters over the bins of a Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor

from deepSTRF.dsp.spacing import frequency_scale

__all__ = ["triangle_corners", "triangular_filterbank"]


def triangle_corners(n_filters: int, f_min: float, f_max: float, scale: str, edges: str) -> Tensor:
    """Return the corners of overlapping triangles: filter ``m`` rises from corner ``m`` to ``m + 1``.

    Parameters
    ----------
    n_filters : int
        Number of triangles, F.
    f_min, f_max : float
        Hertz. With ``edges="feet"`` the outer feet of the first and last triangle, with ``"centres"`` their
        peaks.
    scale : str
        Scale on which the corners are equally spaced, see `frequency_scale`.
    edges : {"feet", "centres"}
        What ``f_min`` and ``f_max`` mean.

    Returns
    -------
    Tensor
        (F + 2,) hertz, float64; the centres are ``corners[1:-1]``.

    Raises
    ------
    ValueError
        For an unknown scale or ``edges``, one filter between two different centres, or frequencies that
        do not ascend (``f_min=0`` on a logarithmic scale).

    Examples
    --------
    >>> triangle_corners(3, 0.0, 400.0, "linear", "feet").tolist()
    [0.0, 100.0, 200.0, 300.0, 400.0]
    >>> triangle_corners(3, 100.0, 300.0, "linear", "centres").tolist()
    [0.0, 100.0, 200.0, 300.0, 400.0]
    """
    spacing = frequency_scale(scale)
    if edges == "feet":
        corners = spacing.points(f_min, f_max, n_filters + 2)
    elif edges != "centres":
        raise ValueError(f"edges must be 'feet' or 'centres', got {edges!r}")
    elif n_filters < 2:
        raise ValueError("edges='centres' needs at least 2 filters; use edges='feet' for one")
    else:
        first, last = spacing.from_hz(torch.tensor([f_min, f_max], dtype=torch.float64)).tolist()
        step = (last - first) / (n_filters - 1)
        positions = torch.linspace(first - step, last + step, n_filters + 2, dtype=torch.float64)
        corners = spacing.to_hz(positions)
        corners[1], corners[-2] = f_min, f_max
    if not bool(torch.isfinite(corners).all()) or not bool((corners[1:] > corners[:-1]).all()):
        raise ValueError(
            f"{n_filters} filters from f_min={f_min:g} to f_max={f_max:g} Hz do not ascend on the scale "
            f"{scale!r}; give 0 <= f_min < f_max (above 0 on the 'log' scale)"
        )
    return corners


def triangular_filterbank(
    corners: Tensor, bin_frequencies: Tensor, *, axis: str = "linear", norm: str | None = None
) -> Tensor:
    """Sample triangles with the given corners at the bins of a Fourier transform.

    Parameters
    ----------
    corners : Tensor
        (F + 2,) ascending corner frequencies in hertz, from `triangle_corners`.
    bin_frequencies : Tensor
        (n_bins,) frequencies of the bins in hertz.
    axis : str
        Scale on which the slopes are straight lines: ``"linear"`` (hertz) or the name of a scale.
    norm : {None, "sum", "slaney"}
        None: peak 1. ``"sum"``: the weights of each filter sum to 1. ``"slaney"``: each triangle has unit
        area in hertz (``2 / (upper foot - lower foot)``).

    Returns
    -------
    Tensor
        (n_bins, F) weights, float64. A filter that no bin falls into is a column of zeros.

    Raises
    ------
    ValueError
        For an unknown axis or norm.

    Examples
    --------
    >>> corners = triangle_corners(2, 0.0, 300.0, "linear", "feet")
    >>> triangular_filterbank(corners, torch.tensor([0.0, 50.0, 100.0, 150.0]).double())
    tensor([[0.0000, 0.0000],
            [0.5000, 0.0000],
            [1.0000, 0.0000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    if norm not in (None, "sum", "slaney"):
        raise ValueError(f"norm must be None, 'sum' or 'slaney', got {norm!r}")
    to_axis = frequency_scale(axis).from_hz
    corner = to_axis(corners.double())
    position = to_axis(bin_frequencies.double()).unsqueeze(1)
    rising = (position - corner[:-2]) / (corner[1:-1] - corner[:-2])
    falling = (corner[2:] - position) / (corner[2:] - corner[1:-1])
    bank = torch.minimum(rising, falling).clamp_min(0.0)
    if norm == "sum":
        bank = bank / bank.sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    elif norm == "slaney":
        bank = bank * (2.0 / (corners[2:] - corners[:-2]).double())
    return bank
