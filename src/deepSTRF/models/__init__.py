"""Encoding models: sound in, one rate per neuron and bin out.

`NeuralModel` holds the four slots (front-end, prefilter, core, readout) and what all models share:
prediction, streaming, saving and loading. `deepSTRF.models.audio` holds the models,
`deepSTRF.models.wav2spec` the front-ends.
"""

from deepSTRF.models import audio, backbones, io, wav2spec
from deepSTRF.models.base import NeuralModel
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.streaming import FramewiseMixin, State, Streamable

__all__ = [
    "Configurable",
    "FramewiseMixin",
    "NeuralModel",
    "State",
    "Streamable",
    "audio",
    "backbones",
    "io",
    "wav2spec",
]
