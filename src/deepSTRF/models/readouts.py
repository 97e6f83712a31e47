"""Readouts: from shared features to one prediction per neuron, and the scale of that prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    check_choice,
    check_positive_int,
    checked,
    checked_but,
    polarity_channel,
    to_tensor,
)
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.kernels import CausalSTRFConv
from deepSTRF.models.streaming import Device, DType, FramewiseMixin, State, init_slot_state, step_slot
from deepSTRF.registry import ACTIVATIONS

__all__ = ["LinearReadout", "OutputScale", "STRFReadout", "activation_domain", "start_output"]

#: Drives at which the sign of an output activation is looked at: dense around 0, up to 10,000.
_DRIVES = torch.cat([torch.logspace(-3, 4, 141).neg(), torch.zeros(1), torch.logspace(-3, 4, 141)])
#: Correlation that a first prediction may reach; least squares gives it that share of a neuron's deviation.
EXPECTED_CORRELATION = 0.5
#: Responses whose minimum is this many deviations above zero are no rates with a silent state.
FAR_FROM_ZERO = 3.0
#: Range of a bounded output above the largest response in the training clips.
HEADROOM = 1.5
#: Drives at which an activation is looked at, and the part of its steepest slope below which it is flat:
#: learning would hardly move a neuron that starts there.
WIDEST_DRIVE, N_DRIVES, LEAST_SLOPE = 20.0, 8001, 0.1


class STRFReadout(nn.Module, Configurable):
    """One STRF per neuron: causal convolution, optional batch normalisation, output activation.

    Parameters
    ----------
    F : int
        Frequency bands.
    T : int
        Length of the STRF in frames.
    C_in : int
        Channels of the input (1, or 2 behind an ON/OFF prefilter).
    out_neurons : int
        Neurons, N.
    kernel : nn.Module or None
        Maps (B, C_in, F, T' + T - 1) to (B, N, 1, T'); None is a full kernel.
    activation : nn.Module, str or None
        Applied with the neurons on the last axis, (B, T, N); None is the identity.
    bias : bool
        Whether the convolution has a bias.
    norm : {"batch", "none"}
        ``"batch"`` standardises each neuron's drive by ``nn.BatchNorm1d(N)``; ``"none"`` leaves it out, as
        closed-form solutions need.
    first_lag : int
        Lag of the newest frame of the STRFs, see `CausalSTRFConv`.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes or an unknown ``norm``.

    Notes
    -----
    In train mode batch normalisation uses the statistics of the whole batch: all frames, also later ones, and
    the zero frames with which shorter clips were padded (``forward`` has no mask). Eval mode is strictly
    causal. Train with a batch size of 1, clips of equal length or ``norm="none"`` where that matters. Behind
    batch normalisation the N convolution biases have no effect on training; they are kept for the layout of
    public checkpoints.

    Examples
    --------
    >>> readout = STRFReadout(F=34, T=9, C_in=1, out_neurons=5)
    >>> readout(torch.zeros(2, 1, 34, 100)).shape
    torch.Size([2, 5, 1, 100])
    """

    @checked_but("activation")
    def __init__(
        self,
        F: int,
        T: int,
        C_in: int,
        out_neurons: int,
        kernel: nn.Module | None = None,
        activation: nn.Module | str | None = None,
        bias: bool = True,
        *,
        norm: str = "batch",
        first_lag: int = 0,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("batch", "none"))
        self.norm = norm
        self.strf = CausalSTRFConv(F, T, C_in, out_neurons, kernel=kernel, bias=bias, first_lag=first_lag)
        self.out_neurons = self.strf.C_out
        if norm == "batch":
            self.bn = nn.BatchNorm1d(self.out_neurons)
        self.activation = _resolve_activation(activation, self.out_neurons)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, F, T) to (B, N, 1, T)."""
        return self.activate(self.drive(x))

    def drive(self, x: Tensor) -> Tensor:
        """Map (B, C_in, F, T) to (B, N, T): what the output activation is applied to."""
        return self._normalise(self.strf(x))

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame."""
        return {
            "strf": self.strf.init_state(batch, device=device, dtype=dtype),
            "activation": init_slot_state(self.activation, "activation", batch, device=device, dtype=dtype),
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, C_in, F, T') to (B, N, 1, T')."""
        drive, following = self.step_drive(chunk, state)
        y, activation_state = step_slot(
            self.activation, "activation", drive.transpose(1, 2), state["activation"]
        )
        return y.transpose(1, 2).unsqueeze(2), {**following, "activation": activation_state}

    def step_drive(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """`drive` of the next frames, (B, N, T'), and the next state."""
        drive, strf_state = self.strf.step(chunk, state["strf"])
        return self._normalise(drive), {**state, "strf": strf_state}

    @property
    def prediction_domain(self) -> str:
        """Range of the output, see `activation_domain`."""
        return activation_domain(self.activation, self.out_neurons)

    @checked
    def STRF_weight(self, polarity: str | int | None = None, folded: bool = False) -> Tensor:
        """Return the STRFs (N, C_in, F, T), or those of one polarity (N, F, T), detached, on the CPU.

        Parameters
        ----------
        polarity : str, int or None
            Channel: ``"ON"`` or 0, ``"OFF"`` or 1; None is all.
        folded : bool
            Whether to multiply by the gain of batch normalisation.

        Returns
        -------
        Tensor
            (N, C_in, F, T) or (N, F, T).
        """
        weight = self.strf.STRF_weight()
        if folded:
            weight = weight * self.gain().view(-1, 1, 1, 1)
        if polarity is None:
            return weight
        return weight[:, polarity_channel(polarity, self.strf.C_in)]

    def gain(self) -> Tensor:
        """Return the factor (N,) of batch normalisation in eval mode, detached, on the CPU."""
        if self.norm == "none":
            return torch.ones(self.out_neurons)
        variance = self.bn.running_var
        if variance is None:
            raise ValueError("a batch normalisation without running statistics has no fixed gain")
        scale = self.bn.weight.detach() / torch.sqrt(variance + self.bn.eps)
        return scale.cpu()

    def _normalise(self, drive: Tensor) -> Tensor:
        """(B, N, 1, T) -> (B, N, T), normalised."""
        flat = drive.squeeze(2)
        if self.norm == "none":
            return flat
        if self.training and flat.shape[0] * flat.shape[2] < 2:
            raise ValueError(
                "batch normalisation cannot train on a batch of one clip with one frame: give at least two "
                "frames, call model.eval() to predict, or build the model with norm='none'"
            )
        return self.bn(flat)  # type: ignore[no-any-return]

    def activate(self, drive: Tensor) -> Tensor:
        """Map `drive` (B, N, T) to (B, N, 1, T)."""
        if type(self.activation) is nn.Identity:  # saves two transposed copies
            return drive.unsqueeze(2)
        y: Tensor = self.activation(drive.transpose(1, 2))
        return y.transpose(1, 2).unsqueeze(2)


class LinearReadout(FramewiseMixin, nn.Module, Configurable):
    """Affine map of each frame's features to N neurons, with an optional hidden layer.

    Parameters
    ----------
    in_features : int
        Features per frame, C.
    out_neurons : int
        Neurons, N.
    hidden : int or None
        Width of a hidden layer with LeakyReLU(0.1); None is a single affine map.
    activation : nn.Module, str or None
        Applied with the neurons on the last axis, (B, T, N); None is the identity.
    bias : bool
        Whether the affine maps have biases.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes.

    Examples
    --------
    >>> readout = LinearReadout(in_features=20, out_neurons=5)
    >>> readout(torch.zeros(2, 20, 1, 100)).shape
    torch.Size([2, 5, 1, 100])
    """

    #: Slope of the hidden layer's LeakyReLU for negative drive.
    NEGATIVE_SLOPE = 0.1

    @checked_but("activation")
    def __init__(
        self,
        in_features: int,
        out_neurons: int,
        hidden: int | None = None,
        activation: nn.Module | str | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.out_neurons = check_positive_int("out_neurons", out_neurons)
        self.fc: nn.Module
        if hidden is None:
            self.fc = nn.Linear(self.in_features, self.out_neurons, bias=bias)
        else:
            width = check_positive_int("hidden", hidden)
            self.fc = nn.Sequential(
                nn.Linear(self.in_features, width, bias=bias),
                nn.LeakyReLU(self.NEGATIVE_SLOPE),
                nn.Linear(width, self.out_neurons, bias=bias),
            )
        self.activation = _resolve_activation(activation, self.out_neurons)

    @property
    def prediction_domain(self) -> str:
        """Range of the output, see `activation_domain`."""
        return activation_domain(self.activation, self.out_neurons)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) or (B, C, 1, T) to (B, N, 1, T)."""
        return self.activate(self.drive(x))

    def step_drive(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """`drive` of the next frames, (B, N, T'), and the next state."""
        return self.drive(chunk), state

    def drive(self, x: Tensor) -> Tensor:
        """Map (B, C, T) or (B, C, 1, T) to (B, N, T): what the output activation is applied to."""
        if x.ndim == 4 and x.shape[2] == 1:
            x = x.squeeze(2)
        if x.ndim != 3 or x.shape[1] != self.in_features:
            raise ValueError(
                f"expected features (B, {self.in_features}, T) or (B, {self.in_features}, 1, T), got "
                f"{tuple(x.shape)}"
            )
        return self.fc(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]

    def activate(self, drive: Tensor) -> Tensor:
        """Map `drive` (B, N, T) to (B, N, 1, T)."""
        y: Tensor = self.activation(drive.transpose(1, 2))
        return y.transpose(1, 2).unsqueeze(2)


def _resolve_activation(given: nn.Module | str | None, num_features: int) -> nn.Module:
    """Return an output nonlinearity as a module: the given one, a registered one, or the identity."""
    if given is None:
        return nn.Identity()
    if isinstance(given, str):
        activation: nn.Module = ACTIVATIONS.get(given)(num_features)
        return activation
    if not isinstance(given, nn.Module):
        raise TypeError(f"activation must be an nn.Module, a name or None, got {type(given).__name__}")
    return given


def activation_domain(activation: nn.Module, num_features: int) -> str:
    """Return "non-negative" where no drive gives a negative output, "real" where one does, else "unknown".

    "unknown" is an activation that does not take a grid of drives (1, T, N).
    """
    if isinstance(activation, nn.Identity) or getattr(activation, "non_negative_output", True) is False:
        return "real"  # a baseline that is free to become negative
    outputs = _curve(activation, _DRIVES, num_features)
    if outputs is None:
        return "unknown"
    return "real" if bool((outputs < 0).any()) else "non-negative"


@torch.no_grad()
def _curve(activation: nn.Module, drives: Tensor, num_features: int) -> Tensor | None:
    """Outputs (K, N) of an activation in eval mode for drives (K,), on the CPU; None if it takes no grid."""
    device, dtype = placement(activation)
    grid = drives.to(device, dtype).view(1, -1, 1).repeat(1, 1, num_features)
    flags = [(part, part.training) for part in activation.modules()]
    try:
        outputs: Tensor = activation.eval()(grid)
        return outputs[0].cpu().double()
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    finally:
        for part, training in flags:
            part.training = training


# ---- The scale of a prediction: spikes per bin, microvolt or volt, while a model's own numbers are near 1


class OutputScale(nn.Module, Configurable):
    """Scale and offset of each neuron's prediction, ``offset + scale * x``: the unit of its responses.

    Both are buffers, saved with the model and without gradient: 1 and 0 until a fit starts them at the
    neuron's own statistics on the training clips (`start_output`). A state without them, as of an earlier
    version or package, is one in the unit of the responses.
    """

    scale: Tensor  # (N,) in the unit of the responses
    offset: Tensor
    _started: Tensor

    def __init__(self, out_neurons: int) -> None:
        super().__init__()
        self.out_neurons = check_positive_int("out_neurons", out_neurons)
        self.register_buffer("scale", torch.ones(self.out_neurons))
        self.register_buffer("offset", torch.zeros(self.out_neurons))
        self.register_buffer("_started", torch.tensor(False))

    @property
    def started(self) -> bool:
        """Whether scale and offset were measured, loaded, or declared right as they are."""
        return bool(self._started)

    @torch.no_grad()
    def start(self, scale: Tensor | float = 1.0, offset: Tensor | float = 0.0) -> None:
        """Set scale and offset, numbers or (N,); a fit then leaves them as they are."""
        self.scale.copy_(to_tensor(scale))
        self.offset.copy_(to_tensor(offset))
        self._started.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, 1, T) to the unit of the responses; checks name what has another shape."""
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != self.out_neurons:
            return x
        return torch.addcmul(self.offset.view(-1, 1, 1), x, self.scale.view(-1, 1, 1))

    def convert_public_state(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Complete a state that lacks the stage, as those of earlier versions and packages do."""
        if prefix + "scale" in state:
            return state
        floating = (value for value in state.values() if value.is_floating_point())
        ones = torch.ones_like(self.scale, dtype=next(floating, self.scale).dtype)  # one precision stays one
        own = {"scale": ones, "offset": torch.zeros_like(ones), "_started": torch.ones_like(self._started)}
        return {**state, **{prefix + name: value for name, value in own.items()}}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(self.convert_public_state(state_dict, prefix), prefix, *args)


@torch.no_grad()
def start_output(
    stage: OutputScale, readout: nn.Module, mean: Tensor, deviation: Tensor, lowest: Tensor, highest: Tensor
) -> None:
    """Start an output at each neuron's mean, deviation, minimum and maximum (N,) over its training PSTHs.

    Without a nonlinearity the prediction is ``mean + 0.5 deviation x``. What a non-negative one gives for a
    drive of zero becomes the mean: above zero, or above the minimum where that is negative or far from zero.
    A bounded one without parameters is stretched over the range of the responses, and the last bias starts at
    the mean.
    """
    known = deviation.isfinite() & (deviation > 0)
    typical = float(deviation[known].median()) if bool(known.any()) else 1.0
    deviation = torch.where(known, deviation, typical)  # a silent neuron, or one that was not recorded
    mean, lowest, highest = (torch.where(value.isfinite(), value, 0.0) for value in (mean, lowest, highest))
    activation = getattr(readout, "activation", None)
    if type(activation) is nn.Identity:
        stage.start(EXPECTED_CORRELATION * deviation, mean)
        return
    floor = torch.where((lowest < 0) | (lowest > FAR_FROM_ZERO * deviation), lowest, 0.0)
    drives = torch.linspace(-WIDEST_DRIVE, WIDEST_DRIVE, N_DRIVES)
    outputs = _curve(activation, drives, stage.out_neurons) if isinstance(activation, nn.Module) else None
    if activation is None or outputs is None:  # the user's own: any sign of output is possible
        stage.start(deviation, floor)
        return
    at_rest, signed = outputs[len(outputs) // 2], (outputs < 0).any(0)
    if any(True for _ in activation.parameters()) or bool(outputs[[0, -1]].abs().amax() > 1.0):
        above = ~signed & (at_rest > 0) & (mean > floor)
        scale = torch.where(above, (mean - floor) / at_rest, deviation)
        stage.start(scale, torch.where(signed, mean - scale * at_rest, floor))
        return
    offset = torch.where(signed, mean, floor)
    reach = torch.maximum(highest - offset, offset - lowest)
    scale = torch.where(reach > 0, HEADROOM * reach / outputs.abs().amax(0), deviation)
    stage.start(scale, offset)
    bias = _last_bias(readout)
    if bias is not None:
        bias.copy_(_drive_for((mean - offset) / scale, drives, outputs).to(bias).view_as(bias))


def _drive_for(wanted: Tensor, drives: Tensor, outputs: Tensor) -> Tensor:
    """Drives (N,) out of (K,) whose outputs (K, N) come closest to those wanted, where they are not flat."""
    slope = outputs.diff(dim=0).abs()
    error = torch.where(slope >= LEAST_SLOPE * slope.amax(0), (outputs[1:] - wanted).abs(), torch.inf)
    return drives[1:][error.argmin(dim=0)]


def _last_bias(readout: nn.Module) -> nn.Parameter | None:
    """The bias per neuron in front of an output activation."""
    last: nn.Module = readout
    if isinstance(readout, STRFReadout):
        last = readout.bn if readout.norm == "batch" else readout.strf.kernel
    elif isinstance(readout, LinearReadout):
        last = readout.fc[-1] if isinstance(readout.fc, nn.Sequential) else readout.fc
    bias = getattr(last, "bias", None)
    return bias if isinstance(bias, nn.Parameter) else None
