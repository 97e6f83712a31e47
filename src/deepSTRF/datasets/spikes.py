"""Spike counts per bin from spike times."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._validation import checked, outside_level

__all__ = ["BINNINGS", "bin_spikes", "count_bins", "validate_binning"]

Counts = npt.NDArray[np.signedinteger[Any]]

#: "half-open": bin k counts every spike with k*dt <= t < (k+1)*dt; "published": the rounding of earlier
#: packages.
BINNINGS = ("half-open", "published")
#: A duration this close to a whole number of bins (in bins) counts as whole.
BIN_TOLERANCE = 1e-9
_PER_SECOND = 1000.0


def count_bins(duration_ms: float, dt_ms: float) -> int:
    """Number of whole bins in a duration."""
    if not (math.isfinite(dt_ms) and dt_ms > 0):
        raise ValueError(f"dt_ms is the bin in milliseconds and must be positive and finite, got {dt_ms}")
    n_bins = math.floor(duration_ms / dt_ms + BIN_TOLERANCE)
    if n_bins < 1:
        raise ValueError(f"a bin of dt_ms={dt_ms:g} does not fit into {duration_ms:g} ms; use a shorter one")
    return n_bins


@checked
def bin_spikes(
    times_ms: Any,
    rows: npt.NDArray[np.int64] | None = None,
    n_rows: int | None = None,
    n_bins: int | None = None,
    dt_ms: float | None = None,
    binning: str = "half-open",
) -> Counts:
    """Spike counts per row and bin; times outside ``[0, n_bins*dt)`` are left out.

    Parameters
    ----------
    times_ms : sequence of arrays, or array
        Spike times in ms from the start of the stimulus: one array per repeat (NaN fills ragged tables); or,
        with ``rows`` and ``n_rows``, one array (n_spikes,).
    rows : int array (n_spikes,), optional
        Row of each spike, 0 to ``n_rows - 1``.
    n_rows : int, optional
        Number of rows.
    n_bins : int
        Number of bins T.
    dt_ms : float
        Bin width in ms.
    binning : str
        "half-open": bin k holds ``k*dt <= t < (k+1)*dt``, by comparison with the edges, not by a rounded
        quotient. "published", as earlier packages did to NS1: times are rounded to the nearest millisecond
        (halves to even), two spikes of a row in one millisecond become one, and the milliseconds of a bin are
        summed.

    Returns
    -------
    int array (R, T)
        Counts, one row per repeat.

    Raises
    ------
    TypeError, ValueError
        When bins are not given, or the binning is unknown.

    Warns
    -----
    UserWarning
        When all spikes lie in the first thousandth of the bins, as times in seconds do.

    Examples
    --------
    >>> bin_spikes([[1.0, 4.9, 5.0], [12.5], []], n_bins=3, dt_ms=5.0)   # three repeats
    array([[2, 1, 0],
           [0, 0, 1],
           [0, 0, 0]], dtype=int8)
    """
    if n_bins is None or dt_ms is None:
        raise TypeError("bin_spikes needs n_bins=<bins of the clip> and dt_ms=<bin width in ms>")
    validate_binning(binning, dt_ms)
    if rows is None:
        trains = [np.asarray(train, dtype=np.float64).reshape(-1) for train in times_ms]
        trains = [train[~np.isnan(train)] for train in trains]
        n_rows, rows = len(trains), np.repeat(np.arange(len(trains)), [train.size for train in trains])
        times_ms = np.concatenate([*trains, np.empty(0)])
        if times_ms.size > 2 and n_bins > 1 and times_ms.max() * _PER_SECOND < n_bins * dt_ms * 1.5:
            warnings.warn(
                f"all spikes are before {times_ms.max():g} ms of {n_bins * dt_ms:g} ms: are these seconds? "
                "bin_spikes takes milliseconds",
                UserWarning,
                stacklevel=outside_level(),
            )
    n_rows = int(rows.max(initial=-1)) + 1 if n_rows is None else n_rows
    if binning == "published":
        bin_ms, times = round(dt_ms), np.rint(times_ms)
        length = n_bins * bin_ms
        inside = (times >= 0) & (times < length)
        ticks = np.unique(rows[inside] * length + times[inside].astype(np.int64))
        return _tally(ticks // bin_ms, n_rows * n_bins).reshape(n_rows, n_bins)
    index = np.floor(times_ms / dt_ms)
    index -= times_ms < index * dt_ms
    index += times_ms >= (index + 1) * dt_ms
    inside = (index >= 0) & (index < n_bins)
    if not inside.all():
        index, rows = index[inside], rows[inside]
    return _tally(rows * n_bins + index.astype(np.int64), n_rows * n_bins).reshape(n_rows, n_bins)


def _tally(cells: npt.NDArray[np.int64], n_cells: int) -> Counts:
    """Count how often each cell occurs, in the smallest type: int8, int16 or int32."""
    cells = np.sort(cells, kind="stable")  # nearly sorted already: ten times faster than counting into int64
    first = np.flatnonzero(np.diff(cells, prepend=-1))
    counts = np.diff(first, append=len(cells))
    kinds: tuple[type[np.signedinteger[Any]], ...] = (np.int8, np.int16, np.int32)
    most = int(counts.max(initial=0))
    table = np.zeros(n_cells, dtype=next(kind for kind in kinds if most <= np.iinfo(kind).max))
    table[cells[first]] = counts
    return table


def validate_binning(binning: str, dt_ms: float) -> None:
    """Check the name of a binning, and that its bin width is legal."""
    if binning not in BINNINGS:
        raise ValueError(f"binning is one of {', '.join(map(repr, BINNINGS))}, got {binning!r}")
    if binning == "published" and dt_ms != round(dt_ms):
        raise ValueError(
            f"binning='published' sums whole milliseconds, so dt_ms must be a whole number, got {dt_ms}; "
            "use binning='half-open'"
        )
