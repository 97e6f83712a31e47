"""Recordings: stimuli, the responses of a population of neurons, and their selection, splits and joins.

`NeuralDataset` is the data contract; recordings with sounds are in `deepSTRF.datasets.audio`. A dataset is
made from plain arrays with ``AudioNeuralDataset.from_arrays`` or ``NeuralDataset.from_arrays``.
"""

from deepSTRF.datasets import audio
from deepSTRF.datasets.concat import concat_neural_datasets
from deepSTRF.datasets.dataset import NeuralDataset
from deepSTRF.datasets.features import envelope, onsets, spectrogram, word_onsets
from deepSTRF.datasets.folds import FoldManifest, plan_folds
from deepSTRF.datasets.formats import MissingHintError, open_recording, write_recording
from deepSTRF.datasets.recording import LoadReport, neural_collate
from deepSTRF.datasets.single_trials import single_trials
from deepSTRF.datasets.spikes import bin_spikes
from deepSTRF.datasets.splits import (
    ClipSplit,
    index_split,
    k_fold,
    leave_one_clip_out,
    parse_split,
    random_split,
)
from deepSTRF.datasets.windows import windows

__all__ = [
    "ClipSplit",
    "FoldManifest",
    "LoadReport",
    "MissingHintError",
    "NeuralDataset",
    "audio",
    "bin_spikes",
    "concat_neural_datasets",
    "envelope",
    "index_split",
    "k_fold",
    "leave_one_clip_out",
    "neural_collate",
    "onsets",
    "open_recording",
    "parse_split",
    "plan_folds",
    "random_split",
    "single_trials",
    "spectrogram",
    "windows",
    "word_onsets",
    "write_recording",
]
