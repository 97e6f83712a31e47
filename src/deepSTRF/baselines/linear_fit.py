"""What all linear fits share: their result, their checks, and a recording made ready for one.

A linear fit estimates one STRF and one intercept per neuron without gradient descent. It returns a
`LinearFit`: the estimate in double precision, and an ordinary `Linear` that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    FloatArray,
    check_non_negative,
    check_not_empty,
    check_positive_int,
    checked,
    first_names,
)
from deepSTRF.baselines.lagged import ClipFeatures, NeuronGroup, group_neurons, measure_bands
from deepSTRF.models.audio.linear import Linear, lag_range, window_of_lags
from deepSTRF.models.fitted_on import check_views, remember_fit
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.evaluation import neuron_names
from deepSTRF.training.validate import check_level

__all__ = [
    "DEFAULT_LAGS",
    "FEWEST_BINS",
    "MAX_BYTES",
    "LinearFit",
    "LinearProblem",
    "check_recordings",
    "check_responses_to_fit",
    "chosen_by",
    "count_bands",
    "empty_model",
    "fits_without_validation",
    "is_one_number",
    "lags_of",
    "prepare",
    "strfs_of",
    "without_validation",
    "write_estimate",
]

#: Most bytes of the design matrix held at once.
MAX_BYTES = 2**28
#: Fewest bins that a neuron's STRF is estimated from.
FEWEST_BINS = 2
#: Lags of an estimate for which nobody chose them.
DEFAULT_LAGS = 40
#: Attribute of a solver that says when validation clips have nothing to choose.
WITHOUT_VALIDATION = "without_validation"


@checked
@dataclass(frozen=True, kw_only=True, repr=False)
class LinearFit:
    """A linear estimate of every neuron's STRF: what the results of all linear fits have in common.

    Attributes
    ----------
    model : Linear
        An ordinary `Linear` with ``norm="none"``, in single precision: it predicts, streams and saves.
    weight : Tensor, shape (N, C, F, T)
        STRFs in double precision, newest frame last, on standardised bands where the model standardises.
    bias : Tensor, shape (N,)
        Intercepts in double precision.
    scores : dict of str to Tensor, shape (n_choices, N)
        Validation ``cc_norm`` and ``cc`` of everything that was tried; empty without validation clips.
    unvalidated, untrained : tuple of str
        Neurons without a validation score, and without training bins: the STRF of these is zero.
    drive_mean, drive_variance : Tensor, shape (N,)
        Mean and variance of the prediction over the training bins.
    seconds : float
        Time the fit took.

    Examples
    --------
    >>> from deepSTRF.baselines import LinearFit, fit_ridge
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> fit = fit_ridge(SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6), n_lags=12, lambdas=100.0)
    >>> isinstance(fit, LinearFit), fit.lags, fit.untrained
    (True, range(0, 12), ())
    """

    model: Linear
    weight: Tensor
    bias: Tensor
    scores: dict[str, Tensor]
    unvalidated: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    drive_mean: Tensor
    drive_variance: Tensor
    seconds: float = 0.0

    def __repr__(self) -> str:
        """Shape of the weights, what was chosen, and what a reader must know; no tensors."""
        lines = [f"{type(self).__name__}: weight {tuple(self.weight.shape)}"]
        lines += [
            f"{name.replace('_', ' ')}: {text}" for name, text in self.facts().items() if name != "method"
        ]
        return "\n  ".join(lines + [f"{level}: {text}" for level, text in self.notes()])

    @property
    def lags(self) -> range:
        """Lags of the STRFs in bins, the newest first: ``weight[..., -1 - k]`` is that of ``lags[k]``."""
        return range(self.model.first_lag, self.model.first_lag + self.model.T)

    def feature_weights(self, name: str) -> Tensor:
        """Return the rows of one feature (N, C, F_feature, T) of ``weight``.

        Parameters
        ----------
        name : str
            A feature of the recording.

        Returns
        -------
        Tensor
            (N, C, F_feature, T), in double precision.

        Raises
        ------
        KeyError
            For a name that the recording of the fit does not have.
        """
        return self.weight[:, :, self.model.feature_rows(name)]

    def facts(self) -> dict[str, Any]:
        """Return what the protocol card says of the fit."""
        lags, bin_ms = self.lags, self.model.fitted_on.dt_ms if self.model.fitted_on is not None else None
        if not lags.start:
            return {}
        unit, step = ("bins", 1.0) if bin_ms is None else ("ms", bin_ms)
        return {"lags": f"{lags.start * step:g} to {(lags.stop - 1) * step:g} {unit} before the response"}

    def choice(self, neuron: int) -> dict[str, Any]:
        """Return the options with which a fit without validation clips repeats what one neuron chose.

        Parameters
        ----------
        neuron : int
            Place of the neuron.

        Returns
        -------
        dict
            Keyword arguments of the fit; empty where it chooses by its training clips alone.
        """
        return {}

    def _edge_notes(
        self, chosen: Tensor, tried: Tensor, scale: Tensor, whose: str = ""
    ) -> list[tuple[str, str]]:
        """Note that most neurons with a score chose a penalty (N,) at an end of those tried, times (N,)."""
        if not self.scores or not bool(tried.min() < tried.max()):
            return []
        judged = ~torch.stack([one.isnan().all(0) for one in self.scores.values()]).all(0)
        ends = torch.stack([tried.min(), tried.max()]).unsqueeze(1) * scale
        edge, among = int(((chosen == ends).any(0) & judged).sum()), int(judged.sum())
        if 2 * edge <= among:
            return []
        text = f"{edge} of {among} neurons chose a lambda{whose} at an edge of the grid; give a wider one."
        return [("warning", text)]

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        if not self.untrained:
            return []
        return [("warning", f"No training data, STRF zero: {first_names(self.untrained)}.")]


# ---- what validation clips are for

_Solver = TypeVar("_Solver", bound=Callable[..., Any])


def without_validation(rule: Callable[[Mapping[str, Any]], bool]) -> Callable[[_Solver], _Solver]:
    """Decorator of a solver: ``rule(options)`` is True where validation clips have nothing to choose."""

    def mark(solver: _Solver) -> _Solver:
        vars(solver)[WITHOUT_VALIDATION] = rule
        return solver

    return mark


def fits_without_validation(solver: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Whether a solver with these options chooses nothing by validation clips; False if it does not say."""
    rule = vars(solver).get(WITHOUT_VALIDATION)
    return rule is not None and bool(rule(options))


def is_one_number(value: Any) -> bool:
    """Whether an option is given, and as one number, or one per feature."""
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    return all(one is not None and np.size(one) == 1 for one in values)


def chosen_by(fit: LinearFit) -> dict[str, FloatArray]:
    """What validation clips chose for each neuron, (N,) by option; ``option[feature]`` of one per feature."""
    found: dict[str, list[float]] = {}
    for neuron in range(len(fit.weight) if fit.scores else 0):
        for option, value in fit.choice(neuron).items():
            if isinstance(value, Mapping):
                for feature, one in value.items():
                    found.setdefault(f"{option}[{feature}]", []).append(float(one))
            elif not isinstance(value, bool):
                found.setdefault(option, []).append(float(value))
    return {option: np.array(values) for option, values in found.items()}


@dataclass(frozen=True)
class LinearProblem:
    """A recording made ready for a linear fit.

    ``clips`` and ``heard`` are the features and PSTHs of training and validation clips, ``groups`` the
    neurons by their training bins, ``features`` the rows of each named feature.
    """

    model: Linear
    clips: ClipFeatures
    groups: list[NeuronGroup]
    heard: ClipFeatures | None
    lags: range
    names: tuple[str, ...]
    features: dict[str, int]
    max_bytes: int

    def named(self, which: Tensor) -> tuple[str, ...]:
        """Return the names of the neurons where ``which`` (N,) is True."""
        return tuple(name for name, wanted in zip(self.names, which.tolist(), strict=True) if wanted)

    def blocks(self) -> list[int]:
        """Rows of each part of the features within which neighbours are alike: features of each channel."""
        return (list(self.features.values()) or [int(self.model.F)]) * int(self.model.C_in)


def prepare(
    train: DatasetLike,
    validation: DatasetLike | None,
    *,
    n_lags: int | None,
    lags_ms: Sequence[float] | None,
    prefiltering: nn.Module | Mapping[str, Any] | None,
    wav2spec: nn.Module | None,
    standardize: bool,
    warmup_ms: float,
    max_bytes: int = MAX_BYTES,
) -> LinearProblem:
    """Make a recording ready for a linear fit: the model to write to, features, PSTHs, neurons by bins."""
    if n_lags is not None:
        check_positive_int("n_lags", n_lags)
    check_non_negative("warmup_ms", warmup_ms)
    check_positive_int("max_bytes", max_bytes)
    check_recordings(train, validation)
    lags = lags_of(n_lags, lags_ms, float(train.dt))
    model = empty_model(train, lags, prefiltering, wav2spec, standardize)
    remember_fit(model, train, validation)
    check_level(model, train)
    measure_bands(model, train)
    clips = ClipFeatures(model, train, warmup_ms, lags)
    groups = group_neurons(clips)
    check_responses_to_fit(clips, groups, warmup_ms)
    heard = None if validation is None else ClipFeatures(model, validation, warmup_ms, lags)
    features = {} if wav2spec is not None else dict(getattr(train, "features", None) or {})
    return LinearProblem(model, clips, groups, heard, lags, neuron_names(train.nrn_meta), features, max_bytes)


def check_responses_to_fit(clips: ClipFeatures, groups: list[NeuronGroup], warmup_ms: float) -> None:
    """Raise ValueError unless a neuron has bins that its STRF can be estimated from."""
    if all(group.n_bins(clips.lengths) < FEWEST_BINS for group in groups):
        raise ValueError(
            "no neuron has responses to fit: check the selection of clips and neurons, and that "
            f"warmup_ms={warmup_ms:g} is shorter than the clips"
        )


def empty_model(
    recording: DatasetLike,
    lags: range,
    prefiltering: nn.Module | Mapping[str, Any] | None,
    wav2spec: nn.Module | None,
    standardize: bool,
) -> Linear:
    """Model that an estimate of a recording is written to."""
    return Linear(
        n_frequency_bands=count_bands(recording, wav2spec),
        temporal_window_size=len(lags),
        out_neurons=recording.N_neurons,
        prefiltering=prefiltering,
        wav2spec=wav2spec,
        norm="none",
        standardize=standardize,
        lags=[lags.start, lags.stop - 1] if lags.start else None,
    )


def lags_of(n_lags: int | None, lags_ms: Sequence[float] | None, dt_ms: float) -> range:
    """Lags of the STRFs in bins, from their number or from a range in ms."""
    if lags_ms is None:
        return range(DEFAULT_LAGS if n_lags is None else n_lags)
    n_frames, first = window_of_lags(lag_range(lags_ms, dt_ms), n_lags, "n_lags")
    return range(first, first + n_frames)


def check_recordings(train: DatasetLike, validation: DatasetLike | None) -> None:
    """Raise ValueError unless there are clips to fit, and other sounds of the same neurons to validate on."""
    check_not_empty("train", train)
    if validation is None:
        return
    check_not_empty("validation", validation)
    if validation.N_neurons != train.N_neurons:
        raise ValueError(
            f"train has {train.N_neurons} neurons and validation {validation.N_neurons}; make both from one "
            "recording: split.apply(dataset)"
        )
    check_views((train, validation), ("train", "validation"))
    # a sound in both would favour weak penalties
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


def strfs_of(weights: Tensor, n_bands: int) -> Tensor:
    """Weights (N, L, C * F), lag 0 first, as STRFs (N, C, F, T), newest frame last."""
    return weights.flip(1).unflatten(2, (-1, n_bands)).permute(0, 2, 3, 1).contiguous()  # type: ignore[no-untyped-call,no-any-return]


def write_estimate(model: Linear, strfs: Tensor, biases: Tensor) -> None:
    """Give a model the STRFs (N, C, F, T) and biases (N,) of an estimate, in the unit of the responses."""
    kernel: Any = model.readout.strf.kernel
    with torch.no_grad():
        kernel.weight.copy_(strfs)
        kernel.bias.copy_(biases)
    model.output_scale.start()
