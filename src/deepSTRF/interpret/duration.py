"""How far back a receptive field reaches: the age within which nearly all of its mass lies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret._arrays import as_numbers
from deepSTRF.models._checks import check_positive_number

__all__ = ["rf_duration_ms"]

FloatArray = NDArray[np.float64]


def rf_duration_ms(
    gradmap: Any, audio_fs: float | None = None, mass: float = 0.99, *, dt_ms: float | None = None
) -> float | FloatArray:
    """Return how far back from its end a share of a gradient map lies: the length of a receptive field.

    Give the rate of the last axis: ``audio_fs`` for one map over samples, ``dt_ms`` for maps over frames.

    Parameters
    ----------
    gradmap : Tensor or array (T_audio,), or (..., F, T)
        From ``model.waveform_gradmap(..., reduce="last")``; or with ``dt_ms`` from ``model.STRF_gradmap()``,
        the most recent frame last.
    audio_fs : float, optional
        Samples per second.
    mass : float
        Share of the summed absolute gradient, above 0 and at most 1.
    dt_ms : float, optional
        Milliseconds per frame.

    Returns
    -------
    float or array
        Milliseconds, 0 for a map of zeros. Over samples one number: the age of the sample at which the share
        is reached. Over frames, which count whole, one number per map, (N,) for maps (N, 1, F, T) or (N, F,
        T).

    Raises
    ------
    ValueError, TypeError
        For a map of another rank or with NaN, a share or rate out of range, or none or both of the rates.

    Examples
    --------
    >>> rf_duration_ms([0.0, 0.0, 1.0, 1.0, 0.0], audio_fs=1000)
    2.0
    >>> rf_duration_ms([[[0.0, 2.0, 1.0]], [[0.0, 0.0, 1.0]]], dt_ms=5.0)
    array([10.,  5.])
    """
    field = np.abs(as_numbers(gradmap, "gradmap"))
    if not np.isfinite(field).all():
        raise ValueError("gradmap holds values that are not finite; leave such maps out")
    if not 0.0 < mass <= 1.0:
        raise ValueError(f"mass must be above 0 and at most 1, got {mass!r}")
    if (audio_fs is None) == (dt_ms is None):
        raise ValueError(
            "give the rate of the last axis: audio_fs (hertz) for samples or dt_ms (ms) for frames, not both"
        )
    if dt_ms is not None:
        return _duration_of_frames(field, mass, dt_ms)
    if field.ndim != 1 or field.size == 0:
        raise ValueError(f"gradmap must be one waveform (T_audio,), got shape {field.shape}; take one row")
    rate = check_positive_number("audio_fs", audio_fs)
    summed = np.cumsum(field[::-1])
    return float(np.searchsorted(summed, mass * summed[-1])) / rate * 1000.0


def _duration_of_frames(field: FloatArray, mass: float, dt_ms: float) -> FloatArray:
    if field.ndim < 2 or field.size == 0:
        raise ValueError(f"gradmap must be spectro-temporal (..., F, T), got shape {field.shape}")
    frame_ms = check_positive_number("dt_ms", dt_ms)
    if field.ndim > 3:  # (N, 1, F, T): channels share the map
        field = field.sum(axis=tuple(range(1, field.ndim - 2)))
    summed = np.cumsum(field.sum(axis=-2)[..., ::-1], axis=-1)
    total = summed[..., -1:]
    short = (summed < mass * total).sum(axis=-1)
    frames: FloatArray = np.where(total[..., 0] > 0, short + 1.0, 0.0) * frame_ms
    return frames
