"""GatedNet: recurrent filters in every band, an encoder over frequency, parallel recurrent cores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from deepSTRF._validation import checked_but
from deepSTRF.models.audio.statenet import StateNet
from deepSTRF.registry import MODELS

__all__ = ["GatedNet"]


@MODELS.register("gatednet")
class GatedNet(StateNet):
    """The most accurate model of the zoo on NS1: gated filters per band, a local encoder, parallel GRUs.

    Four stages, each bounded and each with a memory or a view of its own: (1) `BandFilters`, one small GRU
    that all bands share, which sees a band and its neighbours and learns adaptation, onsets and offsets; (2)
    StateNet's encoder, ``hidden_channels`` features at each position along frequency, normalised and squashed
    by a sigmoid; (3) `ParallelGRU`, several independent recurrent cores that all see the whole encoder; (4)
    one affine readout per neuron and a softplus. With 34 bands and 119 neurons it has 80,637 parameters.

    It is a `StateNet` with other defaults, and streams, explains and saves as one. How it is best fitted is
    in `recommended`: a model built with ``standardize=True``, and ``Fitter(model, train, val,
    **fit_settings(**GatedNet.recommended))``; on the command line ``deepstrf fit --model gatednet
    --recommended``.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    out_neurons : int
        Neurons, N.
    n_filters, n_neighbours : int
        Units of the band filters, and bands on either side that they see.
    kernel_size, stride : int
        Bands that a position of the encoder spans, and bands from one to the next.
    hidden_channels : int
        Features of the encoder at each position.
    n_cores, core_size : int
        Recurrent cores, and units of each.
    output_activation : nn.Module, str or None
        Applied with the neurons on the last axis; a name is one of `ACTIVATIONS`.
    prefiltering : nn.Module, dict or None
        See `AudioEncodingModel`.
    wav2spec : nn.Module or None
        Front-end for waveforms; None expects spectrograms.
    dropout : float
        Share of features set to zero while training: after the encoder and before the readout.
    standardize : bool
        Whether the bands are z-scored first, see `AudioEncodingModel.fit_standardization`; recommended.

    Attributes
    ----------
    recommended : mapping
        Choices of an experiment, in the words of `ExperimentConfig`; `fit_settings` makes arguments of
        `Fitter` of them.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    References
    ----------
    Rançon, Masquelier & Cottereau 2025, doi 10.1038/s42003-025-08858-3 (StateNet); Cho et al. 2014, doi
    10.3115/v1/D14-1179 (gated units).

    Examples
    --------
    >>> import torch
    >>> model = GatedNet(n_frequency_bands=34, out_neurons=119)
    >>> model.count_trainable_params()
    80637
    >>> model(torch.zeros(1, 1, 34, 100)).shape
    torch.Size([1, 119, 1, 100])
    """

    #: Chosen on five folds over the clips 0-16 of NS1, see docs/benchmarks.md.
    recommended: ClassVar[Mapping[str, Any]] = {
        "standardize": True,
        "loss": "poisson",
        "learning_rate": 5e-3,
        "weight_decay": 0.1,
        "epochs": 100,
        "schedule": "wsd",
        "grad_clip": 1.0,
        "weight_average": 0.99,
        "band_shift": 1,
    }

    @checked_but("output_activation")
    def __init__(
        self,
        n_frequency_bands: int = 34,
        out_neurons: int = 1,
        n_filters: int = 8,
        n_neighbours: int = 2,
        kernel_size: int = 7,
        stride: int = 3,
        hidden_channels: int = 10,
        n_cores: int = 4,
        core_size: int = 35,
        output_activation: nn.Module | str | None = "softplus",
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        dropout: float = 0.0,
        standardize: bool = False,
    ) -> None:
        super().__init__(
            n_frequency_bands,
            kernel_size=kernel_size,
            stride=stride,
            hidden_channels=hidden_channels,
            rnn_type="ParallelGRU",
            out_neurons=out_neurons,
            output_activation=output_activation,
            prefiltering=prefiltering,
            wav2spec=wav2spec,
            dropout=dropout,
            rnn_options={"n_groups": n_cores},
            rnn_size=n_cores * core_size,
            band_filters=n_filters,
            band_neighbours=n_neighbours,
            standardize=standardize,
        )
