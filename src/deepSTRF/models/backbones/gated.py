"""The recurrences of ``torch.nn``, GRU, LSTM and the plain one, as streams; and GRUs in parallel."""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import MOST_LAYERS, check_choice, check_dropout, check_positive_int, checked
from deepSTRF.models.backbones.base import Backbone, check_sequence
from deepSTRF.models.backbones.recurrence import gru_recurrence, runs_in_numpy
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import BACKBONES

__all__ = ["GRU", "LSTM", "RNN", "ParallelGRU"]


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
        if chunk.shape[1] == 1 and torch.compiler.is_compiling():
            return self._step_frame(chunk[:, 0], before)
        with _cudnn_with_gradient(self, chunk):
            y, last = super().forward(chunk, before if len(before) > 1 else before[0])
        return y, dict(zip(self.STATE_NAMES, last if len(before) > 1 else (last,), strict=True))

    def _step_frame(self, x: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        """One frame (B, input_size), written out: compilers and exporters take no module of ``torch.nn``."""
        following = []
        for layer, weights in enumerate(self.all_weights):
            w_in, w_state, b_in, b_state = weights
            x = functional.dropout(x, self.dropout, self.training) if layer else x
            state = tuple(part[layer] for part in before)
            drive, recurrent = functional.linear(x, w_in, b_in), functional.linear(state[0], w_state, b_state)
            following.append(self._cell(drive, recurrent, state))
            x = following[-1][0]
        parts = [torch.stack(layers) for layers in zip(*following, strict=True)]
        return x.unsqueeze(1), dict(zip(self.STATE_NAMES, parts, strict=True))

    def _cell(self, drive: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Next state (B, H), the output first, of the products with input and output (B, gates H)."""
        raise NotImplementedError


def _cudnn_with_gradient(module: nn.Module, chunk: Tensor) -> contextlib.AbstractContextManager[None]:
    """Leave cuDNN out where it has no backward pass: gradients of a model in eval mode."""
    if chunk.is_cuda and not module.training and torch.is_grad_enabled():
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

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', input_size) to (B, T', hidden_size)."""
        if not runs_in_numpy(chunk):
            return super().step(chunk, state)
        check_sequence(chunk, self.input_size)
        if _is_one_frame(chunk, state["h"]):
            return self._step_frame(chunk[:, 0], (state["h"],))
        last = []
        for layer, h in enumerate(state["h"]):
            if layer:
                chunk = functional.dropout(chunk, self.dropout, self.training)
            weights = tuple(weight.unsqueeze(0) for weight in self.all_weights[layer])
            chunk = _run_groups(chunk, h.unsqueeze(0), weights)
            last.append(chunk[:, -1])
        return chunk, {"h": torch.stack(last)}

    def _cell(self, drive: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_gated(drive, recurrent, state[0]),)

    def _step_frame(self, x: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, State]:
        """One frame (B, input_size)."""
        if torch.compiler.is_compiling():
            return super()._step_frame(x, before)
        last = []
        for layer, h in enumerate(before[0]):
            x = functional.dropout(x, self.dropout, self.training) if layer else x
            x = torch.gru_cell(x, h, *self.all_weights[layer])
            last.append(x)
        return x.unsqueeze(1), {"h": torch.stack(last)}


def _is_one_frame(chunk: Tensor, h: Tensor) -> bool:
    """Whether a chunk is one frame of a stream that nobody differentiates, for as many streams as a state."""
    return chunk.shape[1] == 1 and chunk.shape[0] == h.shape[1] and not torch.is_grad_enabled()


def _gated(drive: Tensor, recurrent: Tensor, h: Tensor) -> Tensor:
    """Next state of a gated unit from the products with input and state (..., 3 H), and its state."""
    (r, z, n), (to_r, to_z, to_n) = drive.chunk(3, -1), recurrent.chunk(3, -1)
    n = torch.tanh(n + torch.sigmoid(r + to_r) * to_n)
    return n + torch.sigmoid(z + to_z) * (h - n)


def _run_groups(x: Tensor, h: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """Outputs (B, T, G H) of groups of gated units for one input (B, T, I), from the states (G, B, H).

    ``weights`` are those of ``nn.GRU``, with the axis of groups in front.
    """
    (batch, frames, _), (groups, streams, size) = x.shape, h.shape
    if streams != batch:
        raise ValueError(
            f"the state is of {streams} streams and the frames of {batch}: give each step the state that the "
            "last one returned, and start with init_state(batch)"
        )
    w_in, w_state, b_in, b_state = weights
    gates = 2 * size  # all biases but that of the candidate's state add to the input's
    bias = torch.cat([b_in[:, :gates] + b_state[:, :gates], b_in[:, gates:]], dim=1)
    drive = functional.linear(x, w_in.flatten(0, 1), bias.flatten())
    drive = drive.view(batch, frames, groups, 3 * size).permute(1, 2, 0, 3).contiguous()
    y = gru_recurrence(drive, h, w_state.mT.contiguous(), b_state[:, gates:])
    return y.permute(2, 0, 1, 3).reshape(batch, frames, groups * size)


@BACKBONES.register("parallelgru")
class ParallelGRU(Backbone):
    """Gated recurrent units in independent groups: every group gets the whole input and only its own state.

    G groups of H / G units cost a G-th of the recurrent products of one `GRU` of H units, and have a G-th of
    its recurrent weights: ``3 H (I + H / G + 2)`` parameters per layer.

    Parameters
    ----------
    input_size, hidden_size : int
        Features per frame in and out, I and H.
    num_layers : int
        Stacked layers; a layer's groups get the outputs of all groups before.
    dropout : float
        Share of features dropped between layers while training.
    n_groups : int
        Groups, G, a divisor of H.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, a number of groups that does not divide ``hidden_size``, or a dropout outside [0,
        1).

    References
    ----------
    Cho et al. 2014, doi 10.3115/v1/D14-1179 (the unit).

    Examples
    --------
    >>> backbone = ParallelGRU(100, 140, n_groups=4)
    >>> sum(parameter.numel() for parameter in backbone.parameters())
    57540
    >>> backbone(torch.zeros(2, 50, 100)).shape
    torch.Size([2, 50, 140])
    """

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        n_groups: int = 2,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout)
        self.n_groups = check_positive_int("n_groups", n_groups)
        if self.hidden_size % self.n_groups:
            raise ValueError(
                f"n_groups must divide the {self.hidden_size} units of the backbone, got {self.n_groups}"
            )
        size = self.hidden_size // self.n_groups
        self.layers.extend(_Groups(width, size, self.n_groups) for width in self.layer_widths())


class _Groups(nn.Module):
    """One layer of `ParallelGRU`: the weights of `GRU`, with an axis of groups in front.

    No modules of ``torch.nn``, which compilers do not take. The state is one tensor ``h`` (G, B, H / G).
    """

    def __init__(self, input_size: int, size: int, n_groups: int) -> None:
        super().__init__()
        shapes = (3 * size, input_size), (3 * size, size), (3 * size,), (3 * size,)
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = (
            nn.Parameter(torch.empty(n_groups, *shape).uniform_(-(size**-0.5), size**-0.5))
            for shape in shapes
        )

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        where, kind = placement(self, device, dtype)
        groups, _, size = self.weight_hh.shape
        return {"h": torch.zeros(groups, batch, size, device=where, dtype=kind)}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        if _is_one_frame(chunk, state["h"]):
            return self._step_frame(chunk[:, 0], state["h"])
        if chunk.is_cuda and not torch.compiler.is_compiling():
            y = self._by_cudnn(chunk, state["h"], weights)
        else:
            y = _run_groups(chunk, state["h"], weights)
        return y, {"h": y[:, -1].view(chunk.shape[0], len(self.weight_hh), -1).transpose(0, 1)}

    def _step_frame(self, x: Tensor, h: Tensor) -> tuple[Tensor, State]:
        """One frame (B, input_size): every product is one call, and nothing is laid out anew."""
        groups, _, size = self.weight_hh.shape
        drive = functional.linear(x, self.weight_ih.flatten(0, 1), self.bias_ih.flatten())
        drive = drive.view(x.shape[0], groups, 3 * size).transpose(0, 1)
        recurrent = torch.baddbmm(self.bias_hh.unsqueeze(1), h, self.weight_hh.mT)
        h = _gated(drive, recurrent, h)
        return h.transpose(0, 1).flatten(1).unsqueeze(1), {"h": h}

    def _by_cudnn(self, chunk: Tensor, h: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """One call of the library per group."""
        parts = []
        with _cudnn_with_gradient(self, chunk), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
            for start, *own in zip(h, *weights, strict=True):
                y, _ = torch.gru(
                    chunk, start[None].contiguous(), own, True, 1, 0.0, self.training, False, True
                )
                parts.append(y)
        return torch.cat(parts, dim=-1)


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

    def _cell(self, drive: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        i, f, g, o = (drive + recurrent).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


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

    def _cell(self, drive: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        squash = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        return (squash(drive + recurrent),)
