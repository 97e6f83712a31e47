"""A closed loop: sounds go out in chunks, and what answers them (a stream, a server, a rig) gives rates back.

One small interface serves all: a function from the next samples to the rates of the bins that they complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from deepSTRF._validation import (
    FloatArray,
    as_numbers,
    check_choice,
    check_flag,
    check_positive_int,
    check_positive_number,
    checked,
    checked_but,
)
from deepSTRF.models.prediction import PER_SECOND

#: Units of responses that `deepSTRF.datasets.NeuralDataset.normalized` made.
NORMALIZED = ("fraction of maximum", "z-score")
#: What sound cards take at a time.
CHUNK_MS = 20.0


class ClosedLoop:
    """Neurons that answer sounds chunk by chunk, trial after trial.

    The target is a function ``respond(samples) -> rates`` or an object with a method ``push`` that is one (a
    `deepSTRF.streaming.Stream`): it takes the next samples (n,) and returns the rates (N, m) of the bins that
    they complete, or (m,) of one neuron. A connection to a server, or a rig that plays samples and counts
    spikes, is such a function of a few lines. Probes, `Presentation` and `search_sound` take a `ClosedLoop`
    where they take a model; a stream needs none around it unless an option differs.

    Between trials the state of the target is reset or carried on. Reset, every trial starts from rest, and
    trials are independent. Carried, a sound is heard after those before it and the silence between them
    (``lead_ms`` of `Presentation`), as by a real neuron: what adapts for longer than that silence then
    depends on the order of the sounds.

    Parameters
    ----------
    target : callable, or object with ``push``
        What answers; a method ``reset()`` puts it at rest.
    audio_fs : float, optional
        Samples per second. None is ``target.audio_fs``; where there is none, the target takes spectrograms
        (F, n) in whole frames in place of samples.
    dt_ms : float, optional
        Bin in ms. None is ``target.dt_ms``.
    chunk_ms : float
        Sound that is pushed at a time; the last chunk of a trial may be shorter. Results do not depend on it.
    between : {None, "reset", "carry"}
        What becomes of the state between trials. None resets where the target has ``reset()``.
    spikes : bool
        Draw Poisson counts whose means are the rates (in spikes per bin, below 0 taken as 0), as of a neuron
        that is heard once.
    n_repeats : int
        Trials of each sound that are averaged.
    seed : int
        Of the spikes.

    Attributes
    ----------
    model : nn.Module or None
        ``target.model``, from which probes read bands and memory.
    n_trials : int
        Trials so far, repeats included.
    played_ms : float
        Sound so far, the silence before each included.

    Raises
    ------
    TypeError, ValueError
        For a target that answers nothing, a bin or rate that is not known, a reset that it does not have, or
        spikes of a model whose rates are not per bin.

    References
    ----------
    DiMattina & Zhang 2013, doi 10.3389/fncir.2013.00101.

    Examples
    --------
    >>> def respond(samples):                              # a neuron that measures the level of each bin
    ...     return np.sqrt((samples.reshape(-1, 80) ** 2).mean(axis=1))
    >>> loop = ClosedLoop(respond, audio_fs=16000, dt_ms=5.0)
    >>> loop.trial(np.full(400, 0.5)).tolist(), loop.n_trials
    ([[0.5, 0.5, 0.5, 0.5, 0.5]], 1)
    """

    @checked_but("target")
    def __init__(
        self,
        target: Any,
        *,
        audio_fs: float | None = None,
        dt_ms: float | None = None,
        chunk_ms: float = CHUNK_MS,
        between: str | None = None,
        spikes: bool = False,
        n_repeats: int = 1,
        seed: int = 0,
    ) -> None:
        self.target = target
        respond = getattr(target, "push", target)
        if not callable(respond) or isinstance(respond, nn.Module):
            raise TypeError(
                f"target must be a function respond(samples) -> rates or have push(samples), got "
                f"{type(target).__name__}; a model is streamed by deepSTRF.streaming.Stream(model)"
            )
        self._respond: Callable[[FloatArray], Any] = respond
        model = getattr(target, "model", None)
        self.model: nn.Module | None = model if isinstance(model, nn.Module) else None
        audio_fs = self._agreed("audio_fs", audio_fs, getattr(target, "audio_fs", None))
        dt_ms = self._agreed("dt_ms", dt_ms, getattr(target, "dt_ms", None))
        if audio_fs is not None and self.model is not None and target.audio_fs is None:
            raise ValueError(
                "this stream takes spectrograms: leave audio_fs out, and give Presentation(loop, "
                "cochleagram=..., audio_fs=..., dt_ms=...), which makes them from sounds"
            )
        if dt_ms is None:
            raise ValueError(
                "dt_ms must be given, the bin of the rates in ms: it is not known from the target"
            )
        self.audio_fs = None if audio_fs is None else check_positive_number("audio_fs", audio_fs)
        self.dt_ms = check_positive_number("dt_ms", dt_ms)
        per_ms = 1.0 / self.dt_ms if self.audio_fs is None else self.audio_fs / 1000.0
        self._chunk = max(1, round(check_positive_number("chunk_ms", chunk_ms) * per_ms))
        check_choice("between", between, (None, "reset", "carry"))
        resets = callable(getattr(target, "reset", None))
        if between == "reset" and not resets:
            raise ValueError("between='reset' needs a target with a method reset(); between='carry' goes on")
        self.between = between or ("reset" if resets else "carry")
        self.spikes = check_flag("spikes", spikes)
        unit = getattr(getattr(self.model, "fitted_on", None), "response_unit", None)
        if self.spikes and unit is not None and (unit in NORMALIZED or PER_SECOND.search(unit)):
            raise ValueError(
                f"spikes=True draws counts whose means are the rates, and this model predicts {unit!r}: "
                "stream a model of spikes per bin, or give a function that turns its rates into them"
            )
        self.n_repeats = check_positive_int("n_repeats", n_repeats)
        self._rng = np.random.default_rng(seed)
        self.n_trials, self.played_ms = 0, 0.0

    @checked
    def trial(self, sound: Any) -> FloatArray:
        """Play one sound once and return the rates, or the spikes.

        Parameters
        ----------
        sound : array (T_audio,), or (F, T) for a target that takes spectrograms
            Whole bins.

        Returns
        -------
        array (N, T)
            Rates in the unit of the target, or counts.

        Raises
        ------
        ValueError
            For a sound that is not whole bins, or an answer that is not (N, m), holds NaN or infinity, or
            does not have as many bins as the sound.
        """
        samples = as_numbers(sound, "sound")
        axes = 2 if self.audio_fs is None else 1
        hop = 1.0 if self.audio_fs is None else self.audio_fs * self.dt_ms / 1000.0
        whole = round(hop) if abs(hop - round(hop)) < 1e-6 else 1  # rates of recorders have no whole bins
        if samples.ndim != axes or samples.size == 0 or not np.isfinite(samples).all():
            raise ValueError(
                f"sound must be finite and {'(F, T)' if axes == 2 else '(T_audio,)'}, got {samples.shape}"
            )
        if samples.shape[-1] % whole:
            raise ValueError(
                f"sound must be whole bins of {whole} samples, got {samples.shape[-1]}: what is left would "
                "shift the bins of later trials; add silence"
            )
        if self.between == "reset":
            self.target.reset()
        starts = range(0, samples.shape[-1], self._chunk)
        rates = np.concatenate(
            [self._answer(samples[..., start : start + self._chunk]) for start in starts], axis=1
        )
        length_ms = samples.shape[-1] * (self.dt_ms if self.audio_fs is None else 1000.0 / self.audio_fs)
        n_bins = round(length_ms / self.dt_ms)
        if rates.shape[1] != n_bins:
            raise ValueError(
                f"the target answered {length_ms:g} ms with {rates.shape[1]} bins of {self.dt_ms:g} ms, not "
                f"{n_bins}: sounds must be whole bins, and every bin answered when its last sample is pushed"
            )
        self.n_trials += 1
        self.played_ms += length_ms
        return self._rng.poisson(np.maximum(rates, 0.0)).astype(np.float64) if self.spikes else rates

    @checked
    def mean(self, sound: Any) -> FloatArray:
        """Play one sound ``n_repeats`` times and return the mean (N, T)."""
        return np.asarray(sum(self.trial(sound) for _ in range(self.n_repeats)) / self.n_repeats)

    def _answer(self, chunk: FloatArray) -> FloatArray:
        rates = as_numbers(self._respond(chunk), "the answer")
        rates = rates[None] if rates.ndim == 1 else rates
        if rates.ndim != 2 or not np.isfinite(rates).all():
            raise ValueError(
                f"the target must answer with finite rates (N, bins) or (bins,), got shape {rates.shape}"
                f"{' with NaN or infinity' if rates.ndim == 2 else '; a Stream must be one (batch=1)'}"
            )
        return rates

    @staticmethod
    def _agreed(name: str, given: float | None, known: float | None) -> float | None:
        if known is None:
            return given
        if given is not None and abs(given - known) > 1e-9 * known:
            raise ValueError(f"{name} must be {known:g}, as of the target, or left out; got {given:g}")
        return float(known)


def as_loop(target: Any, **options: Any) -> ClosedLoop:
    """Return a closed loop as it is, or one with these options around what answers by itself."""
    return target if isinstance(target, ClosedLoop) else ClosedLoop(target, **options)
