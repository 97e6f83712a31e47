"""Knowledge distillation: training targets from the average of fitted models, also for synthetic sounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF._validation import check_positive_int, check_share, checked_but
from deepSTRF.datasets.dataset import AudioNeuralDataset, NeuralDataset
from deepSTRF.metrics import psth
from deepSTRF.models.fitted_on import check_response_unit, matching_outputs

__all__ = ["check_teacher", "distilled"]

#: Range of the factors by which parts of synthetic sounds are stretched in time.
_STRETCH = (0.8, 1.25)
#: Largest shift of a part of a synthetic sound, in bands.
_MOST_BANDS = 2


@checked_but("teachers")
def distilled(
    dataset: NeuralDataset,
    teachers: Sequence[Any],
    *,
    teacher_share: float = 0.5,
    n_synthetic: int | None = None,
    seed: int = 0,
) -> AudioNeuralDataset:
    """Training clips whose targets come in part from fitted models, and synthetic clips that they answer.

    A network that is trained on the average of several networks predicts nearly as well as that average, at
    the cost of one. The targets of each clip are ``teacher_share * mean prediction + (1 - teacher_share) *
    PSTH``. Each synthetic spectrogram is made of two clips, each stretched in time by a factor between 0.8
    and 1.25 and moved by up to two bands: one after the other, or both at once (the louder of the two in
    every band and frame). Its targets are the mean prediction alone.

    Parameters
    ----------
    dataset : NeuralDataset
        Training clips with spectrograms (F, T). Validation and test clips stay as they are: never pass them.
    teachers : sequence of NeuralModel
        Models fitted on these neurons, and on no test clip.
    teacher_share : float
        Weight of the teachers in the targets of real clips, between 0 and 1. Where a neuron was not recorded
        the target is theirs alone. Targets of spikes are not negative.
    n_synthetic : int, optional
        Synthetic clips; None makes as many as there are clips.
    seed : int
        Of the synthetic clips.

    Returns
    -------
    AudioNeuralDataset
        ``len(dataset) + n_synthetic`` clips with one response per neuron, ready for `make_loaders` and
        `Fitter`; only what trains on one target per bin (PSTH) can use it.

    Raises
    ------
    TypeError, ValueError
        For waveforms, fewer than two clips where synthetic ones are asked for, no teacher, or teachers of
        other neurons, bins, bands, alignment, standardisation or unit of the responses.

    References
    ----------
    Hinton, Vinyals & Dean 2015, doi 10.48550/arXiv.1503.02531.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=4, n_repeats=3)
    >>> teacher = Linear(ds.F, 9, 2, output_activation="softplus")
    >>> student_clips = distilled(ds, [teacher], teacher_share=1.0, n_synthetic=3)
    >>> len(student_clips)
    7
    >>> torch.allclose(student_clips.responses[0][0][0], teacher.predict(ds)[0][0])
    True
    """
    if not isinstance(dataset, AudioNeuralDataset) or dataset.return_waveform:
        raise ValueError(
            "distillation makes synthetic spectrograms, and this dataset holds none: load spectrograms "
            "(return_waveform=False)"
        )
    if not teachers:
        raise ValueError("teachers must hold at least one fitted model, e.g. [run.load_model(0)]")
    check_share("teacher_share", teacher_share)
    wanted = (
        len(dataset)
        if n_synthetic is None
        else n_synthetic and check_positive_int("n_synthetic", n_synthetic)
    )
    if wanted and len(dataset) < 2:
        raise ValueError("a synthetic clip is made of two clips, and there is one: give n_synthetic=0")
    for teacher in teachers:  # against this dataset: the one that is answered below states less
        check_teacher(teacher, dataset)
    sounds = list(dataset.stims)
    generator = torch.Generator().manual_seed(seed)
    synthetic = [_synthetic(sounds, generator) for _ in range(wanted)]
    clips = [*sounds, *synthetic]
    unheard = _like(dataset, clips, [torch.zeros(dataset.N_neurons, sound.shape[-1]) for sound in clips])
    answers = [teacher.predict(unheard) for teacher in teachers]
    targets = []
    for clip, taught in enumerate(torch.stack(own).mean(0) for own in zip(*answers, strict=True)):
        target = taught
        if clip < len(sounds):
            recorded = psth(dataset.response_block(clip).unsqueeze(0))[0, :, 0]
            mixed = teacher_share * taught + (1.0 - teacher_share) * recorded
            target = torch.where(recorded.isnan(), taught, mixed)
        targets.append(target if dataset.response_kind == "trace" else target.clamp_min(0.0))
    return _like(dataset, clips, targets)


def check_teacher(teacher: Any, dataset: NeuralDataset) -> None:
    """Raise ValueError when a model was fitted on another kind of recording than it is to teach on."""
    matching_outputs(teacher, dataset)
    check_response_unit(teacher, dataset)


def _synthetic(sounds: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """A spectrogram (1, F, T) made of two."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    parts = []
    for index in torch.randperm(len(sounds), generator=generator)[:2].tolist():
        factor = _STRETCH[0] * (_STRETCH[1] / _STRETCH[0]) ** draw(0.0, 1.0)
        length = max(2, round(sounds[index].shape[-1] * factor))
        part = functional.interpolate(sounds[index], size=length, mode="linear", align_corners=True)
        shift = int(torch.randint(-_MOST_BANDS, _MOST_BANDS + 1, (), generator=generator))
        rows = (torch.arange(part.shape[-2]) - shift).clamp(0, part.shape[-2] - 1)
        parts.append(part[..., rows, :])
    length = min(part.shape[-1] for part in parts)
    first, second = (part[..., :length] for part in parts)
    if draw(0.0, 1.0) < 0.5:
        return torch.maximum(first, second)
    cut = int(draw(0.25, 0.75) * length)
    return torch.cat([first[..., :cut], second[..., cut:]], dim=-1)


def _like(
    dataset: AudioNeuralDataset, sounds: Sequence[Tensor], responses: Sequence[Tensor]
) -> AudioNeuralDataset:
    """A dataset of other clips for the same neurons, which states of its stimuli what the first one does."""
    made = AudioNeuralDataset.from_arrays(
        sounds,
        responses,
        dataset.dt,
        frequencies_hz=dataset.frequencies_hz,
        hearing_range_hz=dataset.hearing_range_hz,
        species=dataset.species,
        nrn_meta=dataset.nrn_meta,
        name=dataset.describe()["name"],
        response_kind="trace" if dataset.response_kind == "trace" else "rate",  # no whole counts
        response_unit=dataset.response_unit,
        check_alignment=False,
    )
    made.stim_normalization = dataset.stim_normalization  # its stimuli come from standardised ones
    made.facts |= {key: value for key, value in dataset.facts.items() if key == "look_ahead_ms"}
    return made
