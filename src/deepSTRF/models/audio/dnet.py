"""The dynamic network: hidden (and, when asked for, output) units are leaky, with learned time constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from deepSTRF.models._checks import check_flag
from deepSTRF.models.audio.hidden_strf import HiddenSTRFModel
from deepSTRF.models.decay import LeakyReadout, LearnableExponentialDecay
from deepSTRF.models.readouts import LinearReadout
from deepSTRF.registry import MODELS

__all__ = ["DNet"]


@MODELS.register("dnet")
class DNet(HiddenSTRFModel):
    """A network receptive field with leaky units: ``rate = V leak(sigmoid(norm(W * x))) + c``.

    The leak is an exact recursion, ``h[t] = (1 - 1/tau) h[t - 1] + s[t] / tau``, with one ``tau`` per unit;
    so the memory has no end. With 34 bands, 9 frames, 20 hidden units and 119 neurons there are 8,699
    parameters: 6,140 of the receptive fields, 40 of the normalisation, 20 time constants, 2,499 of the
    readout.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    temporal_window_size : int
        Frames of each receptive field, T.
    n_hidden : int
        Hidden units, H.
    init_tau : float
        Scale of the time constants at the start, in bins, above 1; see `LearnableExponentialDecay`.
    decay_input : bool
        Whether the input of a leak is divided by ``tau``.
    out_neurons : int
        Neurons, N.
    output_activation : nn.Module, str or None
        Applied with the neurons on the last axis; a name is one of `ACTIVATIONS`, None is the identity.
    prefiltering : nn.Module, dict or None
        See `AudioEncodingModel`.
    kernel : nn.Module, dict or None
        A parameterised kernel, see `CausalSTRFConv`; None is a free weight per band and frame.
    wav2spec : nn.Module or None
        Front-end for waveforms; None expects spectrograms.
    output_decay : bool
        Whether the neurons are leaky too, as in the original paper: N more parameters.
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
    Rahman, Willmore, King & Harper 2019, doi 10.1371/journal.pcbi.1006618.

    Examples
    --------
    >>> import torch
    >>> model = DNet(34, 9, n_hidden=20, out_neurons=119)
    >>> model.count_trainable_params(), model.receptive_field
    (8699, None)
    >>> model(torch.zeros(1, 1, 34, 100)).shape
    torch.Size([1, 119, 1, 100])
    """

    def __init__(
        self,
        n_frequency_bands: int = 34,
        temporal_window_size: int = 9,
        n_hidden: int = 20,
        init_tau: float = 2.0,
        decay_input: bool = True,
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        kernel: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        output_decay: bool = False,
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
        self.core.append(nn.Sigmoid())
        self.core.append(LearnableExponentialDecay(self.H, init_tau, decay_input))
        if check_flag("output_decay", output_decay):
            self.readout = LeakyReadout(self.H, self.O, init_tau, decay_input, activation=output_activation)
        else:
            self.readout = LinearReadout(self.H, self.O, activation=output_activation)
        self.validate()

    def _memory(self) -> None:
        return None
