"""Encoding models: sound in, one rate per neuron and time bin out.

`NeuralModel` is the base of all models: four slots (front-end, prefilter, core, readout), streaming,
prediction, saving and loading. `deepSTRF.models.audio` has the models, `deepSTRF.models.wav2spec` the
front-ends, `deepSTRF.models.backbones` the recurrent networks of `StateNet`, `deepSTRF.models.io` the loader
of public weights.
"""

from deepSTRF.models import audio, backbones, io, wav2spec
from deepSTRF.models.activations import ParametricDoubleExponential, ParametricSigmoid, ParametricSoftplus
from deepSTRF.models.band_filters import BandFilters
from deepSTRF.models.base import NeuralModel
from deepSTRF.models.conditional import ConditionalModel
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.kernels import CausalSTRFConv, ParametricSTRF, SeparableSTRF
from deepSTRF.models.norms import CausalLayerNorm
from deepSTRF.models.prefiltering import AdapTrans, ICAdaptation, make_prefiltering
from deepSTRF.models.pretrained import load_pretrained, pretrained_models
from deepSTRF.models.readouts import LinearReadout, STRFReadout
from deepSTRF.models.streaming import FramewiseMixin, Streamable

__all__ = [
    "AdapTrans",
    "BandFilters",
    "CausalLayerNorm",
    "CausalSTRFConv",
    "ConditionalModel",
    "Configurable",
    "FittedOn",
    "FramewiseMixin",
    "ICAdaptation",
    "LinearReadout",
    "NeuralModel",
    "ParametricDoubleExponential",
    "ParametricSTRF",
    "ParametricSigmoid",
    "ParametricSoftplus",
    "STRFReadout",
    "SeparableSTRF",
    "Streamable",
    "audio",
    "backbones",
    "io",
    "load_pretrained",
    "make_prefiltering",
    "pretrained_models",
    "wav2spec",
]
