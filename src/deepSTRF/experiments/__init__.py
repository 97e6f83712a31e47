"""Experiments: a configuration, its fits with several seeds, and the run folder that holds the results.

Only `ExperimentConfig` is imported at once: the command line shows its fields without loading PyTorch.
"""

from typing import TYPE_CHECKING

import lazy_loader

from deepSTRF.experiments.config import ExperimentConfig

if TYPE_CHECKING:
    from deepSTRF.experiments.run import evaluate_run, run_experiment
    from deepSTRF.experiments.run_folder import Run

__all__ = ["ExperimentConfig", "Run", "evaluate_run", "run_experiment"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"run": ["evaluate_run", "run_experiment"], "run_folder": ["Run"]}
)
