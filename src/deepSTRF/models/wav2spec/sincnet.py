"""Strictly causal SincNet: band-pass filters whose two cutoffs are learned."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    check_choice,
    check_flag,
    check_positive_int,
    check_positive_number,
    checked,
    outside_level,
)
from deepSTRF.dsp.filterbank import FilterbankPlan, FilterGroup, plan_filterbank
from deepSTRF.dsp.filters import sinc_bandpass, symmetric_window
from deepSTRF.dsp.scales import bounded_shift, frequency_scale, mel_distance, shift_in_mel
from deepSTRF.models.configurable import designed_on_cpu
from deepSTRF.models.io.legacy import check_converted, replace_tensors, solve_shift
from deepSTRF.models.streaming import State
from deepSTRF.models.wav2spec.base import frequency_range, full_precision, level_range, window_samples
from deepSTRF.models.wav2spec.filterbank import SAMPLES_PER_WINDOW, PooledFilterbank
from deepSTRF.registry import WAV2SPEC

__all__ = ["SincNet"]

#: Centre and width of a band at the lowest cutoff depend on each other a little: a conversion solves them in
#: alternation, this many times.
_TURNS = 4
#: Default kernel length in samples.
_KERNEL_SIZE = 251
#: Lowest cutoff in hertz.
_LOWEST_HZ = 1.0
#: Transition width of a Hamming-windowed filter, times kernel length over rate (Harris 1978, doi
#: 10.1109/PROC.1978.10837).
_HAMMING_TRANSITION = 3.3
#: Broadest band that learning may reach, relative to the start; more costs time (smaller strides).
_BROADEST = 2.0
#: Samples kept per period of the bandwidth (transition included): keeps the error under 1% of the range.
_SAMPLES_PER_BANDWIDTH = 2.0


@WAV2SPEC.register("sincnet")
class SincNet(PooledFilterbank):
    """Windowed-sinc band-pass filters, two learned cutoffs each, as a signed signal or as an envelope.

    ``h[n] = w[n] (sin(2 pi f2 n / fs) - sin(2 pi f1 n / fs)) / (pi n)`` with a symmetric Hamming window,
    times a constant gain. The two parameters of a channel are shifts from the documented start in scale-free
    units: the centre moves in channel spacings along the mel scale, the width in logs. `f1` and `f2` are
    read-only, in hertz; ``0 < f1 < f2 <= fs / 2`` holds by construction for any parameter values.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F.
    kernel_size : int or None
        Taps of every filter, K. The transition of a band edge is ``3.3 fs / K`` wide; the delay is ``(K - 1)
        / 2``. None is 251, but no less than a bin for signed samples, which hear nothing outside their taps.
    hop_ms : float
        Bin width in ms; the hop in samples must be whole.
    f_min : float
        Lower cutoff of the first band in hertz, at least 1.
    f_max : float or None
        Upper cutoff of the last band; None is Nyquist.
    init : {"mel", "linear"}
        Spacing of the ``F + 1`` edges at the start; neighbouring bands touch.
    activation : {"symlog", "logabs", "none"}
        ``sign(x) ln(1 + |x|)``, ``ln(1 + |x|)``, or nothing.
    envelope : bool
        False: one signed sample of the filtered sound per frame, for deep models that extract envelopes
        themselves. True: the envelope, averaged over ``env_window_ms``.
    env_window_ms : float or None
        Averaging window in ms; None is two bins for the analytic envelope, one for ``rectify="abs"``.
    rectify : {"analytic", "abs"}
        ``"analytic"``: magnitude of the filter and its quadrature partner, which has no ripple, under a
        causal Hann window. ``"abs"``: the published form, absolute value under a flat window, at stride 1.
    parameterization : {"spacing", "hertz"}
        ``"hertz"`` (or ``"hz"``) keeps the raw cutoffs as parameters, which hardly move under Adam: for
        comparison.
    norm : {None, "start", "unit", "peak"}
        Gain in the band. ``"unit"``: 1. ``"peak"``: ``fs / (2 (f2 - f1))``, the published division by the
        centre tap, under which a band that widens grows quieter. ``"start"``: that gain, held at its value at
        the start. None is ``"start"`` for the analytic envelope and ``"unit"`` otherwise: ``ln(1 + x)``
        compresses nothing and a linear readout learns next to nothing from envelopes of a few hundredths,
        which is what natural sound leaves in a narrow band of gain 1.
    max_stride : int or None
        Largest stride of the analytic form, in samples; 1 is the textbook form. None: chosen per group of
        channels, with errors under 1% of the output's range while bands stay below twice their first width.

    Attributes
    ----------
    center_shift, width_shift : nn.Parameter
        (F,) shifts: channel spacings, log width (``parameterization="spacing"``).
    low_hz_, band_hz_ : nn.Parameter
        (F,) raw cutoff and width in hertz (``parameterization="hertz"``).

    Raises
    ------
    TypeError, ValueError
        For illegal arguments; among them an explicit ``f_max`` above Nyquist, an envelope window shorter than
        the hop, and a hop that is no integer.

    References
    ----------
    Ravanelli & Bengio 2018, doi 10.1109/SLT.2018.8639585.

    Examples
    --------
    >>> sincnet = SincNet(audio_fs=16000, n_filters=8, kernel_size=251, envelope=True)
    >>> sincnet(torch.zeros(1, 1, 1600)).shape
    torch.Size([1, 1, 8, 20])
    >>> sincnet.f1[0].item(), sincnet.f2[-1].item()
    (300.0, 8000.0)
    """

    _low: Tensor
    _high: Tensor
    _center: Tensor
    _width: Tensor
    _spacing: Tensor
    _room_down: Tensor
    _room_up: Tensor
    _narrower: Tensor
    _start_gain: Tensor
    _offset: Tensor
    _taper: Tensor
    _tap_channel: Tensor
    _windows: Tensor
    center_shift: nn.Parameter
    width_shift: nn.Parameter
    low_hz_: nn.Parameter
    band_hz_: nn.Parameter

    @checked
    def __init__(
        self,
        audio_fs: float,
        n_filters: int = 34,
        kernel_size: int | None = None,
        hop_ms: float = 5.0,
        f_min: float = 300.0,
        f_max: float | None = None,
        init: str = "mel",
        activation: str = "logabs",
        envelope: bool = False,
        env_window_ms: float | None = None,
        *,
        rectify: str = "analytic",
        parameterization: str = "spacing",
        norm: str | None = None,
        max_stride: int | None = None,
    ) -> None:
        super().__init__(audio_fs, n_filters, hop_ms)
        check_choice("init", init, ("mel", "linear"))
        check_choice("activation", activation, ("symlog", "logabs", "none"))
        check_choice("rectify", rectify, ("analytic", "abs"))
        check_choice("parameterization", parameterization, ("spacing", "hertz", "hz"))
        check_choice("norm", norm, (None, "start", "unit", "peak"))
        self.envelope = check_flag("envelope", envelope)
        if kernel_size is None:
            kernel_size = _KERNEL_SIZE if self.envelope else max(_KERNEL_SIZE, self.hop | 1)
        self.kernel_size = check_positive_int("kernel_size", kernel_size)
        if not self.envelope and self.kernel_size < self.hop:
            warnings.warn(
                f"SincNet with kernel_size={self.kernel_size} and envelope=False never hears "
                f"{100.0 * (1.0 - self.kernel_size / self.hop):.2g}% of the sound: give a kernel_size of at "
                f"least one bin ({self.hop} samples), or leave it out, or take envelope=True",
                UserWarning,
                stacklevel=outside_level(),
            )
        self.activation, self.rectify = activation, rectify
        self.norm = norm or ("start" if self.envelope and rectify == "analytic" else "unit")
        self.parameterization = "hertz" if parameterization == "hz" else parameterization
        self.f_min, self.f_max = frequency_range(f_min, f_max, self.audio_fs, ceiling_hz=math.inf)
        if self.f_min < _LOWEST_HZ:
            raise ValueError(f"f_min must be at least {_LOWEST_HZ:g} Hz, got {f_min!r}")
        bins = 2.0 if rectify == "analytic" else 1.0
        window_ms = bins * self.hop_ms if env_window_ms is None else env_window_ms
        self.env_window = window_samples("env_window_ms", window_ms, self.audio_fs, self.hop)
        self._register_cutoffs("htk" if init == "mel" else "linear")
        self._register_bank(max_stride)

    @designed_on_cpu
    def _register_cutoffs(self, scale: str) -> None:
        """Register the start (touching bands), the limits of learning, and the parameters."""
        edges = frequency_scale(scale).points(self.f_min, self.f_max, self.n_filters + 1)
        low, high = edges[:-1], edges[1:]
        width, nyquist = high - low, float(self.audio_fs) / 2.0
        floor = torch.minimum(torch.full_like(width, float(self.audio_fs) / self.kernel_size), width / 2.0)
        center = (low + high) / 2.0
        constants = {
            "_low": low, "_high": high, "_center": center, "_width": width,
            "_spacing": mel_distance(low, high),
            "_room_down": mel_distance(_LOWEST_HZ + floor / 2.0, center),
            "_room_up": mel_distance(center, nyquist - floor / 2.0),
            "_narrower": torch.log(width / floor),
            "_start_gain": float(self.audio_fs) / (2.0 * width),
        }  # fmt: skip
        for name, value in constants.items():
            self.register_constant(name, value)
        dtype = torch.get_default_dtype()
        if self.parameterization == "hertz":
            self.low_hz_ = nn.Parameter(low.to(dtype))
            self.band_hz_ = nn.Parameter(width.to(dtype))
        else:
            self.center_shift = nn.Parameter(torch.zeros(self.n_filters, dtype=dtype))
            self.width_shift = nn.Parameter(torch.zeros(self.n_filters, dtype=dtype))

    @designed_on_cpu
    def _register_bank(self, max_stride: int | None) -> None:
        """Fix strides for every width that learning may reach, and register offsets and windows."""
        sizes = [self.kernel_size] * self.n_filters
        if not self.envelope:
            plan = FilterbankPlan(self.hop, (FilterGroup(0, self.n_filters, self.kernel_size, self.hop, 1),))
            self.set_plan(plan, "none", self.hop)
        elif self.rectify == "abs":
            self.set_plan(
                plan_filterbank(sizes, [1.0] * len(sizes), self.hop, n_parts=1), "full", self.env_window
            )
        else:
            smooth = self.env_window / SAMPLES_PER_WINDOW
            limit = smooth if max_stride is None else check_positive_number("max_stride", max_stride)
            transition = _HAMMING_TRANSITION * float(self.audio_fs) / self.kernel_size
            broadest = _BROADEST * self._exact["_width"] + transition
            strides = (float(self.audio_fs) / (_SAMPLES_PER_BANDWIDTH * broadest)).clamp_max(limit).tolist()
            self.set_plan(plan_filterbank(sizes, strides, self.hop), "magnitude", self.env_window)
        channel, age = self.plan.tap_layout
        self.register_constant("_tap_channel", channel)
        self.register_constant("_offset", (self.kernel_size - 1) / 2.0 - age)
        self.register_constant("_taper", symmetric_window("hamming", self.kernel_size)[age])
        channel, age = self.plan.window_layout(self.pooled_bins)
        if not self.envelope:
            window = torch.ones(len(age), dtype=torch.float64)
        elif self.rectify == "abs":
            window = (age < self.env_window).double()
        else:
            window = torch.sin(math.pi * ((age.double() + 0.5) / self.env_window).clamp_max(1.0)).square()
        total = torch.zeros(self.n_filters, dtype=torch.float64).index_add(0, channel, window)
        self.register_constant("_windows", window / total[channel])

    def _cutoffs(self) -> tuple[Tensor, Tensor]:
        """Return lower and upper cutoffs (F,) in hertz, in order and in range whatever the parameters are."""
        nyquist = float(self.audio_fs) / 2.0
        if self.parameterization == "hertz":
            low = full_precision(self.low_hz_).abs().clamp(_LOWEST_HZ, nyquist - _LOWEST_HZ)
            band = full_precision(self.band_hz_).abs().clamp_min(_LOWEST_HZ)
            return low, (low + band).clamp_max(nyquist)
        shift = bounded_shift(self._spacing * self.center_shift, self._room_down, self._room_up)
        center = shift_in_mel(self._center, shift)
        factor = torch.exp(bounded_shift(self.width_shift, self._narrower, math.log(_BROADEST)))
        half = 0.5 * self._width * factor
        # the centre stays half the narrowest width away from either limit, so a band that is cut there keeps
        # a width, and a gradient through its other edge
        return (center - half).clamp_min(_LOWEST_HZ), (center + half).clamp_max(nyquist)

    @property
    def f1(self) -> Tensor:
        """Lower cutoff of each band (F,) in hertz; read-only."""
        return self._cutoffs()[0]

    @property
    def f2(self) -> Tensor:
        """Upper cutoff of each band (F,) in hertz; read-only."""
        return self._cutoffs()[1]

    @property
    def center_hz(self) -> Tensor:
        """Middle of each band (F,) in hertz."""
        low, high = self._cutoffs()
        return (low + high) / 2.0

    def build_filters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the taps (1 or 2, F_g, K) and the averaging windows of every group."""
        low, high = (cutoff / float(self.audio_fs) for cutoff in self._cutoffs())
        channel = self._tap_channel
        real, imaginary = sinc_bandpass(low[channel], high[channel], self._offset)
        taps = (
            torch.stack([real, imaginary]) if self.detector == "magnitude" else real.unsqueeze(0)
        ) * self._taper
        if self.norm != "unit":
            gain = self._start_gain if self.norm == "start" else 1.0 / (2.0 * (high - low))
            taps = taps * gain[channel]
        return self.plan.split_taps(taps), self.plan.split_windows(self._windows, self.pooled_bins)

    def compress(
        self, energy: Tensor, values: tuple[Tensor, ...], state: State | None
    ) -> tuple[Tensor, State]:
        """Apply the activation to signed samples or averaged envelopes (B, F, T)."""
        if self.activation == "none":
            return energy, {}
        level = energy.abs().log1p()
        return (level * energy.sign() if self.activation == "symlog" else level), {}

    @property
    def has_negative_levels(self) -> bool:
        """Whether frames may hold values below 0: signed samples, neither rectified nor an envelope."""
        return not self.envelope and self.activation != "logabs"

    @property
    def expected_level(self) -> tuple[float, float] | None:
        """Range of the rms of sounds that floor and compression are made for; None: any level is the same."""
        return level_range(self.activation, 0.0)

    @property
    def frequencies_hz(self) -> Tensor:
        """Middle of each band (F,) in hertz, as learned; detached."""
        return self.center_hz.detach()

    def public_constants(self) -> dict[str, tuple[int, ...] | None]:
        """Sample numbers and window."""
        return {"_n": None, "_window": (1, self.kernel_size)}

    def public_difference(self, stored: Mapping[str, Tensor]) -> list[str]:
        """Another detector, another gain, or samples that the public filters skipped."""
        if "low_hz_" not in stored:
            return []
        if self.norm != "unit" or (self.envelope and self.rectify != "abs"):
            return [
                "its filters had unit gain, an absolute value and a flat window: build "
                'SincNet(rectify="abs", norm="unit") '
                f"instead of rectify={self.rectify!r}, norm={self.norm!r}"
            ]
        if not self.envelope and self.kernel_size < self.hop:
            return [f"its {self.kernel_size} taps read the first samples of each bin, ours the last"]
        return []

    def convert_public_state(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Convert public cutoffs in hertz to shifts of centre and width, or keep them for ``"hertz"``."""
        state = super().convert_public_state(state, prefix)
        raw = [f"{prefix}{name}" for name in ("low_hz_", "band_hz_")]
        shapes = {state[name].shape if name in state else None for name in raw}
        if self.parameterization == "hertz" or shapes != {(self.n_filters,)}:
            return state
        low, band = (state[name].double().abs() for name in raw)
        nyquist = float(self.audio_fs) / 2.0
        f1 = low.clamp(1.0, nyquist - 1.0)  # the cutoffs that these values stood for
        f2 = (f1 + band).clamp_max(nyquist)
        twin = copy.deepcopy(self).double()
        for _ in range(_TURNS):
            solve_shift(twin.width_shift, lambda: twin.f2 - twin.f1, f2 - f1)
            solve_shift(twin.center_shift, lambda: twin.center_hz, (f1 + f2) / 2.0)
        hint = f'build it with parameterization="hertz", f_min={f1.min():g} and f_max={f2.max():g}'
        check_converted(f"the lower cutoffs {raw[0]}", twin.f1, f1, hint)
        check_converted(f"the bands {raw[1]}", twin.f2, f2, hint)
        shifts = {"center_shift": twin.center_shift, "width_shift": twin.width_shift}
        return replace_tensors(state, raw, prefix, shifts)
