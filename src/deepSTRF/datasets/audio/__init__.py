"""Auditory recordings: the contract for sound (`AudioNeuralDataset`) and one file per recording format."""

from deepSTRF.datasets.audio.ns1 import NS1Dataset
from deepSTRF.datasets.audio.public import PUBLIC_RECORDINGS, load_public
from deepSTRF.datasets.audio.synthetic import SyntheticDataset
from deepSTRF.datasets.dataset import AudioNeuralDataset

__all__ = ["PUBLIC_RECORDINGS", "AudioNeuralDataset", "NS1Dataset", "SyntheticDataset", "load_public"]
