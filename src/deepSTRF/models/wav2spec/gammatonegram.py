"""Strictly causal gammatone-gram, after Slaney, Ellis and Heeris."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepSTRF._validation import check_choice, check_positive_number, checked
from deepSTRF.dsp.filterbank import plan_filterbank
from deepSTRF.dsp.gammatone import (
    gammatone_length,
    slaney_centers,
    slaney_impulse_responses,
    slaney_resonators,
)
from deepSTRF.models.configurable import designed_on_cpu
from deepSTRF.models.streaming import State
from deepSTRF.models.wav2spec.base import frequency_range, level_range, warn_of_gaps
from deepSTRF.models.wav2spec.filterbank import FixedFilterbank
from deepSTRF.registry import WAV2SPEC

__all__ = ["Gammatonegram"]

#: Default upper frequency in hertz, where Nyquist allows it.
_DEFAULT_F_MAX_HZ = 8000.0
#: Default window in ms, for bins of up to twice its length.
_WINDOW_MS = 2.5
#: Added to the mean square before the root: keeps the gradient finite at silence (an amplitude of 1e-9).
_ROOT_FLOOR = 1e-18
#: Energy that the impulse responses, as they are shown, leave out.
_TAIL = 1e-12


@WAV2SPEC.register("gammatonegram")
class Gammatonegram(FixedFilterbank):
    """Root mean square of Slaney's gammatone cascade over a window at the start of each bin. No parameters.

    Frame ``t`` is the root of the mean square over the samples ``[t * hop, t * hop + window)``, which all lie
    inside bin ``t``. The cascade is designed in float64 as one resonator of fourfold poles per band, so
    results agree with a float64 recursion of its sections to 1e-5.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F.
    hop_ms : float
        Bin width in ms; the hop in samples must be whole.
    window_ms : float or None
        Window in ms, at most one bin. None is 2.5 ms in bins of up to 5 ms (or the bin, if that is shorter),
        and the whole of longer bins, of which it would leave most unheard.
    f_min : float
        Lowest centre frequency in hertz.
    f_max : float or None
        The highest centre lies one step below it; None is 8,000 or Nyquist, whichever is lower.
    compression : {"log1p", "log", "none"}
        ``ln(1 + x)``, ``ln(max(x, log_floor))``, or nothing.
    log_floor : float
        Threshold of the logarithm.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments; among them a window longer than the hop and an explicit ``f_max`` above
        Nyquist.

    References
    ----------
    Slaney 1993, Apple Technical Report 35; Ellis 2009, "Gammatone-like spectrograms" (web resource).

    Examples
    --------
    >>> gram = Gammatonegram(audio_fs=16000, n_filters=10, f_max=6000.0)
    >>> gram(torch.zeros(1, 1, 1600)).shape
    torch.Size([1, 1, 10, 20])
    """

    _fc: Tensor

    @checked
    def __init__(
        self,
        audio_fs: float,
        n_filters: int = 50,
        hop_ms: float = 5.0,
        window_ms: float | None = None,
        f_min: float = 1000.0,
        f_max: float | None = None,
        compression: str = "log1p",
        log_floor: float = 1e-8,
    ) -> None:
        super().__init__(audio_fs, n_filters, hop_ms)
        check_choice("compression", compression, ("log1p", "log", "none"))
        self.compression = compression
        self.log_floor = check_positive_number("log_floor", log_floor)
        self.f_min, self.f_max = frequency_range(f_min, f_max, self.audio_fs, ceiling_hz=_DEFAULT_F_MAX_HZ)
        if window_ms is None:
            window_ms = min(_WINDOW_MS, self.hop_ms) if self.hop_ms <= 2.0 * _WINDOW_MS else self.hop_ms
        self.window = round(float(self.audio_fs) * check_positive_number("window_ms", window_ms) / 1000.0)
        if not 1 <= self.window <= self.hop:
            raise ValueError(
                f"window_ms={window_ms:g} ms ({self.window} samples) must hold at least one sample and at "
                f"most one bin ({self.hop} samples); give at most {self.hop_ms:g} ms"
            )
        self._design()

    @designed_on_cpu
    def _design(self) -> None:
        """Plan kernel lengths per group, then set the filters."""
        center = slaney_centers(self.f_min, self.f_max, self.n_filters)
        sizes = gammatone_length(center, self.audio_fs, tail=_TAIL)
        plan = plan_filterbank(sizes, [1.0] * len(center), self.hop, n_parts=1)
        self.set_plan(plan, "square", self.hop)
        self.register_constant("_fc", center)
        taps = [
            slaney_impulse_responses(center[group.start : group.stop], self.audio_fs, group.kernel_size)
            for group in plan.groups
        ]
        _, age = plan.window_layout(1)
        # the first samples of a bin are its oldest
        windows = (age >= self.hop - self.window).double() / self.window
        # a sample after the window is heard by what it leaves in the next one
        place, marks = torch.arange(self.hop), torch.zeros(self.hop, dtype=torch.float64)
        for rows in taps:
            energy = torch.nn.functional.pad(rows.square(), (1, 2 * self.hop)).cumsum(-1)
            inside = energy[:, (self.window - place).clamp_min(0)]
            following = energy[:, self.hop - place + self.window] - energy[:, self.hop - place]
            marks = torch.maximum(marks, (torch.maximum(inside, following) / energy[:, -1:]).amax(0).sqrt())
        given = f"window_ms={1000.0 * self.window / self.audio_fs:g} ms"
        warn_of_gaps(self, given, marks, f"give window_ms={self.hop_ms:g}, or leave it out")
        resonators = slaney_resonators(center, self.audio_fs, max(sizes))
        self.set_filters([rows.flip(-1).unsqueeze(0) for rows in taps], windows, resonators)

    def compress(
        self, energy: Tensor, values: tuple[Tensor, ...], state: State | None
    ) -> tuple[Tensor, State]:
        """Take the root of mean squares (B, F, T) and compress."""
        level = (energy + _ROOT_FLOOR).sqrt()
        if self.compression == "log1p":
            return level.log1p(), {}
        if self.compression == "log":
            return level.clamp_min(self.log_floor).log(), {}
        return level, {}

    def public_constants(self) -> dict[str, tuple[int, ...] | None]:
        """Coefficients of the cascade."""
        return dict.fromkeys(("a_coeffs", "b1", "b2", "b3", "b4", "gain", "_fc"))

    @property
    def expected_level(self) -> tuple[float, float] | None:
        """Range of the rms of sounds that floor and compression are made for; None: any level is the same."""
        return level_range(self.compression, self.log_floor)

    @property
    def output_floor(self) -> float | None:
        """Logarithm of the floor."""
        return math.log(self.log_floor) if self.compression == "log" else None

    @property
    def frequencies_hz(self) -> Tensor:
        """Centre frequencies (F,) in hertz."""
        return self._fc
