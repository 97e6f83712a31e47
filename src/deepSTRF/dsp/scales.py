"""Frequency scales of hearing (mel, ERB-rate, Bark, cochlear position, octaves), by function and by name.

Every function takes and returns Python floats, numpy arrays or tensors, in the kind of its input; each map
has its exact inverse. `bounded_shift` and `shift_in_mel` map free parameters to legal frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from deepSTRF._validation import checked

__all__ = [
    "SCALES",
    "ERB_bandwidth",
    "ERB_to_Hz",
    "FrequencyScale",
    "Greenwood",
    "Hz_to_ERB",
    "Hz_to_bark",
    "Hz_to_mel",
    "bark_to_Hz",
    "bounded_shift",
    "frequency_scale",
    "inverse_Greenwood",
    "mel_distance",
    "mel_to_Hz",
    "shift_in_mel",
]

Frequencies = TypeVar("Frequencies", float, "np.ndarray[Any, Any]", Tensor)

# HTK mel: O'Shaughnessy 1987, "Speech Communication"; after Stevens, Volkmann & Newman 1937, doi
# 10.1121/1.1915893
_MEL_FACTOR, _MEL_CORNER_HZ = 2595.0, 700.0
# Slaney mel: Auditory Toolbox, 1998: linear below 1 kHz, then 27 steps per factor 6.4
_SLANEY_HZ_PER_MEL, _SLANEY_CORNER_HZ, _SLANEY_STEPS = 200.0 / 3.0, 1000.0, 27.0 / math.log(6.4)
_SLANEY_CORNER_MEL = _SLANEY_CORNER_HZ / _SLANEY_HZ_PER_MEL
# Equivalent rectangular bandwidth: Glasberg & Moore 1990, doi 10.1016/0378-5955(90)90170-T
_ERB_FACTOR, _ERB_SLOPE, _ERB_MINIMUM_HZ = 21.4, 0.00437, 24.7
# Greenwood 1990, doi 10.1121/1.399052: human A, a, k
_GREENWOOD: dict[str, tuple[float, float, float]] = {"human": (165.4, 2.1, 0.88)}
# Bark: Traunmueller 1990, doi 10.1121/1.399849
_BARK_FACTOR, _BARK_CORNER_HZ, _BARK_OFFSET = 26.81, 1960.0, 0.53


def elementwise(value: Frequencies, formula: Callable[[Any, Any], Any]) -> Frequencies:
    """Evaluate ``formula(x, numpy or torch)``; scalars go in and come out as Python floats."""
    result: Any
    if isinstance(value, Tensor):
        result = formula(value if value.is_floating_point() else value.to(torch.get_default_dtype()), torch)
    elif isinstance(value, np.ndarray | list | tuple):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"real numbers are needed, got an array of {array.dtype}")
        result = formula(array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64), np)
    else:
        result = float(formula(np.float64(value), np))
    return result  # type: ignore[no-any-return]


@checked
def Hz_to_mel(frequency: Frequencies, variant: str = "htk") -> Frequencies:
    """Convert hertz to mel.

    Parameters
    ----------
    frequency : float, numpy.ndarray or Tensor
        Hertz.
    variant : {"htk", "slaney"}
        ``2595 log10(1 + f / 700)``, or the Auditory Toolbox form: linear below 1 kHz, logarithmic above.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Mel; same kind and shape as the input.

    Raises
    ------
    ValueError
        For another variant.

    References
    ----------
    Stevens, Volkmann & Newman 1937, doi 10.1121/1.1915893; Slaney 1998, Auditory Toolbox.

    Examples
    --------
    >>> round(Hz_to_mel(1000.0), 3)
    999.986
    """
    if _mel_variant(variant) == "htk":
        return elementwise(frequency, lambda f, xp: _MEL_FACTOR * xp.log10(1.0 + f / _MEL_CORNER_HZ))
    return elementwise(frequency, _slaney_mel)


@checked
def mel_to_Hz(mel: Frequencies, variant: str = "htk") -> Frequencies:
    """Convert mel to hertz: the exact inverse of `Hz_to_mel`.

    Parameters
    ----------
    mel : float, numpy.ndarray or Tensor
        Mel.
    variant : {"htk", "slaney"}
        As in `Hz_to_mel`.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Hertz.

    Raises
    ------
    ValueError
        For another variant.

    Examples
    --------
    >>> round(mel_to_Hz(Hz_to_mel(440.0)), 9)
    440.0
    """
    if _mel_variant(variant) == "htk":
        return elementwise(mel, lambda m, _: _MEL_CORNER_HZ * (10.0 ** (m / _MEL_FACTOR) - 1.0))
    return elementwise(mel, _slaney_hz)


def _mel_variant(variant: str) -> str:
    if variant not in ("htk", "slaney"):
        raise ValueError(f"the mel scale must be 'htk' or 'slaney', got {variant!r}")
    return variant


def _slaney_mel(f: Any, xp: Any) -> Any:
    # the logarithm is kept away from zero so that the branch not taken has a finite gradient
    ratio = xp.clip(f, _SLANEY_CORNER_HZ, None) / _SLANEY_CORNER_HZ
    return xp.where(
        f < _SLANEY_CORNER_HZ, f / _SLANEY_HZ_PER_MEL, _SLANEY_CORNER_MEL + _SLANEY_STEPS * xp.log(ratio)
    )


def _slaney_hz(m: Any, xp: Any) -> Any:
    above = xp.clip(m, _SLANEY_CORNER_MEL, None) - _SLANEY_CORNER_MEL
    return xp.where(
        m < _SLANEY_CORNER_MEL, m * _SLANEY_HZ_PER_MEL, _SLANEY_CORNER_HZ * xp.exp(above / _SLANEY_STEPS)
    )


@checked
def Hz_to_ERB(frequency: Frequencies) -> Frequencies:
    """Convert hertz to ERB-rate (number of equivalent rectangular bandwidths): ``21.4 log10(0.00437 f + 1)``.

    Parameters
    ----------
    frequency : float, numpy.ndarray or Tensor
        Hertz.

    Returns
    -------
    float, numpy.ndarray or Tensor
        ERB-rate, in ERB numbers.

    References
    ----------
    Glasberg & Moore 1990, doi 10.1016/0378-5955(90)90170-T.

    Examples
    --------
    >>> round(Hz_to_ERB(1000.0), 2)
    15.62
    """
    return elementwise(frequency, lambda f, xp: _ERB_FACTOR * xp.log10(_ERB_SLOPE * f + 1.0))


@checked
def ERB_to_Hz(erb: Frequencies) -> Frequencies:
    """Convert ERB-rate to hertz: the exact inverse of `Hz_to_ERB`.

    Parameters
    ----------
    erb : float, numpy.ndarray or Tensor
        ERB numbers.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Hertz.

    Examples
    --------
    >>> round(ERB_to_Hz(Hz_to_ERB(440.0)), 9)
    440.0
    """
    return elementwise(erb, lambda e, _: (10.0 ** (e / _ERB_FACTOR) - 1.0) / _ERB_SLOPE)


@checked
def ERB_bandwidth(frequency: Frequencies) -> Frequencies:
    """Return the equivalent rectangular bandwidth in hertz: ``24.7 (0.00437 f + 1)``.

    Parameters
    ----------
    frequency : float, numpy.ndarray or Tensor
        Centre frequency in hertz.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Bandwidth in hertz.

    References
    ----------
    Glasberg & Moore 1990, doi 10.1016/0378-5955(90)90170-T.

    Examples
    --------
    >>> round(ERB_bandwidth(1000.0), 2)
    132.64
    """
    return elementwise(frequency, lambda f, _: _ERB_MINIMUM_HZ * (_ERB_SLOPE * f + 1.0))


@checked
def Greenwood(position: Frequencies, animal: str = "human") -> Frequencies:
    """Return the best frequency in hertz at a place on the basilar membrane: ``A (10^(a x) - k)``.

    Parameters
    ----------
    position : float, numpy.ndarray or Tensor
        Place as a fraction of the length, 0 at the apex, 1 at the base.
    animal : {"human"}
        Whose cochlea.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Hertz.

    Raises
    ------
    ValueError
        For an animal without constants.

    References
    ----------
    Greenwood 1990, doi 10.1121/1.399052.

    Examples
    --------
    >>> round(Greenwood(1.0), 1)
    20677.1
    """
    scale, slope, shift = _greenwood_constants(animal)
    return elementwise(position, lambda x, _: scale * (10.0 ** (slope * x) - shift))


@checked
def inverse_Greenwood(frequency: Frequencies, animal: str = "human") -> Frequencies:
    """Return the place on the basilar membrane of a best frequency: the exact inverse of `Greenwood`.

    Parameters
    ----------
    frequency : float, numpy.ndarray or Tensor
        Hertz.
    animal : {"human"}
        Whose cochlea.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Fraction of the length, 0 at the apex, 1 at the base.

    Raises
    ------
    ValueError
        For an animal without constants.

    References
    ----------
    Greenwood 1990, doi 10.1121/1.399052.

    Examples
    --------
    >>> round(inverse_Greenwood(Greenwood(0.2)), 9)
    0.2
    """
    scale, slope, shift = _greenwood_constants(animal)
    return elementwise(frequency, lambda f, xp: xp.log10(f / scale + shift) / slope)


def _greenwood_constants(animal: str) -> tuple[float, float, float]:
    if animal not in _GREENWOOD:
        raise ValueError(
            f"no Greenwood constants for {animal!r}; known animals: {', '.join(map(repr, _GREENWOOD))}"
        )
    return _GREENWOOD[animal]


@checked
def Hz_to_bark(frequency: Frequencies) -> Frequencies:
    """Convert hertz to Bark (critical-band rate): ``26.81 f / (1960 + f) - 0.53``.

    Parameters
    ----------
    frequency : float, numpy.ndarray or Tensor
        Hertz.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Bark.

    References
    ----------
    Traunmueller 1990, doi 10.1121/1.399849.

    Examples
    --------
    >>> round(Hz_to_bark(1000.0), 3)
    8.527
    """
    return elementwise(frequency, lambda f, _: _BARK_FACTOR * f / (_BARK_CORNER_HZ + f) - _BARK_OFFSET)


@checked
def bark_to_Hz(bark: Frequencies) -> Frequencies:
    """Convert Bark to hertz: the exact inverse of `Hz_to_bark` (defined below 26.28 Bark).

    Parameters
    ----------
    bark : float, numpy.ndarray or Tensor
        Bark.

    Returns
    -------
    float, numpy.ndarray or Tensor
        Hertz.

    Examples
    --------
    >>> round(bark_to_Hz(Hz_to_bark(440.0)), 9)
    440.0
    """
    top = _BARK_FACTOR - _BARK_OFFSET
    return elementwise(bark, lambda z, _: _BARK_CORNER_HZ * (z + _BARK_OFFSET) / (top - z))


@dataclass(frozen=True)
class FrequencyScale:
    """The scale ``name`` of `SCALES`: a map from hertz and its exact inverse (floats, arrays, tensors)."""

    name: str
    from_hz: Callable[[Any], Any]
    to_hz: Callable[[Any], Any]

    def points(self, f_min: float, f_max: float, n: int) -> Tensor:
        """Return ``n`` frequencies in hertz (float64), equally spaced on this scale, both ends exact."""
        first, last = self.from_hz(torch.tensor([f_min, f_max], dtype=torch.float64)).tolist()
        positions = torch.linspace(first, last, n, dtype=torch.float64)
        points: Tensor = self.to_hz(positions)
        points[0] = f_min
        if n > 1:
            points[-1] = f_max
        return points


#: Scales by name. ``"log"`` counts octaves; ``"greenwood"`` is the human cochlear position.
SCALES: Mapping[str, FrequencyScale] = MappingProxyType(
    {
        scale.name: scale
        for scale in (
            FrequencyScale("htk", Hz_to_mel, mel_to_Hz),
            FrequencyScale("slaney", lambda f: Hz_to_mel(f, "slaney"), lambda m: mel_to_Hz(m, "slaney")),
            FrequencyScale("erb", Hz_to_ERB, ERB_to_Hz),
            FrequencyScale("bark", Hz_to_bark, bark_to_Hz),
            FrequencyScale("greenwood", inverse_Greenwood, Greenwood),
            FrequencyScale(
                "log",
                lambda f: elementwise(f, lambda x, xp: xp.log2(x)),
                lambda octaves: elementwise(octaves, lambda x, xp: xp.exp2(x)),
            ),
            FrequencyScale("linear", lambda f: f, lambda f: f),
        )
    }
)


@checked
def frequency_scale(name: str) -> FrequencyScale:
    """Return the scale called ``name``; ``"mel"`` is the HTK form.

    Parameters
    ----------
    name : {"htk", "mel", "slaney", "erb", "bark", "greenwood", "log", "linear"}
        Which scale, in any case.

    Returns
    -------
    FrequencyScale
        The map and its inverse.

    Raises
    ------
    ValueError
        For another name; the text lists the legal ones.

    Examples
    --------
    >>> frequency_scale("mel").name
    'htk'
    """
    key = str(name).lower()
    key = "htk" if key == "mel" else key
    if key not in SCALES:
        legal = ", ".join(repr(known) for known in ("mel", *SCALES))
        raise ValueError(f"unknown frequency scale {name!r}; legal names: {legal}")
    return SCALES[key]


def bounded_shift(free: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    """Map any number to a shift between ``-lower`` and ``upper``: itself near zero, smooth everywhere.

    ``u / sqrt(1 + (u / limit)^2)`` with the limit of u's side: unlike for a clamp or a sigmoid, the slope far
    out falls as a power, never to zero, so an optimiser meets no dead end.
    """
    down = torch.as_tensor(lower, dtype=free.dtype, device=free.device)
    up = torch.as_tensor(upper, dtype=free.dtype, device=free.device)
    limit = torch.where(free > 0, up, down)
    return free / torch.sqrt(1.0 + (free / limit).square())


def mel_distance(start_hz: Tensor, stop_hz: Tensor | float) -> Tensor:
    """Distance of two frequencies on the mel scale: ``ln((700 + stop) / (700 + start))``, mel over 1127."""
    return torch.log((_MEL_CORNER_HZ + stop_hz) / (_MEL_CORNER_HZ + start_hz))


def shift_in_mel(start_hz: Tensor, distance: Tensor) -> Tensor:
    """Shift frequencies by a `mel_distance`; zero gives back ``start_hz`` to the last digit."""
    return start_hz + (_MEL_CORNER_HZ + start_hz) * torch.expm1(distance)
