"""Checks of a ridge fit's arguments, each text with its mend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF.protocols import DatasetLike
from deepSTRF.training._checks import check_not_empty
from deepSTRF.training.score_table import neuron_names

__all__ = ["check_recordings", "check_some_bins", "count_bands", "given_lambdas"]


def given_lambdas(lambdas: Sequence[float] | float) -> Tensor:
    """Return penalties as an ascending float64 tensor without duplicates.

    Raises
    ------
    TypeError, ValueError
        When there is none, or one is not a finite number above 0.
    """
    try:
        values = torch.as_tensor(lambdas, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lambdas must be a number or a list of numbers, got {lambdas!r}") from error
    if not len(values) or not bool(torch.isfinite(values).all()) or bool((values <= 0).any()):
        raise ValueError(f"lambdas must be finite numbers above 0, at least one, got {values.tolist()}")
    return torch.tensor(sorted(set(values.tolist())), dtype=torch.float64)


def check_recordings(train: DatasetLike, validation: DatasetLike | None, n_lambdas: int | None) -> None:
    """Raise ValueError unless there are clips to fit, and something to choose the penalty by."""
    check_not_empty("train", train)
    if validation is None:
        if n_lambdas != 1:
            raise ValueError(
                "without validation clips nothing can choose among penalties: pass "
                "fit_ridge(train, validation, ...), or one penalty (lambdas=100.0)"
            )
        return
    check_not_empty("validation", validation)
    if validation.N_neurons != train.N_neurons:
        raise ValueError(
            f"train has {train.N_neurons} neurons and validation {validation.N_neurons}; make both from one "
            "recording: split.apply(dataset)"
        )
    if neuron_names(validation.nrn_meta) != neuron_names(train.nrn_meta):
        raise ValueError(
            "train and validation hold different neurons, or the same in another order; make both from one "
            "recording: split.apply(dataset)"
        )
    _check_different_sounds(train, validation)


def _check_different_sounds(train: DatasetLike, validation: DatasetLike) -> None:
    """Raise ValueError when a sound is in both: answered from memory, it would praise weak penalties."""
    sound_of = [getattr(part, "source_fingerprint", part.fingerprint) for part in (train, validation)]
    first = {sound_of[0](clip): clip for clip in reversed(range(len(train)))}
    both = [(clip, first.get(sound_of[1](clip))) for clip in range(len(validation))]
    shared = [(clip, other) for clip, other in both if other is not None]
    if shared:
        clip, other = shared[0]
        raise ValueError(
            f"{len(shared)} of {len(validation)} validation clips hold sounds of training clips (clip {clip} "
            f"of validation is clip {other} of train), so that validation cannot choose a penalty; give each "
            "sound one role, e.g. random_split(dataset).apply(dataset)"
        )


def check_some_bins(n_untrained: int, n_neurons: int, warmup_ms: float) -> None:
    """Raise ValueError when no neuron has training bins to fit."""
    if n_untrained == n_neurons:
        raise ValueError(
            "no neuron has responses to fit: check the selection of clips and neurons, and that "
            f"warmup_ms={warmup_ms:g} is shorter than the clips"
        )


def count_bands(train: DatasetLike, wav2spec: nn.Module | None) -> int:
    """Return the number of bands the STRFs see; ValueError for waveforms without a front-end."""
    bands: Any = getattr(wav2spec, "out_channels", None)
    if bands is not None:
        return int(bands)
    stim = train.stims[0]
    if stim.ndim != 3:
        raise ValueError(
            "these stimuli are waveforms: pass a front-end (wav2spec=make_wav2spec('mel', audio_fs="
            "dataset.audio_fs, dt_ms=dataset.dt)), or load spectrograms"
        )
    return int(stim.shape[-2])
