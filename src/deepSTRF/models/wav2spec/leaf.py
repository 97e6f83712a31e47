"""Strictly causal LEAF: a spectrogram of which every stage is learned (Zeghidour et al. 2021)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_choice, check_flag, check_positive_number, checked
from deepSTRF.dsp.filterbank import plan_filterbank
from deepSTRF.dsp.filters import gabor_taps, gaussian_mass
from deepSTRF.dsp.pcen import PCEN_EPS, PCEN_STARTS, PCENConstants, apply_pcen, pcen_constants
from deepSTRF.dsp.scales import ERB_bandwidth, bounded_shift, frequency_scale, mel_distance, shift_in_mel
from deepSTRF.models.configurable import designed_on_cpu
from deepSTRF.models.io.legacy import check_converted, replace_tensors, solve_shift
from deepSTRF.models.streaming import State
from deepSTRF.models.wav2spec.base import frequency_range, level_range, window_samples
from deepSTRF.models.wav2spec.filterbank import SAMPLES_PER_WINDOW, PooledFilterbank
from deepSTRF.models.wav2spec.pcen import PCEN
from deepSTRF.registry import WAV2SPEC

__all__ = ["CausalLEAF"]

#: Gabor kernels extend this many standard deviations to either side (the edge is 3e-4 of the peak).
_HALF_WIDTH = 4.0
#: Largest stride, in the smallest standard deviation that learning may reach (docs/frontends.md, "Speed").
_STRIDE_PER_SIGMA = 0.75
#: Bandwidths relative to their start that learning may reach; a wider range costs time (longer kernels,
#: smaller strides). The start is broad already: a standard deviation of one ERB, 2.6 ERB at half height.
_BANDWIDTH_RANGE = (1.0 / 1.5, 1.25)
#: Pooling widths relative to their start that learning may reach.
_POOLING_RANGE = 2.0
#: A pooling window without an option lasts four bins, with a standard deviation of a quarter of it.
_POOLING_HOPS, _POOLING_SIGMAS = 4, 4
#: Lowest centre frequency that learning may reach, in hertz: the lower limit of human hearing.
_LOWEST_CENTER_HZ = 20.0
#: A centre that starts at Nyquist may move on by this many channels: beyond it mirrors back.
_ROOM_AT_NYQUIST = 0.125
#: Parameters of public checkpoints: the shift that holds each here, and the property with its value.
_PUBLIC = {
    "center_freq_": ("center_shift", "center_freq_"),
    "gabor_sigma_raw": ("bandwidth_shift", "gabor_sigma"),
    "pool_sigma_raw": ("pooling_shift", "pool_sigma"),
    "pcen_alpha_raw": ("pcen.alpha_shift", "pcen.alpha"),
    "pcen_delta_raw": ("pcen.delta_shift", "pcen.delta"),
    "pcen_root_raw": ("pcen.root_shift", "pcen.root"),
    "pcen_s_logit": ("pcen.tau_shift", "pcen.tau_ms"),
}
#: Least values that act there: radians per sample; samples, samples, exponent.
_LEAST_PUBLIC_CENTER = 0.01
_LEAST_PUBLIC = {"gabor_sigma_raw": 1.0, "pool_sigma_raw": 0.5, "pcen_root_raw": 1e-3}


@WAV2SPEC.register("leaf")
class CausalLEAF(PooledFilterbank):
    """Learned spectrogram: complex Gabor filters, magnitude, Gaussian pooling, per-channel gain control.

    Seven parameters per band, all of them shifts from a documented start in scale-free units: centre
    frequency in channel spacings, log bandwidth, log pooling width, and the four of `PCEN`. One optimiser
    step of 0.01 means a hundredth of a channel at 60 Hz as at 20 kHz. Shifts are bounded smoothly
    (`deepSTRF.dsp.scales.bounded_shift`): no channel can die at a limit.

    Frame ``t`` depends on samples before ``(t + 1) * hop``. Each filter is centred four of its standard
    deviations in the past, the shortest delay at which it is complete, and its magnitude is averaged by a
    one-sided window that weighs recent sound most, over ages ``d``:
    ``sin^2(pi/2 min((d + 1/2) / hop, 1)) exp(-(d / sigma_p)^2 / 2)``.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F.
    hop_ms : float
        Bin width in ms; the hop in samples must be whole.
    f_min : float
        First centre frequency in hertz, above 0.
    f_max : float or None
        Last centre frequency; None is 22,627 or Nyquist, whichever is lower. Centres are equally spaced in
        mel.
    kernel_ms : float or None
        Longest Gabor kernel in ms. None: as long as each filter needs (8 standard deviations).
    pool_ms : float or None
        Four standard deviations of the pooling window at the start, in ms; None is four bins.
    learn_filters, learn_pooling, learn_pcen : bool
        Which stages are trained: 2, 1 and 4 parameters per band.
    compression : {"pcen", "log"}
        Gain control, or ``ln(max(E, log_floor))`` for comparison.
    log_floor : float
        Threshold of the logarithm.
    pcen_tau_ms : float
        Time constant of the gain control at the start, in ms.
    pcen_start : {"debiased", "zero", "first"}
        How its running mean begins (`deepSTRF.dsp.pcen`).
    pool_window : {"smooth", "hard"}
        ``"hard"`` is the window of the published form, without the smooth onset; it forbids strides.
    max_stride : int or None
        Largest stride of the filterbank, in samples; 1 is the textbook form. None: chosen per group of
        channels, with errors under 1% of the output's range.
    bandwidth_range : tuple of float
        Smallest and largest bandwidth that learning may reach, relative to the start.

    Attributes
    ----------
    center_shift, bandwidth_shift, pooling_shift : nn.Parameter
        (F,) shifts: channel spacings, log bandwidth, log pooling width.
    pcen : PCEN or None
        The gain control.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments; among them an explicit ``f_max`` above Nyquist and a hop that is no integer.

    References
    ----------
    Zeghidour, Teboul, de Chaumont Quitry & Tagliasacchi 2021, doi 10.48550/arXiv.2101.08596; Schlüter &
    Gutenbrunner 2022 (strides per group), doi 10.48550/arXiv.2207.05508.

    Examples
    --------
    >>> leaf = CausalLEAF(audio_fs=16000, n_filters=8)
    >>> leaf(torch.zeros(1, 1, 1600)).shape, sum(p.numel() for p in leaf.parameters())
    (torch.Size([1, 1, 8, 20]), 56)
    >>> leaf.frequencies_hz[[0, -1]]
    tensor([  60., 8000.])
    """

    #: Selected on the validation clips of NS1 (0.754; a factor of 10: 0.751, and less even).
    learning_rate_factor = 3.0

    center_shift: nn.Parameter
    bandwidth_shift: nn.Parameter
    pooling_shift: nn.Parameter
    _center_hz: Tensor
    _spacing: Tensor
    _room_down: Tensor
    _room_up: Tensor
    _sigma: Tensor
    _tap_age: Tensor
    _half_kernel: Tensor
    _window_age: Tensor
    _tap_channel: Tensor
    _window_channel: Tensor

    @checked
    def __init__(
        self,
        audio_fs: float,
        n_filters: int = 34,
        hop_ms: float = 5.0,
        f_min: float = 60.0,
        f_max: float | None = None,
        kernel_ms: float | None = None,
        pool_ms: float | None = None,
        learn_filters: bool = True,
        learn_pooling: bool = True,
        learn_pcen: bool = True,
        *,
        compression: str = "pcen",
        log_floor: float = 1e-4,
        pcen_tau_ms: float = 122.5,
        pcen_start: str = "debiased",
        pool_window: str = "smooth",
        max_stride: int | None = None,
        bandwidth_range: tuple[float, float] = _BANDWIDTH_RANGE,
    ) -> None:
        super().__init__(audio_fs, n_filters, hop_ms)
        check_choice("compression", compression, ("pcen", "log"))
        check_choice("pool_window", pool_window, ("smooth", "hard"))
        check_choice("pcen_start", pcen_start, PCEN_STARTS)
        self.f_min, self.f_max = frequency_range(f_min, f_max, self.audio_fs)
        check_positive_number("f_min", self.f_min)
        self.compression, self.pool_window = compression, pool_window
        self.log_floor = check_positive_number("log_floor", log_floor)
        self._narrowest, self._broadest = _check_range(bandwidth_range)
        pool = _POOLING_HOPS * self.hop_ms if pool_ms is None else pool_ms
        self.pool_sigma_samples = window_samples("pool_ms", pool, self.audio_fs, self.hop) / _POOLING_SIGMAS
        self._register_centers()
        self._plan_bank(kernel_ms, 1 if pool_window == "hard" else max_stride)
        learn_filters = check_flag("learn_filters", learn_filters)
        learn_pooling = check_flag("learn_pooling", learn_pooling)
        zeros = torch.zeros(self.n_filters)
        self.center_shift = nn.Parameter(zeros.clone(), requires_grad=learn_filters)
        self.bandwidth_shift = nn.Parameter(zeros.clone(), requires_grad=learn_filters)
        self.pooling_shift = nn.Parameter(zeros.clone(), requires_grad=learn_pooling)
        learn_pcen = check_flag("learn_pcen", learn_pcen)
        self.pcen: PCEN | None = None
        if compression == "pcen":
            self.pcen = PCEN(self.n_filters, self.hop_ms, pcen_tau_ms, start=pcen_start, learnable=learn_pcen)

    @designed_on_cpu
    def _register_centers(self) -> None:
        """Register the start, centres equally spaced in mel, and how far they may move."""
        center = frequency_scale("htk").points(self.f_min, self.f_max, self.n_filters)
        steps = (
            mel_distance(center[:-1], center[1:]) if self.n_filters > 1 else mel_distance(center, self.f_max)
        )
        spacing = steps.mean().expand(self.n_filters)
        nyquist = torch.tensor(float(self.audio_fs) / 2.0, dtype=torch.float64)
        lowest = min(_LOWEST_CENTER_HZ, self.f_min / 2.0)
        self.register_constant("_center_hz", center)
        self.register_constant("_spacing", spacing)
        self.register_constant("_room_down", mel_distance(torch.full_like(center, lowest), center))
        self.register_constant(
            "_room_up", mel_distance(center, nyquist).clamp_min(_ROOM_AT_NYQUIST * spacing)
        )
        self.register_constant("_sigma", float(self.audio_fs) / (2.0 * math.pi * ERB_bandwidth(center)))

    @designed_on_cpu
    def _plan_bank(self, kernel_ms: float | None, max_stride: int | None) -> None:
        """Fix kernel lengths and strides for every bandwidth that learning may reach."""
        sigma = self._exact["_sigma"]
        sizes = [2 * math.ceil(_HALF_WIDTH * value) + 1 for value in (sigma / self._narrowest).tolist()]
        if kernel_ms is not None:
            longest = window_samples("kernel_ms", kernel_ms, self.audio_fs, self.hop) | 1
            sizes = [min(size, longest) for size in sizes]
        # the onset of the pooling window is one bin long
        smooth = min(self.hop, self.pool_sigma_samples) / SAMPLES_PER_WINDOW
        limit = smooth if max_stride is None else check_positive_number("max_stride", max_stride)
        strides = [min(_STRIDE_PER_SIGMA * value, limit) for value in (sigma / self._broadest).tolist()]
        plan = plan_filterbank(sizes, strides, self.hop)
        window = math.ceil(_POOLING_SIGMAS * _POOLING_RANGE * self.pool_sigma_samples)
        self.set_plan(plan, "magnitude", window)
        channel, age = plan.tap_layout
        self.register_constant("_tap_channel", channel)
        self.register_constant("_tap_age", age.double())
        self.register_constant("_half_kernel", (torch.tensor(plan.kernel_sizes) - 1) / 2)
        channel, age = plan.window_layout(self.pooled_bins)
        self.register_constant("_window_channel", channel)
        self.register_constant("_window_age", age.double())

    @property
    def center_hz(self) -> Tensor:
        """Centre frequency of each filter (F,) in hertz."""
        shift = bounded_shift(self._spacing * self.center_shift, self._room_down, self._room_up)
        center = shift_in_mel(self._center_hz, shift)
        nyquist = float(self.audio_fs) / 2.0
        # a complex filter beyond Nyquist has the response of its mirror image
        return torch.where(center > nyquist, 2.0 * nyquist - center, center)

    @property
    def center_freq_(self) -> Tensor:
        """Centre frequency of each filter (F,) in radians per sample; read-only."""
        return self.center_hz * (2.0 * math.pi / float(self.audio_fs))

    @property
    def gabor_sigma(self) -> Tensor:
        """Standard deviation of each filter's envelope (F,) in samples."""
        narrower, broader = -math.log(self._narrowest), math.log(self._broadest)
        return self._sigma * torch.exp(-bounded_shift(self.bandwidth_shift, narrower, broader))

    @property
    def pool_sigma(self) -> Tensor:
        """Standard deviation of each pooling window (F,) in samples."""
        limit = math.log(_POOLING_RANGE)
        return self.pool_sigma_samples * torch.exp(bounded_shift(self.pooling_shift, limit, limit))

    def build_filters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the complex taps (2, F_g, K_g) and the pooling windows of every group."""
        sigma = self.gabor_sigma
        delay = torch.minimum(_HALF_WIDTH * sigma, self._half_kernel)
        center = self.center_freq_
        gain = 1.0 / gaussian_mass(sigma, delay, 2.0 * self._half_kernel - delay)
        channel = self._tap_channel
        offset = delay[channel] - self._tap_age
        real, imaginary = gabor_taps(center[channel], sigma[channel], offset)
        taps = torch.stack([real, imaginary]) * gain[channel]
        return self.plan.split_taps(taps), self.plan.split_windows(self._pool_weights(), self.pooled_bins)

    def _pool_weights(self) -> Tensor:
        """Return the pooling weights of all bands in one row; those of a band sum to 1."""
        channel, age = self._window_channel, self._window_age
        weights = torch.exp(-0.5 * (age / self.pool_sigma[channel]).square())
        if self.pool_window == "smooth":
            weights = weights * torch.sin(0.5 * math.pi * ((age + 0.5) / self.hop).clamp(max=1.0)).square()
        total = torch.zeros_like(self._sigma).index_add(0, channel, weights)
        return weights / total[channel]

    def _build_gabor(self) -> tuple[Tensor, Tensor]:
        """Return real and imaginary filters (F, 1, K_max), centred, of gain 1 for a complex tone."""
        half = (self.plan.max_kernel_size - 1) // 2
        offset = torch.arange(-half, half + 1, device=self._sigma.device, dtype=self._sigma.dtype)
        sigma = self.gabor_sigma.unsqueeze(-1)
        inside = offset.abs() <= self._half_kernel.unsqueeze(-1)
        real, imaginary = gabor_taps(self.center_freq_.unsqueeze(-1), sigma, offset)
        extent = torch.minimum(torch.full_like(self._half_kernel, half), self._half_kernel)
        gain = (inside / gaussian_mass(sigma.squeeze(-1), extent, extent).unsqueeze(-1)).to(real.dtype)
        return (gain * real).unsqueeze(1), (gain * imaginary).unsqueeze(1)

    def compression_values(self) -> tuple[Tensor, ...]:
        """Return the constants of the gain control."""
        return () if self.pcen is None else pcen_constants(*self.pcen.values())

    def compress(
        self, energy: Tensor, values: tuple[Tensor, ...], state: State | None
    ) -> tuple[Tensor, State]:
        """Apply the gain control (or the logarithm) to pooled magnitudes (B, F, T)."""
        if self.pcen is None:
            return energy.clamp_min(self.log_floor).log(), {}
        return apply_pcen(energy, PCENConstants(*values), start=self.pcen.start, state=state)

    def init_compression(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """Initial state of the running means."""
        return {} if self.pcen is None else self.pcen.init_state(batch, device=device, dtype=dtype)

    @property
    def expected_level(self) -> tuple[float, float] | None:
        """Range of the rms of sounds that floor and compression are made for; None: any level is the same."""
        return level_range(self.compression, PCEN_EPS if self.pcen else self.log_floor)

    @property
    def output_floor(self) -> float | None:
        """Logarithm of the floor."""
        return math.log(self.log_floor) if self.compression == "log" else None

    @property
    def frequencies_hz(self) -> Tensor:
        """Centre frequencies (F,) in hertz, as learned; detached."""
        return self.center_hz.detach()

    def public_constants(self) -> dict[str, tuple[int, ...] | None]:
        """Sample numbers of filters and pooling windows."""
        return {"_n": None, "_pool_j": None}

    def public_difference(self, stored: Mapping[str, Tensor]) -> list[str]:
        """Other kernels, pooling windows and start of the gain control."""
        if "center_freq_" not in stored:
            return []
        return [
            "its filters had one length and one delay for all bands, pooling windows with a hard edge, and "
            "a gain control that began at zero; EarlierLEAF has them as they were"
        ]

    def convert_public_state(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Convert public radians per sample, and widths and gain control behind a softplus, to our shifts."""
        state = super().convert_public_state(state, prefix)
        twin = copy.deepcopy(self).double()
        found = {
            name: entry
            for name, entry in _PUBLIC.items()
            if f"{prefix}{name}" in state
            and state[f"{prefix}{name}"].shape == (self.n_filters,)
            and (twin.pcen is not None or not name.startswith("pcen_"))
        }
        hint = "it lies further from the start than learning may go here (bandwidth_range, limits of PCEN)"
        for name, (shift, reading) in found.items():
            target = _public_value(name, state[f"{prefix}{name}"].double(), self.hop_ms)
            solve_shift(twin.get_parameter(shift), partial(attrgetter(reading), twin), target)
            check_converted(f"{prefix}{name}", attrgetter(reading)(twin), target, hint)
        shifts = {shift: twin.get_parameter(shift) for shift, _ in found.values()}
        return replace_tensors(state, [f"{prefix}{name}" for name in found], prefix, shifts)


def _check_range(bandwidth_range: tuple[float, float]) -> tuple[float, float]:
    """Return the pair after checking ``0 < narrowest < 1 < broadest``."""
    narrowest, broadest = (float(value) for value in bandwidth_range)
    if not 0.0 < narrowest < 1.0 < broadest < math.inf:
        raise ValueError(
            "bandwidth_range must be (narrowest, broadest), narrowest between 0 and 1, broadest above 1, "
            f"got {bandwidth_range!r}; e.g. {_BANDWIDTH_RANGE}"
        )
    return narrowest, broadest


def _public_value(name: str, raw: Tensor, hop_ms: float) -> Tensor:
    """The quantity that a parameter of a public checkpoint stands for, in the units of our property."""
    if name == "center_freq_":
        return raw.clamp(_LEAST_PUBLIC_CENTER, math.pi)
    if name == "pcen_s_logit":
        # a running mean that takes the share s of each frame forgets with exp(-hop / tau) = 1 - s
        return -hop_ms / functional.logsigmoid(-raw)
    return functional.softplus(raw).clamp_min(_LEAST_PUBLIC.get(name, 0.0))
