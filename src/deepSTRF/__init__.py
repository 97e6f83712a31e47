"""deepSTRF: fit and explain models of auditory neurons.

Sound in (a raw waveform or a spectrogram), neural activity out. The rooms of the house:
`deepSTRF.datasets` (recordings), `deepSTRF.models` (encoding models and waveform front-ends),
`deepSTRF.metrics` (losses, correlations, noise ceilings), `deepSTRF.training` (the fitting loop),
`deepSTRF.plots` and `deepSTRF.report` (what people look at), and the command `deepstrf`.

Importing this package imports none of them; each is imported where it is used.
"""

__version__ = "0.1.0.dev0"

__all__ = ["__version__"]
