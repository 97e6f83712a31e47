"""A fitted model by what a user calls it: a run folder, a checkpoint, or the name of one that ships."""

from __future__ import annotations

from pathlib import Path

from deepSTRF.cli.errors import UsageProblem, usage
from deepSTRF.experiments.run_folder import Run
from deepSTRF.models import NeuralModel, load_pretrained, pretrained_models
from deepSTRF.models.io.checkpoint import CONFIG_FILE

__all__ = ["load_fitted"]


def load_fitted(run: str, seed: int | None = None) -> NeuralModel:
    """Return a fitted model in eval mode; an existing folder wins over a name."""
    folder = Path(run)
    with usage():
        if not folder.is_dir() and run in pretrained_models():
            _refuse_seed(run, seed)
            return load_pretrained(run)  # type: ignore[return-value]
        if (folder / CONFIG_FILE).is_file():
            _refuse_seed(run, seed)
            return NeuralModel.from_pretrained(folder)  # type: ignore[return-value]
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{run} is no run folder, no checkpoint (a folder with {CONFIG_FILE}) and no model that "
                f"ships; those are {', '.join(pretrained_models())}"
            )
        model: NeuralModel = Run.load(folder).load_model(seed)
        return model


def _refuse_seed(run: str, seed: int | None) -> None:
    if seed is not None:
        raise UsageProblem(f"--seed chooses a model of a run folder, and {run} is one model: leave it out")
