"""The linear-nonlinear model: one receptive field per neuron, then a learned output nonlinearity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deepSTRF._validation import check_positive_int, checked_but
from deepSTRF.models.activations import ParametricSoftplus
from deepSTRF.models.audio.linear import Linear
from deepSTRF.registry import MODELS

__all__ = ["LinearNonlinear"]


@MODELS.register("linear_nonlinear")
class LinearNonlinear(Linear):
    """The LN model: `Linear`, followed by a softplus with a learned sharpness and baseline per neuron.

    With 34 bands, 9 frames and 119 neurons it has 37,009 parameters, 2 per neuron more than `Linear`.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    temporal_window_size : int
        Frames of each STRF, T.
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
    norm : {"batch", "none"}
        Batch normalisation of each neuron's drive, or none.
    standardize : bool
        Whether the bands are z-scored first, see `AudioEncodingModel.fit_standardization`.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    Notes
    -----
    The gain of batch normalisation starts at ``1 / beta``, the width of the softplus's bend.

    References
    ----------
    Willmore et al. 2016, doi 10.1523/JNEUROSCI.2441-15.2016; Rahman et al. 2019, doi
    10.1371/journal.pcbi.1006618.

    Examples
    --------
    >>> import torch
    >>> model = LinearNonlinear(n_frequency_bands=34, temporal_window_size=9, out_neurons=119)
    >>> model.count_trainable_params()
    37009
    >>> bool((model(torch.randn(1, 1, 34, 100)) > 0).all())
    True
    """

    @checked_but("output_activation")
    def __init__(
        self,
        n_frequency_bands: int = 34,
        temporal_window_size: int = 9,
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        kernel: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        norm: str = "batch",
        standardize: bool = False,
    ) -> None:
        neurons = check_positive_int("out_neurons", out_neurons)
        softplus = ParametricSoftplus(neurons) if output_activation is None else None
        super().__init__(
            n_frequency_bands,
            temporal_window_size,
            out_neurons,
            softplus or output_activation,
            prefiltering,
            kernel,
            wav2spec,
            norm=norm,
            standardize=standardize,
        )
        if softplus is not None and norm == "batch":
            # With a gain of 1 the drive starts five times wider than the softplus's bend and the rates ten
            # times too high; a fit with squared errors then first silences all neurons and stays there (NS1:
            # cc_norm 0.10, not 0.6).
            with torch.no_grad():
                self.readout.bn.weight.copy_(1.0 / softplus.beta)
