"""Readouts: from shared features to one prediction per neuron, the last of the four slots."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_choice, check_positive_int, polarity_channel
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.kernels import CausalSTRFConv
from deepSTRF.models.streaming import Device, DType, FramewiseMixin, State, init_slot_state, step_slot
from deepSTRF.registry import ACTIVATIONS

__all__ = ["LinearReadout", "STRFReadout", "activation_domain"]

#: Drives at which the sign of an output activation is looked at: dense around 0, up to 10,000.
_DRIVES = torch.cat([torch.logspace(-3, 4, 141).neg(), torch.zeros(1), torch.logspace(-3, 4, 141)])


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
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("batch", "none"))
        self.norm = norm
        self.strf = CausalSTRFConv(F, T, C_in, out_neurons, kernel=kernel, bias=bias)
        self.out_neurons = self.strf.C_out
        if norm == "batch":
            self.bn = nn.BatchNorm1d(self.out_neurons)
        self.activation = _resolve_activation(activation, self.out_neurons)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, F, T) to (B, N, 1, T)."""
        return self._finish(self.strf(x))

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame."""
        return {
            "strf": self.strf.init_state(batch, device=device, dtype=dtype),
            "activation": init_slot_state(self.activation, "activation", batch, device=device, dtype=dtype),
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, C_in, F, T') to (B, N, 1, T')."""
        drive, strf_state = self.strf.step(chunk, state["strf"])
        y, activation_state = step_slot(
            self.activation, "activation", self._normalise(drive).transpose(1, 2), state["activation"]
        )
        return y.transpose(1, 2).unsqueeze(2), {"strf": strf_state, "activation": activation_state}

    @property
    def prediction_domain(self) -> str:
        """Range of the output, see `activation_domain`."""
        return activation_domain(self.activation, self.out_neurons)

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

    def _finish(self, drive: Tensor) -> Tensor:
        flat = self._normalise(drive)
        if type(self.activation) is nn.Identity:  # saves two transposed copies
            return flat.unsqueeze(2)
        y: Tensor = self.activation(flat.transpose(1, 2))
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
        return self._finish(self._drive(x))

    def _drive(self, x: Tensor) -> Tensor:
        """(B, C, T) or (B, C, 1, T) -> (B, N, T), before the activation."""
        if x.ndim == 4 and x.shape[2] == 1:
            x = x.squeeze(2)
        if x.ndim != 3 or x.shape[1] != self.in_features:
            raise ValueError(
                f"expected features (B, {self.in_features}, T) or (B, {self.in_features}, 1, T), got "
                f"{tuple(x.shape)}"
            )
        return self.fc(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]

    def _finish(self, drive: Tensor) -> Tensor:
        """(B, N, T) -> (B, N, 1, T), through the activation."""
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
    device, dtype = placement(activation)
    grid = _DRIVES.to(device, dtype).view(1, -1, 1).expand(1, -1, num_features)
    flags = [(part, part.training) for part in activation.modules()]
    try:
        with torch.no_grad():
            return "real" if bool((activation.eval()(grid) < 0).any()) else "non-negative"
    except (RuntimeError, ValueError, TypeError, IndexError):
        return "unknown"
    finally:
        for part, training in flags:
            part.training = training
