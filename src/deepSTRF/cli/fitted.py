"""A fitted model by what a user calls it: a run folder, a checkpoint, or the name of one that ships."""

from __future__ import annotations

from pathlib import Path

from deepSTRF.cli.errors import UsageProblem, usage
from deepSTRF.experiments.run_folder import Run, open_fitted
from deepSTRF.models import NeuralModel
from deepSTRF.streaming import ExportedModel
from deepSTRF.streaming.exported import STEP_FILE

__all__ = ["load_fitted", "load_for_streams"]


def load_fitted(run: str, seed: int | None = None) -> NeuralModel:
    """Return a fitted model in eval mode; an existing folder wins over a name."""
    with usage():
        found = open_fitted(run)
        model: NeuralModel = found.load_model(seed) if isinstance(found, Run) else found
    if seed is not None and not isinstance(found, Run):
        raise UsageProblem(f"--seed chooses a model of a run folder, and {run} is one model: leave it out")
    return model


def load_for_streams(run: str, seed: int | None = None) -> NeuralModel | ExportedModel:
    """Return a fitted model, or the graph in a folder that ``deepstrf export`` wrote."""
    if not (Path(run) / STEP_FILE).is_file():
        return load_fitted(run, seed)
    if seed is not None:
        raise UsageProblem(f"--seed chooses a model of a run folder, and {run} is one graph: leave it out")
    with usage():
        return ExportedModel(run)
