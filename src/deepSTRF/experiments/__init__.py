"""Experiments: a configuration, its fits with several seeds, and the run folder that repeats them."""

from deepSTRF.experiments.config import ExperimentConfig
from deepSTRF.experiments.run import evaluate_run, run_experiment
from deepSTRF.experiments.run_folder import Run

__all__ = ["ExperimentConfig", "Run", "evaluate_run", "run_experiment"]
