"""Recordings: stimuli, the responses of a population to them, and the ways to select, split and join them.

`NeuralDataset` is the contract; `deepSTRF.datasets.audio` holds the recordings with sounds. A dataset of your
own comes from plain arrays with ``AudioNeuralDataset.from_arrays`` or ``NeuralDataset.from_arrays``.
"""

from deepSTRF.datasets.alignment import AlignmentReport, check_alignment
from deepSTRF.datasets.concat import concat_neural_datasets
from deepSTRF.datasets.dataset import LoadReport, NeuralDataset, neural_collate
from deepSTRF.datasets.folds import Fold, FoldManifest, plan_folds
from deepSTRF.datasets.io import load_dataset, save_dataset
from deepSTRF.datasets.splits import (
    ClipSplit,
    index_split,
    k_fold,
    leave_one_clip_out,
    parse_split,
    random_split,
)

__all__ = [
    "AlignmentReport",
    "ClipSplit",
    "Fold",
    "FoldManifest",
    "LoadReport",
    "NeuralDataset",
    "check_alignment",
    "concat_neural_datasets",
    "index_split",
    "k_fold",
    "leave_one_clip_out",
    "load_dataset",
    "neural_collate",
    "parse_split",
    "plan_folds",
    "random_split",
    "save_dataset",
]
