"""A fitted model by what a user calls it: a run folder, a checkpoint, or the name of one that ships."""

from __future__ import annotations

from deepSTRF.cli.errors import UsageProblem, usage
from deepSTRF.experiments.run_folder import Run, open_fitted
from deepSTRF.models import NeuralModel

__all__ = ["load_fitted"]


def load_fitted(run: str, seed: int | None = None) -> NeuralModel:
    """Return a fitted model in eval mode; an existing folder wins over a name."""
    with usage():
        found = open_fitted(run)
        model: NeuralModel = found.load_model(seed) if isinstance(found, Run) else found
    if seed is not None and not isinstance(found, Run):
        raise UsageProblem(f"--seed chooses a model of a run folder, and {run} is one model: leave it out")
    return model
