"""Encoding models of auditory neurons, one file per model."""

from deepSTRF.models.audio.convnet2d import ConvNet2D
from deepSTRF.models.audio.deep_encoder import DeepEncoder
from deepSTRF.models.audio.dnet import DNet
from deepSTRF.models.audio.gatednet import GatedNet
from deepSTRF.models.audio.icnet import ICNet
from deepSTRF.models.audio.linear import Linear
from deepSTRF.models.audio.linear_nonlinear import LinearNonlinear
from deepSTRF.models.audio.nrf import NetworkReceptiveField
from deepSTRF.models.audio.statenet import StateNet
from deepSTRF.models.audio.transformer import Transformer
from deepSTRF.models.base import AudioEncodingModel

__all__ = [
    "AudioEncodingModel",
    "ConvNet2D",
    "DNet",
    "DeepEncoder",
    "GatedNet",
    "ICNet",
    "Linear",
    "LinearNonlinear",
    "NetworkReceptiveField",
    "StateNet",
    "Transformer",
]
