"""Single repeats as clips, with what differs between them as features: past responses and covariates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._validation import as_numbers, check_choice, checked
from deepSTRF.datasets.dataset import AudioNeuralDataset, NeuralDataset
from deepSTRF.dsp.smoothing import hanning_window

__all__ = ["single_trials"]

#: Feature that holds the past responses, and the one of stimuli without names.
HISTORY, STIMULUS = "history", "spectrogram"


@checked
def single_trials(
    ds: NeuralDataset,
    *,
    history: str | None = "own",
    covariates: Mapping[str, Sequence[Any]] | None = None,
) -> NeuralDataset:
    """Dataset whose clips are single repeats, beside whose stimulus stand their past and covariates.

    For `deepSTRF.models.ConditionalModel`, and for ridge with named features. Repeats of a sound stay on one
    side of a split: they are equal sounds.

    Parameters
    ----------
    ds : NeuralDataset
        Recording of spectrograms or named features (no waveforms), neither smoothed, which would mix the
        future into the past, nor standardised nor normalised.
    history : {"own", "all", None}
        Adds the feature "history": one row per neuron with its response one bin earlier, in the first bin 0.
        Where nothing was recorded stands the mean of that neuron in that repeat (0 where it has none). "all"
        states that the neurons were recorded at the same time, repeat by repeat, as coupling needs, and
        refuses clips whose neurons differ in their number of repeats.
    covariates : mapping of str to sequence, optional
        Features by name: per clip (R, T) or (T,), finite, one row per repeat in the order of the repeats.

    Returns
    -------
    NeuralDataset
        An `AudioNeuralDataset` where ``ds`` is one. ``stim_meta`` adds "repeat".

    Raises
    ------
    TypeError, ValueError
        When the dataset holds waveforms or is transformed, or a covariate does not fit.

    Examples
    --------
    >>> import torch
    >>> counts = torch.tensor([[[0.0, 2, 1], [1, 0, 0]]])                      # one neuron, two repeats
    >>> ds = NeuralDataset.from_arrays([torch.ones(4, 3)], [counts], dt_ms=5.0)
    >>> trials = single_trials(ds, covariates={"pupil": [[[0.1, 0.2, 0.3], [0.5, 0.5, 0.4]]]})
    >>> trials.features
    {'spectrogram': 4, 'history': 1, 'pupil': 1}
    >>> trials.stims[0][0, 4], trials.responses[1][0]
    (tensor([0., 0., 2.]), tensor([[1., 0., 0.]]))
    """
    check_choice("history", history, ("own", "all", None))
    _check_source(ds, history)
    given = {str(name): list(values) for name, values in (covariates or {}).items()}
    own = dict(ds.features) or {STIMULUS: int(ds.stims[0].shape[-2]) if len(ds) else 1}
    twice = [name for name in (*given, *([HISTORY] if history else [])) if name in own]
    if twice or HISTORY in given:
        raise ValueError(f"the dataset has the features {list(own)}: name the covariates otherwise")
    for name, values in given.items():
        if len(values) != len(ds):
            raise ValueError(f"covariates[{name!r}] has {len(values)} entries for {len(ds)} clips")
    stims, responses, meta = [], [], []
    for clip in range(len(ds)):
        block = ds.response_block(clip).numpy()
        counts = ds.response_storage.clips[clip].counts
        if history == "all" and counts.size and (counts.min() != counts.max()):
            raise ValueError(
                f"clip {clip}: its neurons have {counts.min()} to {counts.max()} repeats, so that repeat r "
                "of one is not known to be repeat r of another; select neurons of one recording session, or "
                "take history='own'"
            )
        stimulus = ds.stims[clip][0].numpy()
        rows = {name: stimulus[ds.feature_rows(name)] for name in ds.features} or {STIMULUS: stimulus}
        extra = {
            name: _covariate(name, values[clip], block.shape[1:], clip) for name, values in given.items()
        }
        for repeat in range(block.shape[1]):
            recorded = block[:, repeat]
            if np.isnan(recorded).all():
                continue
            past = {HISTORY: _one_bin_earlier(recorded)} if history else {}
            stims.append({**rows, **past, **{name: one[repeat] for name, one in extra.items()}})
            responses.append(recorded[:, None])
            source = {"source_sha256": ds.source_fingerprint(clip)}
            meta.append({"name": f"clip{clip:03d}", **ds.stim_meta[clip], **source, "repeat": repeat})
    options: dict[str, Any] = {
        "stim_meta": meta, "nrn_meta": ds.nrn_meta, "name": ds.name, "response_unit": ds.recorded_unit,
        "response_kind": ds.recorded_kind, "check_alignment": False,
    }  # fmt: skip
    if not isinstance(ds, AudioNeuralDataset):
        return NeuralDataset.from_arrays(stims, responses, ds.dt, **options)
    hertz = dict(ds.feature_frequencies)
    if not ds.features and ds.frequencies_hz is not None:
        hertz[STIMULUS] = ds.frequencies_hz
    return AudioNeuralDataset.from_arrays(
        stims, responses, ds.dt, frequencies_hz=hertz or None, species=ds.species,
        hearing_range_hz=ds.hearing_range_hz, **options,
    )  # fmt: skip


def _check_source(ds: NeuralDataset, history: str | None) -> None:
    if isinstance(ds, AudioNeuralDataset) and ds.return_waveform:
        raise ValueError(
            "single_trials puts rows beside spectrograms, and this dataset holds waveforms: compute their "
            "spectrograms and pass those to from_arrays"
        )
    if ds.stim_normalization is not None or ds.response_normalization is not None:
        raise ValueError("take single_trials(ds) first, then standardise or normalise its training clips")
    if history and ds.smoothing_ms is not None and len(hanning_window(ds.smoothing_ms, ds.dt)) > 1:
        raise ValueError("smoothed responses hold their own future; take single_trials(ds.smoothed(None))")


def _one_bin_earlier(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, T) responses one bin later, gaps filled with the mean of the row."""
    missing = np.isnan(values)
    counts = np.maximum((~missing).sum(axis=1, keepdims=True), 1)
    mean = np.where(missing, 0.0, values).sum(axis=1, keepdims=True) / counts
    filled = np.where(missing, mean, values)
    return np.concatenate([np.zeros((len(values), 1)), filled[:, :-1]], axis=1)


def _covariate(name: str, values: Any, shape: tuple[int, ...], clip: int) -> npt.NDArray[Any]:
    """(R, T) of one clip."""
    rows = np.asarray(as_numbers(values, f"covariates[{name!r}][{clip}]"), dtype=np.float64)
    rows = np.broadcast_to(rows, shape) if rows.shape == shape[1:] else rows
    if rows.shape != shape:
        raise ValueError(
            f"covariates[{name!r}][{clip}] is (R, T) = {shape} or ({shape[1]},), got {rows.shape}"
        )
    if not np.isfinite(rows).all():
        raise ValueError(f"covariates[{name!r}][{clip}] holds NaN or infinity: interpolate its gaps first")
    return rows
