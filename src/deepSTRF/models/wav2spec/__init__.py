"""Waveform front-ends: raw audio in, a spectrogram on the neural grid out, strictly causal.

One file per front-end; `make_wav2spec` builds one by name. A user's own is any module that maps (B, 1,
T_audio) to (B, 1, F, T) and has the attributes ``out_channels``, ``hop`` and ``audio_fs``; deriving it from
`WaveformFrontEnd` adds checks and streaming.
"""

from deepSTRF.models.wav2spec.base import WaveformFrontEnd, make_wav2spec
from deepSTRF.models.wav2spec.earlier import EarlierGammatone, EarlierLEAF
from deepSTRF.models.wav2spec.gammatone import CausalGammatone
from deepSTRF.models.wav2spec.gammatonegram import Gammatonegram
from deepSTRF.models.wav2spec.leaf import CausalLEAF
from deepSTRF.models.wav2spec.mel import CausalMelSpectrogram
from deepSTRF.models.wav2spec.pcen import PCEN
from deepSTRF.models.wav2spec.sincnet import SincNet

__all__ = [
    "PCEN",
    "CausalGammatone",
    "CausalLEAF",
    "CausalMelSpectrogram",
    "EarlierGammatone",
    "EarlierLEAF",
    "Gammatonegram",
    "SincNet",
    "WaveformFrontEnd",
    "make_wav2spec",
]
