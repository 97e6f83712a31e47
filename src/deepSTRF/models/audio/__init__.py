"""Encoding models of auditory neurons, one file per model."""

from deepSTRF.models.audio.base import AudioEncodingModel
from deepSTRF.models.audio.icnet import ICNet
from deepSTRF.models.audio.linear import Linear

__all__ = ["AudioEncodingModel", "ICNet", "Linear"]
