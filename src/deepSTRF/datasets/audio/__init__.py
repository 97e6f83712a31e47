"""Auditory recordings: the contract for sound (`AudioNeuralDataset`) and one file per recording format."""

from deepSTRF.datasets.audio.base import AudioNeuralDataset
from deepSTRF.datasets.audio.ns1 import NS1Dataset
from deepSTRF.datasets.audio.synthetic import SyntheticDataset

__all__ = ["AudioNeuralDataset", "NS1Dataset", "SyntheticDataset"]
