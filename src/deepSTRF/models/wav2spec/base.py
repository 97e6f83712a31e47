"""Base class of waveform front-ends, and the factory that builds one by name.

A front-end maps waveforms (B, 1, T_audio) to spectrograms (B, 1, F, T) on the grid of the neural bins; frame
t depends on samples before (t + 1) * hop.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._moved import refuse_keywords
from deepSTRF._validation import (
    check_positive_int,
    check_positive_number,
    check_tensor,
    checked,
    outside_level,
)
from deepSTRF.dsp.filters import samples_per_bin
from deepSTRF.models.configurable import (
    HALF_PRECISION,
    Configurable,
    ExactConstants,
    ScaleFreeParameters,
    placement,
)
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import WAV2SPEC

__all__ = [
    "WaveformFrontEnd",
    "frequency_range",
    "full_precision",
    "level_range",
    "make_wav2spec",
    "warn_of_gaps",
    "window_samples",
    "without_autocast",
]

#: Upper edge of the NS1 cochleagram, 500 Hz plus 5.5 octaves (Rahman et al. 2019, doi
#: 10.1371/journal.pcbi.1006618).
DEFAULT_F_MAX_HZ = 22627.0
#: Share of its largest mark that a click leaves wherever it falls in a bin, or a front-end warns.
_HEARD = 0.1


class WaveformFrontEnd(ScaleFreeParameters, ExactConstants, Configurable):
    """Base of the front-ends: waveforms (B, 1, T_audio) to spectrograms (B, 1, F, T), strictly causal.

    Frame ``t`` depends on the samples ``[0, (t + 1) * hop)`` and nothing later. A front-end with a finite
    memory sets ``left_context`` (number of past samples that the first frame needs) and defines `transform`;
    checks, padding and streaming are done here. One with a recurrent state overrides `init_state` and `step`
    as well, and ``forward`` where that does not follow from `transform`.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F.
    hop_ms : float
        Bin width in milliseconds; ``audio_fs * hop_ms / 1000`` must be whole.

    Attributes
    ----------
    audio_fs : int or float
        Audio rate in hertz.
    hop : int
        Samples per frame.
    hop_ms : float
        Milliseconds per frame.
    n_filters, out_channels : int
        Bands, F.
    left_context : int
        Samples before the first that the first frame sees as zeros.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments; a hop that is no integer names legal rates.

    Examples
    --------
    >>> class Power(WaveformFrontEnd):
    ...     def transform(self, padded):
    ...         return padded.unfold(-1, self.hop, self.hop).square().mean(-1).unsqueeze(2)
    >>> Power(audio_fs=16000, n_filters=1, hop_ms=5.0)(torch.ones(1, 1, 160)).shape
    torch.Size([1, 1, 1, 2])
    """

    #: Filters and logarithms are computed in float32, also within a model of half precision.
    float32_at_least = True

    @checked
    def __init__(self, audio_fs: float, n_filters: int, hop_ms: float) -> None:
        super().__init__()
        rate = check_positive_number("audio_fs", audio_fs)
        self.audio_fs: int | float = int(rate) if rate.is_integer() else rate
        self.hop_ms = check_positive_number("hop_ms", hop_ms)
        self.n_filters = check_positive_int("n_filters", n_filters)
        self.out_channels = self.n_filters
        self.hop = samples_per_bin(self.audio_fs, self.hop_ms)
        self.left_context = 0

    def transform(self, padded: Tensor) -> Tensor:
        """Frames of waveforms with their past in front.

        Parameters
        ----------
        padded : Tensor
            (B, 1, left_context + T * hop), checked.

        Returns
        -------
        Tensor
            (B, 1, F, T).
        """
        raise NotImplementedError(f"{type(self).__name__} must define transform(padded)")

    def forward(self, x: Tensor) -> Tensor:
        """Spectrogram of a waveform.

        Parameters
        ----------
        x : Tensor
            (B, 1, T_audio), T_audio a multiple of ``hop``.

        Returns
        -------
        Tensor
            (B, 1, F, T_audio / hop).

        Raises
        ------
        ValueError
            For another rank, more than one channel, or a length that is no multiple of the hop.
        """
        self.check_waveform(x)
        return self._transform_in_full_precision(functional.pad(x, (self.left_context, 0)))

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """State of silence before the first sample: ``{"history": (B, 1, left_context)}``."""
        where, kind = placement(self, device, dtype)
        shape = (batch, 1, self.left_context)
        return {"history": torch.zeros(shape, device=where, dtype=kind)}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Turn the next whole frames of audio (B, 1, n * hop) into (B, 1, F, n) and the next state."""
        self.check_waveform(chunk)
        padded = torch.cat([state["history"], chunk], dim=-1)
        history = padded[..., padded.shape[-1] - self.left_context :]
        return self._transform_in_full_precision(padded), {"history": history}

    def _transform_in_full_precision(self, padded: Tensor) -> Tensor:
        """Run `transform` outside autocast: logarithms and Fourier transforms need float32."""
        with without_autocast(padded.device.type):
            try:
                return self.transform(full_precision(padded))
            except RuntimeError as error:
                kinds = {value.dtype for value in (*self.parameters(), *self.buffers())}
                if kinds.isdisjoint(HALF_PRECISION):
                    raise
                name = type(self).__name__
                raise TypeError(
                    f"{name} computes in float32 and was made half precise: keep it as it was, with "
                    f"model.wav2spec.float() after model.half() (its frames are rounded): {error}"
                ) from error

    def check_waveform(self, x: Tensor) -> None:
        """Raise an error, before any computation, unless ``x`` is (B, 1, n * hop) of real numbers."""
        check_tensor(x)
        if not x.is_floating_point():
            raise TypeError(f"expected a floating-point waveform, got {x.dtype}; convert it, e.g. x.float()")
        if x.ndim != 3:
            raise ValueError(
                f"expected waveforms (B, 1, T_audio), got {tuple(x.shape)}; add the missing axes, e.g. "
                "stimulus.unsqueeze(0) for one clip (1, T_audio)"
            )
        if x.shape[1] != 1:
            raise ValueError(
                f"expected mono waveforms (B, 1, T_audio), got {x.shape[1]} channels {tuple(x.shape)}; mix "
                "them down, e.g. x.mean(1, keepdim=True)"
            )
        length = x.shape[-1]
        if length == 0 or length % self.hop:
            keep = length - length % self.hop
            trim = f"trim it to {keep} samples, or " if keep else ""
            raise ValueError(
                f"the length of the waveform, {length} samples, is not a multiple of hop ({self.hop} "
                f"samples, {self.hop_ms:g} ms at {self.audio_fs:g} Hz): {trim}build the front-end with "
                "audio_fs=dataset.audio_fs, hop_ms=dataset.dt"
            )

    def public_constants(self) -> dict[str, tuple[int, ...] | None]:
        """Constants of public checkpoints that our arguments determine; None is a shape not looked at."""
        return {}

    def public_difference(self, stored: Mapping[str, Tensor]) -> list[str]:
        """Reasons why this front-end, with the values of a public one, computes something else."""
        return []

    def convert_public_state(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Leave out the constants of a public checkpoint, after a look at their sizes."""
        constants = {f"{prefix}{name}": shape for name, shape in self.public_constants().items()}
        for name, shape in constants.items():
            if name in state and shape is not None and state[name].numel() != math.prod(shape):
                raise ValueError(
                    f"{name} is {tuple(state[name].shape)} in the checkpoint, and this "
                    f"{type(self).__name__} has {shape}: build it with the settings of the checkpoint"
                )
        return {name: value for name, value in state.items() if name not in constants}

    @property
    def latency_ms(self) -> float:
        """Delay against an ideal detector that averages exactly over each bin, in ms.

        It is the mean age of the energy in a frame, counted from the end of the bin, less half a bin.
        """
        return 0.0

    @property
    def has_negative_levels(self) -> bool:
        """Whether frames may hold values below 0 (logarithms, signed samples): PCEN cannot follow."""
        return getattr(self, "compression", None) == "log"

    @property
    def expected_level(self) -> tuple[float, float] | None:
        """Range of the rms of sounds that floor and compression are made for; None: any level is the same.

        A front-end of your own that states none is not checked. Sounds of about +-1 lie within the default
        range of every front-end here.
        """
        return None

    @property
    def output_floor(self) -> float | None:
        """Value that the spectrogram has, at most, where a sound is below the floor; None without a floor."""
        return None

    @property
    def is_learnable(self) -> bool:
        """Whether any parameter of the front-end is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def frequencies_hz(self) -> Tensor:
        """Centre frequencies (F,) in hertz, lowest first; optional: without them, figures number channels."""
        # An AttributeError, so that getattr(front_end, "frequencies_hz", None) is None.
        raise AttributeError(f"{type(self).__name__} does not define frequencies_hz")


@checked
def make_wav2spec(kind: str, audio_fs: float, dt_ms: float, **options: Any) -> nn.Module:
    """Front-end built by name, on the grid of a dataset.

    Parameters
    ----------
    kind : str
        Name in the registry, in any case: ``"mel"``, ...
    audio_fs : float
        Audio rate in hertz (``dataset.audio_fs``).
    dt_ms : float
        Bin width in ms (``dataset.dt``).
    **options
        Arguments of the class. ``n_filters`` is the number of bands for every kind.

    Returns
    -------
    nn.Module
        The front-end.

    Raises
    ------
    ValueError
        For an unknown kind; the text lists the legal ones.
    TypeError
        For an argument that the class does not have.

    Examples
    --------
    >>> make_wav2spec("mel", audio_fs=16000, dt_ms=5.0).hop
    80
    """
    front_end = WAV2SPEC.get(kind)
    legal = inspect.signature(front_end).parameters
    if "n_filters" in options and "n_filters" not in legal and "n_mels" in legal:
        options["n_mels"] = options.pop("n_filters")
    refuse_keywords(front_end.__name__, options)
    unknown = sorted(set(options) - set(legal))
    if unknown:
        raise TypeError(
            f"{front_end.__name__} has no argument {', '.join(map(repr, unknown))}; legal: {', '.join(legal)}"
        )
    return front_end(audio_fs=audio_fs, hop_ms=dt_ms, **options)  # type: ignore[no-any-return]


def level_range(compression: str, floor: float) -> tuple[float, float] | None:
    """Range of rms that a compression works in: 40 dB above the floor of a logarithm, 80 dB above that of a
    gain control, and where ``ln(1 + x)`` is neither all linear nor all logarithmic."""
    if compression == "log":
        return 100.0 * floor, math.inf
    if compression in ("log1p", "logabs", "symlog"):
        return 0.01, 100.0
    return (1e4 * floor, math.inf) if compression == "pcen" else None


def frequency_range(
    f_min: float, f_max: float | None, audio_fs: float, ceiling_hz: float = DEFAULT_F_MAX_HZ
) -> tuple[float, float]:
    """``0 <= f_min < f_max <= Nyquist``, checked; ``f_max=None`` is ``min(ceiling_hz, Nyquist)``."""
    nyquist = float(audio_fs) / 2.0
    upper = min(float(ceiling_hz), nyquist) if f_max is None else check_positive_number("f_max", f_max)
    if upper > nyquist:
        raise ValueError(
            f"f_max={upper:g} Hz lies above Nyquist ({nyquist:g} Hz at audio_fs={float(audio_fs):g}); give "
            f"at most {nyquist:g}, or f_max=None for the highest legal default"
        )
    lower = float(f_min)
    if not 0.0 <= lower < upper:
        raise ValueError(f"f_min must lie in [0, f_max={upper:g}) Hz, got {f_min!r}")
    return lower, upper


def window_samples(name: str, window_ms: float, audio_fs: float, hop: int) -> int:
    """Length of a window in samples, which must be at least the hop."""
    length = round(float(audio_fs) * check_positive_number(name, window_ms) / 1000.0)
    if length < hop:
        raise ValueError(
            f"{name}={window_ms:g} ms ({length} samples) is shorter than the hop ({hop} samples); give at "
            f"least {1000.0 * hop / float(audio_fs):g} ms"
        )
    return length


def warn_of_gaps(front_end: WaveformFrontEnd, given: str, heard: Tensor, advice: str) -> None:
    """Warn where a click leaves under a tenth of its largest mark; ``heard`` (hop,) by place in the bin."""
    unheard = float((heard < _HEARD * heard.max()).double().mean())
    if unheard > 0.0:
        warnings.warn(
            f"{type(front_end).__name__} with {given} hardly hears {100.0 * unheard:.2g}% of the sound "
            f"(over 20 dB down) at bins of {front_end.hop_ms:g} ms: {advice}",
            UserWarning,
            stacklevel=outside_level(),
        )


def full_precision(x: Tensor) -> Tensor:
    """``x`` in at least float32."""
    return x.float() if x.dtype in HALF_PRECISION else x


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context without autocast; nearly free where autocast is off already."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type=device_type, enabled=False)
    return nullcontext()
