"""Linear decoders: the sound, or one of its features, from the responses of a group of neurons.

A decoder is ridge regression the other way round: the inputs are the PSTHs of the neurons at delays after the
sound, the outputs the rows of the stimulus. With ``lags_ms=(0, 250)`` row f of the sound at t is a weighted
sum of the responses from t to t + 250 ms.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import (
    check_choice,
    check_flag,
    check_non_negative,
    check_not_empty,
    check_positive_int,
    checked,
    checked_but,
    first_names,
    neuron_indices,
)
from deepSTRF.baselines.lagged import (
    ClipFeatures,
    group_neurons,
    lagged_rows,
    row_chunks,
)
from deepSTRF.baselines.linear_fit import (
    FEWEST_BINS,
    MAX_BYTES,
    LinearFit,
    check_recordings,
    count_bands,
    strfs_of,
    write_estimate,
)
from deepSTRF.baselines.ridge import choose_per_neuron, default_lambdas, given_lambdas
from deepSTRF.baselines.solution import Problem
from deepSTRF.metrics import corrcoef, psth
from deepSTRF.models.audio.linear import Linear, lag_range
from deepSTRF.models.configurable import placement
from deepSTRF.models.prediction import evaluating
from deepSTRF.protocols import DatasetLike
from deepSTRF.training.evaluation import neuron_names

__all__ = ["DecoderFit", "fit_decoder"]

#: Delays of the responses in ms that are used where nobody chose them.
DEFAULT_DELAYS_MS = (0.0, 250.0)
#: Target that stands for all rows of the stimulus.
STIMULUS = "stimulus"
#: A standard deviation below this share of the mean is rounding.
RELATIVE_NOISE = 1e-7


@checked
@dataclass(frozen=True, kw_only=True, repr=False)
class DecoderFit(LinearFit):
    """A decoder: M rows of the sound from the responses of n neurons, and how it was chosen.

    Attributes
    ----------
    model : Linear
        An ordinary `Linear` from responses (B, 1, n, T) to rows (B, M, 1, T), in single precision. It looks
        ahead by the longest delay.
    weight : Tensor, shape (M, 1, n, L)
        Weights in double precision by delay: ``weight[..., j]`` belongs to ``delays_ms[j]``.
    bias : Tensor, shape (M,)
        Intercepts.
    lambdas : Tensor, shape (M,)
        Penalty of each row.
    grid : Tensor, shape (n_lambdas,)
        Penalties tried, ascending.
    scores : dict of str to Tensor, shape (n_lambdas, M)
        Correlation ``cc`` of each row on the validation clips for each penalty; empty without.
    neurons : tuple of str
        Names of the n neurons.
    target : str
        What is decoded.
    delays_ms : tuple of float
        How long after the sound the responses are.
    untrained : tuple of str
        Rows without a bin to learn from.
    unvalidated : tuple of str
        Rows without a validation score, which got the penalty that is best on average.
    drive_mean, drive_variance, seconds
        As in `LinearFit`, of the rows.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=6, n_clips=4, n_repeats=6)
    >>> fit = fit_decoder(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), lags_ms=(0, 50))
    >>> fit.weight.shape, fit.delays_ms[-1], len(fit.neurons)
    (torch.Size([24, 1, 6, 11]), 50.0, 6)
    """

    lambdas: Tensor
    grid: Tensor
    neurons: tuple[str, ...]
    target: str
    delays_ms: tuple[float, ...]
    input_mean: Tensor
    input_std: Tensor
    wav2spec: nn.Module | None = None
    missing: str = "error"
    warmup_ms: float = 0.0

    @checked
    def predict(self, ds: DatasetLike) -> list[Tensor]:
        """Reconstruct the target from the responses of a recording.

        Parameters
        ----------
        ds : DatasetLike
            Clips in which the neurons of the fit were recorded; it may hold others, in any order.

        Returns
        -------
        list of Tensor, shape (M, T)
            One per clip, in double precision; NaN where ``missing="skip"`` and a response within the delays
            was not recorded. After the end of a clip the responses are taken as zeros (their mean level where
            they are standardised).

        Raises
        ------
        ValueError
            When neurons of the fit are not in the recording, bins differ, or responses are missing.
        """
        inputs = _Inputs.of(ds, self.neurons, self.delays_ms, self.missing)
        return [self._reconstruct(*inputs.responses(clip)) for clip in range(len(ds))]

    def _reconstruct(self, responses: Tensor, whole: Tensor) -> Tensor:
        features = ((responses - self.input_mean) / self.input_std).nan_to_num(nan=0.0)
        flat = self.weight[:, 0].flip(2).transpose(1, 2).flatten(1)  # by lag, the newest frame first
        parts = [
            flat @ lagged_rows(features, bins, self.lags).T
            for bins in row_chunks(torch.arange(features.shape[1]), flat.shape[1], MAX_BYTES)
        ]
        rows = torch.cat(parts, dim=1) + self.bias.unsqueeze(1)
        return torch.where(whole, rows, torch.nan)

    @checked
    def score(self, ds: DatasetLike) -> Tensor:
        """Correlation between each row of the sound and its reconstruction, over all bins of the clips.

        Parameters
        ----------
        ds : DatasetLike
            Clips that neither trained nor validated.

        Returns
        -------
        Tensor, shape (M,)
            NaN for a row that does not vary.

        Raises
        ------
        ValueError
            As `predict`; and for stimuli of other rows.
        """
        _check_bins(self.model, ds)
        targets = _Targets(ds, self.target, self.wav2spec, self.warmup_ms)
        if targets.n_rows != len(self.bias):
            raise ValueError(
                f"the decoder has {len(self.bias)} rows and the stimuli have {targets.n_rows}; give the same "
                "front-end or features as in the fit"
            )
        pairs = zip(self.predict(ds), (targets.rows(clip) for clip in range(len(ds))), strict=True)
        return _correlation(list(pairs))

    def facts(self) -> dict[str, Any]:
        """Return what the protocol card says of the fit."""
        chosen = [float(self.lambdas.quantile(q)) for q in (0.0, 0.5, 1.0)]
        how = f"best validation correlation of {len(self.grid)}" if self.scores else "given"
        return {
            "method": f"linear decoder in closed form: {self.target} from the mean responses of "
            f"{len(self.neurons)} neurons, {self.delays_ms[0]:g} to {self.delays_ms[-1]:g} ms after it",
            "lambda": how,
            "lambdas_chosen": f"median {chosen[1]:.3g}, {chosen[0]:.3g} to {chosen[2]:.3g}",
        }

    def notes(self) -> list[tuple[str, str]]:
        """Return (level, sentence) pairs about what a reader must know."""
        notes = []
        if self.untrained:
            notes.append(("warning", f"No training data, weights zero: {first_names(self.untrained)}."))
        if self.unvalidated:
            notes.append(("info", f"No validation score, shared lambda: {first_names(self.unvalidated)}."))
        return notes


@checked_but("lambdas", "neurons")
def fit_decoder(
    train: DatasetLike,
    validation: DatasetLike | None = None,
    *,
    lags_ms: Sequence[float] = DEFAULT_DELAYS_MS,
    neurons: Any = None,
    target: str = STIMULUS,
    lambdas: Sequence[float] | float | None = None,
    per_row: bool = True,
    missing: str = "error",
    wav2spec: nn.Module | None = None,
    standardize: bool = True,
    warmup_ms: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> DecoderFit:
    """Linear decoder in closed form: the stimulus, or a feature of it, from the responses of neurons.

    Each row of the target at t is a weighted sum of the PSTHs of the neurons from ``t + lags_ms[0]`` to
    ``t + lags_ms[1]``. The weights minimise the squared error plus ``lambda`` times the squared weights.

    Parameters
    ----------
    train, validation : DatasetLike
        Training clips, and clips of other sounds, which choose the penalty; these are needed unless
        ``lambdas`` is one number. The PSTH, the mean over repeats, is what is decoded from; for single
        trials pass ``deepSTRF.datasets.single_trials(ds, history=None)``, whose clips are single repeats.
    lags_ms : (float, float)
        First and last delay of the responses after the sound in ms, both included. Below 0 they are responses
        before the sound, from which nothing can be decoded but what can be foreseen.
    neurons : int, slice, sequence of int or of str, optional
        The group: places or names; None is all.
    target : str
        "stimulus" for all rows, or the name of a feature of the recording.
    lambdas : float or sequence of float, optional
        Penalties, above 0, in the unit of the sum of squared inputs; None takes 12 from 0.001 to 25 times the
        mean eigenvalue of their Gram matrix.
    per_row : bool
        Whether each row takes the penalty that is best for it, or all the one that is best on average.
    missing : {"error", "skip"}
        What happens where a neuron of the group was not recorded: an error that names it, or bins that need
        the response are left out of fit and scores, and NaN in reconstructions.
    wav2spec : nn.Module, optional
        Front-end whose bands are decoded, for recordings of waveforms.
    standardize : bool
        Whether the response of each neuron is z-scored over the training clips.
    warmup_ms : float
        Onset of each clip whose sound is left out of fit and scores.
    max_bytes : int
        Most bytes of the design matrix held at once.

    Returns
    -------
    DecoderFit
        Weights, penalty, ``predict(ds)`` and ``score(ds)``.

    Raises
    ------
    TypeError, ValueError, IndexError, KeyError
        For illegal arguments, an unknown neuron or feature, recordings that differ or share a sound, or
        missing responses.

    References
    ----------
    Mesgarani, David, Fritz & Shamma 2009, doi 10.1152/jn.91128.2008; mTRF-Toolbox, Crosse et al. 2016, doi
    10.3389/fnhum.2016.00604 (``direction=-1``).

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=8, n_clips=6, n_repeats=6)
    >>> train, validation, test = (ds.select(clips=part) for part in ([0, 1, 2, 3], [4], [5]))
    >>> fit = fit_decoder(train, validation, lags_ms=(0, 100))
    >>> fit.predict(test)[0].shape, bool(fit.score(test).max() > 0.5)
    (torch.Size([24, 400]), True)
    """
    started = time.monotonic()
    check_choice("missing", missing, ("error", "skip"))
    check_flag("per_row", per_row)
    check_non_negative("warmup_ms", warmup_ms)
    check_positive_int("max_bytes", max_bytes)
    check_not_empty("train", train)
    grid = None if lambdas is None else given_lambdas(lambdas)
    if validation is None and (grid is None or len(grid) > 1):
        raise ValueError(
            "without validation clips nothing can choose among penalties: pass fit_decoder(train, "
            "validation, ...), or one penalty (lambdas=100.0)"
        )
    check_recordings(train, validation)
    names = _group(neurons, train)
    first, last = lag_range(lags_ms, float(train.dt))
    lags, delays = range(-last, 1 - first), tuple(place * float(train.dt) for place in range(first, last + 1))
    inputs = _Inputs.of(train, names, delays, missing)
    targets = _Targets(train, target, wav2spec, warmup_ms)
    mean, std = inputs.moments() if standardize else (inputs.zeros(), inputs.zeros() + 1.0)
    clips = _Reversed(inputs, targets, mean, std)
    if grid is None:
        grid, _ = default_lambdas(clips, group_neurons(clips))
    weights, biases, spread, means, untrained = _solve(clips, lags, grid, max_bytes)
    if len(untrained) == targets.n_rows:
        raise ValueError(
            "no bin has both a sound and the responses that it needs: check missing=, the selection of clips "
            f"and neurons, and that warmup_ms={warmup_ms:g} is shorter than the clips"
        )
    scores: dict[str, Tensor] = {}
    if validation is not None:
        other = _Inputs.of(validation, names, delays, missing)
        heard = _Reversed(other, _Targets(validation, target, wav2spec, warmup_ms), mean, std)
        scores = {"cc": _validation_scores(heard, weights, biases, lags, max_bytes)}
    index, _, unscored = choose_per_neuron(scores, "cc", per_row, targets.n_rows)
    rows = torch.arange(targets.n_rows)
    strfs = strfs_of(weights[index, rows], len(names))  # the last frame is the longest delay
    model = Linear(
        len(names), len(lags), targets.n_rows, norm="none", standardize=standardize,
        lags=[lags.start, lags.stop - 1] if lags.start else None,
    )  # fmt: skip
    if model.standardizer is not None:
        model.standardizer.set_moments(mean.squeeze(1), std.squeeze(1))
    write_estimate(model, strfs, biases[index, rows])
    model.lag_bin_ms = float(train.dt)
    return DecoderFit(
        model=model.eval(),
        weight=strfs,
        bias=biases[index, rows],
        scores=scores,
        unvalidated=tuple(f"row {row}" for row in unscored.nonzero().flatten().tolist()),
        untrained=tuple(f"row {row}" for row in untrained),
        drive_mean=means,
        drive_variance=spread[index, rows],
        seconds=time.monotonic() - started,
        lambdas=grid[index],
        grid=grid,
        neurons=names,
        target=target,
        delays_ms=delays,
        input_mean=mean,
        input_std=std,
        wav2spec=wav2spec,
        missing=missing,
        warmup_ms=float(warmup_ms),
    )


# ---- Inputs and targets


def _group(neurons: Any, ds: DatasetLike) -> tuple[str, ...]:
    """Names of the neurons of the group, from places or names."""
    names = neuron_names(ds.nrn_meta)
    wanted: Any = [neurons] if isinstance(neurons, str) else neurons
    if isinstance(wanted, Sequence) and wanted and all(isinstance(one, str) for one in wanted):
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise KeyError(f"no neuron {unknown[0]!r}: the recording has {first_names(names)}")
        chosen = tuple(wanted)
    else:
        chosen = tuple(names[place] for place in neuron_indices(wanted, len(names), owner="recording"))
    if not chosen:
        raise ValueError("neurons must name at least one neuron, got none; None is all")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"neurons names a neuron twice: {first_names(chosen)}")
    return chosen


def _check_bins(model: Linear, ds: DatasetLike) -> None:
    known = model.lag_bin_ms
    if known is not None and not math.isclose(known, float(ds.dt), rel_tol=1e-9):
        raise ValueError(f"the decoder was fitted in bins of {known:g} ms and the recording has {ds.dt:g} ms")


@dataclass(frozen=True)
class _Inputs:
    """PSTHs of a group of neurons, and which bins have all the responses that they need."""

    dataset: Any
    places: list[int]
    names: tuple[str, ...]
    first: int
    last: int
    missing: str

    @classmethod
    def of(cls, ds: Any, names: tuple[str, ...], delays: tuple[float, ...], missing: str) -> _Inputs:
        known = {name: place for place, name in enumerate(neuron_names(ds.nrn_meta))}
        lost = [name for name in names if name not in known]
        if lost:
            raise ValueError(
                f"{len(lost)} neurons of the decoder are not in this recording: {first_names(lost)}; give "
                "one in which they were recorded"
            )
        first, last = (round(end / float(ds.dt)) for end in (delays[0], delays[-1]))
        if abs(last * float(ds.dt) - delays[-1]) > 1e-6 * max(1.0, abs(delays[-1])) or (
            last - first + 1 != len(delays)
        ):
            raise ValueError(
                f"the decoder has {len(delays)} delays of {delays[0]:g} to {delays[-1]:g} ms, and the "
                f"recording has bins of {ds.dt:g} ms; give one in the bins of the fit"
            )
        return cls(ds, [known[name] for name in names], names, first, last, missing)

    def zeros(self) -> Tensor:
        return torch.zeros(len(self.places), 1, dtype=torch.float64)

    def responses(self, clip: int) -> tuple[Tensor, Tensor]:
        """PSTHs (n, T), NaN where missing, and the bins (T,) whose responses were all recorded."""
        found = psth(self.dataset.response_block(clip)[self.places].double())[:, 0]
        lacking = found.isnan()
        if self.missing == "error" and bool(lacking.any()):
            lost = [self.names[place] for place in lacking.any(1).nonzero().flatten().tolist()]
            raise ValueError(
                f"clip {clip}: {len(lost)} of {len(self.names)} neurons lack responses: {first_names(lost)}; "
                "choose neurons or clips that were recorded together (neurons=, ds.select(clips=...)), or "
                "missing='skip' to leave such bins out"
            )
        # a bin needs the responses from `first` to `last` bins later, those inside the clip
        counts = torch.cat([torch.zeros(1, dtype=torch.long), lacking.any(0).long().cumsum(0)])
        bins, length = torch.arange(found.shape[1]), found.shape[1]
        start, stop = (bins + self.first).clamp(0, length), (bins + self.last + 1).clamp(0, length)
        return found, counts[stop] == counts[start]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (n, 1) of each neuron over all clips; 1 where it never varies."""
        total, squares, bins = self.zeros(), self.zeros(), self.zeros()
        for clip in range(len(self.dataset)):
            found = self.responses(clip)[0]
            bins += (~found.isnan()).sum(1, keepdim=True)
            total += found.nan_to_num(nan=0.0).sum(1, keepdim=True)
        mean = total / bins.clamp(min=1.0)
        for clip in range(len(self.dataset)):
            deviation = self.responses(clip)[0] - mean
            squares += deviation.nan_to_num(nan=0.0).square().sum(1, keepdim=True)
        std = (squares / bins.clamp(min=1.0)).sqrt()
        return mean, torch.where(std > RELATIVE_NOISE * mean.abs(), std, 1.0)


class _Targets:
    """Rows of the stimulus that are decoded."""

    def __init__(self, ds: Any, target: str, wav2spec: nn.Module | None, warmup_ms: float) -> None:
        self._dataset, self._front_end = ds, wav2spec
        self.skip = math.ceil(warmup_ms / float(ds.dt) - 1e-9)
        features = {} if wav2spec is not None else dict(getattr(ds, "features", None) or {})
        self._rows = slice(0, count_bands(ds, wav2spec))
        if target != STIMULUS:
            if target not in features:
                has = f"has {', '.join(features)}" if features else "names none"
                raise KeyError(
                    f"target={target!r} is no feature: the recording {has}; '{STIMULUS}' is all of it"
                )
            self._rows = ds.feature_rows(target)
        self.n_rows = self._rows.stop - self._rows.start

    def rows(self, clip: int) -> Tensor:
        """Return (M, T) in double precision, NaN in the onset."""
        stim = self._dataset.stims[clip]
        if self._front_end is not None:
            device, dtype = placement(self._front_end)
            with evaluating(self._front_end):
                stim = self._front_end(stim.unsqueeze(0).to(device, dtype))[0]
        rows: Tensor = stim[0, self._rows].double().cpu().clone()
        rows[:, : self.skip] = torch.nan
        return rows


class _Reversed(ClipFeatures):
    """Responses as features, and rows of the stimulus in the place of neurons."""

    def __init__(self, inputs: _Inputs, targets: _Targets, mean: Tensor, std: Tensor) -> None:
        self._inputs, self._targets, self._mean, self._std = inputs, targets, mean, std
        self._dataset = self._store = None
        self.n_neurons = targets.n_rows
        self.lengths = [int(inputs.responses(clip)[0].shape[1]) for clip in range(len(inputs.dataset))]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_features(self) -> int:
        """Responses of a bin."""
        return len(self._mean)

    def features(self, clip: int) -> Tensor:
        """Return (n, T) responses; missing ones are the mean."""
        return ((self._inputs.responses(clip)[0] - self._mean) / self._std).nan_to_num(nan=0.0)

    def own(self, clip: int) -> slice:
        """All bins."""
        return slice(0, self.lengths[clip])

    def psth(self, clip: int) -> Tensor:
        """Return the rows (M, T), NaN where a response that they need is missing."""
        rows = self._targets.rows(clip)
        if rows.shape[1] != self.lengths[clip]:
            raise ValueError(
                f"clip {clip} has {rows.shape[1]} frames and {self.lengths[clip]} response bins; build the "
                "front-end with hop_ms=dataset.dt"
            )
        return torch.where(self._inputs.responses(clip)[1], rows, torch.nan)


# ---- Solution and scores


def _solve(
    clips: _Reversed, lags: range, grid: Tensor, max_bytes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Weights (k, M, L, n), biases, variances (k, M) and means (M,) of every penalty; rows without bins."""
    k, n_rows, n_inputs = len(grid), clips.n_neurons, clips.features(0).shape[0]
    weights = torch.zeros(k, n_rows, len(lags), n_inputs, dtype=torch.float64)
    biases, spread = torch.zeros(2, k, n_rows, dtype=torch.float64)
    means, untrained = torch.zeros(n_rows, dtype=torch.float64), []
    problem = Problem(clips, group_neurons(clips), lags, max_bytes)
    for number, group in enumerate(problem.groups):
        rows = group.neurons
        if group.n_bins(clips.lengths) < FEWEST_BINS:
            untrained += rows.tolist()
            continue
        one = problem.solve(number, grid, torch.arange(len(rows)))
        weights[:, rows], biases[:, rows] = one.weights.unflatten(2, (len(lags), -1)), one.biases  # type: ignore[no-untyped-call]
        spread[:, rows] = one.squares / group.n_bins(clips.lengths)
        means[rows] = problem.means(number)
    return weights, biases, spread, means, untrained


def _validation_scores(
    clips: _Reversed, weights: Tensor, biases: Tensor, lags: range, max_bytes: int
) -> Tensor:
    """Correlations (k, M) of every penalty."""
    pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in weights]
    flat = weights.flatten(2)
    for clip in range(len(clips)):
        features, rows = clips.features(clip), clips.psth(clip)
        chunks = row_chunks(torch.arange(clips.lengths[clip]), flat.shape[2], max_bytes)
        found = torch.cat([flat @ lagged_rows(features, bins, lags).T for bins in chunks], dim=2)
        for place, one in enumerate(found + biases.unsqueeze(2)):
            pairs[place].append((one, rows))
    return torch.stack([_correlation(one) for one in pairs])


def _correlation(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Pearson correlation (M,) of each row over all bins that both have; NaN where one never varies."""
    found, truth = (torch.cat(part, dim=1)[None, :, None] for part in zip(*pairs, strict=True))
    both = ~(found.isnan() | truth.isnan())
    return corrcoef(found.nan_to_num(nan=0.0), truth.nan_to_num(nan=0.0), both, reduction="none")
