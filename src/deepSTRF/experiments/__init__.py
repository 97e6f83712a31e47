"""Experiments: a configuration, its fits with several seeds, the run folder of the results; sweeps of many.

Only `ExperimentConfig` is imported at once: the command line shows its fields without loading PyTorch.
"""

from typing import TYPE_CHECKING

import lazy_loader

from deepSTRF.experiments.config import ExperimentConfig

if TYPE_CHECKING:
    from deepSTRF.experiments.bench import bench_sweep
    from deepSTRF.experiments.optuna_search import SearchResults, search
    from deepSTRF.experiments.run import evaluate_run, run_experiment
    from deepSTRF.experiments.run_folder import Run
    from deepSTRF.experiments.sweep import Sweep
    from deepSTRF.experiments.sweep_fits import run_sweep
    from deepSTRF.experiments.sweep_results import SweepResults

__all__ = [
    "ExperimentConfig",
    "Run",
    "SearchResults",
    "Sweep",
    "SweepResults",
    "bench_sweep",
    "evaluate_run",
    "run_experiment",
    "run_sweep",
    "search",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bench": ["bench_sweep"],
        "optuna_search": ["SearchResults", "search"],
        "run": ["evaluate_run", "run_experiment"],
        "run_folder": ["Run"],
        "sweep": ["Sweep"],
        "sweep_fits": ["run_sweep"],
        "sweep_results": ["SweepResults"],
    },
)
