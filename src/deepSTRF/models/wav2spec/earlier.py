"""Front-ends of the earlier package as they were, for its weights: `EarlierGammatone` and `EarlierLEAF`.

They compute what the public checkpoints were fitted with, faults included: use `CausalGammatone` and
`CausalLEAF` for new fits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_choice, check_positive_int, check_positive_number, checked
from deepSTRF.dsp.gammatone import gammatone_bandwidth
from deepSTRF.dsp.pcen import PCEN_EPS, pcen, pcen_initial_state, smooth_cube_root
from deepSTRF.dsp.scales import ERB_bandwidth, frequency_scale
from deepSTRF.models.configurable import designed_on_cpu, placement
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.models.wav2spec.base import (
    WaveformFrontEnd,
    frequency_range,
    full_precision,
    level_range,
    window_samples,
    without_autocast,
)

__all__ = ["EarlierGammatone", "EarlierLEAF"]

#: Points of the Fourier transform that measured the peak gain of a gammatone.
_GAIN_POINTS = 4096
#: Added to the squared magnitude of a Gabor filter.
_MAGNITUDE_FLOOR = 1e-9
#: Taps below this are zero: subnormal numbers are slow.
_LEAST_TAP = 1e-30


class _EarlierBank(WaveformFrontEnd):
    """Filters of one length at every sample, detected, pooled to bins, compressed; gain control from zero."""

    kernel_size: int
    pool_size: int

    def filters(self) -> Tensor:
        """Taps (P * F, 1, K) as a correlation reads them, newest sample last."""
        raise NotImplementedError

    def detect(self, filtered: Tensor) -> Tensor:
        """Map (B, P * F, T_audio) to envelopes (B, F, T_audio)."""
        raise NotImplementedError

    def pooling(self) -> Tensor:
        """Weights (F, 1, L), newest sample last."""
        raise NotImplementedError

    def compress(self, energy: Tensor, state: State) -> tuple[Tensor, State]:
        """Compress (B, F, T)."""
        raise NotImplementedError

    @property
    def channel_latency_ms(self) -> Tensor:
        """Delay of each band (F,) in ms: centroid of what a click leaves in the frames, less half a bin."""
        with torch.no_grad():
            taps, ages = self.filters().transpose(0, 1), []
            for weight in (
                self.detect(taps) - self.detect(torch.zeros_like(taps)),
                self.pooling()[:, 0][None],
            ):
                age = torch.arange(weight.shape[-1] - 1, -1, -1, device=weight.device)
                ages.append((weight[0].double() * age).sum(-1) / weight[0].double().sum(-1))
        samples = ages[0] + ages[1] + 0.5 - self.hop / 2.0
        return (1000.0 * samples / float(self.audio_fs)).to(taps.dtype)

    @property
    def latency_ms(self) -> float:
        """Mean over bands of `channel_latency_ms`."""
        return float(self.channel_latency_ms.mean())

    def forward(self, x: Tensor) -> Tensor:
        """Spectrogram (B, 1, F, T) of a waveform (B, 1, T * hop)."""
        x = full_precision(x)
        return self.step(x, self.init_state(x.shape[0], device=x.device, dtype=x.dtype))[0]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """State before the first sample: latest sound, latest envelopes, running means."""
        where, kind = placement(self, device, dtype)
        return {
            "history": torch.zeros(batch, 1, self.kernel_size - 1, device=where, dtype=kind),
            "envelope": torch.zeros(
                batch, self.n_filters, self.pool_size - self.hop, device=where, dtype=kind
            ),
            "gain": dict(pcen_initial_state(batch, self.n_filters, start="zero", device=where, dtype=kind)),
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Turn the next whole frames of audio (B, 1, n * hop) into (B, 1, F, n) and the next state."""
        self.check_waveform(chunk)
        chunk = full_precision(chunk)
        with without_autocast(chunk.device.type):
            sound = torch.cat([state["history"], chunk], -1)
            envelope = torch.cat(
                [state["envelope"], self.detect(functional.conv1d(sound, self.filters().to(chunk.dtype)))], -1
            )
            energy = functional.conv1d(
                envelope, self.pooling().to(chunk.dtype), stride=self.hop, groups=self.n_filters
            )
            frames, gain = self.compress(energy, state["gain"])
        following = {
            "history": sound[..., sound.shape[-1] - self.kernel_size + 1 :],
            "envelope": envelope[..., envelope.shape[-1] - self.pool_size + self.hop :],
            "gain": gain,
        }
        return frames.unsqueeze(1), following

    def public_constants(self) -> dict[str, tuple[int, ...] | None]:
        """What follows from the arguments."""
        return dict.fromkeys(("_n", "_pool_j", "_fc", "_kernels"))


class EarlierGammatone(_EarlierBank):
    """The gammatone front-end of the earlier package: impulse responses reversed in time. No parameters.

    For its checkpoints only: a click peaks 14 to 20 ms late, later at high frequencies. New models take
    `CausalGammatone`.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F.
    hop_ms : float
        Bin width in ms.
    f_min, f_max : float
        First and last centre in hertz, equally spaced in ERB-rate; None is 22,627 or Nyquist.
    order : int
        Order of the filters.
    b_factor : float
        Bandwidth in equivalent rectangular bandwidths.
    kernel_ms : float
        Kernel of all filters in ms.
    rectify : {"halfwave", "full"}
        Positive part or absolute value.
    env_window_ms : float or None
        Flat averaging window in ms; None is two bins.
    compression : {"log", "cuberoot", "pcen", "none"}
        As in `CausalGammatone`.
    log_floor : float
        Threshold of the logarithm.
    pcen_s : float
        Share of each frame in the running mean of the gain control, which begins at zero.
    pcen_alpha, pcen_delta, pcen_r, pcen_eps : float
        Its strength, bias, exponent and floor.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    References
    ----------
    Patterson et al. 1992, "Complex sounds and auditory images"; Wang et al. 2017, doi
    10.1109/ICASSP.2017.7953242.

    Examples
    --------
    >>> EarlierGammatone(audio_fs=16000, n_filters=8)(torch.zeros(1, 1, 1600)).shape
    torch.Size([1, 1, 8, 20])
    """

    _fc: Tensor
    _kernels: Tensor

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
        kernel_ms: float = 20.0,
        rectify: str = "halfwave",
        env_window_ms: float | None = None,
        compression: str = "log",
        log_floor: float = 1e-4,
        pcen_s: float = 0.025,
        pcen_alpha: float = 0.98,
        pcen_delta: float = 2.0,
        pcen_r: float = 0.5,
        pcen_eps: float = 1e-6,
    ) -> None:
        super().__init__(audio_fs, n_filters, hop_ms)
        check_choice("rectify", rectify, ("halfwave", "full"))
        check_choice("compression", compression, ("log", "cuberoot", "pcen", "none"))
        self.rectify, self.compression = rectify, compression
        self.log_floor = check_positive_number("log_floor", log_floor)
        if not 0.0 < pcen_s < 1.0:
            raise ValueError(f"pcen_s must lie between 0 and 1, got {pcen_s!r}")
        self.pcen = (-math.log1p(-pcen_s), pcen_alpha, pcen_delta, pcen_r)
        self.pcen_eps = check_positive_number("pcen_eps", pcen_eps)
        fs = float(self.audio_fs)
        self.f_min, self.f_max = frequency_range(f_min, f_max, fs)
        self.kernel_size = max(self.hop, round(fs * check_positive_number("kernel_ms", kernel_ms) / 1000.0))
        window_ms = 2.0 * self.hop_ms if env_window_ms is None else env_window_ms
        self.pool_size = window_samples("env_window_ms", window_ms, fs, self.hop)
        self.left_context = self.kernel_size - 1 + self.pool_size - self.hop
        self._design(order, b_factor)

    @designed_on_cpu
    def _design(self, order: int, b_factor: float) -> None:
        """Set the kernels."""
        center = frequency_scale("erb").points(self.f_min, self.f_max, self.n_filters)
        time = torch.arange(self.kernel_size, dtype=torch.float64) / float(self.audio_fs)
        width = gammatone_bandwidth(center, check_positive_number("b_factor", b_factor)).unsqueeze(-1)
        rise = time ** (check_positive_int("order", order) - 1) * torch.exp(-2.0 * math.pi * width * time)
        taps = rise * torch.cos(2.0 * math.pi * center.unsqueeze(-1) * time)
        peak = torch.fft.rfft(taps, _GAIN_POINTS).abs().amax(-1, keepdim=True)
        self.register_constant("_fc", center)
        self.register_constant("_kernels", (taps / peak.clamp_min(1e-12)).unsqueeze(1))

    def filters(self) -> Tensor:
        """The kernels as they were correlated, not convolved, with the sound."""
        return self._kernels

    def detect(self, filtered: Tensor) -> Tensor:
        """Rectify."""
        return filtered.relu() if self.rectify == "halfwave" else filtered.abs()

    def pooling(self) -> Tensor:
        """A flat window."""
        return self._fc.new_full((self.n_filters, 1, self.pool_size), 1.0 / self.pool_size)

    def compress(self, energy: Tensor, state: State) -> tuple[Tensor, State]:
        """Compress averaged envelopes (B, F, T)."""
        if self.compression == "pcen":
            return pcen(energy, *self.pcen, eps=self.pcen_eps, start="zero", state=state)
        if self.compression == "log":
            return energy.clamp_min(self.log_floor).log(), state
        return smooth_cube_root(energy) if self.compression == "cuberoot" else energy, state

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


class EarlierLEAF(_EarlierBank):
    """The LEAF front-end of the earlier package, with its parameters by their names: 7 per band.

    For its checkpoints only: parameters in radians per sample and behind a softplus, kernels of one length,
    pooling windows with a hard edge, a gain control that begins at zero. New models take `CausalLEAF`.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F.
    hop_ms : float
        Bin width in ms.
    f_min, f_max : float
        First and last centre at the start in hertz, equally spaced in mel; None is 22,627 or Nyquist.
    kernel_ms : float
        Kernel of all filters in ms, made odd.
    pool_ms : float or None
        Pooling window in ms; None is four bins.
    learn_filters, learn_pooling, learn_pcen : bool
        Which stages are trained.

    Attributes
    ----------
    center_freq_, gabor_sigma_raw, pool_sigma_raw : nn.Parameter
        (F,) radians per sample; widths in samples before a softplus.
    pcen_alpha_raw, pcen_delta_raw, pcen_root_raw, pcen_s_logit : nn.Parameter
        (F,) gain control before a softplus, and the log-odds of the share of each frame in its mean.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    References
    ----------
    Zeghidour et al. 2021, doi 10.48550/arXiv.2101.08596.

    Examples
    --------
    >>> leaf = EarlierLEAF(audio_fs=16000, n_filters=8)
    >>> leaf(torch.zeros(1, 1, 1600)).shape, leaf.kernel_size
    (torch.Size([1, 1, 8, 20]), 241)
    """

    learning_rate_factor = 1.0

    center_freq_: nn.Parameter
    gabor_sigma_raw: nn.Parameter
    pool_sigma_raw: nn.Parameter
    pcen_alpha_raw: nn.Parameter
    pcen_delta_raw: nn.Parameter
    pcen_root_raw: nn.Parameter
    pcen_s_logit: nn.Parameter

    @designed_on_cpu
    @checked
    def __init__(
        self,
        audio_fs: float,
        n_filters: int = 34,
        hop_ms: float = 5.0,
        f_min: float = 60.0,
        f_max: float | None = None,
        kernel_ms: float = 15.0,
        pool_ms: float | None = None,
        learn_filters: bool = True,
        learn_pooling: bool = True,
        learn_pcen: bool = True,
    ) -> None:
        super().__init__(audio_fs, n_filters, hop_ms)
        fs = float(self.audio_fs)
        self.f_min, self.f_max = frequency_range(f_min, f_max, fs)
        self.kernel_size = (
            max(self.hop, round(fs * check_positive_number("kernel_ms", kernel_ms) / 1000.0)) | 1
        )
        window_ms = 4.0 * self.hop_ms if pool_ms is None else pool_ms
        self.pool_size = window_samples("pool_ms", window_ms, fs, self.hop)
        self.left_context = self.kernel_size - 1 + self.pool_size - self.hop
        center = frequency_scale("htk").points(self.f_min, self.f_max, self.n_filters)
        ones = torch.ones_like(center)
        starts = {
            "center_freq_": (2.0 * math.pi / fs * center, learn_filters),
            "gabor_sigma_raw": (_unsoftplus(fs / (2.0 * math.pi * ERB_bandwidth(center))), learn_filters),
            "pool_sigma_raw": (_unsoftplus(self.pool_size / 4.0 * ones), learn_pooling),
            "pcen_alpha_raw": (_unsoftplus(0.96 * ones), learn_pcen),
            "pcen_delta_raw": (_unsoftplus(2.0 * ones), learn_pcen),
            "pcen_root_raw": (_unsoftplus(0.5 * ones), learn_pcen),
            "pcen_s_logit": (torch.logit(0.04 * ones), learn_pcen),
        }
        for name, (start, learn) in starts.items():
            self.register_parameter(name, nn.Parameter(start.to(torch.get_default_dtype()), bool(learn)))

    def filters(self) -> Tensor:
        """Real and imaginary Gabor kernels (2F, 1, K), the envelope of each summing to 1."""
        half = self.kernel_size // 2
        age = torch.arange(-half, half + 1, device=self.center_freq_.device, dtype=self.center_freq_.dtype)
        sigma = functional.softplus(self.gabor_sigma_raw).clamp_min(1.0).unsqueeze(-1)
        center = self.center_freq_.clamp(0.01, math.pi).unsqueeze(-1)
        envelope = torch.exp(-0.5 * (age / sigma).square())
        envelope = torch.where(envelope < _LEAST_TAP, 0.0, envelope / envelope.sum(-1, keepdim=True))
        return torch.cat([(center * age).cos() * envelope, (center * age).sin() * envelope]).unsqueeze(1)

    def detect(self, filtered: Tensor) -> Tensor:
        """Magnitude."""
        real, imaginary = filtered.chunk(2, dim=1)
        return (real.square() + imaginary.square() + _MAGNITUDE_FLOOR).sqrt()

    def pooling(self) -> Tensor:
        """One-sided Gaussians, the newest sample weighing most."""
        age = torch.arange(self.pool_size - 1, -1, -1).to(self.pool_sigma_raw)
        sigma = functional.softplus(self.pool_sigma_raw).clamp_min(0.5).unsqueeze(-1)
        weights = torch.exp(-0.5 * (age / sigma).square())
        return (weights / weights.sum(-1, keepdim=True)).unsqueeze(1)

    def compress(self, energy: Tensor, state: State) -> tuple[Tensor, State]:
        """Apply the gain control."""
        decay = -functional.logsigmoid(-self.pcen_s_logit)  # a share s of each frame: exp(-decay) = 1 - s
        alpha, delta, root = (
            functional.softplus(raw) for raw in (self.pcen_alpha_raw, self.pcen_delta_raw, self.pcen_root_raw)
        )
        return pcen(energy, decay, alpha, delta, root.clamp_min(1e-3), start="zero", state=state)

    @property
    def expected_level(self) -> tuple[float, float] | None:
        """Range of the rms of sounds that floor and compression are made for; None: any level is the same."""
        return level_range("pcen", PCEN_EPS)

    @property
    def frequencies_hz(self) -> Tensor:
        """Centre frequencies (F,) in hertz, as learned; detached."""
        return self.center_freq_.detach().clamp(0.01, math.pi) * (float(self.audio_fs) / (2.0 * math.pi))


def _unsoftplus(value: Tensor) -> Tensor:
    """The number whose softplus is ``value``."""
    return value + torch.log(-torch.expm1(-value))
