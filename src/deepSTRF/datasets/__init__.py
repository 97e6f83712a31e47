"""Recordings: stimuli, the responses of a population to them, and the ways to select, split and join them."""

from deepSTRF.datasets.base import NeuralDataset
from deepSTRF.datasets.collate import neural_collate
from deepSTRF.datasets.report import LoadReport

__all__ = ["LoadReport", "NeuralDataset", "neural_collate"]
