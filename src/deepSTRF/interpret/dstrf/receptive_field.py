"""Receptive fields measured from outside: the frames that a response depends on, back and ahead.

A frame of NaN marks every frame whose response depends on it, dead units included. Where NaN spreads further
than numbers do (a masked softmax), one frame of random clips is changed and responses are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_positive_int, checked_but
from deepSTRF.interpret.dstrf.target import check_model
from deepSTRF.models.configurable import placement
from deepSTRF.models.prediction import evaluating

#: Clip lengths that are tried in turn, in frames; a response that still changes at the end of the last
#: one has a memory without a bound for every practical purpose.
LENGTHS = (64, 512, 2048)
#: Frames before the changed one: a response there would be acausal.
LEAD = 5
#: Random clips of the finite probe, and how large its change is in their standard deviations.
CLIPS, CHANGE = 8, 30.0
#: Neighbouring frames that are changed in turn: a model that pools frames treats them differently.
PHASES = 8
#: Differences that are rounding, in units of the last place of the largest output: a change that dies away
#: below them had no end of its own.
ROUNDING = 64


class ReceptiveFieldError(ValueError):
    """A model depends on other frames than it declares, or than it may."""


@checked_but("model")
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
        When an output changes before its input does: the model is not causal; see `measure_window`.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> measure_receptive_field(Linear(n_frequency_bands=8, temporal_window_size=7), 8)
    7
    """
    check_model(model)
    bands, longest = check_positive_int("n_frequency_bands", n_frequency_bands), int(longest)
    device, dtype = placement(model)
    with evaluating(model):
        return probe_receptive_field(model, torch.zeros(1, 1, bands, 1, device=device, dtype=dtype), longest)


def probe_receptive_field(
    respond: Callable[[Tensor], Tensor], like: Tensor, longest: int = LENGTHS[-1]
) -> int | None:
    """Return the receptive field of a function of (B, 1, F, T), as `measure_receptive_field` does.

    ``like`` (1, 1, F, T') has the bands, type and device of the frames.
    """
    generator = torch.Generator().manual_seed(0)
    for probe in (_nan_touched, _changed):
        for length in [*(n for n in LENGTHS if n < longest), longest]:
            touched = probe(respond, like, length, generator)
            if touched is None:
                break  # NaN spreads further than numbers
            if bool(touched[:LEAD].any()):
                raise ReceptiveFieldError(not_causal(probe_window(respond, like, longest)[1]))
            last = int(touched.nonzero().max()) if bool(touched.any()) else LEAD
            if last + 1 < length:
                return last - LEAD + 1
        else:
            if probe is _nan_touched and touched is not None and bool(touched[LEAD:].all()):
                return None
    return None


@checked_but("model")
def measure_window(
    model: nn.Module, n_frequency_bands: int, *, longest: int = LENGTHS[-1]
) -> tuple[int | None, int | None]:
    """Return how many frames a prediction depends on, before and after its own.

    As `measure_receptive_field`, for models that may look ahead. Where NaN spreads to both ends of the clip,
    numbers decide; a change that dies away into rounding had no end of its own, and counts as unbounded.

    Parameters
    ----------
    model : nn.Module
        Maps spectrograms (B, 1, F, T) to (B, N, 1, T).
    n_frequency_bands : int
        Bands, F.
    longest : int
        Frames on either side in the longest clip that is tried.

    Returns
    -------
    tuple of (int or None, int or None)
        Frames up to the current one, which is included, and frames after it: (3, 1) for a symmetric
        convolution of three frames with one before it. None where there is no bound. The second is what
        `dstrf` takes as ``lookahead``.

    Examples
    --------
    >>> measure_window(nn.Conv2d(1, 2, (8, 5), padding=(0, 2)), 8)
    (3, 2)
    """
    check_model(model)
    bands = check_positive_int("n_frequency_bands", n_frequency_bands)
    device, dtype = placement(model)
    with evaluating(model):
        like = torch.zeros(1, 1, bands, 1, device=device, dtype=dtype)
        return probe_window(model, like, check_positive_int("longest", longest))


def probe_window(
    respond: Callable[[Tensor], Tensor], like: Tensor, longest: int = LENGTHS[-1]
) -> tuple[int | None, int | None]:
    """Return the frames back and ahead that a function of (B, 1, F, T) depends on, as `measure_window`."""
    sides = [*(n for n in LENGTHS if n < longest), longest]
    for side in sides:
        back, ahead = _marked_extent(respond, like, side)
        if back is not None and ahead is not None:
            return back, ahead
    if back is not None or ahead is not None:
        return back, ahead
    generator = torch.Generator().manual_seed(0)
    for side in sides:
        touched, faded = _changed_around(respond, like, side, generator)
        back, ahead = _extent(touched, side)
        if faded or (back is not None and ahead is not None):
            break
    return back, ahead


def not_causal(ahead: int | None, lookahead: int = 0) -> str:
    """Return the error text for a model that looks ahead, or further than ``lookahead``."""
    if ahead is None:
        how = "without a bound. State how many of them each filter covers: dstrf(..., lookahead=10)"
    elif ahead == 0:  # an output that only some stimuli move
        how = "at times. State how many: dstrf(..., lookahead=10)"
    else:
        how = f"up to {ahead} after its own. Filters cover them with dstrf(..., lookahead={ahead})"
    what = (
        f"the model looks further ahead than lookahead={lookahead}"
        if lookahead
        else "the model is not causal"
    )
    return (
        f"{what}: a response depends on frames {how}. If it should be causal, pad "
        "convolutions on the left only, mask attention to later frames, and normalise by no statistics of "
        "the clip"
    )


def _marked_extent(
    respond: Callable[[Tensor], Tensor], like: Tensor, side: int
) -> tuple[int | None, int | None]:
    """Frames back and ahead that depend on a frame of NaN, the most over neighbouring frames."""
    back, ahead = 1, 0
    for place in range(side, side + min(PHASES, side)):
        found = _extent(_marked(respond, like, 2 * side, place), place)
        if None in found:
            return found
        back, ahead = max(back, found[0] or 1), max(ahead, found[1] or 0)
    return back, ahead


def _extent(touched: Tensor, place: int) -> tuple[int | None, int | None]:
    """Frames (T,) that change with one frame, as extent back and ahead; None is to the end of the clip."""
    if not bool(touched.any()):
        return 1, 0
    frames = touched.nonzero()
    first, last = int(frames.min()), int(frames.max())
    back = None if last == len(touched) - 1 else max(1, last - place + 1)
    return back, None if first == 0 else max(0, place - first)


def _changed_around(
    respond: Callable[[Tensor], Tensor], like: Tensor, side: int, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """Frames (T,) that change with one, and whether the change decays: it then extends to that end."""
    before, after = _responses(respond, like, 2 * side, side, 0.0, generator)
    size = (before - after).abs().reshape(-1, 2 * side).amax(0)
    touched = size > 0
    if not bool(touched.any()):
        return touched, False
    first, last = int(touched.nonzero().min()), int(touched.nonzero().max())
    least = ROUNDING * torch.finfo(before.dtype).eps * float(before.abs().max())
    # a frame beside its place that hardly changes is the end of a decay, and no edge of a window
    early, late = first < side and float(size[first]) <= least, last > side and float(size[last]) <= least
    touched[:first] |= early
    touched[last:] |= late
    return touched, early or late


def _nan_touched(
    respond: Callable[[Tensor], Tensor], like: Tensor, length: int, generator: torch.Generator
) -> Tensor | None:
    """Frames (T,) that a frame of NaN marks; None where it also marks earlier ones."""
    touched = _marked(respond, like, length, LEAD)
    return None if bool(touched[:LEAD].any()) else touched


def _changed(
    respond: Callable[[Tensor], Tensor], like: Tensor, length: int, generator: torch.Generator
) -> Tensor:
    """Frames (T,) whose output changes when one frame of random clips changes."""
    before, after = _responses(respond, like, length, LEAD, float(like.mean()), generator)
    return (before != after).reshape(-1, length).any(0)


def _marked(respond: Callable[[Tensor], Tensor], like: Tensor, length: int, place: int) -> Tensor:
    """Frames (T,) that one frame of NaN marks."""
    x = like.new_zeros(1, *like.shape[1:3], length)
    x[..., place] = torch.nan
    return torch.isnan(respond(x)).reshape(-1, length).any(0)


def _responses(
    respond: Callable[[Tensor], Tensor],
    like: Tensor,
    length: int,
    place: int,
    level: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Responses to random clips around a level, and to the same ones with another frame at one place."""
    spread = (float(like.std()) if like.numel() > 1 else 0.0) or 1.0
    clips = torch.randn(CLIPS, *like.shape[1:3], length, generator=generator).to(like) * spread + level
    changed = clips.clone()
    step = torch.randn(changed[..., place].shape, generator=generator).to(like)
    changed[..., place] += CHANGE * spread * step
    return respond(clips), respond(changed)
