"""How far back a response looks, measured from outside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.causal import placement
from deepSTRF.models.prediction import evaluating

__all__ = ["ReceptiveFieldError", "measure_receptive_field", "probe_reach"]

#: Clip lengths that are tried in turn, in frames; a response that still feels a change at the end of the last
#: one has a memory without a bound for every practical purpose.
LENGTHS = (64, 512, 2048)
#: Frames before the changed one: a response there would be acausal.
LEAD = 5
#: Random clips of the finite probe, and how large its change is in their standard deviations.
CLIPS, CHANGE = 8, 30.0


class ReceptiveFieldError(ValueError):
    """What a model says of its receptive field, and what it does, differ."""


def measure_receptive_field(
    model: nn.Module, n_frequency_bands: int, *, longest: int = LENGTHS[-1]
) -> int | None:
    """Return how many frames a prediction depends on, the current one included.

    A frame of NaN shows every dependence, of dead units too. Where NaN spreads further than numbers do (a
    masked softmax), one frame of random clips is changed instead and the outputs are compared bit by bit.

    Parameters
    ----------
    model : nn.Module
        Maps spectrograms (B, 1, F, T) to (B, N, 1, T).
    n_frequency_bands : int
        Bands, F.
    longest : int
        Frames of the longest clip that is tried.

    Returns
    -------
    int or None
        Frames; None when the memory reaches to the end of the longest clip (recurrent models).

    Raises
    ------
    ReceptiveFieldError
        When an output changes before its input does: the model is not causal.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> measure_receptive_field(Linear(n_frequency_bands=8, temporal_window_size=7), 8)
    7
    """
    bands, longest = check_positive_int("n_frequency_bands", n_frequency_bands), int(longest)
    device, dtype = placement(model)
    with evaluating(model):
        return probe_reach(model, torch.zeros(1, 1, bands, 1, device=device, dtype=dtype), longest)


def probe_reach(respond: Callable[[Tensor], Tensor], like: Tensor, longest: int = LENGTHS[-1]) -> int | None:
    """Return the reach in frames of a function of frames; see `measure_receptive_field`.

    Parameters
    ----------
    respond : callable
        Maps (B, 1, F, T) to something whose last axis is T.
    like : Tensor (1, 1, F, T')
        Frames of the right kind; their standard deviation scales the probe.
    longest : int
        Frames of the longest clip.

    Returns
    -------
    int or None
        Frames, or None.

    Raises
    ------
    ReceptiveFieldError
        When the function is not causal.

    Examples
    --------
    >>> probe_reach(lambda x: x.sum((1, 2)), torch.zeros(1, 1, 3, 1))
    1
    """
    generator = torch.Generator().manual_seed(0)
    spread = float(like.std()) if like.numel() > 1 else 0.0
    spread = spread if spread > 0 else 1.0
    for probe in (_nan_touched, _changed):
        for length in [*(n for n in LENGTHS if n < longest), longest]:
            touched = probe(respond, like, length, spread, generator)
            if touched is None:
                break  # NaN leaks: numbers must say
            if bool(touched[:LEAD].any()):
                raise ReceptiveFieldError(
                    "the model is not causal: an output changed before its input did. Pad convolutions on "
                    "the left only, and mask attention to later frames"
                )
            last = int(touched.nonzero().max()) if bool(touched.any()) else LEAD
            if last + 1 < length:
                return last - LEAD + 1
        else:
            if probe is _nan_touched and touched is not None and bool(touched[LEAD:].all()):
                return None
    return None


def _nan_touched(
    respond: Callable[[Tensor], Tensor], like: Tensor, length: int, spread: float, generator: torch.Generator
) -> Tensor | None:
    """Frames (T,) that a NaN frame reaches; None where it also reaches earlier ones."""
    x = like.new_zeros(1, *like.shape[1:3], length)
    x[..., LEAD] = torch.nan
    touched = torch.isnan(respond(x)).reshape(-1, length).any(0)
    return None if bool(touched[:LEAD].any()) else touched


def _changed(
    respond: Callable[[Tensor], Tensor], like: Tensor, length: int, spread: float, generator: torch.Generator
) -> Tensor:
    """Frames (T,) whose output changes when one frame of random clips changes."""
    clips = torch.randn(CLIPS, *like.shape[1:3], length, generator=generator).to(like) * spread + like.mean()
    changed = clips.clone()
    step = CHANGE * spread * torch.randn(changed[..., LEAD].shape, generator=generator).to(like)
    changed[..., LEAD] += step
    difference = respond(clips) != respond(changed)
    return difference.reshape(-1, length).any(0)
