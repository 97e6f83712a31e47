"""The encoder of the dynamic STRF toolbox: dilated convolutions without bias, then one affine map.

Keshishian et al. 2020, doi 10.7554/eLife.53445.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_flag, check_positive_int, checked_but
from deepSTRF.models.base import AudioEncodingModel
from deepSTRF.models.configurable import placement
from deepSTRF.models.readouts import LinearReadout
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import MODELS

__all__ = ["DeepEncoder", "DilatedConvStack"]

#: Frames between the taps of each layer, as in the dynamic STRF toolbox.
DILATIONS = (1, 1, 2, 4, 8)


@MODELS.register("deep_encoder")
class DeepEncoder(AudioEncodingModel):
    """Five dilated convolutions over time without bias, then one affine map to the neurons.

    All bands are channels of the first convolution. With kernels of 5 frames and dilations 1, 1, 2, 4, 8 the
    receptive field is 65 frames. With 64 bands, 128 hidden units and 1 neuron it has 368,769 parameters.

    With ``readout_bias=False`` and no ``output_activation`` the network is piecewise linear and homogeneous:
    each prediction is exactly its dynamic STRF applied to the stimulus. With the readout's bias (the default,
    as in the toolbox) it is that plus the bias (see `deepSTRF.interpret.dstrf`).

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    n_hidden : int
        Units of every layer, H.
    out_neurons : int
        Neurons, N.
    output_activation : nn.Module, str or None
        Applied with the neurons on the last axis; a name is one of `ACTIVATIONS`, None is the identity.
    prefiltering : nn.Module, dict or None
        See `AudioEncodingModel`.
    wav2spec : nn.Module or None
        Front-end for waveforms; None expects spectrograms.
    kernel_size : int
        Taps of every convolution, K.
    dilations : sequence of int
        Frames between the taps, one number per layer.
    readout_bias : bool
        Whether the affine map has a bias.
    standardize : bool
        Whether the bands are z-scored first, see `AudioEncodingModel.fit_standardization`.

    Attributes
    ----------
    H, K : int
        Hidden units and taps.
    dilations : tuple of int
        Frames between the taps of each layer.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    Notes
    -----
    This is the network of the study's public toolbox; the study itself used another one.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> model = DeepEncoder(n_frequency_bands=64)
    >>> model.count_trainable_params(), model.receptive_field
    (368769, 65)
    >>> model(torch.zeros(1, 1, 64, 100)).shape
    torch.Size([1, 1, 1, 100])
    """

    @checked_but("output_activation", "dilations")
    def __init__(
        self,
        n_frequency_bands: int = 34,
        n_hidden: int = 128,
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        kernel_size: int = 5,
        dilations: Sequence[int] = DILATIONS,
        readout_bias: bool = True,
        standardize: bool = False,
    ) -> None:
        taps = check_positive_int("kernel_size", kernel_size)
        given: object = dilations
        if isinstance(given, str) or not isinstance(given, Sequence) or len(given) == 0:
            raise ValueError(
                f"dilations must be whole numbers, one per layer, such as {DILATIONS}; got {given!r}"
            )
        steps = tuple(check_positive_int("dilations", dilation) for dilation in dilations)
        window = (taps - 1) * sum(steps) + 1
        super().__init__(n_frequency_bands, window, out_neurons, prefiltering, wav2spec, standardize)
        self.H, self.K, self.dilations = check_positive_int("n_hidden", n_hidden), taps, steps
        self.core = DilatedConvStack(self.C_in * self.F, self.H, taps, steps)
        bias = check_flag("readout_bias", readout_bias)
        self.readout = LinearReadout(self.H, self.O, activation=output_activation, bias=bias)
        self.validate()

    def convert_public_state(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Read the deep encoder of the dynamic STRF toolbox: ``conv.0`` to ``conv.10``, a 1 x 1 one."""
        layers = len(self.dilations)
        places = {f"conv.{2 * layer}.weight": f"core.{2 * layer + 2}.weight" for layer in range(layers)}
        places |= {f"conv.{2 * layers}.{part}": f"readout.fc.{part}" for part in ("weight", "bias")}
        last = f"conv.{2 * layers}.weight"
        return {
            places.get(name, name): value.squeeze(-1) if name == last and value.ndim == 3 else value
            for name, value in state.items()
        }


class DilatedConvStack(nn.Sequential):
    """Causal convolutions over time, each followed by a rectifier, without any bias.

    Maps (B, C, F, T) to (B, H, T). Time is padded once, in front of the input: without biases the zeros there
    stay zeros in every layer, so this equals a padding of each layer by itself.
    """

    def __init__(self, in_features: int, n_hidden: int, kernel_size: int, dilations: Sequence[int]) -> None:
        memories = [(kernel_size - 1) * dilation for dilation in dilations]
        parts: list[nn.Module] = [nn.Flatten(1, 2), nn.ZeroPad1d((sum(memories), 0))]
        for layer, dilation in enumerate(dilations):
            channels = n_hidden if layer else in_features
            parts.append(nn.Conv1d(channels, n_hidden, kernel_size, dilation=dilation, bias=False))
            parts.append(nn.ReLU())
        super().__init__(*parts)
        self.in_features, self.n_hidden, self.memories = in_features, n_hidden, memories

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return every layer's past before the first frame: zeros."""
        where, kind = placement(self, device, dtype)
        return {
            f"layer_{layer}": torch.zeros(
                batch, self.n_hidden if layer else self.in_features, memory, device=where, dtype=kind
            )
            for layer, memory in enumerate(self.memories)
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, C, F, T') to (B, H, T') and the next state."""
        following: State = {}
        frames = chunk.flatten(1, 2)
        for layer, memory in enumerate(self.memories):
            padded = torch.cat([state[f"layer_{layer}"], frames], dim=-1)
            following[f"layer_{layer}"] = padded[..., padded.shape[-1] - memory :]
            convolution, rectifier = self[2 + 2 * layer], self[3 + 2 * layer]
            frames = rectifier(convolution(padded))
        return frames, following
