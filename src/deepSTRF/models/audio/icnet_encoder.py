"""The encoder of ICNet: learned band-pass filters and a stack of strided causal convolutions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.causal import State, placement
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.wav2spec.base import WaveformFrontEnd
from deepSTRF.models.wav2spec.sincnet import SincNet

__all__ = ["CausalConvPReLU", "ICNetEncoder", "even_strides"]

#: Slope of a PReLU for negative drive at the start (He et al. 2015, doi 10.1109/ICCV.2015.123).
_PRELU_SLOPE = 0.25


def even_strides(total: int, n_layers: int) -> list[int]:
    """Split a stride into ``n_layers`` whole factors that are as equal as possible, in ascending order.

    Small strides come first: least aliasing where the signal is fastest, at the price of more arithmetic.

    Parameters
    ----------
    total : int
        Product of the factors (samples per bin).
    n_layers : int
        Number of factors.

    Returns
    -------
    list of int
        The factors with the smallest sum (equal factors have the smallest sum of all), and among those with
        the smallest largest factor.

    Raises
    ------
    TypeError, ValueError
        For arguments that are no positive integers.

    Examples
    --------
    >>> even_strides(240, 5), even_strides(32, 5), even_strides(7, 1), even_strides(7, 3)
    ([2, 2, 3, 4, 5], [2, 2, 2, 2, 2], [7], [1, 1, 7])
    """
    total, n_layers = check_positive_int("total", total), check_positive_int("n_layers", n_layers)
    candidates = _ascending_factors(total, n_layers, 1)
    return min(candidates, key=lambda factors: (sum(factors), factors[-1]))


def _ascending_factors(total: int, n_layers: int, smallest: int) -> list[list[int]]:
    """All ways to write ``total`` as an ascending product of factors that are at least ``smallest``."""
    if n_layers == 1:
        return [[total]]
    largest = math.floor(total ** (1.0 / n_layers) + 1e-9)  # the first of ascending factors is the smallest
    return [
        [factor, *rest]
        for factor in range(smallest, largest + 1)
        if total % factor == 0
        for rest in _ascending_factors(total // factor, n_layers - 1, factor)
    ]


class CausalConvPReLU(nn.Module, Configurable):
    """Strided convolution over the past, then a PReLU with one slope per channel.

    Output ``j`` sees ``kernel_size`` inputs up to ``(j + 1) * stride - 1``; zeros stand
    before the first input.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    kernel_size : int
        Taps.
    stride : int
        Inputs per output, at most ``kernel_size``: otherwise some inputs would never be heard.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes.

    References
    ----------
    He et al. 2015, doi 10.1109/ICCV.2015.123.

    Examples
    --------
    >>> CausalConvPReLU(2, 3, kernel_size=4, stride=2)(torch.zeros(1, 2, 10)).shape
    torch.Size([1, 3, 5])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel_size = check_positive_int("kernel_size", kernel_size)
        self.stride = check_positive_int("stride", stride)
        if self.stride > self.kernel_size:
            raise ValueError(
                f"stride {self.stride} is larger than kernel_size {self.kernel_size}: the inputs between two "
                f"outputs would never be heard; give a kernel_size of at least {self.stride}"
            )
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.conv = nn.Conv1d(self.in_channels, self.out_channels, self.kernel_size, stride=self.stride)
        self.activation = nn.PReLU(self.out_channels, init=_PRELU_SLOPE)

    @property
    def history(self) -> int:
        """Inputs of the past that the next output needs, beside its own."""
        return self.kernel_size - self.stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, n * stride) to (B, C_out, n)."""
        return self._convolve(functional.pad(x, (self.history, 0)))

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the zeros before the first input: ``{"history": (B, C_in, kernel_size - stride)}``."""
        own_device, own_dtype = placement(self)
        shape = (batch, self.in_channels, self.history)
        return {"history": torch.zeros(shape, device=device or own_device, dtype=dtype or own_dtype)}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next inputs (B, C_in, n * stride) to (B, C_out, n) and the next state."""
        padded = torch.cat([state["history"].to(chunk.dtype), chunk], dim=-1)
        following = padded[..., padded.shape[-1] - self.history :].to(state["history"].dtype)
        return self._convolve(padded), {"history": following}

    def _convolve(self, padded: Tensor) -> Tensor:
        y: Tensor = self.activation(self.conv(padded))
        return y


class ICNetEncoder(WaveformFrontEnd):
    """Waveform to a latent at the neural rate: `ICNet`'s own front-end, (B, 1, T_audio) to (B, 1, F, T).

    A `SincNet` at every sample with sign-preserving log compression, then strided causal convolutions whose
    strides multiply to the hop, then a bottleneck convolution at the neural rate. Its channels are learned
    features; they have no centre frequency and no order.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    dt_ms : float
        Bin width in ms; ``audio_fs * dt_ms / 1000`` must be whole.
    n_filters : int
        Band-pass filters.
    sincnet_kernel_size : int
        Taps of each of them.
    encoder_channels : int
        Channels of the strided convolutions.
    encoder_kernel_size : int or sequence of int
        Taps of the convolutions; a sequence gives one number per layer, the bottleneck last.
    n_encoder_layers : int
        Strided convolutions.
    bottleneck_channels : int
        Channels of the latent, F.
    encoder_strides : sequence of int or None
        One stride per strided layer, product equal to the hop; None is `even_strides`.
    f_min, f_max : float
        Range of the filters at the start, in hertz; None is Nyquist.
    sincnet_parameterization, sincnet_norm : str
        ``parameterization`` and ``norm`` of `SincNet`.

    Attributes
    ----------
    encoder_strides : list of int
        Strides of the strided layers.
    dt_ms : float
        Bin width in ms.
    receptive_field_samples : int
        Samples of sound that one frame depends on.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, strides that do not multiply to the hop, or a stride longer than its kernel.

    References
    ----------
    Drakopoulos et al. 2025, doi 10.1038/s42256-025-01104-9.

    Examples
    --------
    >>> encoder = ICNetEncoder(8000, n_filters=4, encoder_channels=6, bottleneck_channels=3)
    >>> encoder(torch.zeros(1, 1, 400)).shape, encoder.encoder_strides
    (torch.Size([1, 1, 3, 10]), [1, 2, 2, 2, 5])
    """

    def __init__(
        self,
        audio_fs: float,
        dt_ms: float = 5.0,
        n_filters: int = 48,
        sincnet_kernel_size: int = 64,
        encoder_channels: int = 128,
        encoder_kernel_size: int | Sequence[int] = 64,
        n_encoder_layers: int = 5,
        bottleneck_channels: int = 64,
        encoder_strides: Sequence[int] | None = None,
        *,
        f_min: float = 300.0,
        f_max: float | None = None,
        sincnet_parameterization: str = "spacing",
        sincnet_norm: str = "unit",
    ) -> None:
        latent = check_positive_int("bottleneck_channels", bottleneck_channels)
        super().__init__(audio_fs, latent, dt_ms)
        self.dt_ms = self.hop_ms
        width = check_positive_int("encoder_channels", encoder_channels)
        n_layers = check_positive_int("n_encoder_layers", n_encoder_layers)
        self.encoder_strides = _resolve_strides(encoder_strides, self.hop, n_layers)
        kernels = _resolve_kernels(encoder_kernel_size, self.encoder_strides, self.hop)
        self.sincnet = SincNet(
            audio_fs=self.audio_fs,
            n_filters=n_filters,
            kernel_size=sincnet_kernel_size,
            hop_ms=1000.0 / float(self.audio_fs),
            f_min=f_min,
            f_max=f_max,
            activation="symlog",
            parameterization=sincnet_parameterization,
            norm=sincnet_norm,
        )
        inputs = [self.sincnet.n_filters, *[width] * (n_layers - 1)]
        sizes = zip(inputs, kernels[:-1], self.encoder_strides, strict=True)
        self.encoder = nn.ModuleList(
            CausalConvPReLU(channels, width, kernel, stride) for channels, kernel, stride in sizes
        )
        self.bottleneck = CausalConvPReLU(width, latent, kernels[-1])
        self.left_context = self.receptive_field_samples - self.hop

    def _layers(self) -> list[CausalConvPReLU]:
        return [cast(CausalConvPReLU, layer) for layer in (*self.encoder, self.bottleneck)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the latent of a waveform.

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
            For another rank, more than one channel, or a length that is no multiple of the hop; nothing is
            computed then.
        """
        self.check_waveform(x)
        features: Tensor = self.sincnet(x).squeeze(1)
        for layer in self._layers():
            features = layer(features)
        return features.unsqueeze(1)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return what every layer remembers before the first sample: zeros."""
        layers = {
            str(index): layer.init_state(batch, device=device, dtype=dtype)
            for index, layer in enumerate(self._layers())
        }
        return {"sincnet": self.sincnet.init_state(batch, device=device, dtype=dtype), "layers": layers}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Turn the next whole frames of audio (B, 1, n * hop) into (B, 1, F, n) and the next state."""
        self.check_waveform(chunk)
        frames, sincnet = self.sincnet.step(chunk, state["sincnet"])
        features, layers = frames.squeeze(1), {}
        for index, layer in enumerate(self._layers()):
            features, layers[str(index)] = layer.step(features, state["layers"][str(index)])
        return features.unsqueeze(1), {"sincnet": sincnet, "layers": layers}

    @property
    def receptive_field_samples(self) -> int:
        """Samples of sound that one frame of the latent depends on, up to the end of its bin."""
        seen, rate = self.sincnet.kernel_size, 1
        for layer in self._layers():
            seen += (layer.kernel_size - 1) * rate
            rate *= layer.stride
        return seen

    @property
    def latency_ms(self) -> float:
        """Delay of the band-pass filters in ms, ``(K - 1) / 2`` samples; later layers learn their own."""
        return self.sincnet.latency_ms

    @property
    def frequencies_hz(self) -> Tensor:
        """Not defined: learned features have no centre frequency; those of the filters are the SincNet's.

        Raises
        ------
        AttributeError
            Always, so that ``hasattr`` answers no and plots number the channels.
        """
        raise AttributeError(
            "the channels of ICNet's latent have no centre frequency; see wav2spec.sincnet.frequencies_hz"
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return optimiser groups: the filters' cutoffs at their own learning rate, all else at ``lr``."""
        layers = [p for layer in self._layers() for p in layer.parameters() if p.requires_grad]
        rest = [{"params": layers, "lr": lr, "weight_decay": 0.0}] if layers else []
        return [*self.sincnet.param_groups(lr), *rest]


def _resolve_strides(given: Sequence[int] | None, hop: int, n_layers: int) -> list[int]:
    """Return one stride per layer, checked against the hop."""
    even = even_strides(hop, n_layers)
    if given is None:
        return even
    if not isinstance(given, list | tuple):
        raise TypeError(f"encoder_strides must be a list of integers or None, got {given!r}")
    strides = [check_positive_int(f"encoder_strides[{index}]", one) for index, one in enumerate(given)]
    if len(strides) != n_layers or math.prod(strides) != hop:
        raise ValueError(
            f"encoder_strides={strides} ({len(strides)} layers, product {math.prod(strides)}) do not fit "
            f"n_encoder_layers={n_layers} and {hop} samples per bin; e.g. {even} does, and None chooses it"
        )
    return strides


def _resolve_kernels(given: int | Sequence[int], strides: list[int], hop: int) -> list[int]:
    """Return one kernel length per strided layer and one for the bottleneck, none shorter than its stride."""
    needed = len(strides) + 1
    if isinstance(given, numbers.Integral):
        kernels = [check_positive_int("encoder_kernel_size", given)] * needed
    elif isinstance(given, list | tuple):
        kernels = [check_positive_int(f"encoder_kernel_size[{i}]", one) for i, one in enumerate(given)]
    else:
        raise TypeError(f"encoder_kernel_size must be an integer or a list of integers, got {given!r}")
    if len(kernels) != needed:
        raise ValueError(
            f"encoder_kernel_size has {len(kernels)} entries; give one number, or {needed}: one for each of "
            f"the {len(strides)} strided layers and one for the bottleneck"
        )
    for layer, (kernel, stride) in enumerate(zip(kernels, strides, strict=False)):
        if stride > kernel:
            raise ValueError(
                f"layer {layer} has a stride of {stride} and a kernel of {kernel}: samples between its "
                f"outputs would never be heard. Give encoder_kernel_size of at least {stride}, other "
                f"encoder_strides, or a rate and bin whose hop (now {hop} samples) has smaller factors"
            )
    return kernels
