"""Auditory recordings: the contract for sound (`AudioNeuralDataset`) and one file per recording format."""

from deepSTRF.datasets.audio.ns1 import NS1Dataset
from deepSTRF.datasets.audio.synthetic import SyntheticDataset
from deepSTRF.datasets.dataset import AudioNeuralDataset

__all__ = ["AudioNeuralDataset", "NS1Dataset", "SyntheticDataset"]
