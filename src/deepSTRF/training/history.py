"""What a fit remembers per epoch: means that say how many values they hold, compact storage, valid JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "MeanScore",
    "history_rows",
    "json_safe",
    "mean_score",
    "pack_history",
    "summarise",
    "unpack_history",
]

#: Quantiles that stand for a vector over neurons where a single line must do.
SUMMARY_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


class MeanScore(NamedTuple):
    """A mean over neurons and what it rests on.

    Attributes
    ----------
    mean : float
        Mean of the values that are numbers; NaN when there is none.
    n : int
        How many values the mean holds.
    n_nan : int
        How many were NaN and left out.

    Examples
    --------
    >>> str(MeanScore(0.5, 3, 1))
    '0.5000 (n=3, 1 NaN)'
    """

    mean: float
    n: int
    n_nan: int

    def __str__(self) -> str:
        missing = f", {self.n_nan} NaN" if self.n_nan else ""
        return f"{self.mean:.4f} (n={self.n}{missing})"


def mean_score(value: float | Tensor) -> MeanScore:
    """Return the mean over neurons of a score, leaving NaN out and counting it.

    Parameters
    ----------
    value : float or Tensor, shape (N,)
        One value per neuron, or a single number.

    Returns
    -------
    MeanScore
        Mean, number of values in it, number of NaN left out.

    Examples
    --------
    >>> import torch
    >>> mean_score(torch.tensor([0.25, float("nan"), 0.75]))
    MeanScore(mean=0.5, n=2, n_nan=1)
    """
    if not isinstance(value, Tensor):
        number = float(value)
        return MeanScore(number, 0, 1) if math.isnan(number) else MeanScore(number, 1, 0)
    flat = value.detach().flatten().double()
    numbers = flat[~flat.isnan()]
    mean = float(numbers.mean()) if numbers.numel() else math.nan
    return MeanScore(mean, numbers.numel(), flat.numel() - numbers.numel())


def json_safe(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: NaN and infinities become None, tensors become lists.

    Examples
    --------
    >>> json_safe({"cc": float("nan"), "n": (1, 2)})
    {'cc': None, 'n': [1, 2]}
    """
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # tensors, NumPy arrays and NumPy numbers
        return json_safe(value.tolist())
    if isinstance(value, Iterable):
        return [json_safe(item) for item in value]
    return repr(value)


def summarise(value: float | Tensor) -> Any:
    """Return a score as JSON can hold it: a vector over neurons as its mean, number of values and quantiles.

    Shapes: value (N,).

    Examples
    --------
    >>> import torch
    >>> summarise(torch.tensor([0.0, 1.0, float("nan")]))["n_valid"]
    2
    """
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
    """Return a history as one entry per key, tensors of equal shape stacked: quick to save each epoch.

    Examples
    --------
    >>> import torch
    >>> records = [{"epoch": 0, "val_cc": torch.zeros(2)}, {"epoch": 1, "val_cc": torch.ones(2)}]
    >>> packed = pack_history(records)
    >>> packed["columns"]["val_cc"].shape
    torch.Size([2, 2])
    >>> unpack_history(packed)[1]["epoch"]
    1
    """
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
    """Return the list of epoch records from `pack_history`'s form.

    Examples
    --------
    >>> unpack_history(pack_history([{"epoch": 0, "train_loss": 1.0}]))
    [{'epoch': 0, 'train_loss': 1.0}]
    """
    if "records" in packed:
        return [dict(record) for record in packed["records"]]
    columns = packed["columns"]
    return [{key: _cell(column[row]) for key, column in columns.items()} for row in range(int(packed["n"]))]


def _cell(value: Any) -> Any:
    # A row of a stacked tensor is a view: keep only its own numbers alive.
    return value.clone() if isinstance(value, Tensor) else value
