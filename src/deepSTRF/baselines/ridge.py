"""Ridge STRFs in closed form: of all neurons and for all penalties, the penalty chosen on validation clips.

Each neuron's weights minimise the squared error of its PSTH plus ``lambda`` times the squared weights; see
`deepSTRF.baselines.lagged` for the solution and Machens, Wehr & Zador 2004 (doi
10.1523/JNEUROSCI.4445-03.2004) for ridge regression of STRFs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    as_numbers,
    check_choice,
    check_flag,
    check_non_negative,
    check_not_empty,
    check_positive_int,
    checked,
    checked_but,
    first_names,
)
from deepSTRF.baselines.lagged import (
    ClipFeatures,
    NeuronGroup,
    cross_products,
    group_neurons,
    lagged_rows,
    measure_bands,
    row_chunks,
    solve_group,
)
from deepSTRF.metrics import ScoreTracker
from deepSTRF.models.audio.linear import Linear
from deepSTRF.models.fitted_on import band_moments, check_views, remember_fit
from deepSTRF.protocols import DatasetLike
from deepSTRF.registry import SOLVERS
from deepSTRF.training.evaluation import neuron_names
from deepSTRF.training.validate import check_level

__all__ = ["RidgeFit", "fit_ridge"]

#: Penalties tried, in units of the mean eigenvalue of the features' Gram matrix: from hardly any shrinkage to
#: far too much for recordings of minutes to hours.
RELATIVE_LAMBDAS = tuple(10.0**exponent for exponent in torch.linspace(-3.0, 1.4, 12).tolist())
#: Most bytes of the design matrix held at once.
MAX_BYTES = 2**28
#: Fewest bins that a neuron's STRF is estimated from.
FEWEST_BINS = 2
#: Scores by which a penalty can be chosen.
SCORES = ("cc_norm", "cc")


@checked
@dataclass(frozen=True)
class RidgeFit:
    """A ridge estimate and how it was chosen.

    Attributes
    ----------
    model : Linear
        An ordinary `Linear` with ``norm="none"``, in single precision: it predicts, streams and saves.
    weight : Tensor, shape (N, C, F, T)
        STRFs in double precision, newest frame last, on standardised bands where the model standardises.
    bias : Tensor, shape (N,)
        Intercepts in double precision.
    lambdas : Tensor, shape (N,)
        Penalty of each neuron.
    grid : Tensor, shape (n_lambdas,)
        Penalties tried, ascending; of neuron n ``grid * lambda_scale[n]``.
    lambda_scale : Tensor, shape (N,)
        1, except for ``lambdas=None`` where neurons heard different clips: mean eigenvalue of the Gram matrix
        over the clips that a neuron heard, relative to the mean over neurons.
    scores : dict of str to Tensor, shape (n_lambdas, N)
        Validation ``cc_norm`` and ``cc`` for each penalty; empty without validation clips.
    shared_lambda : float
        The penalty with the best mean validation score.
    per_neuron : bool
        Whether each neuron has its own.
    unvalidated, untrained : tuple of str
        Neurons without a validation score, which got the shared penalty; neurons without training bins, whose
        STRF is zero.
    drive_mean, drive_variance : Tensor, shape (N,)
        Mean and variance of the prediction over the training bins.
    forms : dict of str to int
        How many groups of neurons were solved in the "primal" and in the "dual" form.
    seconds : float
        Time the fit took.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> fit = fit_ridge(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), n_lags=12)
    >>> fit.model.STRFs().shape, fit.lambdas.shape, fit.scores["cc_norm"].shape
    (torch.Size([3, 24, 12]), torch.Size([3]), torch.Size([12, 3]))
    """

    model: Linear
    weight: Tensor
    bias: Tensor
    lambdas: Tensor
    grid: Tensor
    lambda_scale: Tensor
    scores: dict[str, Tensor]
    shared_lambda: float
    per_neuron: bool
    unvalidated: tuple[str, ...]
    untrained: tuple[str, ...]
    drive_mean: Tensor
    drive_variance: Tensor
    forms: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Return what the protocol card says of the fit."""
        low, middle, high = (float(self.lambdas.quantile(q)) for q in (0.0, 0.5, 1.0))
        chosen = f"{low:g}" if low == high else f"median {middle:.3g}, {low:.3g} to {high:.3g}"
        whose = "one per neuron" if self.per_neuron else "one for all neurons"
        best = "best validation score" if self.scores else "given"
        return {
            "method": "ridge regression in closed form: squared error of the mean over repeats, each bin "
            "weighing the same, unpenalised intercept, zero history at each clip's start",
            "lambda": f"{whose}, {best} of {len(self.grid)} from {self.grid[0]:.3g} to {self.grid[-1]:.3g}"
            if len(self.grid) > 1
            else f"{float(self.grid[0]):g} (given)",
            "lambdas_chosen": chosen,
        }

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        notes = []
        if self.unvalidated:
            notes.append(("info", f"No validation score, shared lambda: {first_names(self.unvalidated)}."))
        if self.untrained:
            notes.append(("warning", f"No training data, STRF zero: {first_names(self.untrained)}."))
        edges = self.grid[[0, -1], None] * self.lambda_scale
        edge = int((self.lambdas == edges).any(0).sum())
        if self.scores and len(self.grid) > 1 and 2 * edge > len(self.lambdas):
            notes.append(
                ("warning", f"{edge} neurons chose a lambda at an edge of the grid; give a wider one.")
            )
        return notes


@SOLVERS.register("ridge")
@checked_but("lambdas")
def fit_ridge(
    train: DatasetLike,
    validation: DatasetLike | None = None,
    *,
    n_lags: int = 40,
    lambdas: Sequence[float] | float | None = None,
    per_neuron: bool = True,
    score: str = "cc_norm",
    prefiltering: nn.Module | Mapping[str, Any] | None = None,
    wav2spec: nn.Module | None = None,
    standardize: bool = True,
    warmup_ms: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> RidgeFit:
    """Ridge STRFs in closed form: exact, for all neurons and penalties at once.

    Each neuron's weights minimise ``sum of (PSTH - prediction)^2 + lambda * sum of weights^2`` over its
    training bins. The intercept is not penalised, the past before a clip is zero (the mean level where bands
    are standardised), and each bin of the PSTH weighs the same however many repeats it holds. Missing data
    need no care: neurons that were recorded in the same bins share one eigendecomposition.

    Parameters
    ----------
    train : DatasetLike
        Training clips.
    validation : DatasetLike, optional
        Clips of other sounds, which choose the penalty; needed unless ``lambdas`` is a single number.
    n_lags : int
        Length of the STRFs in bins, the current one included.
    lambdas : float or sequence of float, optional
        Penalties, above 0; the unit is that of the sum of squared features, as scikit-learn's ``alpha``. None
        takes 12 from 0.001 to 25 times the mean eigenvalue of the Gram matrix over the clips that a neuron
        heard, so that joining recordings does not change the penalties of their neurons.
    per_neuron : bool
        Whether each neuron takes the penalty that is best for it, or all the one that is best on average.
    score : {"cc_norm", "cc"}
        What is best; a neuron without ``cc_norm`` goes by its ``cc``.
    prefiltering, wav2spec : optional
        As in `Linear`; applied as they are, nothing in them is learned.
    standardize : bool
        Whether each band is z-scored on the training clips (kept in the model).
    warmup_ms : float
        Onset of each clip that is left out of fit and scores.
    max_bytes : int
        Most bytes of the design matrix held at once.

    Returns
    -------
    RidgeFit
        The model and how it was chosen.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, recordings that differ in neurons, bins or bands, a sound in both of them, or
        no responses to fit.

    References
    ----------
    Hoerl & Kennard 1970, doi 10.1080/00401706.1970.10488634; for STRFs Machens, Wehr & Zador 2004, doi
    10.1523/JNEUROSCI.4445-03.2004.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=6)
    >>> train, validation = ds.select(clips=[0, 1, 2]), ds.select(clips=[3])
    >>> fit = fit_ridge(train, validation, n_lags=12)
    >>> [tuple(rates.shape) for rates in fit.model.predict(validation)]
    [(3, 400)]
    """
    started = time.monotonic()
    check_positive_int("n_lags", n_lags)
    check_flag("per_neuron", per_neuron)
    check_choice("score", score, SCORES)
    check_non_negative("warmup_ms", warmup_ms)
    check_positive_int("max_bytes", max_bytes)
    given = None if lambdas is None else _given_lambdas(lambdas)
    _check_recordings(train, validation, None if given is None else len(given))
    model = Linear(
        n_frequency_bands=_count_bands(train, wav2spec),
        temporal_window_size=n_lags,
        out_neurons=train.N_neurons,
        prefiltering=prefiltering,
        wav2spec=wav2spec,
        norm="none",
        standardize=standardize,
    )
    remember_fit(model, train, validation)
    check_level(model, train)
    measure_bands(model, train)
    clips = ClipFeatures(model, train, warmup_ms, n_lags)
    groups = group_neurons(clips)
    scale = torch.ones(clips.n_neurons, dtype=torch.float64)
    grid = given
    if grid is None:
        grid, scale = _default_lambdas(clips, groups)
    estimates = _solve(clips, groups, grid, scale, n_lags, max_bytes)
    if len(estimates.untrained) == clips.n_neurons:
        raise ValueError(
            "no neuron has responses to fit: check the selection of clips and neurons, and that "
            f"warmup_ms={warmup_ms:g} is shorter than the clips"
        )
    scores: dict[str, Tensor] = {}
    if validation is not None:
        clips = ClipFeatures(model, validation, warmup_ms, n_lags)
        scores = _validation_scores(estimates, clips, max_bytes)
    names = neuron_names(train.nrn_meta)
    index, shared, unscored = _choose(scores, score, per_neuron, len(names))
    weights, biases, variances = (
        values[index, torch.arange(len(names))]
        for values in (estimates.weights, estimates.biases, estimates.variances)
    )
    # (N, L, C * F), lag 0 first -> (N, C, F, T), newest frame last
    strfs = weights.flip(1).unflatten(2, (-1, model.F)).permute(0, 2, 3, 1).contiguous()  # type: ignore[no-untyped-call]
    _write_estimate(model, strfs, biases)
    return RidgeFit(
        model=model.eval(),
        weight=strfs,
        bias=biases,
        lambdas=grid[index] * scale,
        grid=grid,
        lambda_scale=scale,
        scores=scores,
        shared_lambda=float(grid[shared]),
        per_neuron=per_neuron,
        unvalidated=tuple(name for name, lacks in zip(names, unscored.tolist(), strict=True) if lacks),
        untrained=tuple(names[neuron] for neuron in estimates.untrained),
        drive_mean=estimates.means,
        drive_variance=variances,
        forms=estimates.forms,
        seconds=time.monotonic() - started,
    )


def _write_estimate(model: Linear, strfs: Tensor, biases: Tensor) -> None:
    """Give a model the STRFs (N, C, F, T) and biases (N,) of an estimate, in the unit of the responses."""
    kernel: Any = model.readout.strf.kernel
    with torch.no_grad():
        kernel.weight.copy_(strfs)
        kernel.bias.copy_(biases)
    model.output_scale.start()


# ---- Arguments


def _given_lambdas(lambdas: Sequence[float] | float) -> Tensor:
    """Return penalties as an ascending float64 tensor without duplicates."""
    try:
        values = torch.from_numpy(as_numbers(lambdas, "lambdas")).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lambdas must be a number or a list of numbers, got {lambdas!r}") from error
    if not len(values) or not bool(torch.isfinite(values).all()) or bool((values <= 0).any()):
        raise ValueError(f"lambdas must be finite numbers above 0, at least one, got {values.tolist()}")
    return torch.tensor(sorted(set(values.tolist())), dtype=torch.float64)


def _check_recordings(train: DatasetLike, validation: DatasetLike | None, n_lambdas: int | None) -> None:
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


def _count_bands(train: DatasetLike, wav2spec: nn.Module | None) -> int:
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


# ---- Estimates of every penalty, and the choice among them


def _default_lambdas(clips: ClipFeatures, groups: list[NeuronGroup]) -> tuple[Tensor, Tensor]:
    """Penalties for the average neuron, and each neuron's own relative to them (N,).

    The unit is the mean eigenvalue of the Gram matrix, bins times mean feature variance, over the clips that
    a neuron heard: clips of other recordings, joined to its own, do not weigh.
    """
    units = torch.full((clips.n_neurons,), torch.nan, dtype=torch.float64)
    known: dict[tuple[int, ...], float] = {}
    for group in groups:
        heard = tuple(i for i, mask in enumerate(group.masks) if mask is None or bool(mask.any()))
        if heard and heard not in known:
            known[heard] = _total_variance(clips, heard) or 1.0
        units[group.neurons] = known.get(heard, torch.nan)
    # one unit is kept to the last bit
    common = (
        units.nanmean()
        if len(known) > 1
        else torch.tensor(next(iter(known.values()), 1.0), dtype=torch.float64)
    )
    grid = torch.tensor(RELATIVE_LAMBDAS, dtype=torch.float64) * float(common)
    return grid, (units / float(common)).nan_to_num(nan=1.0)


def _total_variance(clips: ClipFeatures, heard: Sequence[int]) -> float:
    """Mean variance of the features over all frames of some clips, times the number of frames."""
    n_frames = sum(clips.lengths[clip] - clips.context(clip) for clip in heard)
    parts = (clips.features(clip)[:, clips.context(clip) :] for clip in heard)
    n_features = clips.features(heard[0]).shape[0]
    if 8 * n_frames * n_features > MAX_BYTES:  # not all frames at once
        return float(band_moments(parts, n_features)[1].square().mean()) * n_frames
    return float(torch.cat(list(parts), dim=1).var(dim=1, correction=0).mean()) * n_frames


@dataclass(frozen=True)
class _Estimates:
    """Estimates of all N neurons for every penalty: (n_lambdas, N, ...); double precision."""

    weights: Tensor
    biases: Tensor
    variances: Tensor
    means: Tensor
    untrained: list[int]
    forms: dict[str, int]


def _solve(
    clips: ClipFeatures, groups: list[NeuronGroup], grid: Tensor, scale: Tensor, n_lags: int, max_bytes: int
) -> _Estimates:
    """Solve group by group; neurons of too few bins keep zeros."""
    n_neurons, n_features = clips.n_neurons, clips.features(0).shape[0]
    weights = torch.zeros(len(grid), n_neurons, n_lags, n_features, dtype=torch.float64)
    biases, variances = (torch.zeros(len(grid), n_neurons, dtype=torch.float64) for _ in range(2))
    means = torch.zeros(n_neurons, dtype=torch.float64)
    untrained: list[int] = []
    forms: dict[str, int] = {}
    cross = cross_products(clips, n_lags)
    for group in groups:
        neurons = group.neurons
        if group.n_bins(clips.lengths) < FEWEST_BINS:
            untrained += neurons.tolist()
            continue
        lambdas = grid * scale[neurons[0]]
        one = solve_group(clips, group, cross, n_lags, lambdas, max_bytes=max_bytes)
        weights[:, neurons], biases[:, neurons] = one.weights, one.biases
        variances[:, neurons], means[neurons] = one.variances, one.means
        forms[one.form] = forms.get(one.form, 0) + 1
    return _Estimates(weights, biases, variances, means, sorted(untrained), forms)


def _validation_scores(estimates: _Estimates, clips: ClipFeatures, max_bytes: int) -> dict[str, Tensor]:
    """Scores (n_lambdas, N) of every penalty on the validation clips, which are read once."""
    trackers = [ScoreTracker(max_bytes=0) for _ in estimates.weights]  # nothing is kept of a clip
    lags = range(estimates.weights.shape[2])
    for clip in range(len(clips)):
        hidden = clips.unscored(clip)
        if hidden == clips.lengths[clip] and len(clips) > 1:
            continue
        trackers[0].prepare(clip, clips.responses(clip))
        for tracker in trackers[1:]:
            tracker.adopt(clip, trackers[0])
        features, flat = clips.features(clip), estimates.weights.flatten(2)
        chunks = list(row_chunks(torch.arange(clips.lengths[clip]), flat.shape[2], max_bytes))
        only = lagged_rows(features, chunks[0], lags) if len(chunks) == 1 else None
        for tracker, weights, biases in zip(trackers, flat, estimates.biases, strict=True):
            parts = [
                weights @ (lagged_rows(features, bins, lags) if only is None else only).T for bins in chunks
            ]
            rates = torch.cat(parts, dim=1) + biases.unsqueeze(1)
            tracker.update([clip], rates[None, :, None, hidden:])
    found = [tracker.compute() for tracker in trackers]
    return {name: torch.stack([one[name] for one in found]) for name in SCORES}


def _choose(
    scores: dict[str, Tensor], score: str, per_neuron: bool, n_neurons: int
) -> tuple[Tensor, int, Tensor]:
    """Index of each neuron's penalty (N,), of the best one on average, and neurons without a score (N,)."""
    if not scores:
        return torch.zeros(n_neurons, dtype=torch.long), 0, torch.zeros(n_neurons, dtype=torch.bool)
    wanted = scores[score]
    values = torch.where(wanted.isnan().all(0), scores["cc"], wanted)
    unscored = values.isnan().all(0)
    # a prediction that never varies has no correlation: the worst there can be
    ranked = values.nan_to_num(nan=-torch.inf)
    judged = ranked[:, ~unscored].clamp(min=-1.0)
    shared = int(judged.mean(1).argmax()) if judged.numel() else len(values) // 2
    index = torch.full((n_neurons,), shared)
    if per_neuron:
        index = torch.where(unscored, index, ranked.argmax(0))
    return index, shared, unscored
