"""Base of sequence models: a stack of layers whose forward pass is one step.

A backbone is registered in `deepSTRF.registry.BACKBONES` and built as ``cls(input_size=, hidden_size=,
num_layers=, dropout=, **options)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import MOST_LAYERS, check_dropout, check_positive_int, checked
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.streaming import Device, DType, State, Streamable

__all__ = ["Backbone", "check_sequence"]


class Backbone(nn.Module, Configurable):
    """A stack of recurrent layers with dropout between them: (B, T, input_size) to (B, T, hidden_size).

    A backbone of your own derives from it and builds its layers: modules with ``init_state(batch, device=,
    dtype=)`` and ``step(x, state)``, where ``x`` is (B, T', width) for any T'. ``forward`` is one step from
    the start state, so that whole clips and streams share every line of code.

    Parameters
    ----------
    input_size : int
        Features per frame that come in.
    hidden_size : int
        Features per frame that go out.
    num_layers : int
        Layers, each fed with the output of the one before.
    dropout : float
        Share of features set to zero between layers while training; the last layer's output is left alone, as
        in ``nn.GRU``.

    Attributes
    ----------
    layers : nn.ModuleList
        The layers.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, or a dropout outside [0, 1).

    Examples
    --------
    >>> from deepSTRF.models.backbones import S4D
    >>> issubclass(S4D, Backbone)
    True
    """

    @checked
    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.input_size = check_positive_int("input_size", input_size)
        self.hidden_size = check_positive_int("hidden_size", hidden_size)
        self.num_layers = check_positive_int("num_layers", num_layers, MOST_LAYERS)
        self.dropout = check_dropout(dropout)
        self.layers = nn.ModuleList()

    def layer_widths(self) -> Sequence[int]:
        """Return the features that come into each layer."""
        return [self.input_size] + [self.hidden_size] * (self.num_layers - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, input_size) to (B, T, hidden_size).

        Raises
        ------
        ValueError
            For another shape.
        """
        return self.step(x, self.init_state(x.shape[0], device=x.device, dtype=x.dtype))[0]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame, one branch per layer."""
        return {
            name: cast(Streamable, layer).init_state(batch, device=device, dtype=dtype)
            for name, layer in self.layers.named_children()
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', input_size) to (B, T', hidden_size)."""
        check_sequence(chunk, self.input_size)
        following: State = {}
        for index, (name, layer) in enumerate(self.layers.named_children()):
            if index:
                chunk = functional.dropout(chunk, self.dropout, self.training)
            chunk, following[name] = cast(Streamable, layer).step(chunk, state[name])
        return chunk, following


def check_sequence(x: Tensor, input_size: int) -> None:
    """Raise a ValueError unless ``x`` is (B, T, input_size) with at least one frame."""
    if x.ndim != 3 or x.shape[2] != input_size or x.shape[1] == 0:
        raise ValueError(
            f"expected a sequence (B, T, {input_size}) of at least one frame, got {tuple(x.shape)}"
        )
