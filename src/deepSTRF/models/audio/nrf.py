"""The network receptive field: hidden receptive fields, a saturating nonlinearity, a linear readout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from deepSTRF._validation import checked_but
from deepSTRF.models.activations import ParametricSoftplus
from deepSTRF.models.audio.hidden_strf import HiddenSTRFModel
from deepSTRF.models.readouts import LinearReadout
from deepSTRF.registry import MODELS

__all__ = ["NetworkReceptiveField"]


@MODELS.register("nrf")
class NetworkReceptiveField(HiddenSTRFModel):
    """Several receptive fields, shared by all neurons: ``rate = softplus(V tanh(norm(W * x)) + c)``.

    With 34 bands, 9 frames, 20 hidden units and 119 neurons it has 8,917 parameters: 6,140 of the receptive
    fields, 40 of the normalisation, 2,499 of the readout, 238 of the output nonlinearity.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    temporal_window_size : int
        Frames of each receptive field, T.
    n_hidden : int
        Hidden units, H.
    out_neurons : int
        Neurons, N.
    output_activation : nn.Module, str or None
        Applied with the neurons on the last axis; a name is one of `ACTIVATIONS`, None is
        ``ParametricSoftplus(N)``.
    prefiltering : nn.Module, dict or None
        See `AudioEncodingModel`.
    kernel : nn.Module, dict or None
        A parameterised kernel, see `CausalSTRFConv`; None is a free weight per band and frame.
    wav2spec : nn.Module or None
        Front-end for waveforms; None expects spectrograms.
    norm : {"layer", "none"}
        Layer normalisation over the hidden units, or none, as in the original paper.
    standardize : bool
        Whether the bands are z-scored first, see `AudioEncodingModel.fit_standardization`.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    References
    ----------
    Harper, Schoppe, Willmore, Cui, Schnupp & King 2016, doi 10.1371/journal.pcbi.1005113.

    Examples
    --------
    >>> import torch
    >>> model = NetworkReceptiveField(34, 9, n_hidden=20, out_neurons=119)
    >>> model.count_trainable_params()
    8917
    >>> model(torch.zeros(1, 1, 34, 100)).shape, model.STRFs(hidden_idx=3).shape
    (torch.Size([1, 119, 1, 100]), torch.Size([34, 9]))
    """

    @checked_but("output_activation")
    def __init__(
        self,
        n_frequency_bands: int = 34,
        temporal_window_size: int = 9,
        n_hidden: int = 20,
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        kernel: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        norm: str = "layer",
        standardize: bool = False,
    ) -> None:
        super().__init__(
            n_frequency_bands,
            temporal_window_size,
            n_hidden,
            out_neurons,
            prefiltering,
            kernel,
            wav2spec,
            norm,
            standardize,
        )
        self.core.append(nn.Tanh())
        activation = ParametricSoftplus(self.O) if output_activation is None else output_activation
        self.readout = LinearReadout(self.H, self.O, activation=activation)
        self.validate()
