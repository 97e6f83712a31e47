"""The dynamic network: a network receptive field whose units are leaky, with learned time constants.

A leaky unit smooths its input exponentially, by an exact recursion: `LearnableExponentialDecay`
(Rahman, Willmore, King & Harper 2019, doi 10.1371/journal.pcbi.1006618).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_flag, check_positive_int, check_positive_number, checked_but
from deepSTRF.dsp.recursion import leaky_mean, leaky_mean_state
from deepSTRF.models.audio.hidden_strf import HiddenSTRFModel
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.readouts import LinearReadout
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import MODELS

__all__ = ["DNet", "LeakyReadout", "LearnableExponentialDecay"]

#: Frames of the public model's kernel, per frame of its first time constant, and the share of a unit's memory
#: that it may have cut off before predictions change (1% of a step).
_PUBLIC_KERNEL, _MOST_CUT_OFF = 7, 0.01


@MODELS.register("dnet")
class DNet(HiddenSTRFModel):
    """A network receptive field with leaky units: ``rate = V leak(sigmoid(norm(W * x))) + c``.

    The leak is an exact recursion, ``h[t] = (1 - 1/tau) h[t - 1] + s[t] / tau``, with one ``tau`` per unit
    and unbounded memory. With 34 bands, 9 frames, 20 hidden units and 119 neurons there are 8,699 parameters:
    6,140 of the receptive fields, 40 of the normalisation, 20 time constants, 2,499 of the readout.

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

    @checked_but("output_activation")
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
        self.core.extend([nn.Sigmoid(), LearnableExponentialDecay(self.H, init_tau, decay_input)])
        if check_flag("output_decay", output_decay):
            self.readout = LeakyReadout(self.H, self.O, init_tau, decay_input, activation=output_activation)
        else:
            self.readout = LinearReadout(self.H, self.O, activation=output_activation)
        self.validate()

    @property
    def receptive_field(self) -> int | None:
        """None: the memory of a leaky unit is unbounded."""
        return None


class LearnableExponentialDecay(nn.Module, Configurable):
    """Leaky integration of every channel: ``y[t] = (1 - 1/tau) y[t - 1] + x[t] / tau``, ``tau`` learned.

    The recursion is exact, without truncation. A clip begins in the steady state of its first frame,
    ``y[-1] = x[0]``. The parameter is ``d`` (C,) with ``tau = 1 + d^2`` (as in Fang et al. 2021,
    doi 10.1109/ICCV48922.2021.00266): any value is legal.
    """

    def __init__(self, input_size: int, init_tau: float = 2.0, decay_input: bool = True) -> None:
        super().__init__()
        self.input_size = check_positive_int("input_size", input_size)
        self.decay_input = check_flag("decay_input", decay_input)
        if check_positive_number("init_tau", init_tau) <= 1.0:
            raise ValueError(
                f"init_tau must be above 1 bin (at 1 there is no memory and no gradient), got {init_tau}"
            )
        self.init_tau = float(init_tau)
        rate = 1.0 / math.sqrt(init_tau - 1.0)
        self.d = nn.Parameter(torch.empty(self.input_size).exponential_(rate))

    def tau(self) -> Tensor:
        """Return the time constants (C,) in bins."""
        return 1.0 + self.d.square()

    def public_difference(self, stored: Mapping[str, Tensor]) -> list[str]:
        """Units whose memory the public kernel of ``round(7 init_tau)`` frames cut off."""
        size = round(_PUBLIC_KERNEL * self.init_tau)
        squared = stored["d"].square() if "d" in stored else torch.zeros(0)
        slow = ((squared / (1.0 + squared)) ** size > _MOST_CUT_OFF).nonzero().flatten().tolist()
        return (
            [f"the leak of unit(s) {slow} was cut off after {size} frames, and is exact here"] if slow else []
        )

    def forward(self, x: Tensor) -> Tensor:
        """Smooth (B, C, 1, T) or (B, C, T) over time; the shape stays."""
        return self.step(x, self.init_state(x.shape[0], device=x.device, dtype=x.dtype))[0]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame."""
        where, kind = placement(self, device, dtype)
        return leaky_mean_state(batch, (self.input_size,), device=where, dtype=kind)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Smooth the next frames (B, C, 1, T') or (B, C, T')."""
        known_rank = chunk.ndim == 3 or (chunk.ndim == 4 and chunk.shape[2] == 1)
        if not known_rank or chunk.shape[1] != self.input_size or 0 in chunk.shape:
            raise ValueError(
                f"expected (B, {self.input_size}, 1, T) or (B, {self.input_size}, T) with T of at least 1, "
                f"got {tuple(chunk.shape)}"
            )
        tau = self.tau()
        frames = chunk.flatten(1, -2)
        origin, _, mean, following = leaky_mean(frames, self.d.square() / tau, 1.0 / tau, state)
        y = origin + mean[..., 1:]
        if not self.decay_input:
            y = y * tau.unsqueeze(-1)
        return y.reshape(chunk.shape), following


class LeakyReadout(LinearReadout):
    """Affine map of each frame's features to N leaky neurons, then an output activation."""

    def __init__(
        self,
        in_features: int,
        out_neurons: int,
        init_tau: float = 2.0,
        decay_input: bool = True,
        activation: nn.Module | str | None = None,
    ) -> None:
        super().__init__(in_features, out_neurons, activation=activation)
        self.decay = LearnableExponentialDecay(self.out_neurons, init_tau, decay_input)

    def drive(self, x: Tensor) -> Tensor:
        """Map (B, C, T) or (B, C, 1, T) to (B, N, T)."""
        return self.decay(super().drive(x))  # type: ignore[no-any-return]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state of the leaky neurons before the first frame."""
        return self.decay.init_state(batch, device=device, dtype=dtype)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, C, T') or (B, C, 1, T') to (B, N, 1, T')."""
        drive, following = self.step_drive(chunk, state)
        return self.activate(drive), following

    def step_drive(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """`drive` of the next frames, (B, N, T'), and the next state."""
        return self.decay.step(super().drive(chunk), state)
