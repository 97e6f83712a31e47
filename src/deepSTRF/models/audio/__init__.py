"""Encoding models of auditory neurons, one file per model."""

from deepSTRF.models.audio.base import AudioEncodingModel
from deepSTRF.models.audio.icnet import ICNet
from deepSTRF.models.audio.linear import Linear
from deepSTRF.models.audio.statenet import StateNet
from deepSTRF.models.audio.transformer import Transformer

__all__ = ["AudioEncodingModel", "ICNet", "Linear", "StateNet", "Transformer"]
