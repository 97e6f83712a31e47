"""Concatenation of recordings: clips and neurons of all, pairs across recordings missing."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from deepSTRF._validation import checked, outside_level
from deepSTRF.datasets.recording import RESPONSE_KINDS, LoadReport, Recording, StimulusList
from deepSTRF.datasets.responses import ResponseStorage
from deepSTRF.datasets.transforms import ResponseNormalization

__all__ = ["concat_neural_datasets"]

DatasetT = TypeVar("DatasetT", bound=Recording)

#: Bin widths that differ by less than this fraction are the same (0.1 + 0.2 against 0.3).
_BIN_TOLERANCE = 1e-9
#: Attributes that the concatenation makes itself.
_OWN = {
    "dt", "path", "name", "N_neurons", "stim_meta", "nrn_meta", "I", "S_sel", "load_report",
    "stim_normalization",
}  # fmt: skip


@checked
def concat_neural_datasets(datasets: Sequence[DatasetT], names: Sequence[str] | None = None) -> DatasetT:
    """Join datasets along clips and along neurons; ``a + b`` is the form for two.

    Clips and neurons keep their order, first those of the first dataset. A neuron has no data for the clips
    of another recording. Recorded data are shared, not copied, and the sources stay as they are. What the
    sources have in common (waveform mode, sample rate, species, ...) the result has too; texts that differ
    are joined with "+", anything else that differs is None. Standardised stimuli stay so with the statistics
    of their own recording, normalised responses likewise.

    Parameters
    ----------
    datasets : sequence of NeuralDataset
        Datasets or views with the same bin width, smoothing, and (audio) bands, sample rate and mode.
    names : sequence of str, optional
        One name each, stored under "dataset" in every ``stim_meta`` and ``nrn_meta`` dictionary of the
        result. By default the names of the datasets; what an earlier join has stored there then stays.

    Returns
    -------
    NeuralDataset
        Of the class of the sources, or of their nearest common class. One dataset alone comes back as a view.

    Raises
    ------
    TypeError
        When something in the list is no dataset.
    ValueError
        When the list is empty, names are too few or too many, or two datasets do not fit; the text begins
        with what does not ("dt mismatch", "F mismatch", "audio_fs mismatch", ...).

    Warns
    -----
    UserWarning
        When two neurons of the result have the same dataset name and the same ``cell_id``.

    Examples
    --------
    >>> from deepSTRF.datasets import NeuralDataset
    >>> one = NeuralDataset.from_arrays([torch.rand(4, 9)], [torch.ones(2, 3, 9)], dt_ms=5.0)
    >>> two = NeuralDataset.from_arrays([torch.rand(4, 7)], [torch.ones(1, 5, 7)], dt_ms=5.0)
    >>> both = concat_neural_datasets([one, two], names=["left", "right"])
    >>> both.nrn_masks
    tensor([[ True,  True, False],
            [False, False,  True]])
    >>> [row["dataset"] for row in both.nrn_meta]
    ['left', 'left', 'right']
    """
    datasets = list(datasets)
    if not datasets:
        raise ValueError("concat_neural_datasets needs at least one dataset, got an empty list")
    for index, ds in enumerate(datasets):
        if not isinstance(ds, Recording):
            raise TypeError(f"entry {index} of datasets is a {type(ds).__name__}, not a NeuralDataset")
    if names is not None and len(names) != len(datasets):
        raise ValueError(f"names has {len(names)} entries for {len(datasets)} datasets")
    if len(datasets) == 1 and names is None:
        return datasets[0]._view()
    labels = [str(name) for name in names] if names is not None else [ds.name for ds in datasets]
    for (i, a), (j, b) in itertools.combinations(enumerate(datasets), 2):
        _check_pair(a, b, f"{labels[i]!r} (dataset {i})", f"{labels[j]!r} (dataset {j})")
    parts = list(zip(labels, datasets, strict=True))
    result = _empty_like(datasets)
    result.path = "+".join(ds.path for ds in datasets)
    result.name = "+".join(labels)
    result.N_neurons = sum(ds.N_neurons for ds in datasets)
    result.stim_meta = _tagged([(label, ds.stim_meta) for label, ds in parts], overwrite=names is not None)
    result.nrn_meta = _tagged([(label, ds.nrn_meta) for label, ds in parts], overwrite=names is not None)
    result._stims = StimulusList(
        [stimulus for ds in datasets for stimulus in ds._stims.stimuli],
        [transform for ds in datasets for transform in ds._stims.transforms],
    )
    first = np.cumsum([0, *(ds.N_neurons for ds in datasets)])
    result._storage = ResponseStorage(
        [
            clip.shifted(int(start))
            for ds, start in zip(datasets, first, strict=False)
            for clip in ds.response_storage.clips
        ],
        result.N_neurons,
    )
    _join_transforms(result, datasets)
    result.response_kind = max((ds.recorded_kind for ds in datasets), key=list(RESPONSE_KINDS).index)
    units = {ds.recorded_unit for ds in datasets}
    result.response_unit = units.pop() if len(units) == 1 else None
    result.load_report = LoadReport(
        [name for ds in datasets for name in ds.load_report.kept],
        [entry for ds in datasets for entry in ds.load_report.skipped],
        [entry for ds in datasets for entry in ds.load_report.notes],
    )
    _warn_of_duplicates(result)
    result.validate()
    return result


def _tagged(parts: list[tuple[str, list[dict[str, Any]]]], *, overwrite: bool) -> list[dict[str, Any]]:
    """Copies of all metadata that say which dataset they are from."""
    if overwrite:
        return [{**row, "dataset": label} for label, rows in parts for row in rows]
    return [{**row, "dataset": row.get("dataset", label)} for label, rows in parts for row in rows]


def _check_pair(a: Recording, b: Recording, name_a: str, name_b: str) -> None:
    def refuse(what: str, left: object, right: object, cure: str) -> None:
        raise ValueError(f"{what} mismatch: {name_a} has {left}, {name_b} has {right}; {cure}")

    if abs(a.dt - b.dt) > _BIN_TOLERANCE * max(a.dt, b.dt):
        refuse("dt", f"{a.dt!r} ms", f"{b.dt!r} ms", "load one of them again with the dt_ms of the other")
    if hasattr(a, "audio_fs") != hasattr(b, "audio_fs"):
        refuse("kind", type(a).__name__, type(b).__name__, "sounds and other stimuli cannot be joined")
    if list(a.features.items()) != list(b.features.items()):
        cure = "give both the same features in one order with ds.select(features=[...])"
        refuse("features", a.features or "unnamed rows", b.features or "unnamed rows", cure)
    for key, cure in (
        ("return_waveform", "load both as waveforms or both as spectrograms"),
        ("audio_fs", "load both with one audio_fs"),
        ("level", "make both with the same level=, from_arrays(..., level=...)"),
        ("F", "make both with the same number of frequency bands"),
    ):
        left, right = getattr(a, key, None), getattr(b, key, None)
        if left != right:
            refuse(key, left, right, cure)
    if a.smoothing_ms != b.smoothing_ms:
        cure = "give both the same window with ds.smoothed(...)"
        refuse("smoothing", a.smoothing_ms, b.smoothing_ms, cure)
    if a.response_normalization is not None or b.response_normalization is not None:
        left = (a.response_normalization or {}).get("method")
        right = (b.response_normalization or {}).get("method")
        if left != right:
            refuse("normalisation", left, right, "normalise both, or join first and normalise the result")
    one, two = a.response_unit, b.response_unit
    if one != two and RESPONSE_KINDS["trace"] not in (one, two):
        cure = "normalise both, or state one unit (ds.response_unit = ...) where they mean the same"
        refuse("response_unit", repr(one), repr(two), cure)
    if (a.stim_normalization is None) != (b.stim_normalization is None):
        left, right = (ds.stim_normalization is not None for ds in (a, b))
        refuse("standardisation", left, right, "standardise both, or join first and standardise the result")


def _empty_like(datasets: Sequence[DatasetT]) -> DatasetT:
    """A dataset of the nearest common class with the attributes that all sources agree on."""
    kind = next(c for c in type(datasets[0]).__mro__ if all(isinstance(ds, c) for ds in datasets))
    result: DatasetT = kind._blank(datasets[0].dt)  # type: ignore[attr-defined]
    keys = [key for key in datasets[0].__dict__ if not key.startswith("_") and key not in _OWN]
    for key in keys:
        if all(key in ds.__dict__ for ds in datasets):
            setattr(result, key, _joined([ds.__dict__[key] for ds in datasets]))
    result.features = dict(result.features)
    hertz = getattr(result, "feature_frequencies", {})  # None where they differ
    for feature in [feature for feature, known in hertz.items() if known is None]:
        del hertz[feature]
    return result


def _joined(values: Sequence[Any]) -> Any:
    """The common value; dictionaries key by key, texts joined with "+", else None."""
    first = values[0]
    if all(_same(first, value) for value in values[1:]):
        return first
    if all(isinstance(value, dict) for value in values):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _joined([value.get(key) for value in values]) for key in keys}
    if all(isinstance(value, (str, os.PathLike)) for value in values):
        return "+".join(dict.fromkeys(os.fspath(value) for value in values))
    return None


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, (np.ndarray, torch.Tensor)) or isinstance(b, (np.ndarray, torch.Tensor)):
        return type(a) is type(b) and a.shape == b.shape and bool((a == b).all())
    try:
        return bool(a == b)
    except (ValueError, RuntimeError):  # containers of arrays have no single truth value
        return False


def _join_transforms(result: Recording, datasets: Sequence[Recording]) -> None:
    parts = [ds._normalization for ds in datasets]
    given = [part for part in parts if part is not None]
    if len(given) == len(datasets):
        offsets = np.cumsum([0, *(len(ds) for ds in datasets)])
        result._normalization = ResponseNormalization(
            given[0].method,
            torch.cat([part.scale for part in given]),
            torch.cat([part.offset for part in given]),
            tuple(
                i + int(start) for part, start in zip(given, offsets, strict=False) for i in part.stim_indices
            ),
        )
    if any(ds.stim_normalization is not None for ds in datasets):
        result.stim_normalization = {"datasets": [ds.stim_normalization for ds in datasets]}


def _warn_of_duplicates(result: Recording) -> None:
    identities = Counter((row["dataset"], row["cell_id"]) for row in result.nrn_meta if "cell_id" in row)
    twice = [identity for identity, count in identities.items() if count > 1]
    if twice:
        dataset, cell = twice[0]
        warnings.warn(
            f"{len(twice)} neurons of the joined dataset share their dataset name and cell_id, the first is "
            f"{cell!r} of {dataset!r}; give distinct names=[...] to concat_neural_datasets",
            UserWarning,
            stacklevel=outside_level(),
        )
