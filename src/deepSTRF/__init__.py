"""deepSTRF: fit and explain models of auditory neurons.

Sound in (a raw waveform or a spectrogram), neural activity out. ``import deepSTRF as ds`` reaches every
part of the package, ``ds.datasets``, ``ds.models``, ..., and the names that most fits need, such as
``ds.Fitter`` and ``ds.NS1Dataset``. All of them are loaded on first use: the import itself loads neither
torch nor NumPy. ``__init__.pyi`` is the list.

| part | contents |
|---|---|
| `datasets` | recordings: stimuli, responses, selections, splits |
| `models` | encoding models, waveform front-ends, recurrent backbones |
| `metrics` | losses, correlations, noise ceilings |
| `training` | the fitting loop, callbacks, seeds, scores |
| `baselines`, `crossval` | ridge STRFs; fits over folds |
| `experiments` | one configuration, its fits, its run folder |
| `interpret` | receptive fields, dynamic STRFs, probe sounds |
| `plots`, `report` | figures from arrays; one HTML page for a run |
| `streaming` | fitted models on live sound |
"""

import sys

import lazy_loader

from deepSTRF._moved import MovedModules

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules())
