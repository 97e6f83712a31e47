"""StateNet: an encoder of each frame, a recurrent backbone along time, one affine readout per neuron.

Rançon, Masquelier & Cottereau 2025, doi 10.1038/s42003-025-08858-3. The encoder is `StateNetCore`'s; its
default layer is `LocallyConnected1d`, a convolution over frequency without weight sharing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import (
    check_choice,
    check_dropout,
    check_flag,
    check_positive_int,
    checked,
    checked_but,
)
from deepSTRF.models.activations import ParametricSoftplus
from deepSTRF.models.audio.hidden_strf import select_strfs
from deepSTRF.models.band_filters import BandFilters
from deepSTRF.models.base import AudioEncodingModel
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.kernels import CausalSTRFConv
from deepSTRF.models.norms import CausalLayerNorm
from deepSTRF.models.readouts import LinearReadout
from deepSTRF.models.streaming import Device, DType, FramewiseMixin, State, init_slot_state, step_slot
from deepSTRF.registry import BACKBONES, MODELS

__all__ = ["LocallyConnected1d", "StateNet", "StateNetCore", "covered_positions"]

#: Legal values of ``connectivity``.
CONNECTIVITIES = ("LC", "FC", "CONV", "STRF")
#: Legal values of ``encoder_activation``.
ENCODER_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU,
}  # fmt: skip


@MODELS.register("statenet")
class StateNet(AudioEncodingModel):
    """A recurrent network: an encoder of each frame, a backbone along time, an affine readout.

    The encoder computes C channels at L positions of the frequency axis, normalises over channels and applies
    a nonlinearity; its H = C * L features drive a backbone of H units; each neuron weighs all of them. With
    34 bands, 119 neurons and the other defaults it has 39,081 parameters.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    temporal_window_size : int
        Frames of the encoder's receptive fields, T, with ``connectivity="STRF"``; the other encoders see one
        frame, and their memory is the backbone's alone.
    kernel_size, stride : int
        Bands that a position spans, K, and bands from one to the next, S: ``L = (F - K) // S + 1``. ``"LC"``
        and ``"CONV"`` ignore the bands above the last position; there are none when S divides F - K.
    hidden_channels : int
        Channels, C.
    connectivity : {"LC", "FC", "CONV", "STRF"}
        ``"LC"``: every position has weights of its own. ``"CONV"``: all positions share theirs. ``"FC"``:
        every feature weighs all bands. ``"STRF"``: every feature is a causal receptive field over all bands
        and T frames (L is then 1, and H = C).
    rnn_type : str
        A backbone by name (any case), see `deepSTRF.models.backbones`.
    out_neurons : int
        Neurons, N.
    output_activation : nn.Module, str or None
        Applied with the neurons on the last axis; a name is one of `ACTIVATIONS`, None is
        `ParametricSoftplus`.
    prefiltering : nn.Module, dict or None
        See `AudioEncodingModel`.
    wav2spec : nn.Module or None
        Front-end for waveforms; None expects spectrograms.
    num_layers : int
        Layers of the backbone.
    dropout : float
        Share of features set to zero while training: after the encoder, between layers of the backbone, and
        before the readout.
    encoder_activation : {"sigmoid", "tanh", "relu", "gelu", "silu"}
        Nonlinearity of the encoder.
    skip : bool
        Whether the readout also gets the encoder's features.
    rnn_options : mapping or None
        More arguments of the backbone, e.g. ``{"memory_size": 32}`` for ``"LMU"``.
    rnn_size : int or None
        Units of the backbone; None is as many as the encoder has features, H.
    band_filters : int
        Recurrent filters in every band before the encoder (`BandFilters`), 0 for none.
    band_neighbours : int
        Bands on either side that those filters see.
    standardize : bool
        Whether the bands are z-scored first, see `AudioEncodingModel.fit_standardization`.

    Attributes
    ----------
    K, S, C, L, H : int
        Kernel size, stride, channels, positions, features of the encoder.
    rnn_type : str
        As given.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments; the text lists what is legal.

    References
    ----------
    Rançon, Masquelier & Cottereau 2025, doi 10.1038/s42003-025-08858-3.

    Examples
    --------
    >>> model = StateNet(n_frequency_bands=34, out_neurons=119, rnn_type="GRU")
    >>> model.count_trainable_params(), model.H
    (39081, 70)
    >>> model(torch.zeros(1, 1, 34, 100)).shape
    torch.Size([1, 119, 1, 100])

    A larger one, with receptive fields of 15 frames in front of the recurrence:

    >>> model = StateNet(
    ...     34, 15, hidden_channels=96, connectivity="STRF", encoder_activation="gelu", dropout=0.3,
    ...     skip=True, out_neurons=119, standardize=True,
    ... )
    >>> model.count_trainable_params()
    128325
    """

    core: StateNetCore
    readout: LinearReadout

    @checked_but("output_activation")
    def __init__(
        self,
        n_frequency_bands: int = 34,
        temporal_window_size: int = 1,
        kernel_size: int = 7,
        stride: int = 3,
        hidden_channels: int = 7,
        connectivity: str = "LC",
        rnn_type: str = "GRU",
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        encoder_activation: str = "sigmoid",
        skip: bool = False,
        rnn_options: Mapping[str, Any] | None = None,
        rnn_size: int | None = None,
        band_filters: int = 0,
        band_neighbours: int = 2,
        standardize: bool = False,
    ) -> None:
        super().__init__(
            n_frequency_bands, temporal_window_size, out_neurons, prefiltering, wav2spec, standardize
        )
        self.core = StateNetCore(
            self.F,
            self.T,
            self.C_in,
            kernel_size,
            stride,
            hidden_channels,
            connectivity,
            rnn_type,
            num_layers=num_layers,
            dropout=dropout,
            encoder_activation=encoder_activation,
            skip=skip,
            rnn_options=rnn_options,
            rnn_size=rnn_size,
            band_filters=band_filters,
            band_neighbours=band_neighbours,
        )
        self.K, self.S, self.rnn_type = kernel_size, stride, rnn_type
        self.C, self.L, self.H = self.core.C, self.core.L, self.core.H
        activation = ParametricSoftplus(self.O) if output_activation is None else output_activation
        self.readout = LinearReadout(self.core.out_features, self.O, activation=activation)
        self.validate()

    @property
    def receptive_field(self) -> int | None:
        """None: the memory of the backbone is unbounded."""
        return None

    @checked
    def STRFs(
        self,
        hidden_idx: int | None = 0,
        polarity: str | int | None = "ON",
        folded: bool = False,
        *,
        unit: str | None = None,
    ) -> Tensor:
        """Return the receptive field (F, T) of one feature of the encoder, or those of all (H, F, T).

        Parameters
        ----------
        hidden_idx : int or None
            Feature; None is all.
        polarity : {None, "ON", "OFF", 0, 1}
            Channel of an ON/OFF prefilter; None is the first.
        folded : bool
            Whether to fold the input standardisation in: weights on the spectrogram.
        unit : {None, "sd", "raw"}
            As in `Linear.STRF_weight`.

        Returns
        -------
        Tensor
            (F, T) or (H, F, T), detached, on the CPU; frame ``T - 1`` is the current one.

        Raises
        ------
        ValueError, IndexError
            For a connectivity other than ``"STRF"``, which has none, an unknown polarity or feature, or
            folding through a prefilter.
        """
        if self.core.connectivity != "STRF":
            raise ValueError(
                f"connectivity={self.core.connectivity!r} has no receptive fields of its own: build the "
                "model with connectivity='STRF', or use the gradient map model.STRF_gradmap()"
            )
        if isinstance(self.core.filters, BandFilters):
            raise ValueError(  # noqa: TRY004 - what the model was built with, not a type
                "the encoder's weights are on recurrent band filters (band_filters), not on bands: use the "
                "gradient map model.STRF_gradmap()"
            )
        encoder = cast(CausalSTRFConv, self.core.encoder_layers[0])
        return select_strfs(self, encoder, hidden_idx, polarity, folded, unit)

    def convert_public_state(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Rename public weights (GRU, LSTM, RNN or LMU): encoder and backbone are part of ``core`` here."""
        converted: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if name.startswith("rnn.cell."):
                if name not in ("rnn.cell.A", "rnn.cell.B"):  # fixed, they follow from the constructor
                    converted["core.rnn.layers.0." + name.removeprefix("rnn.cell.")] = tensor
            elif name.startswith("rnn.") and not name.startswith(("rnn.weight_", "rnn.bias_")):
                raise ValueError(
                    f"{name!r} belongs to a backbone whose public weights are laid out for other equations; "
                    "only GRU, LSTM, RNN and LMU checkpoints can be converted"
                )
            elif name.startswith(("rnn.", "encoder_layers.")):
                converted[f"core.{name}"] = tensor
            else:
                converted[name] = tensor
        return converted


class StateNetCore(nn.Module, Configurable):
    """The features that all neurons share: an encoder of C channels at L positions, and a backbone.

    Maps (B, C_in, F, T) to (B, out_features, T). Positions are those along the frequency axis. The encoder
    (connections, normalisation over channels, activation) gives H = C * L features per frame, that of channel
    c at position l at index ``c * L + l``; the backbone has as many units unless ``rnn_size`` is given.
    """

    def __init__(
        self,
        F: int,
        T: int,
        C_in: int,
        kernel_size: int = 7,
        stride: int = 3,
        hidden_channels: int = 7,
        connectivity: str = "LC",
        rnn_type: str = "GRU",
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        encoder_activation: str = "sigmoid",
        skip: bool = False,
        rnn_options: Mapping[str, Any] | None = None,
        rnn_size: int | None = None,
        band_filters: int = 0,
        band_neighbours: int = 2,
    ) -> None:
        super().__init__()
        check_choice("connectivity", connectivity, CONNECTIVITIES)
        check_choice("encoder_activation", encoder_activation, tuple(ENCODER_ACTIVATIONS))
        self.connectivity, self.skip = connectivity, check_flag("skip", skip)
        self.C = check_positive_int("hidden_channels", hidden_channels)
        K, S = check_positive_int("kernel_size", kernel_size), check_positive_int("stride", stride)
        self.L = 1 if connectivity == "STRF" else covered_positions(F, K, S)
        self.H = self.C * self.L
        units = self.H if rnn_size is None else check_positive_int("rnn_size", rnn_size)
        self.out_features = self.H + units if self.skip else units
        self.filters: nn.Module = nn.Identity()
        if band_filters:
            self.filters = BandFilters(F, band_filters, band_neighbours, C_in)
            C_in = band_filters
        connections: list[nn.Module]
        if connectivity == "LC":
            connections = [LocallyConnected1d(F, C_in, self.C, K, S)]
        elif connectivity == "CONV":
            connections = [nn.Conv1d(C_in, self.C, K, S)]
        elif connectivity == "FC":
            connections = [nn.Flatten(), nn.Linear(C_in * F, self.H), nn.Unflatten(1, (self.C, self.L))]
        else:
            connections = [CausalSTRFConv(F, T, C_in, self.C)]
        activation = ENCODER_ACTIVATIONS[encoder_activation]()
        self.encoder_layers = nn.Sequential(*connections, CausalLayerNorm(self.C, dim=1), activation)
        self.dropout = nn.Dropout(check_dropout(dropout))
        self.rnn = _build_backbone(rnn_type, self.H, units, num_layers, self.dropout.p, rnn_options or {})

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, F, T) to (B, out_features, T)."""
        encoded = self._encode(self.filters(x))
        return self._finish(encoded, self.rnn(encoded))

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame."""
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        state: State = {}
        if isinstance(self.filters, BandFilters):
            state["filters"] = self.filters.init_state(batch, **where)
        state["encoder"] = {}
        if self.connectivity == "STRF":  # the other encoders have no memory
            state["encoder"] = init_slot_state(self.encoder_layers, "encoder_layers", batch, **where)
        state["rnn"] = init_slot_state(self.rnn, "rnn", batch, **where)
        return state

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, C_in, F, T') to (B, out_features, T')."""
        following: State = {}
        if isinstance(self.filters, BandFilters):
            chunk, following["filters"] = self.filters.step(chunk, state["filters"])
        following["encoder"] = {}
        if self.connectivity == "STRF":
            layers = self.encoder_layers
            maps, following["encoder"] = step_slot(layers, "encoder_layers", chunk, state["encoder"])
            encoded = self.dropout(maps.squeeze(2).transpose(1, 2))
        else:
            encoded = self._encode(chunk)
        recurrent, following["rnn"] = step_slot(self.rnn, "rnn", encoded, state["rnn"])
        return self._finish(encoded, recurrent), following

    def _encode(self, x: Tensor) -> Tensor:
        """(B, C_in, F, T) -> (B, T, H)."""
        if self.connectivity == "STRF":
            features = self.encoder_layers(x).squeeze(2).transpose(1, 2)
        else:  # every frame by itself: frames join the batch axis
            frames = x.permute(0, 3, 1, 2)
            maps: Tensor = self.encoder_layers(frames.flatten(0, 1))
            features = maps.reshape(*frames.shape[:2], self.H)
        return self.dropout(features)  # type: ignore[no-any-return]

    def _finish(self, encoded: Tensor, recurrent: Tensor) -> Tensor:
        """Features of the backbone, after those of the encoder with ``skip``: (B, out_features, T)."""
        dropped = self.dropout(recurrent)
        features = torch.cat([encoded, dropped], dim=-1) if self.skip else dropped
        return features.transpose(1, 2)


def _build_backbone(
    rnn_type: str,
    features: int,
    units: int,
    num_layers: int,
    dropout: float,
    options: Mapping[str, Any],
) -> nn.Module:
    try:
        cls = BACKBONES.get(rnn_type)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rnn_type: {error}") from None
    common = {"input_size": features, "hidden_size": units, "num_layers": num_layers, "dropout": dropout}
    legal = [name for name in inspect.signature(cls).parameters if name not in common]
    unknown = [name for name in options if name not in legal]
    if unknown:
        raise ValueError(
            f"rnn_options: backbone {rnn_type!r} has no option {unknown[0]!r}; it takes "
            + (", ".join(map(repr, legal)) or "none")
        )
    backbone: nn.Module = cls(**common, **options)
    return backbone


class LocallyConnected1d(FramewiseMixin, KeepsDerived, Configurable):
    """A 1-D convolution without weight sharing: every position has weights of its own.

    ``y[c, l] = biases[c, l] + sum over i, k of weights[c, i * K + k, l] * x[i, l * stride + k * dilation -
    padding]``, along frequency, on every frame by itself. ``weights`` (C_out, C_in * K, L) and ``biases``
    (C_out, L) or None start uniform within ``1 / sqrt(C_in * K)``, as those of a convolution do.
    """

    biases: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.input_size = check_positive_int("input_size", input_size)
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.kernel_size = check_positive_int("kernel_size", kernel_size)
        self.stride = check_positive_int("stride", stride)
        self.padding = check_positive_int("padding", padding) if padding else 0
        self.dilation = check_positive_int("dilation", dilation)
        self.output_size = covered_positions(
            self.input_size, self.kernel_size, self.stride, self.padding, self.dilation
        )
        fan_in = self.in_channels * self.kernel_size
        bound = fan_in**-0.5
        self.weights = nn.Parameter(
            torch.empty(self.out_channels, fan_in, self.output_size).uniform_(-bound, bound)
        )
        self.biases = None
        if check_flag("bias", bias):
            drawn = torch.empty(self.out_channels, self.output_size).uniform_(-bound, bound)
            self.biases = nn.Parameter(drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, S) to (B, C_out, L)."""
        if x.ndim != 3 or x.shape[1:] != (self.in_channels, self.input_size):
            raise ValueError(f"expected (B, {self.in_channels}, {self.input_size}), got {tuple(x.shape)}")
        if not torch.is_grad_enabled():  # one product with all bands, mostly by zero, is six times faster
            matrix = self._derived("matrix", self._matrix, [self.weights])
            bias = None if self.biases is None else self.biases.flatten()
            return functional.linear(x.flatten(1), matrix, bias).view(-1, self.out_channels, self.output_size)
        span = self.dilation * (self.kernel_size - 1) + 1
        patches = functional.pad(x, (self.padding, self.padding)).unfold(-1, span, self.stride)
        patches = patches[..., :: self.dilation]  # (B, C_in, L, K), a view
        weights = self.weights.reshape(self.out_channels, self.in_channels, self.kernel_size, -1)
        y = torch.einsum("bilk,oikl->bol", patches, weights)
        return y if self.biases is None else y + self.biases

    def fix_derived(self) -> None:
        """The weights as one matrix."""
        self._derived("matrix", self._matrix, [self.weights])

    def _matrix(self) -> Tensor:
        """Weights (C_out L, C_in S) of every output on every input, mostly zeros."""
        weights = self.weights.reshape(self.out_channels, self.in_channels, self.kernel_size, -1)
        taps, places = torch.arange(self.kernel_size), torch.arange(self.output_size)
        band = (places * self.stride + taps.unsqueeze(1) * self.dilation).to(weights.device)  # (K, L)
        padded = self.input_size + 2 * self.padding
        matrix = weights.new_zeros(self.out_channels, self.in_channels, padded, self.output_size)
        matrix = matrix.scatter(2, band.expand_as(weights), weights)
        matrix = matrix[:, :, self.padding : self.padding + self.input_size]
        return matrix.permute(0, 3, 1, 2).reshape(self.out_channels * self.output_size, -1)


def covered_positions(size: int, kernel_size: int, stride: int, padding: int = 0, dilation: int = 1) -> int:
    """Positions of a kernel along an axis: ``(size + 2 p - d (K - 1) - 1) // s + 1``."""
    span = dilation * (kernel_size - 1) + 1
    if span > size + 2 * padding:
        padded = f"{size} bands" if padding == 0 else f"{size} + 2 * {padding} bands"
        raise ValueError(
            f"kernel_size={kernel_size} (dilation {dilation}) spans {span} bands but there are {padded}; "
            f"with these a kernel_size of 1 to {(size + 2 * padding - 1) // dilation + 1} works"
        )
    return (size + 2 * padding - span) // stride + 1
