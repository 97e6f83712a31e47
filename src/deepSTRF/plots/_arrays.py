"""What every figure shares before anything is drawn: array conversion and checks. No matplotlib here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "as_array", "as_series", "as_spectrogram", "check_frequencies", "check_positive"]

#: Everything is drawn in double precision; it costs nothing next to the drawing itself.
FloatArray = NDArray[np.float64]


def as_array(values: Any, name: str) -> FloatArray:
    """Turn NumPy arrays, torch tensors (any device, with or without gradient) and lists into float64.

    Torch is recognised by its methods, so this module never imports it.
    """
    if hasattr(values, "detach"):
        # .double() before .numpy(): NumPy has no bfloat16
        values = values.detach().cpu().double().numpy()
    elif isinstance(values, list | tuple) and any(hasattr(value, "detach") for value in values):
        values = [as_array(value, name) for value in values]
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numeric with one shape throughout: {error}") from None


def as_series(values: Any, name: str) -> FloatArray:
    """Return a one-dimensional series (T,); raises ValueError on any other rank or an empty one."""
    series = as_array(values, name)
    if series.ndim != 1 or series.size == 0:
        raise ValueError(f"{name} must be one non-empty series of shape (T,), got shape {series.shape}")
    return series


def as_spectrogram(values: Any, name: str) -> FloatArray:
    """Return a (F, T) image; a leading axis of length 1, as in datasets, is dropped."""
    image = as_array(values, name)
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(
            f"{name} must have shape (F, T) or (1, F, T), got {image.shape}; "
            "a waveform is shown through a front-end: model.spectrogram(stim) returns its spectrogram"
        )
    return image


def check_frequencies(frequencies_hz: Any, n_bands: int) -> FloatArray | None:
    """Return centre frequencies (F,) in Hz, or None; raises ValueError when F is another one."""
    if frequencies_hz is None:
        return None
    frequencies = as_series(frequencies_hz, "frequencies_hz")
    if not np.isfinite(frequencies).all() or (frequencies < 0).any():
        raise ValueError(
            "frequencies_hz must be finite and not negative, in Hz; pass None to number the bands"
        )
    if frequencies.size != n_bands:
        raise ValueError(
            f"frequencies_hz holds {frequencies.size} frequencies, the spectrogram has {n_bands} bands; "
            "pass one frequency in Hz per band, or None to number the bands"
        )
    return frequencies


def check_positive(value: Any, name: str) -> None:
    """Raise ValueError unless the value is None or a positive finite number."""
    if value is None:
        return
    try:
        legal = not isinstance(value, str | bool) and 0.0 < float(value) < math.inf
    except (TypeError, ValueError):
        legal = False
    if not legal:
        raise ValueError(f"{name} must be a positive number or None, got {value!r}")


def check_titles(titles: Sequence[str] | None, n_panels: int) -> None:
    """Raise ValueError when there is not one title per panel, TypeError for one text instead of several."""
    if isinstance(titles, str):
        raise TypeError(f"titles must be a sequence of {n_panels} texts, got one text: [{titles!r}]?")
    if titles is not None and len(titles) != n_panels:
        raise ValueError(f"titles holds {len(titles)} texts for {n_panels} panels; pass one per panel")


def check_columns(ncols: Any, n_panels: int) -> int:
    """Return how many panels stand in a row; raises ValueError unless ncols is a whole number above 0."""
    if isinstance(ncols, bool) or not hasattr(ncols, "__index__") or int(ncols) < 1:
        raise ValueError(f"ncols must be a whole number of at least 1, got {ncols!r}")
    return min(int(ncols), n_panels)
