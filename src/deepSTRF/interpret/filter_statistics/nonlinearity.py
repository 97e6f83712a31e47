"""Nonlinearity of neurons: all statistics of how a filter changes, in one table."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from deepSTRF._validation import check_choice, checked
from deepSTRF.interpret.filter_statistics.complexity import complexity, gain_change, gain_variation
from deepSTRF.interpret.filter_statistics.ensembles import Filters, as_clips
from deepSTRF.interpret.filter_statistics.shape_change import shape_change
from deepSTRF.interpret.filter_statistics.temporal_hold import hold_statistics, temporal_hold


@checked
def nonlinearities(
    dstrfs: Filters | Iterable[Filters],
    reduction: str = "none",
    *,
    max_delay: int | None = None,
    corrected: bool = False,
) -> dict[str, Tensor]:
    """Complexity, gain change, temporal hold and shape change of every neuron and clip.

    Parameters
    ----------
    dstrfs : filters of one clip, or a sequence of such
        Tensors or arrays (T, N, L, F), paths of ``.npy`` files (or ``.pt``, of the DSTRF toolbox), or results
        of `dstrf` or `jackknifed_dstrf`.
    reduction : {"none", "mean", "median"}
        Over clips; a clip in which a figure is undefined (NaN) does not count.
    max_delay : int, optional
        Longest delay of the hold and span of the alignment; None is ``max(L - 10, min(L, 5))``.
    corrected : bool
        Whether to add ``"complexity (centred)"``, ``"gain variation"`` and ``"temporal hold (blocks)"``,
        whose test accounts for the correlation of neighbouring bins.

    Returns
    -------
    dict
        Figure by name, each (N, clips), or (N,) after a reduction.

    Raises
    ------
    ValueError, TypeError
        For filters of another shape, clips that differ in neurons, or an unknown reduction.

    Notes
    -----
    Bins whose filters an end of the clip cuts off do not count, where that is known: in results of `dstrf`
    and `jackknifed_dstrf`, and in files of `dstrf_folds`. For bare arrays, and files of a `FileSink`, take
    filters with ``dstrf(..., edge="drop")``: else a linear neuron has a complexity above 1 and its gain
    changes, for its filter grows as the clip begins.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> table = nonlinearities(torch.rand(1, 2, 6, 3).expand(40, 2, 6, 3), reduction="mean")
    >>> {name: round(float(value[0]), 3) for name, value in table.items()}
    {'complexity': 1.0, 'gain change': 0.0, 'temporal hold': 0.0, 'shape change': 1.0}
    """
    check_choice("reduction", reduction, ("none", "mean", "median"))
    columns = []
    for clip in as_clips(dstrfs):
        column = {
            "complexity": complexity(clip),
            "gain change": gain_change(clip),
            "temporal hold": temporal_hold(clip, max_delay),
            "shape change": shape_change(clip, span=max_delay),
        }
        if corrected:
            column["complexity (centred)"] = complexity(clip, centred=True)
            column["gain variation"] = gain_variation(clip)
            column["temporal hold (blocks)"] = hold_statistics(clip, max_delay).hold
        columns.append(column)
    table = {}
    for name in columns[0]:
        values = [column[name] for column in columns]
        if len({len(value) for value in values}) > 1:
            raise ValueError(f"clips differ in neurons: {[len(value) for value in values]}")
        stacked = torch.stack(values, dim=1)
        if reduction != "none":
            stacked = stacked.nanmean(1) if reduction == "mean" else stacked.nanquantile(0.5, dim=1)
        table[name] = stacked
    return table
