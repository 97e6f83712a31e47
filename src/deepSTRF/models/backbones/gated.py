"""The recurrences of ``torch.nn``, GRU, LSTM and the plain one, with the streaming protocol."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from deepSTRF._validation import MOST_LAYERS, check_choice, check_dropout, check_positive_int, checked
from deepSTRF.models.backbones.base import check_sequence
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import BACKBONES

__all__ = ["GRU", "LSTM", "RNN"]


class _TorchRecurrence(nn.RNNBase):
    """Forward, ``init_state`` and ``step`` on top of a class of ``torch.nn``, which owns the parameters."""

    #: Names of the tensors of the state.
    STATE_NAMES: tuple[str, ...] = ("h",)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, input_size) to (B, T, hidden_size)."""
        return self.step(x, self.init_state(x.shape[0], device=x.device, dtype=x.dtype))[0]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return zeros, (num_layers, B, hidden_size) for each tensor of the state."""
        where, kind = placement(self, device, dtype)
        shape = (self.num_layers, batch, self.hidden_size)
        return {name: torch.zeros(shape, device=where, dtype=kind) for name in self.STATE_NAMES}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', input_size) to (B, T', hidden_size)."""
        check_sequence(chunk, self.input_size)
        before = tuple(state[name] for name in self.STATE_NAMES)
        with self._backend(chunk):
            y, last = super().forward(chunk, before if len(before) > 1 else before[0])
        return y, dict(zip(self.STATE_NAMES, last if len(before) > 1 else (last,), strict=True))

    def _backend(self, chunk: Tensor) -> contextlib.AbstractContextManager[None]:
        """Leave cuDNN out where it has no backward pass: gradients of a model in eval mode."""
        if chunk.is_cuda and not self.training and torch.is_grad_enabled():
            return torch.backends.cudnn.flags(enabled=False)
        return contextlib.nullcontext()


def _sizes(input_size: int, hidden_size: int, num_layers: int, dropout: float) -> dict[str, int | float]:
    """Checked arguments of a class of ``torch.nn``."""
    share = check_dropout(dropout)
    return {
        "input_size": check_positive_int("input_size", input_size),
        "hidden_size": check_positive_int("hidden_size", hidden_size),
        "num_layers": check_positive_int("num_layers", num_layers, MOST_LAYERS),
        "dropout": share if num_layers > 1 else 0.0,  # torch warns where there is nothing between
    }


@BACKBONES.register("gru")
class GRU(_TorchRecurrence, nn.GRU, Configurable):  # type: ignore[misc]
    """Gated recurrent unit.

    ``r = sigmoid(W_r x + U_r h)``, ``z = sigmoid(W_z x + U_z h)``, ``n = tanh(W_n x + r (U_n h))``, each with
    two biases as in ``nn.GRU``; ``h' = (1 - z) n + z h``. ``3 H (I + H + 2)`` parameters per layer.

    Parameters
    ----------
    input_size, hidden_size : int
        Features per frame in and out, I and H.
    num_layers : int
        Stacked layers.
    dropout : float
        Share of features dropped between layers while training; a single layer has no such place.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, or a dropout outside [0, 1).

    References
    ----------
    Cho et al. 2014, doi 10.3115/v1/D14-1179.

    Examples
    --------
    >>> backbone = GRU(70, 70)
    >>> sum(parameter.numel() for parameter in backbone.parameters())
    29820
    >>> backbone(torch.zeros(2, 100, 70)).shape
    torch.Size([2, 100, 70])
    """

    @checked
    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(**_sizes(input_size, hidden_size, num_layers, dropout), batch_first=True)


@BACKBONES.register("lstm")
class LSTM(_TorchRecurrence, nn.LSTM, Configurable):  # type: ignore[misc]
    """Long short-term memory.

    Gates ``i, f, o = sigmoid(W x + U h)`` and ``g = tanh(W x + U h)``, each with two biases as in
    ``nn.LSTM``; ``c' = f c + i g`` and ``h' = o tanh(c')``. ``4 H (I + H + 2)`` parameters per layer.

    Parameters
    ----------
    input_size, hidden_size : int
        Features per frame in and out, I and H.
    num_layers : int
        Stacked layers.
    dropout : float
        Share of features dropped between layers while training; a single layer has no such place.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, or a dropout outside [0, 1).

    References
    ----------
    Hochreiter & Schmidhuber 1997, doi 10.1162/neco.1997.9.8.1735.

    Examples
    --------
    >>> backbone = LSTM(70, 70)
    >>> sum(parameter.numel() for parameter in backbone.parameters())
    39760
    >>> sorted(backbone.init_state(batch=2))
    ['c', 'h']
    """

    STATE_NAMES = ("h", "c")

    @checked
    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__(**_sizes(input_size, hidden_size, num_layers, dropout), batch_first=True)


@BACKBONES.register("rnn")
@BACKBONES.register("vanilla")
class RNN(_TorchRecurrence, nn.RNN, Configurable):  # type: ignore[misc]
    """The plain recurrence, ``h' = tanh(W x + b + U h + c)``. ``H (I + H + 2)`` parameters per layer.

    Parameters
    ----------
    input_size, hidden_size : int
        Features per frame in and out, I and H.
    num_layers : int
        Stacked layers.
    dropout : float
        Share of features dropped between layers while training; a single layer has no such place.
    nonlinearity : {"tanh", "relu"}
        The squashing function.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, an unknown nonlinearity, or a dropout outside [0, 1).

    References
    ----------
    Elman 1990, doi 10.1207/s15516709cog1402_1.

    Examples
    --------
    >>> backbone = RNN(70, 70)
    >>> sum(parameter.numel() for parameter in backbone.parameters())
    9940
    """

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        nonlinearity: str = "tanh",
    ) -> None:
        check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            **_sizes(input_size, hidden_size, num_layers, dropout),
            nonlinearity=nonlinearity,
            batch_first=True,
        )
