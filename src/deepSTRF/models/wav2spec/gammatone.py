"""Strictly causal gammatone filterbank, a fixed model of cochlear filtering."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deepSTRF._validation import check_choice, check_positive_int, check_positive_number, checked
from deepSTRF.dsp.filterbank import plan_filterbank
from deepSTRF.dsp.gammatone import gammatone_bandwidth, gammatone_length, gammatone_resonators, gammatone_taps
from deepSTRF.dsp.pcen import PCEN_STARTS, pcen, pcen_initial_state, smooth_cube_root
from deepSTRF.dsp.scales import frequency_scale
from deepSTRF.models.configurable import designed_on_cpu
from deepSTRF.models.streaming import State
from deepSTRF.models.wav2spec.base import frequency_range, level_range, window_samples
from deepSTRF.models.wav2spec.filterbank import SAMPLES_PER_WINDOW, FixedFilterbank
from deepSTRF.registry import WAV2SPEC

__all__ = ["CausalGammatone"]

_DETECTORS = {"halfwave": "halfwave", "full": "full", "analytic": "magnitude"}
#: Largest stride of the analytic form, as a fraction of ``audio_fs / b``. Gammatones have wide skirts, in
#: which far tones beat, and a logarithm shows it. Errors stay under 1% of the range.
_STRIDE_PER_PERIOD = 0.03
#: Shortest time constant of the gain control, in bins: the mean then holds all but 5e-5 of the frame itself.
_SHORTEST_TAU_BINS = 0.1
#: Energy that the impulse responses of ringing filters, as they are shown, leave out.
_RINGING_TAIL = 1e-12


@WAV2SPEC.register("gammatone")
class CausalGammatone(FixedFilterbank):
    """Gammatone filters, rectified, averaged over a causal window and compressed. It has no parameters.

    Each filter is a true causal convolution: after a click, the envelope of a channel peaks ``(order - 1) /
    (2 pi b)`` later, 6 ms at 500 Hz and 0.2 ms at 20 kHz, as a travelling wave does. Filters have unit peak
    gain.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F, equally spaced in ERB-rate from ``f_min`` to ``f_max``, both included.
    hop_ms : float
        Bin width in ms; the hop in samples must be whole.
    f_min : float
        First centre frequency in hertz, above 0.
    f_max : float or None
        Last centre frequency; None is 22,627 or Nyquist, whichever is lower.
    order : int
        Order of the filters.
    b_factor : float
        Bandwidth in equivalent rectangular bandwidths.
    kernel_ms : float or None
        Longest kernel in ms. None: as long as each filter needs (all but 1e-8 of its energy, 33 ms at 500
        Hz); rectified filters ring on for ever, at a fraction of the cost.
    rectify : {"halfwave", "full", "analytic"}
        Positive part, absolute value, or the magnitude of the analytic filter, which has no ripple at twice
        the frequency.
    env_window_ms : float or None
        Length of the averaging window in ms; None is two bins. It is flat, but a Hann window for
        ``"analytic"``.
    compression : {"log", "cuberoot", "pcen", "none"}
        ``ln(max(E, log_floor))``, cube root, gain control, or nothing.
    log_floor : float
        Threshold of the logarithm.
    pcen_tau_ms : float
        Time constant of the gain control in ms.
    pcen_alpha, pcen_delta, pcen_r, pcen_eps : float
        Its strength, bias, exponent and floor (`deepSTRF.dsp.pcen`).
    pcen_start : {"debiased", "zero", "first"}
        How its running mean begins.
    max_stride : int or None
        Largest stride of the analytic form, in samples; 1 is the textbook form. The other rectifiers always
        run at stride 1.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments; among them an explicit ``f_max`` above Nyquist, a window shorter than the hop,
        and a hop that is no integer.

    References
    ----------
    Patterson et al. 1992, "Complex sounds and auditory images"; Glasberg & Moore 1990, doi
    10.1016/0378-5955(90)90170-T; PCEN: Wang et al. 2017, doi 10.1109/ICASSP.2017.7953242.

    Examples
    --------
    >>> gammatone = CausalGammatone(audio_fs=16000, n_filters=8, compression="pcen")
    >>> gammatone(torch.zeros(1, 1, 1600)).shape
    torch.Size([1, 1, 8, 20])
    """

    _fc: Tensor

    @checked
    def __init__(
        self,
        audio_fs: float,
        n_filters: int = 34,
        hop_ms: float = 5.0,
        f_min: float = 500.0,
        f_max: float | None = None,
        order: int = 4,
        b_factor: float = 1.019,
        kernel_ms: float | None = None,
        rectify: str = "halfwave",
        env_window_ms: float | None = None,
        compression: str = "log",
        log_floor: float = 1e-4,
        pcen_tau_ms: float = 197.5,
        pcen_alpha: float = 0.98,
        pcen_delta: float = 2.0,
        pcen_r: float = 0.5,
        pcen_eps: float = 1e-6,
        *,
        pcen_start: str = "debiased",
        max_stride: int | None = None,
    ) -> None:
        super().__init__(audio_fs, n_filters, hop_ms)
        check_choice("rectify", rectify, tuple(_DETECTORS))
        check_choice("compression", compression, ("log", "cuberoot", "pcen", "none"))
        check_choice("pcen_start", pcen_start, PCEN_STARTS)
        self.f_min, self.f_max = frequency_range(f_min, f_max, self.audio_fs)
        check_positive_number("f_min", self.f_min)
        self.order = check_positive_int("order", order)
        self.b_factor = check_positive_number("b_factor", b_factor)
        self.rectify, self.compression, self.pcen_start = rectify, compression, pcen_start
        self.log_floor = check_positive_number("log_floor", log_floor)
        self.pcen_tau_ms = check_positive_number("pcen_tau_ms", pcen_tau_ms)
        if compression == "pcen" and self.pcen_tau_ms < _SHORTEST_TAU_BINS * self.hop_ms:
            raise ValueError(
                f"pcen_tau_ms={pcen_tau_ms:g} is a time constant in ms, much shorter than a bin of "
                f"{self.hop_ms:g} ms: the mean would be the frame itself. The share s of each frame that "
                "the earlier deepSTRF took in its place is pcen_tau_ms=-hop_ms / math.log(1 - s)"
            )
        self.pcen_alpha = check_positive_number("pcen_alpha", pcen_alpha)
        self.pcen_delta = check_positive_number("pcen_delta", pcen_delta)
        self.pcen_r = check_positive_number("pcen_r", pcen_r)
        self.pcen_eps = check_positive_number("pcen_eps", pcen_eps)
        window_ms = 2.0 * self.hop_ms if env_window_ms is None else env_window_ms
        self.env_window = window_samples("env_window_ms", window_ms, self.audio_fs, self.hop)
        self._design(kernel_ms, max_stride)

    @designed_on_cpu
    def _design(self, kernel_ms: float | None, max_stride: int | None) -> None:
        """Plan kernel lengths and strides per group, then set the filters."""
        center = frequency_scale("erb").points(self.f_min, self.f_max, self.n_filters)
        self.register_constant("_fc", center)
        needed = gammatone_length(center, self.audio_fs, self.order, self.b_factor)
        longest = max(needed)
        if kernel_ms is not None:
            longest = window_samples("kernel_ms", kernel_ms, self.audio_fs, self.hop)
        sizes = [min(size, longest) for size in needed]
        analytic = self.rectify == "analytic"
        rings = not analytic and sizes == needed  # a truncated filter is no resonator
        if rings:
            sizes = gammatone_length(center, self.audio_fs, self.order, self.b_factor, _RINGING_TAIL)
        limit = 1.0
        if analytic:
            smooth = self.env_window / SAMPLES_PER_WINDOW
            limit = smooth if max_stride is None else check_positive_number("max_stride", max_stride)
        periods = (float(self.audio_fs) / gammatone_bandwidth(center, self.b_factor)).tolist()
        strides = [min(_STRIDE_PER_PERIOD * period, limit) for period in periods]
        plan = plan_filterbank(sizes, strides, self.hop, n_parts=2 if analytic else 1)
        self.set_plan(plan, _DETECTORS[self.rectify], self.env_window)
        self._set_filters(center, analytic, rings)

    def _set_filters(self, center: Tensor, analytic: bool, rings: bool) -> None:
        """Set taps, averaging windows and resonators, designed in float64."""
        taps = []
        for group in self.plan.groups:
            filters = gammatone_taps(
                center[group.start : group.stop], self.audio_fs, group.kernel_size, self.order, self.b_factor
            ).flip(-1)
            taps.append(torch.stack([filters.real, filters.imag] if analytic else [filters.real]))
        channel, age = self.plan.window_layout(self.pooled_bins)
        if analytic:  # a smooth window, which may be sampled at the stride
            window = torch.sin(math.pi * ((age.double() + 0.5) / self.env_window).clamp_max(1.0)).square()
        else:
            window = (age < self.env_window).double()
        total = torch.zeros(self.n_filters, dtype=torch.float64).index_add(0, channel, window)
        resonators = None
        if rings:
            longest = self.plan.max_kernel_size
            resonators = gammatone_resonators(center, self.audio_fs, longest, self.order, self.b_factor)
        self.set_filters(taps, window / total[channel], resonators)

    @property
    def impulse_responses(self) -> Tensor:
        """Impulse responses of the filters (F, K_max), by age: real, with unit peak gain."""
        rows = [
            torch.nn.functional.pad(taps[0].flip(-1), (0, self.plan.max_kernel_size - taps.shape[-1]))
            for taps in self.plan.split_taps(self._taps)
        ]
        return torch.cat(rows)

    def compress(
        self, energy: Tensor, values: tuple[Tensor, ...], state: State | None
    ) -> tuple[Tensor, State]:
        """Compress averaged envelopes (B, F, T)."""
        if self.compression == "log":
            return energy.clamp_min(self.log_floor).log(), {}
        if self.compression == "cuberoot":
            return smooth_cube_root(energy), {}
        if self.compression == "pcen":
            decay = self.hop_ms / self.pcen_tau_ms
            return pcen(
                energy, decay, self.pcen_alpha, self.pcen_delta, self.pcen_r,
                eps=self.pcen_eps, start=self.pcen_start, state=state,
            )  # fmt: skip
        return energy, {}

    def init_compression(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """Initial state of the running means."""
        if self.compression != "pcen":
            return {}
        return dict(
            pcen_initial_state(batch, self.n_filters, start=self.pcen_start, device=device, dtype=dtype)
        )

    def public_constants(self) -> dict[str, tuple[int, ...] | None]:
        """Centre frequencies and kernels."""
        return {"_fc": (self.n_filters,), "_kernels": None}

    def public_difference(self, stored: Mapping[str, Tensor]) -> list[str]:
        """The public filters were reversed in time."""
        if stored.keys().isdisjoint(self.public_constants()):
            return []
        return [
            "its gammatone filters were reversed in time (a click peaked 14 to 20 ms late), all cut at "
            "kernel_ms, and its gain control began at zero; EarlierGammatone has them as they were"
        ]

    @property
    def expected_level(self) -> tuple[float, float] | None:
        """Range of the rms of sounds that floor and compression are made for; None: any level is the same."""
        return level_range(self.compression, self.pcen_eps if self.compression == "pcen" else self.log_floor)

    @property
    def output_floor(self) -> float | None:
        """Logarithm of the floor."""
        return math.log(self.log_floor) if self.compression == "log" else None

    @property
    def frequencies_hz(self) -> Tensor:
        """Centre frequencies (F,) in hertz."""
        return self._fc
