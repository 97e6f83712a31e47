"""A fitted model by what a user calls it: a run folder, a checkpoint, an export, or one that ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepSTRF.cli.errors import UsageProblem, usage
from deepSTRF.experiments.run_folder import Run, open_fitted
from deepSTRF.models import NeuralModel
from deepSTRF.streaming import ExportedModel
from deepSTRF.streaming.exported import STEP_FILE

__all__ = ["load_fitted", "load_for_streams"]


def load_fitted(run: str, seed: int | None = None) -> NeuralModel:
    """Return a fitted model in eval mode; an existing folder wins over a name."""
    model: NeuralModel = _loaded(open_fitted, run, seed)
    return model


def load_for_streams(run: str, seed: int | None = None) -> NeuralModel | ExportedModel:
    """Return a fitted model, or the graph in a folder that ``deepstrf export`` wrote."""
    has_graph = (Path(run) / STEP_FILE).is_file()
    model: NeuralModel | ExportedModel = _loaded(ExportedModel if has_graph else open_fitted, run, seed)
    return model


def _loaded(opened: Callable[[str], Any], run: str, seed: int | None) -> Any:
    """What a name means, of a run the model of a seed."""
    with usage():
        found = opened(run)
        if isinstance(found, Run):
            return found.load_model(seed)
    if seed is not None:
        kind = "graph" if isinstance(found, ExportedModel) else "model"
        raise UsageProblem(f"--seed chooses a model of a run folder, and {run} is one {kind}: leave it out")
    return found
