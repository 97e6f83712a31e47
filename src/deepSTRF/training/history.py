"""Records of the epochs of a fit: rows of means, compact storage, and values that JSON can hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepSTRF._files import json_safe
from deepSTRF.training.objective import mean_score

__all__ = ["history_rows", "pack_history", "summarise", "unpack_history"]

#: Quantiles that stand for a vector over neurons where a single line must do.
SUMMARY_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


def summarise(value: float | Tensor) -> Any:
    """Return a score for JSON: a vector over neurons as its mean, number of values and quantiles."""
    if not isinstance(value, Tensor):
        return json_safe(value)
    if value.dim() == 0:
        return json_safe(float(value))
    score = mean_score(value)
    numbers = value.detach().flatten().double()
    numbers = numbers[~numbers.isnan()]
    summary: dict[str, Any] = {"mean": score.mean, "n_valid": score.n}
    for name, quantile in SUMMARY_QUANTILES.items():
        summary[name] = float(numbers.quantile(quantile)) if score.n else None
    return json_safe(summary)


def history_rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a fit's history with every per-neuron vector replaced by its mean: rows for a CSV or a plot.

    Parameters
    ----------
    history : list of dict
        What ``Fitter.fit`` returned.

    Returns
    -------
    list of dict
        One flat dictionary of numbers per epoch; a vector ``k`` with NaN in it also gives ``k_n_nan``.

    Examples
    --------
    >>> import torch
    >>> history_rows([{"epoch": 0, "val_cc": torch.tensor([0.25, 0.75, float("nan")])}])
    [{'epoch': 0, 'val_cc': 0.5, 'val_cc_n_nan': 1}]
    """
    rows = []
    for record in history:
        row: dict[str, Any] = {}
        for key, value in record.items():
            if not isinstance(value, Tensor):
                row[key] = value
                continue
            score = mean_score(value)
            row[key] = score.mean
            if score.n_nan:
                row[f"{key}_n_nan"] = score.n_nan
        rows.append(row)
    return rows


def pack_history(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a history as one entry per key, tensors of equal shape stacked: quick to save each epoch."""
    keys = list(history[0]) if history else []
    if any(list(record) != keys for record in history):
        return {"records": [dict(record) for record in history]}
    columns: dict[str, Any] = {}
    for key in keys:
        values = [record[key] for record in history]
        alike = all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values)
        columns[key] = torch.stack(values) if alike else values
    return {"columns": columns, "n": len(history)}


def unpack_history(packed: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the list of epoch records from `pack_history`'s form."""
    if "records" in packed:
        return [dict(record) for record in packed["records"]]
    columns, rows = packed["columns"], range(int(packed["n"]))
    # A row of a stacked tensor is a view: clone() keeps only its own numbers alive.
    return [
        {
            key: column[row].clone() if isinstance(column[row], Tensor) else column[row]
            for key, column in columns.items()
        }
        for row in rows
    ]
