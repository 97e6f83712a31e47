"""The files that `fit_multi_seed` leaves behind: JSON that every reader accepts, tensors beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepSTRF.training.best import BestWeights
from deepSTRF.training.files import save_tensors, write_atomically
from deepSTRF.training.history import summarise

__all__ = ["write_json", "write_seed", "write_summary"]


def write_json(path: Path, value: Any) -> None:
    """Write valid JSON (no NaN literals: give it what `json_safe` returns)."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _vectors(scores: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in scores.items() if isinstance(value, Tensor)}


def write_seed(folder: Path, result: dict[str, Any], model: nn.Module) -> None:
    """Write one seed's history, final scores and weights."""
    history = [{key: summarise(value) for key, value in record.items()} for record in result["history"]]
    splits = ("val", "test")
    final = {split: {name: summarise(value) for name, value in result[split].items()} for split in splits}
    write_json(folder / "history.json", history)
    write_json(folder / "final.json", final)
    save_tensors(folder / "final_neurons.pt", {split: _vectors(result[split]) for split in splits})
    save_tensors(folder / "best.pt", BestWeights(model).state)


def write_summary(folder: Path, summary: dict[str, Any], monitor: str, mode: str) -> None:
    """Write what all seeds have in common: means and spreads, and which seed was best."""
    facts: dict[str, Any] = {
        "seeds": summary["seeds"],
        "best_seed": summary["best_seed"],
        "monitor": monitor,
        "mode": mode,
        "failed": {str(seed): reason for seed, reason in summary["failed"].items()},
    }
    tables = {key: value for key, value in summary.items() if isinstance(value, Tensor)}
    for key, value in tables.items():
        if key.startswith(("mean_", "std_")):
            facts[key] = summarise(value if value.numel() > 1 else float(value))
    write_json(folder / "summary.json", facts)
    save_tensors(folder / "summary_neurons.pt", tables)
