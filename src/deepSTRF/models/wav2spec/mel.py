"""Strictly causal mel spectrogram, the usual fixed front-end, and the causal form of the NS1 cochleagram."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from deepSTRF._validation import check_choice, check_positive_int, check_positive_number, checked
from deepSTRF.dsp.filters import causal_frames, symmetric_window, triangle_corners, triangular_filterbank
from deepSTRF.dsp.pcen import smooth_cube_root
from deepSTRF.models.configurable import designed_on_cpu
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.wav2spec.base import (
    WaveformFrontEnd,
    frequency_range,
    level_range,
    warn_of_gaps,
    window_samples,
)
from deepSTRF.registry import WAV2SPEC

__all__ = ["CausalMelSpectrogram"]

#: A triangle whose largest sampled weight is below this passes next to nothing: a longer Fourier transform is
#: taken.
_MIN_PEAK_WEIGHT = 1e-3
#: A window without an option lasts two bins, but no less than that of the NS1 cochleagram.
_WINDOW_BINS, _SHORTEST_WINDOW_MS = 2.0, 10.0
#: Longest Fourier transform, in windows, before a bank is called impossible.
_MAX_FFT_MULTIPLE = 64
#: Largest difference of weights (peak 1) within one and the same bank: bins of odd windows lay 0.2% off.
_SAME_BANK = 0.1


@WAV2SPEC.register("mel")
class CausalMelSpectrogram(KeepsDerived, WaveformFrontEnd):
    """Log-mel spectrogram of which frame ``t`` depends only on samples before ``(t + 1) * hop``.

    Frame ``t`` is the window over ``[(t + 1) hop - win, (t + 1) hop)``, its Fourier amplitude, a bank of
    overlapping triangles and a compression. The defaults are those of the NS1 cochleagram as documented: 10
    ms symmetric Hann window, 5 ms hop, 34 bands from 500 to 22,627 Hz, amplitude, ``ln(max(x, 1e-4))``. It
    has no parameters.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_mels : int
        Bands, F.
    hop_ms : float
        Bin width in ms; the hop in samples must be whole.
    win_ms : float or None
        Window in ms, at least one bin. None is two bins, so that tapered windows overlap, and 10 ms in bins
        shorter than 5 ms, whose bands need it.
    f_min : float
        Lower edge in hertz.
    f_max : float or None
        Upper edge in hertz; None is 22,627 or Nyquist, whichever is lower.
    magnitude : {"amplitude", "power"}
        ``|X|`` or ``|X|^2``.
    compression : {"log", "cubic", "log1p", "none"}
        ``ln(max(x, log_floor))``, cube root, ``ln(1 + x)``, or nothing.
    log_floor : float
        Threshold of the logarithm. No gradient reaches the sound below it.
    log_offset : float or None
        When given, the logarithm is ``ln(x + log_offset)``, which has a gradient everywhere.
    mel_scale : {"htk", "slaney"}
        Which mel formula spaces the bands.
    scale : str or None
        Another spacing than mel: any name of `deepSTRF.dsp.frequency_scale` (``"log"``, ``"erb"``, ...).
    edges : {"feet", "centres"}
        Whether ``f_min`` and ``f_max`` are the outer feet of the bank or the centres of its first and last
        band.
    slopes : {"hertz", "scale"}
        Whether the sides of the triangles are straight in hertz or on the scale.
    norm : {None, "sum", "slaney"}
        None: peak 1. ``"sum"``: weights sum to 1. ``"slaney"``: unit area in hertz.
    window : {"hann", "hamming", "boxcar"}
        Symmetric analysis window.
    n_fft_mult : int
        Length of the Fourier transform in windows (zeros are appended). A band too narrow to hold a bin makes
        the transform longer still, so no band is without input.

    Attributes
    ----------
    n_fft : int
        Length of the Fourier transform that is used.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments; among them a window shorter than the hop, and an explicit ``f_max`` above
        Nyquist.

    References
    ----------
    Rahman, Willmore, King & Harper 2019, doi 10.1371/journal.pcbi.1006618.

    Examples
    --------
    >>> mel = CausalMelSpectrogram(audio_fs=48000)
    >>> mel(torch.zeros(1, 1, 2400)).shape
    torch.Size([1, 1, 34, 10])
    >>> mel.latency_ms
    2.5
    """

    _window: Tensor
    _mel_fb: Tensor
    _frequencies_hz: Tensor

    @checked
    def __init__(
        self,
        audio_fs: float,
        n_mels: int = 34,
        hop_ms: float = 5.0,
        win_ms: float | None = None,
        f_min: float = 500.0,
        f_max: float | None = None,
        magnitude: str = "amplitude",
        compression: str = "log",
        log_floor: float = 1e-4,
        log_offset: float | None = None,
        mel_scale: str = "htk",
        *,
        scale: str | None = None,
        edges: str = "feet",
        slopes: str = "hertz",
        norm: str | None = None,
        window: str = "hann",
        n_fft_mult: int = 1,
    ) -> None:
        super().__init__(audio_fs, check_positive_int("n_mels", n_mels), hop_ms)
        check_choice("magnitude", magnitude, ("amplitude", "power"))
        check_choice("compression", compression, ("log", "cubic", "log1p", "none"))
        check_choice("mel_scale", mel_scale, ("htk", "slaney"))
        check_choice("slopes", slopes, ("hertz", "scale"))
        self.n_mels = self.n_filters
        self.magnitude, self.compression = magnitude, compression
        self.log_floor = check_positive_number("log_floor", log_floor)
        self.log_offset = None if log_offset is None else check_positive_number("log_offset", log_offset)
        window_ms = max(_SHORTEST_WINDOW_MS, _WINDOW_BINS * self.hop_ms) if win_ms is None else win_ms
        self.win = window_samples("win_ms", window_ms, self.audio_fs, self.hop)
        self.left_context = self.win - self.hop
        self.f_min, self.f_max = frequency_range(f_min, f_max, self.audio_fs)
        spacing = mel_scale if scale is None else scale
        self._design(spacing, edges, slopes, norm, window, check_positive_int("n_fft_mult", n_fft_mult))

    @designed_on_cpu
    def _design(
        self, spacing: str, edges: str, slopes: str, norm: str | None, window: str, multiple: int
    ) -> None:
        """Set the analysis window and the bank."""
        corners = triangle_corners(self.n_mels, self.f_min, self.f_max, spacing, edges)
        axis = "linear" if slopes == "hertz" else spacing
        self.n_fft, bank = self._bank(corners, axis, norm, multiple)
        taper = symmetric_window(window, self.win)
        self.register_constant("_window", taper)
        # a sample of a bin is heard in the frame, of those that hold it, whose window weighs it most
        late = torch.nn.functional.pad(taper, (0, -self.win % self.hop)).view(-1, self.hop)
        advice = f"give win_ms={_WINDOW_BINS * self.hop_ms:g} or more, or leave it out"
        warn_of_gaps(self, f"win_ms={1000.0 * self.win / self.audio_fs:g} ms", late.amax(0), advice)
        self.register_constant("_mel_fb", bank)
        heard = bank.any(1).nonzero().flatten().tolist()
        self._heard = (heard[0], heard[-1] + 1)
        self.register_constant("_frequencies_hz", corners[1:-1])

    def _bank(self, corners: Tensor, axis: str, norm: str | None, multiple: int) -> tuple[int, Tensor]:
        """Length of the Fourier transform, long enough for every band, and the bank (bins, F)."""
        start = multiple
        while True:
            n_fft = multiple * self.win
            bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (float(self.audio_fs) / n_fft)
            peaks = triangular_filterbank(corners, bins, axis=axis).amax(0)
            if bool((peaks > _MIN_PEAK_WEIGHT).all()):
                return n_fft, triangular_filterbank(corners, bins, axis=axis, norm=norm)
            multiple *= 2
            if multiple > max(start, _MAX_FFT_MULTIPLE):
                raise ValueError(
                    f"n_mels={self.n_mels} bands between {self.f_min:g} and {self.f_max:g} Hz are too "
                    f"narrow for a window of {self.win} samples; give fewer bands or a larger win_ms"
                )

    @classmethod
    def rahman_native(
        cls,
        audio_fs: float,
        n_mels: int = 34,
        hop_ms: float = 5.0,
        *,
        f_min: float = 500.0,
        f_max: float | None = None,
        log_floor: float = 1e-4,
    ) -> Self:
        """Causal form of the bank that the authors of NS1 used.

        Centres in equal logarithmic steps (1/6 octave by default), triangles straight in log frequency whose
        weights sum to 1, symmetric Hamming window of two bins, a Fourier transform of four windows. The
        authors' own frame ``k`` looks one bin ahead: it equals frame ``k + 1`` of this front-end.

        Parameters
        ----------
        audio_fs : float
            Audio rate in hertz; their own was 48,828.125 with a hop of 244 samples (4.99712 ms).
        n_mels : int
            Bands.
        hop_ms : float
            Bin width in ms.
        f_min, f_max : float
            Centres of the first and last band; None is 500 Hz plus 5.5 octaves, or Nyquist when that is
            lower.
        log_floor : float
            Threshold of the logarithm, in amplitude.

        Returns
        -------
        CausalMelSpectrogram
            The front-end.

        References
        ----------
        Rahman, Willmore, King & Harper 2019, doi 10.1371/journal.pcbi.1006618.
        """
        _, top = frequency_range(f_min, f_max, audio_fs, ceiling_hz=500.0 * 2.0**5.5)
        return cls(
            audio_fs, n_mels, hop_ms, 2.0 * hop_ms, f_min, top, log_floor=log_floor, scale="log",
            edges="centres", slopes="scale", norm="sum", window="hamming", n_fft_mult=4,
        )  # fmt: skip

    def transform(self, padded: Tensor) -> Tensor:
        """Turn (B, 1, win - hop + T * hop) samples into (B, 1, F, T)."""
        frames = causal_frames(padded, self.win, self.hop, padded=True)
        bank = self._mel_fb
        if torch.compiler.is_exporting():  # runtimes elsewhere have no Fourier transform
            waves, bank = self._derived("waves", self._waves)
            real, imaginary = (frames @ waves.to(padded.dtype)).chunk(2, dim=-1)
        else:
            spectrum = torch.fft.rfft(frames * self._window.to(padded.dtype), n=self.n_fft)
            real, imaginary = spectrum.real, spectrum.imag
        strength = real.square() + imaginary.square()
        if self.magnitude == "amplitude":
            # half the time of |z|; the clamp gives exact silence the gradient 0 instead of NaN
            strength = strength.clamp_min(torch.finfo(strength.dtype).tiny).sqrt()
        bands = strength @ bank.to(padded.dtype)
        return self._compress(bands).transpose(-1, -2)

    def _waves(self) -> tuple[Tensor, Tensor]:
        """Windowed cosines and sines (win, 2 bins) of the Fourier transform, and the bank, from the first to
        the last bin that any band hears."""
        first, end = self._heard
        bins = torch.arange(first, end)
        turns = torch.arange(self.win).unsqueeze(1) * bins % self.n_fft
        angle = turns.double() * (2.0 * math.pi / self.n_fft)
        waves = torch.cat([angle.cos(), -angle.sin()], dim=1) * self._exact["_window"].unsqueeze(1)
        return waves.to(self._mel_fb), self._mel_fb[first:end]

    def fix_derived(self) -> None:
        """What stands for the Fourier transform in graphs."""
        self._derived("waves", self._waves)

    def _compress(self, bands: Tensor) -> Tensor:
        if self.compression == "log":
            if self.log_offset is not None:
                return torch.log(bands + self.log_offset)
            return torch.log(bands.clamp_min(self.log_floor))
        if self.compression == "log1p":
            return torch.log1p(bands)
        if self.compression == "cubic":
            return smooth_cube_root(bands)
        return bands

    def public_constants(self) -> dict[str, tuple[int, ...] | None]:
        """Window and mel bank."""
        return {"_window": (self.win,), "_mel_fb": (self.win // 2 + 1, self.n_mels)}

    def public_difference(self, stored: Mapping[str, Tensor]) -> list[str]:
        """A longer Fourier transform, where bands held no bin of the public one; another bank."""
        bank = stored.get("_mel_fb")
        if bank is None or not bool(bank.any()):
            return []
        if self.n_fft != self.win:
            return ["the public front-end had bands without a Fourier bin, which are alive here"]
        if bank.shape == self._mel_fb.shape and bool((bank - self._mel_fb).abs().max() > _SAME_BANK):
            return ["its mel bank is another one (f_min, f_max, mel_scale or audio_fs differ)"]
        return []

    @property
    def latency_ms(self) -> float:
        """Delay of the window's middle behind the middle of the bin, in ms."""
        return 1000.0 * (self.win - self.hop) / (2.0 * float(self.audio_fs))

    @property
    def expected_level(self) -> tuple[float, float] | None:
        """Range of the rms of sounds that floor and compression are made for; None: any level is the same."""
        return level_range(self.compression, self._lowest_amplitude)

    @property
    def output_floor(self) -> float | None:
        """Logarithm of the floor, or of twice the offset."""
        if self.compression != "log":
            return None
        return math.log(self.log_floor if self.log_offset is None else 2.0 * self.log_offset)

    @property
    def _lowest_amplitude(self) -> float:
        """Floor as an amplitude; that of a power has many more decibels below the level of a band."""
        floor = self.log_floor if self.log_offset is None else self.log_offset
        return floor if self.magnitude == "amplitude" else 0.01 * math.sqrt(floor)

    @property
    def frequencies_hz(self) -> Tensor:
        """Centre frequencies (F,) in hertz."""
        return self._frequencies_hz
