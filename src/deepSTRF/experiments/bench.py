"""Benchmarks of a recording: named tables of configurations, each fitted with the same seeds and splits.

A table is a `Sweep` with one row per configuration, so that it is run, continued and read like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepSTRF._validation import check_choice, checked
from deepSTRF.experiments.sweep import FOLD, Sweep
from deepSTRF.registry import MODELS, SOLVERS

__all__ = ["BENCH_TABLES", "bench_sweep"]

#: Every clip is tested once: paired tests between models need more clips than most test sets have.
DEFAULT_SPLIT = "kfold:5"
#: Fits whose settings a model recommends are marked so; the others state what differs from the defaults.
RECOMMENDED = "recommended"
POISSON: dict[str, Any] = {"standardize": True, "loss": "poisson"}

#: Name of a table to its rows: name to fields of `ExperimentConfig`.
BENCH_TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "ridge": {"model": "ridge"},
        "linear": {"model": "linear", "standardize": True},
        "linear-nonlinear": {"model": "linear_nonlinear", **POISSON},
    },
    "models": {
        "ridge": {"model": "ridge"},
        "linear": {"model": "linear", "standardize": True},
        "linear-nonlinear": {"model": "linear_nonlinear", **POISSON},
        "statenet": {"model": "statenet", **POISSON, "learning_rate": 3e-3, "epochs": 150},
        "gatednet": {"model": "gatednet", RECOMMENDED: True},
    },
    "front-ends": {
        "mel": {"model": "linear", "wav2spec": "mel", "standardize": True},
        "gammatone": {"model": "linear", "wav2spec": "gammatone", "standardize": True},
        "gammatone-pcen": {
            "model": "linear",
            "wav2spec": "gammatone",
            "wav2spec_options": {"compression": "pcen"},
            "standardize": True,
        },
        "leaf": {"model": "linear", "wav2spec": "leaf", "learning_rate": 2e-3},
    },
}


@checked
def bench_sweep(
    dataset: str,
    table: str = "models",
    *,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    split: str | None = None,
    **choices: Any,
) -> Sweep:
    """Return a named table of configurations on a recording as a sweep, for `run_sweep` and `compare_runs`.

    Parameters
    ----------
    dataset : str
        A recording: its key, or a file.
    table : str
        "quick" (exact and small linear models, minutes), "models" (up to the best of the zoo), or
        "front-ends" (a linear readout behind each; needs sounds).
    rows : sequence of str, optional
        Only these rows of the table.
    seeds : sequence of int
        Seeds of every row; a closed form, in which nothing is random, takes the first.
    split : str, optional
        As in `ExperimentConfig`; None is ``kfold:5``. All folds of ``kfold:K`` are fitted. "default" is the
        split that the recording states.
    **choices
        Further fields of `ExperimentConfig`, for all rows.

    Returns
    -------
    Sweep
        One fit per row, seed and fold.

    Raises
    ------
    ValueError
        For an unknown table or row, or an impossible choice.

    Examples
    --------
    >>> sweep = bench_sweep("synthetic", "quick", rows=["ridge", "linear"], seeds=[0])
    >>> len(sweep.fits()), sweep.axes["row"]
    (10, ['ridge', 'linear'])
    """
    check_choice("table", table, tuple(BENCH_TABLES))
    known = BENCH_TABLES[table]
    for row in rows or ():
        check_choice("rows", row, tuple(known))
    chosen = [{"name": name, **_fields(known[name])} for name in (known if rows is None else rows)]
    split = split or DEFAULT_SPLIT
    grid: dict[str, Any] = {"row": chosen, "seeds": list(seeds)}
    exact = [row["name"] for row in chosen if row["model"] in SOLVERS]
    exclude = [{"row": exact, "seeds": list(seeds)[1:]}] if exact and len(seeds) > 1 else []
    base: dict[str, Any] = {"dataset": dataset, **choices}
    if split != "default":
        base["split"] = split
        kind, _, count = split.partition(":")
        if kind == "kfold" and count.isdigit():
            grid[FOLD] = list(range(int(count)))
    return Sweep(base, grid, exclude, name=f"bench-{table}")


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a row; what its model recommends is written out, so that the sweep is complete in itself."""
    own = {key: value for key, value in row.items() if key != RECOMMENDED}
    if not row.get(RECOMMENDED):
        return own
    entry: Any = MODELS.get(row["model"])
    return {**entry.recommended, **own}
