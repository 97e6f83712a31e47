"""The two-dimensional convolutional network: three layers of small kernels over frequency and time.

Pennington & David 2023, doi 10.1371/journal.pcbi.1011110.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_choice, check_flag, check_positive_int, checked_but
from deepSTRF.models.activations import ParametricSoftplus
from deepSTRF.models.base import AudioEncodingModel
from deepSTRF.models.configurable import placement
from deepSTRF.models.norms import CausalLayerNorm
from deepSTRF.models.readouts import LinearReadout
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import MODELS

__all__ = ["CausalConvStack", "ConvNet2D"]

#: Convolutions of the stack (Pennington & David 2023).
N_LAYERS = 3


@MODELS.register("convnet2d")
class ConvNet2D(AudioEncodingModel):
    """Three layers of small causal kernels over frequency and time, then a two-layer readout.

    With 34 bands, kernels of 3 bands by 9 frames, 10 channels, 20 hidden units and 119 neurons it has 14,117
    parameters. The receptive field is ``3 (K_T - 1) + 1`` frames, 25 for kernels of 9.

    With ``norm="none", bias=False`` and ``output_activation=nn.Identity()`` the network is piecewise linear
    and homogeneous: each prediction is exactly its dynamic STRF, the gradient at the current stimulus,
    applied to that stimulus.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    kernel_size : sequence of two int
        Bands and frames of every kernel, K_F and K_T.
    c_hidden : int
        Channels of every layer, C.
    n_hidden : int
        Hidden units of the readout, H.
    out_neurons : int
        Neurons, N.
    output_activation : nn.Module, str or None
        Applied with the neurons on the last axis; a name is one of `ACTIVATIONS`, None is
        ``ParametricSoftplus(N)``.
    prefiltering : nn.Module, dict or None
        See `AudioEncodingModel`.
    wav2spec : nn.Module or None
        Front-end for waveforms; None expects spectrograms.
    norm : {"layer", "none"} or None
        Layer normalisation over the channels after each convolution, or none.
    bias : bool
        Whether convolutions and readout have biases.
    activation : {"leaky_relu", "relu"}
        Rectifier of the convolutions; that of the readout is a LeakyReLU(0.1).
    standardize : bool
        Whether the bands are z-scored first, see `AudioEncodingModel.fit_standardization`.

    Attributes
    ----------
    K : tuple of int
        ``kernel_size``.
    C, H : int
        Channels and hidden units.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, or kernels that leave no band.

    References
    ----------
    Pennington & David 2023, doi 10.1371/journal.pcbi.1011110.

    Examples
    --------
    >>> model = ConvNet2D(34, (3, 9), c_hidden=10, n_hidden=20, out_neurons=119)
    >>> model.count_trainable_params(), model.receptive_field
    (14117, 25)
    >>> model(torch.zeros(1, 1, 34, 100)).shape
    torch.Size([1, 119, 1, 100])
    """

    @checked_but("output_activation", "kernel_size")
    def __init__(
        self,
        n_frequency_bands: int = 34,
        kernel_size: Sequence[int] = (3, 9),
        c_hidden: int = 10,
        n_hidden: int = 20,
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        norm: str | None = "layer",
        bias: bool = True,
        activation: str = "leaky_relu",
        standardize: bool = False,
    ) -> None:
        given: object = kernel_size
        if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
            raise ValueError(f"kernel_size must be two integers, bands and frames, got {given!r}")
        bands = check_positive_int("kernel_size (bands)", kernel_size[0])
        frames = check_positive_int("kernel_size (frames)", kernel_size[1])
        window = N_LAYERS * (frames - 1) + 1
        super().__init__(n_frequency_bands, window, out_neurons, prefiltering, wav2spec, standardize)
        self.K = (bands, frames)
        self.C = check_positive_int("c_hidden", c_hidden)
        self.H = check_positive_int("n_hidden", n_hidden)
        check_choice("norm", norm, ("layer", "none", None))
        if self.C == 1 and norm == "layer":
            raise ValueError(
                "layer normalisation of one channel leaves a constant: use c_hidden of at least 2, or "
                "norm='none'"
            )
        stack = CausalConvStack(
            self.F, self.C_in, self.C, self.K, norm == "layer", check_flag("bias", bias), activation
        )
        self.core = stack
        nonlinearity = ParametricSoftplus(self.O) if output_activation is None else output_activation
        self.readout = LinearReadout(stack.out_features, self.O, self.H, nonlinearity, bias)
        self.validate()


class CausalConvStack(nn.Sequential):
    """Three convolutions over frequency and time, each with a normalisation and a rectifier.

    Maps (B, C_in, F, T) to (B, channels * F', T). Time is padded once, in front of the input, with all the
    zeros that the three layers consume; the past of a later layer is the response of earlier ones to zeros.
    The parts are numbered as in public checkpoints: 0 pads, 1, 4 and 7 convolve, 2, 5 and 8 normalise, 3, 6
    and 9 rectify, 10 joins channels and bands.
    """

    def __init__(
        self,
        F: int,
        C_in: int,
        channels: int,
        kernel_size: tuple[int, int],
        norm: bool = True,
        bias: bool = True,
        activation: str = "leaky_relu",
    ) -> None:
        check_choice("activation", activation, ("leaky_relu", "relu"))
        bands, frames = kernel_size
        bands_left = F - N_LAYERS * (bands - 1)
        if bands_left < 1:
            largest = (F - 1) // N_LAYERS + 1
            raise ValueError(
                f"kernels of {bands} bands leave none of n_frequency_bands={F} after {N_LAYERS} layers: use "
                f"kernel_size=({largest}, ...) or smaller, or at least {N_LAYERS * (bands - 1) + 1} bands"
            )
        parts: list[nn.Module] = [nn.ZeroPad2d((N_LAYERS * (frames - 1), 0, 0, 0))]
        for layer in range(N_LAYERS):
            parts.append(nn.Conv2d(C_in if layer == 0 else channels, channels, kernel_size, bias=bias))
            parts.append(CausalLayerNorm(channels) if norm else nn.Identity())
            parts.append(nn.ReLU() if activation == "relu" else nn.LeakyReLU(LinearReadout.NEGATIVE_SLOPE))
        super().__init__(*parts, nn.Flatten(1, 2))
        self.F, self.C_in, self.history = F, C_in, frames - 1
        self.out_features = channels * bands_left

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return every layer's past before the first frame: zeros, and the responses of layers to them."""
        (home, precision), (where, kind) = placement(self), placement(self, device, dtype)
        state: State = {}
        x = torch.zeros(1, self.C_in, self.F, N_LAYERS * self.history + 1, device=home, dtype=precision)
        for layer in range(N_LAYERS):
            state[f"layer_{layer}"] = x[..., : self.history].to(where, kind).repeat(batch, 1, 1, 1)
            x = self._layer(layer, x)
        return state

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, C_in, F, T') to (B, C * F', T') and the next state."""
        following: State = {}
        for layer in range(N_LAYERS):
            padded = torch.cat([state[f"layer_{layer}"], chunk], dim=-1)
            following[f"layer_{layer}"] = padded[..., padded.shape[-1] - self.history :]
            chunk = self._layer(layer, padded)
        return chunk.flatten(1, 2), following

    def _layer(self, index: int, x: Tensor) -> Tensor:
        """Convolution, normalisation and rectifier of one layer."""
        for part in range(1 + 3 * index, 4 + 3 * index):
            x = self[part](x)
        return x
