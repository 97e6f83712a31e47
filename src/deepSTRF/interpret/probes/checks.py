"""What a probe refuses: sounds that cannot be played as asked, where a number would come out all the same."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import as_numbers, check_positive_number
from deepSTRF.dsp.filters import samples_per_bin

__all__ = [
    "check_audible",
    "check_bands",
    "check_lengths",
    "check_levels",
    "check_periods",
    "check_range",
    "check_rates",
    "check_rates_shown",
    "samples_per_probe_bin",
    "settling_ms",
]

FloatArray = NDArray[np.float64]

#: A recorder's own rate need not hold whole bins (48828.125 Hz: 244.14 samples in 5 ms). Rounding by less
#: than this share shifts the end of a probe of two seconds by less than half a bin of 5 ms.
HOP_SLACK = 1e-3
#: Silence before every sound: longer than the memory of fixed front-ends and most prefilters.
LEAD_MS = 300.0
#: No model is kept waiting longer than this, whatever it states.
LONGEST_LEAD_MS = 5000.0
#: The baseline is the mean rate in the last part of that silence.
BASELINE_SHARE = 0.25


def check_audible(name: str, hertz: Any, audio_fs: float | None) -> None:
    """Check that frequencies can be played: above 0, and below half the audio rate, where they fold back.

    Examples
    --------
    >>> check_audible("probe_hz", 1000.0, 16000.0)
    """
    values = np.ravel(as_numbers(hertz, name))
    top = math.inf if not audio_fs else 0.5 * audio_fs
    wrong = values[~((values > 0) & (values < top))]
    if wrong.size:
        raise ValueError(
            f"{name} must lie above 0 and below {top:g} Hz, half of the {audio_fs or 0:g} samples per "
            f"second; got {wrong[0]:g} Hz"
        )


def check_range(name: str, range_hz: Any, audio_fs: float | None) -> tuple[float, float]:
    """Return two ascending audible frequencies.

    Examples
    --------
    >>> check_range("band_hz", (500, 2000), 16000.0)
    (500.0, 2000.0)
    """
    values = as_numbers(range_hz, name)
    if values.shape != (2,) or not 0 < values[0] < values[1]:
        raise ValueError(f"{name} must be two ascending positive numbers, got {range_hz!r}")
    check_audible(name, values, audio_fs)
    return float(values[0]), float(values[1])


def check_lengths(**lengths_ms: Any) -> None:
    """Check lengths in ms: those of tails are 0 or more, all others above 0.

    Examples
    --------
    >>> check_lengths(duration_ms=100.0, tail_ms=0)
    """
    for name, value in lengths_ms.items():
        if name == "tail_ms" and isinstance(value, numbers.Real) and value == 0:
            continue
        check_positive_number(name, value)


def check_levels(**levels_db: Any) -> None:
    """Check single levels in dB.

    Examples
    --------
    >>> check_levels(level_db=-20.0)
    """
    for name, value in levels_db.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def check_periods(name: str, rates_hz: FloatArray, measured_ms: float) -> None:
    """Check that a whole period of each rate lies in the stretch that is measured.

    Shapes: rates_hz (R,).

    Examples
    --------
    >>> check_periods("rates_hz", np.array([2.0, 4.0]), 500.0)
    """
    if rates_hz[0] * measured_ms < 1000.0 * (1.0 - 1e-9):
        raise ValueError(
            f"{name} must be {1000.0 / measured_ms:.3g} Hz or more for a whole period to lie in the "
            f"{measured_ms:g} ms that are measured, got {rates_hz[0]:g}; or lengthen duration_ms"
        )


def check_rates_shown(usual: Sequence[float], rates_hz: Any, dt_ms: float) -> FloatArray:
    """Return modulation rates that bins of this length show.

    Shapes: returns (R,).

    Examples
    --------
    >>> check_rates_shown((2.0, 4.0, 64.0), None, 10.0)
    array([2., 4.])
    """
    shown = 500.0 / dt_ms
    if rates_hz is None:
        rates_hz = [rate for rate in usual if rate < shown]
    rates = as_numbers(rates_hz, "rates_hz")
    legal = rates.ndim == 1 and rates.size and np.isfinite(rates).all() and (np.diff(rates) > 0).all()
    if not legal or rates[0] <= 0:
        raise ValueError(f"rates_hz must be one ascending series of finite numbers above 0, got {rates}")
    if rates[-1] >= shown:
        raise ValueError(f"bins of {dt_ms:g} ms show rates below {shown:g} Hz, got {rates[-1]:g}")
    return rates


def check_rates(hears_samples: bool, cochleagram: Any, audio_fs: Any, dt_ms: Any) -> None:
    """Check that a presentation is told what its model does not know.

    Examples
    --------
    >>> check_rates(True, None, 16000.0, 5.0)
    """
    if dt_ms is None:
        raise ValueError(
            "this model takes spectrograms: give dt_ms, and cochleagram with audio_fs to play sounds, or use "
            "Presentation.for_dataset(model, dataset)"
        )
    if cochleagram is not None and not callable(cochleagram):
        raise TypeError(f"cochleagram must be callable, got {type(cochleagram).__name__}")
    if not hears_samples and (cochleagram is None) != (audio_fs is None):
        raise ValueError("cochleagram and audio_fs belong together: give both or neither")


def check_bands(frequencies_hz: Any, n_bands: Any) -> FloatArray:
    """Return centres of bands in the order of the model's bands; those of a learned bank need not ascend.

    Shapes: frequencies_hz (F,); returns (F,).

    Examples
    --------
    >>> check_bands([500, 1000], 2)
    array([ 500., 1000.])
    """
    hertz = as_numbers(frequencies_hz, "frequencies_hz")
    wrong_count = isinstance(n_bands, int) and hertz.shape != (n_bands,)
    if hertz.ndim != 1 or not hertz.size or wrong_count or not (np.isfinite(hertz) & (hertz > 0)).all():
        count = f"{n_bands} " if isinstance(n_bands, int) else ""
        raise ValueError(
            f"frequencies_hz must be {count}positive finite numbers, one per band, got shape {hertz.shape}"
        )
    return hertz


def samples_per_probe_bin(audio_fs: float, dt_ms: float) -> int:
    """Return the samples of one bin of a probe, nearly whole at least.

    Examples
    --------
    >>> samples_per_probe_bin(16000.0, 5.0), samples_per_probe_bin(48828.125, 5.0)
    (80, 244)
    """
    exact = audio_fs * dt_ms / 1000.0
    near = round(exact)
    return near if near and abs(exact - near) < HOP_SLACK * exact else samples_per_bin(audio_fs, dt_ms)


def settling_ms(model: Any, dt_ms: float) -> float:
    """Return after how much silence a model has settled, as far as it states how long it remembers.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> settling_ms(SimpleNamespace(receptive_field=90), dt_ms=5.0)
    600.0
    """
    front_end, reach = getattr(model, "wav2spec", None), getattr(model, "receptive_field", None)
    memory_ms = dt_ms * reach if isinstance(reach, int) else 0.0
    samples = getattr(front_end, "receptive_field_samples", None)
    if isinstance(samples, int):
        memory_ms += 1000.0 * samples / float(front_end.audio_fs)  # type: ignore[union-attr]
    return min(LONGEST_LEAD_MS, max(LEAD_MS, memory_ms / (1.0 - BASELINE_SHARE)))
