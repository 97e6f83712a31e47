"""Jackknifed dynamic STRFs: the mean over fits that left out different parts of the data.

The mean filter reproduces the mean prediction. Entries whose sign the fits do not share can be set to zero
(Keshishian et al. 2020, doi 10.7554/eLife.53445); standard errors are those of the jackknife. `dstrf_folds`
takes each clip of a recording through the fits that never saw it, and writes one file per clip.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._files import file_facts, sealed_json, write_atomically
from deepSTRF._validation import check_positive_int, checked_but, first_names, neuron_indices, to_tensor
from deepSTRF.datasets import FoldManifest, NeuralDataset
from deepSTRF.interpret.dstrf.estimate import DynamicRun, open_run
from deepSTRF.interpret.dstrf.result import cut_bins
from deepSTRF.interpret.dstrf.sinks import FileSink, Sink, SinkSet, as_sink, opened
from deepSTRF.interpret.filter_statistics.ensembles import NOTE_OF_CUT, NOTE_OF_FILE, as_filters, note_of
from deepSTRF.models.fitted_on import matching_outputs

#: Working memory for all fits together.
BUDGET = 2**28
#: Entries whose signs are compared at once.
AT_ONCE = 2**18
#: Arguments of `dstrf` that `jackknifed_dstrf` passes on.
OPTIONS = (
    "neurons",
    "lookahead",
    "wrt",
    "skip_nonlinearity",
    "method",
    "edge",
    "n_steps",
    "baseline",
    "check",
)


@dataclass(frozen=True)
class JackknifedSTRF:
    """The mean dynamic STRF of several fits.

    Attributes
    ----------
    weights : Tensor (T, N, L, F), or what the sink made. Mean filters; with ``agreement``, zero where fits
        differ in sign.
    response : Tensor (T, N). Mean response of the fits, which the unmasked mean filters and the mean
        intercept reproduce where the frames of all fits are the same: not behind a front-end that each has
        learned.
    intercept : Tensor (T, N). Mean intercept and memory.
    kept : float. Share of entries that fits agree on; 1 without a mask.
    times : Tensor (T,). Frame of each row.
    neurons : list of int. Neuron of each column.
    lags : int. Frames of the window up to the current one, L.
    error : Tensor (T, N, L, F), or what its sink made. Jackknife standard errors, None unless requested.
    lookahead : int. Frames of the window after the current one: the last entries of the lag axis.
    n_frames : int or None. Frames of the clip.
    edge : str. Treatment of the ends of the clip, as given.
    """

    weights: Any
    response: Tensor
    intercept: Tensor
    kept: float
    times: Tensor
    neurons: list[int]
    lags: int
    error: Any = None
    lookahead: int = 0
    n_frames: int | None = None
    edge: str = "zero"

    def cut(self) -> Tensor:
        """Bins whose filter an end of the clip cuts off, (T,); see `DynamicSTRF`.

        Returns
        -------
        Tensor
            Booleans.
        """
        if self.n_frames is None:
            return torch.zeros_like(self.times, dtype=torch.bool)
        return cut_bins(self.times, self.lags, self.lookahead, self.n_frames, self.edge)

    def t_map(self) -> Tensor:
        """Weights over standard errors (T, N, L, F): the distance of each entry from zero in errors.

        Entries are 0 where the weight is 0, masked ones among them.

        Returns
        -------
        Tensor
            With J - 1 degrees of freedom, J being the number of fits.

        Raises
        ------
        TypeError
            When weights and errors are not both tensors in memory.
        """
        if not isinstance(self.weights, Tensor) or not isinstance(self.error, Tensor):
            raise TypeError(
                "a t-map needs weights and errors in memory: jackknifed_dstrf(..., error=ArraySink())"
            )
        return torch.where(self.weights == 0, 0.0, self.weights / self.error)


@checked_but("models", "agreement", "sink")
def jackknifed_dstrf(
    models: Sequence[nn.Module],
    stimulus: Tensor,
    *,
    agreement: float | None = None,
    lags: int | None = None,
    times: int | slice | Sequence[int] | None = None,
    sink: Sink | Sequence[Sink] | None = None,
    error: Sink | Sequence[Sink] | None = None,
    budget_bytes: int = BUDGET,
    **options: Any,
) -> JackknifedSTRF:
    """Mean dynamic STRF of several fits, without the entries in whose sign they differ.

    All fits are taken through a few bins at a time, so memory does not grow with the clip.

    Parameters
    ----------
    models : sequence of nn.Module
        Fits of one model to different trials, or with different seeds.
    stimulus : Tensor
        One clip, as for `dstrf`.
    agreement : float, optional
        Quantile q, above 0.5 and at most 1: an entry becomes 0 where the q-quantile over fits is positive
        and the (1 - q)-quantile negative, so that it stays when about a fraction q of the fits share its
        sign. None keeps all.
    lags : int, optional
        Frames of each filter; None is what `dstrf` takes for the first fit.
    times : int, slice or sequence of int, optional
        Which frames; None is all.
    sink : Sink or sequence of Sink, optional
        Where the filters go; None is a tensor in memory.
    error : Sink or sequence of Sink, optional
        Where jackknife standard errors go, such as ``ArraySink()``; None computes none. Fits that also start
        from different weights differ by that as well: let the factory of `deepSTRF.crossval.fit_folds` begin
        with ``torch.manual_seed(0)`` to start all alike.
    budget_bytes : int
        Working memory beyond the result, roughly: half for the filters of all fits at once, half for the work
        on them. With many outputs more is faster.
    **options
        For `dstrf`: ``neurons``, ``lookahead``, ``wrt``, ``skip_nonlinearity``, ``method``, ``edge``,
        ``n_steps``, ``baseline``, ``check``.

    Returns
    -------
    JackknifedSTRF
        Mean filters and responses.

    Raises
    ------
    ValueError, TypeError
        For no models, an agreement out of range, or what `dstrf` raises.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445 (0.95 there).

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> fits = [Linear(n_frequency_bands=8, temporal_window_size=3) for _ in range(5)]
    >>> result = jackknifed_dstrf(fits, torch.randn(8, 40), agreement=0.75)
    >>> result.weights.shape, 0.0 < result.kept < 1.0
    (torch.Size([40, 1, 3, 8]), True)
    """
    _check_arguments(models, agreement, options)
    _check_same_recording(models)
    targets = SinkSet([as_sink(sink)] if error is None else [as_sink(sink), as_sink(error)])
    with contextlib.ExitStack() as stack:
        runs = _open_runs(stack, models, stimulus, lags, times, budget_bytes, options)
        kept = _fill(runs, targets, agreement, budget_bytes)
        made = targets.close()
        results = [run.result(None, "spectrogram") for run in runs]
    first = results[0]
    return JackknifedSTRF(
        weights=made[0],
        response=torch.stack([result.response for result in results]).mean(0),
        intercept=torch.stack([result.intercept + result.memory for result in results]).mean(0),
        kept=kept,
        times=first.times,
        neurons=first.neurons,
        lags=first.lags,
        error=None if error is None else made[1],
        lookahead=first.lookahead,
        n_frames=first.n_frames,
        edge=first.edge,
    )


def _check_arguments(models: object, agreement: object, options: dict[str, Any]) -> None:
    if not isinstance(models, Sequence) or isinstance(models, str):
        raise TypeError(
            f"models must be a sequence of fits, got a {type(models).__name__}: give [model], or "
            "fits.unseen(dataset, clip)"
        )
    if not models:
        raise ValueError("models is empty: give at least one fit")
    number = isinstance(agreement, int | float) and not isinstance(agreement, bool)
    if agreement is not None and not (number and 0.5 < cast(float, agreement) <= 1.0):
        raise ValueError(f"agreement must be above 0.5 and at most 1, or None, got {agreement!r}")
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TypeError(f"there is no option {unknown[0]!r}; options for dstrf are {', '.join(OPTIONS)}")


def _check_same_recording(models: Sequence[nn.Module]) -> None:
    """Raise ValueError for fits whose outputs are different neurons, which no average should join."""
    known = {
        fitted.neurons for fitted in (getattr(m, "fitted_on", None) for m in models) if fitted is not None
    }
    if len(known - {()}) > 1:
        one, other = sorted(known - {()})[:2]
        raise ValueError(
            f"models were fitted on different neurons, or in another order ({first_names(one)}; "
            f"{first_names(other)}): give fits of one recording"
        )


def _open_runs(
    stack: contextlib.ExitStack,
    models: Sequence[nn.Module],
    stimulus: Tensor,
    lags: int | None,
    times: int | slice | Sequence[int] | None,
    budget_bytes: int,
    options: dict[str, Any],
) -> list[DynamicRun]:
    """The run of each fit, all with the window of the first."""
    budget = max(1, check_positive_int("budget_bytes", budget_bytes) // (2 * len(models)))
    runs: list[DynamicRun] = []
    for model in models:
        window = runs[0].request.lags if runs else lags
        run = open_run(stack, model, stimulus, lags=window, times=times, budget_bytes=budget, **options)
        if runs and run.shape != runs[0].shape:
            raise ValueError(
                f"fits must have filters of one shape (N, L, F), got {runs[0].shape[1:]} and "
                f"{run.shape[1:]}; give fits of one model"
            )
        runs.append(run)
    return runs


def _fill(runs: list[DynamicRun], targets: SinkSet, agreement: float | None, budget_bytes: int) -> float:
    """Write mean filters, and their errors, to the sinks; returns the share of entries that is kept."""
    frames, shape = runs[0].memory, runs[0].shape
    row_bytes = len(runs) * math.prod(shape[1:]) * frames.element_size()
    at_once = max(1, budget_bytes // (2 * row_bytes))
    kept, (mean, *errors) = 0, targets.sinks
    with opened(targets, shape, frames):
        for first in range(0, shape[0], at_once):
            rows = torch.arange(first, min(first + at_once, shape[0]))
            stacked = frames.new_empty(len(runs), len(rows), *shape[1:])
            for index, run in enumerate(runs):
                stacked[index] = run.rows(run.request.times[first : first + at_once])
            weights, agreed = sign_consistent(stacked, agreement)
            kept += agreed
            mean.write(rows, weights)
            for error in errors:
                error.write(rows, jackknife_error(stacked))
    return kept / math.prod(shape)


def sign_consistent(filters: Tensor, agreement: float | None) -> tuple[Tensor, int]:
    """Return the mean over fits (J, ...), zero where their signs differ, and the number of entries kept."""
    mean = filters.mean(0)
    if agreement is None:
        return mean, mean.numel()
    flat, entries = mean.view(-1), filters.flatten(1)
    kept = 0
    for first in range(0, flat.numel(), AT_ONCE):  # sorting takes three times what it sorts
        split = _disagree(entries[:, first : first + AT_ONCE], agreement)
        flat[first : first + AT_ONCE].masked_fill_(split, 0.0)
        kept += int((~split).sum())
    return mean, kept


def _disagree(filters: Tensor, agreement: float) -> Tensor:
    """Entries (E,) in whose sign fits (J, E) differ."""
    rising = filters.sort(0).values
    # linear interpolation between order statistics; torch.quantile refuses more than 16 million entries
    place = agreement * (len(filters) - 1)
    low = min(int(place), max(len(filters) - 2, 0))
    weight = place - low
    upper = torch.lerp(rising[low], rising[min(low + 1, len(rising) - 1)], weight)
    lower = torch.lerp(rising[-1 - low], rising[max(-2 - low, -len(rising))], weight)
    return (upper > 0) & (lower < 0)


def jackknife_error(filters: Tensor) -> Tensor:
    """Return the jackknife standard error of the mean of fits (J, ...); NaN for a single fit.

    ``sqrt((J - 1) / J * sum over j of (W_j - mean)^2)`` for J fits that left out one part of the data each
    (Efron & Tibshirani 1993, An Introduction to the Bootstrap, equation 11.5).
    """
    fits = len(filters)
    if fits < 2:
        return torch.full_like(filters[0], torch.nan)
    spread: Tensor = (filters - filters.mean(0)).square().sum(0)
    return (spread * (fits - 1) / fits).sqrt()


class FoldedFits(Protocol):
    """The part of `deepSTRF.crossval.FoldFits` that `dstrf_folds` uses."""

    manifest: FoldManifest

    def unseen(self, dataset: NeuralDataset, clip: int) -> Sequence[nn.Module]:
        """Return the fits that never saw a clip."""
        ...


@checked_but("agreement")
def dstrf_folds(
    fits: FoldedFits,
    dataset: NeuralDataset,
    out: str | os.PathLike[str],
    *,
    clips: Sequence[int] | None = None,
    agreement: float | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> list[Path]:
    """Mean dynamic STRF of each clip, over the fits that never saw its stimulus, in a file per clip.

    The files are named after the trials' places in the manifest, ``dSTRF-003.npy``, whatever subset or order
    of clips is given; a ``dSTRF-003.json`` beside each states how it was made, and which of its bins
    statistics leave out because an end of the clip cuts their filters off. A file that was made with the
    same settings already is not made again.

    Parameters
    ----------
    fits : FoldFits
        From `deepSTRF.crossval.fit_folds`.
    dataset : NeuralDataset
        Any view of the recording they were fitted to.
    out : path
        Folder of the files.
    clips : sequence of int, optional
        Which clips; None is all.
    agreement : float, optional
        Sign consistency, see `jackknifed_dstrf`; None keeps every entry.
    dtype : torch.dtype, optional
        Storage type; None is the model's.
    **options
        For `jackknifed_dstrf`, but sinks: ``lags``, ``neurons``, ``times``, ``wrt``, ``method``,
        ``budget_bytes``, ...

    Returns
    -------
    list of pathlib.Path
        One ``.npy`` file (T, N, L, F) per clip, which `nonlinearities` takes.

    Raises
    ------
    KeyError, ValueError, FileNotFoundError
        When no fit is known never to have seen a clip, or what `jackknifed_dstrf` raises.
    TypeError
        For an option that `jackknifed_dstrf` does not have, or sinks.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> from deepSTRF.datasets import plan_folds
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=2, n_repeats=2, clip_seconds=0.1)
    >>> models = [Linear(ds.F, 3, 2) for _ in range(4)]  # usually: fits = fit_folds(...)
    >>> fits = SimpleNamespace(manifest=plan_folds(ds, crossval=True), unseen=lambda ds, clip: models)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in dstrf_folds(fits, ds, folder, agreement=0.75)]
    ['dSTRF-000.npy', 'dSTRF-001.npy']
    """
    folder = Path(out)
    taken = [name for name in ("sink", "error") if name in options]
    if taken:
        raise TypeError(
            f"dstrf_folds writes mean filters to files and takes no {taken[0]}: of one clip at a time "
            f"jackknifed_dstrf(fits.unseen(dataset, clip), dataset.stims[clip], {taken[0]}=...) has one"
        )
    # no result depends on the working memory
    named = {"agreement": agreement, "dtype": dtype, **options, "budget_bytes": None}
    settings = {name: _described(value) for name, value in sorted(named.items()) if value is not None}
    paths, asked = [], options.get("neurons")
    for clip in range(len(dataset)) if clips is None else clips:
        models = fits.unseen(dataset, clip)
        outputs, *_ = [matching_outputs(model, dataset) for model in models]
        if outputs is not None:  # filters stand in the order of the dataset's neurons
            chosen = [outputs[index] for index in neuron_indices(asked, len(outputs), owner="dataset")]
            options, settings = {**options, "neurons": chosen}, {**settings, "neurons": repr(chosen)}
        manifest = fits.manifest
        trial = manifest.trial_of(dataset, clip)
        path = folder / f"dSTRF-{manifest.trials.index(trial):03d}.npy"
        facts = {
            "trial": trial,
            "stimulus": dataset.fingerprint(clip),
            "fits": [fold.name for fold in manifest.eligible(trial)],
            "weights": [_stamp(model) for model in models],
            "settings": settings,
        }
        if not _is_made(path, facts):
            sink = _NotedFile(path, dtype)
            result = jackknifed_dstrf(models, dataset.stims[clip], agreement=agreement, sink=sink, **options)
            cut = result.cut().tolist()
            # they are at the ends; of a clip that is all cut off, all at the start
            last = next((place for place, one in enumerate(reversed(cut)) if not one), 0)
            made = {**facts, "kept": result.kept, NOTE_OF_CUT: [sum(cut) - last, last]}
            sink.put(made)
        paths.append(path)
    return paths


class _NotedFile(FileSink):
    """A file of filters and its note, which states the content: parts of two versions are no pair."""

    def close(self) -> Path:
        """Finish the file beside its place."""
        self._finish()
        return self.path

    def put(self, made: dict[str, Any]) -> None:
        """Move the note and the file to their places."""
        size, sha256 = file_facts(self._part)
        noted = {**made, NOTE_OF_FILE: {"size": size, "sha256": sha256}}
        try:
            write_atomically(self.path.with_suffix(".json"), sealed_json(noted), follow_links=False)
            self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)


def _is_made(path: Path, facts: dict[str, Any]) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        as_filters(path)
        stored = note_of(path)
    except (OSError, ValueError):  # damaged, or a run was killed between the two
        return False
    return stored is not None and all(stored.get(name) == value for name, value in facts.items())


def _described(value: Any) -> str:
    """A setting as text; an array as its hash, because its text leaves out the middle."""
    if not isinstance(value, Tensor | np.ndarray):
        return repr(value)
    array = to_tensor(value).detach().cpu().contiguous()
    return f"{tuple(array.shape)} {array.dtype} {hashlib.sha256(array.numpy().tobytes()).hexdigest()}"


def _stamp(model: nn.Module) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
