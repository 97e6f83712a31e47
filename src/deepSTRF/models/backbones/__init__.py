"""Sequence models, one file per recurrence: what runs along time inside `StateNet`.

All map (B, T, input_size) to (B, T, hidden_size), strictly causally, and carry their state from chunk to
chunk by ``init_state`` and ``step``.
"""

from deepSTRF.models.backbones.base import Backbone
from deepSTRF.models.backbones.gated import GRU, LSTM, RNN, ParallelGRU
from deepSTRF.models.backbones.lmu import LMU
from deepSTRF.models.backbones.mamba import Mamba
from deepSTRF.models.backbones.s4 import S4, S4D

__all__ = ["GRU", "LMU", "LSTM", "RNN", "S4", "S4D", "Backbone", "Mamba", "ParallelGRU"]
