"""Metrics from one pass over the data, piece by piece, equal to the one-shot value however the data is cut.

`PairStatistics` takes any pieces, also parts of a clip. `RepeatStatistics` and `ScoreTracker` take whole
clips: what they estimate is defined clip by clip. All keep float64 moments only, never the data.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from deepSTRF._validation import checked
from deepSTRF.metrics._statistics import (
    CENTRINGS,
    ClipPowers,
    PairMoments,
    PooledPowers,
    RepeatSummary,
    check_centring,
    check_clip,
    check_mask,
    check_pair,
    check_responses,
    check_tensor,
    keep_where,
    pooled_moments,
    signal_to_noise,
)
from deepSTRF.metrics.score_statistics import PredictionMoments, ScoreStatistics
from deepSTRF.registry import METRICS

__all__ = ["PairStatistics", "RepeatStatistics", "ScoreTracker"]

#: PSTHs of two hours of 100 neurons in bins of 10 ms, in float32.
MAX_BYTES = 1 << 28


class ScoreTracker:
    """Correlation and noise-corrected correlation of a model, from one pass over its predictions per epoch.

    `prepare` summarises the responses of a clip (PSTH, signal power, masks), once. Each epoch then is
    `reset`, an `update` per batch (two dot products per neuron) and `compute`. Results equal `corrcoef` and
    `normalized_corrcoef` on all clips together, in any order and grouping.

    Parameters
    ----------
    centring : {"concat", "clip", "published"}
        Which noise-corrected correlation ``compute()`` returns; see `normalized_corrcoef`.
    max_bytes : int, optional
        Most bytes of PSTHs kept from one pass to the next (256 MB); those of float32 responses are kept as
        float32. Of further clips only the moments are kept after an `update`: ``key in tracker`` is then
        False, and `prepare` is called again for the next.

    Raises
    ------
    ValueError
        When ``centring`` is unknown.

    Examples
    --------
    >>> import torch
    >>> responses = torch.rand(2, 3, 5, 60, generator=torch.manual_seed(0))
    >>> tracker = ScoreTracker()
    >>> for clip in range(2):
    ...     tracker.prepare(clip, responses[clip])
    >>> tracker.update([0, 1], responses.mean(2, keepdim=True))
    >>> scores = tracker.compute()
    >>> sorted(scores), scores["cc"].shape
    (['cc', 'cc_norm'], torch.Size([3]))
    """

    @checked
    def __init__(self, centring: str = "concat", max_bytes: int | None = None) -> None:
        check_centring(centring, published=True)
        self.centring = centring
        self._max_bytes, self._n_bytes = MAX_BYTES if max_bytes is None else int(max_bytes), 0
        self._spent: set[Hashable] = set()  # clips whose PSTHs were let go
        self._clips: dict[Hashable, RepeatSummary] = {}
        self._keys: list[Hashable] = []
        self._records: list[PredictionMoments] = []
        self._table: tuple[dict[Hashable, int], ClipPowers] | None = None

    def __contains__(self, clip_key: object) -> bool:
        return clip_key in self._clips and clip_key not in self._spent

    def prepare(self, clip_key: Hashable, responses: Tensor, mask: Tensor | None = None) -> None:
        """Summarise the responses of one clip; a key prepared before is replaced.

        Parameters
        ----------
        clip_key : hashable
            Name of the clip, used again in `update`.
        responses : Tensor, shape (N, R, T)
            Single repeats, NaN where nothing was recorded, on the device the predictions will be on.
        mask : Tensor of bool, optional
            True where a bin counts (False in a warm-up); expands to (N, 1, T) or (N, R, T).

        Raises
        ------
        ValueError
            When the shape is wrong, or the number of neurons is not that of the clips before.
        TypeError
            When ``mask`` is not bool.
        """
        check_clip(responses)
        check_mask(mask, responses.unsqueeze(0))
        self.prepare_stack([clip_key], responses.unsqueeze(0), mask)

    def prepare_stack(
        self, clip_keys: Sequence[Hashable], responses: Tensor, mask: Tensor | None = None
    ) -> None:
        """Summarise the responses (B, N, R, T) of several clips of one shape, as `prepare` of each does."""
        known = next(iter(self._clips.values()), None)
        if known is not None and len(known.count) != responses.shape[1]:
            raise ValueError(
                f"all clips hold the same neurons: earlier ones had N = {len(known.count)}, clip "
                f"{clip_keys[0]!r} has N = {responses.shape[1]}; fill missing neurons with NaN "
                "(dataset.response_block does)"
            )
        responses = responses.detach()
        single = self._max_bytes > 0  # nothing to save where nothing is kept
        summary = RepeatSummary.of(responses, mask, single=single)
        summaries = [summary]
        if len(clip_keys) > 1 and summary.ragged is None:
            summaries = summary.split(len(clip_keys))
        elif len(clip_keys) > 1:  # weights of ragged rows belong to single clips
            summaries = [RepeatSummary.of(clip.unsqueeze(0), mask, single=single) for clip in responses]
        for key, one in zip(clip_keys, summaries, strict=True):
            self._keep(key, one)

    def _keep(self, key: Hashable, summary: RepeatSummary) -> None:
        if key in self:
            self._n_bytes -= self._clips[key].n_bytes
        self._clips[key] = summary
        self._spent.discard(key)
        self._n_bytes += summary.n_bytes
        self._table = None

    def reset(self) -> None:
        """Discard the predictions; the prepared clips stay."""
        self._keys.clear()
        self._records.clear()

    @checked
    def update(self, clip_keys: Sequence[Hashable], pred: Tensor) -> None:
        """Take in the predictions of a batch.

        Parameters
        ----------
        clip_keys : sequence of hashable
            One prepared key per batch entry. A clip that comes twice counts twice.
        pred : Tensor, shape (B, N, 1, T)
            Predicted rates; bins beyond the clip's own length (padding) are ignored.

        Raises
        ------
        KeyError
            When a clip was not prepared.
        ValueError
            When the shape is wrong or shorter than the clip.
        """
        check_tensor("pred", pred)
        if pred.ndim != 4 or pred.shape[2] != 1 or pred.shape[0] != len(clip_keys):
            raise ValueError(
                f"pred has shape (B, N, 1, T) with B = {len(clip_keys)} clip_keys, got shape "
                f"{tuple(pred.shape)}"
            )
        values = pred.detach()[:, :, 0]
        alike: dict[Any, list[int]] = {}
        for entry, key in enumerate(clip_keys):
            clip = self._prepared(key, values[entry])
            alike.setdefault((clip.deviation.shape[1], None if clip.ragged is None else entry), []).append(
                entry
            )
        for (n_bins, _), entries in alike.items():
            rates = values if len(entries) == len(values) else values[entries]
            clips = RepeatSummary.join([self._clips[clip_keys[entry]] for entry in entries])
            moments = PredictionMoments.of(rates[..., :n_bins].flatten(0, 1), clips)
            self._records.append(moments.unflatten(len(entries), -1))
            self._keys += [clip_keys[entry] for entry in entries]
        for key in dict.fromkeys(clip_keys):
            if self._n_bytes <= self._max_bytes:
                break
            self._n_bytes -= self._clips[key].n_bytes
            self._clips[key] = self._clips[key].without_bins()
            self._spent.add(key)

    def part(self) -> Self:
        """What another process needs to `merge` these predictions: moments only, on the CPU."""
        part = type(self)(self.centring, self._max_bytes)
        part._keys = list(self._keys)
        part._records = [record.map(Tensor.cpu) for record in self._records]
        for key in dict.fromkeys(part._keys):
            clip = self._clips[key].without_bins()
            part._clips[key] = replace(
                clip,
                powers=clip.powers.map(Tensor.cpu),
                **{name: getattr(clip, name).cpu() for name in ("deviation", "count", "mean", "square")},
            )
        return part

    def merge(self, part: Self) -> Self:
        """Add the predictions of another tracker of the same neurons, and return self.

        Of clips that were not prepared here only the moments are known: ``key in tracker`` stays False.
        """
        place = self._records[0].pair_mean.device if self._records else torch.device("cpu")
        for key, clip in part._clips.items():
            if key not in self._clips:
                self._clips[key] = replace(clip, powers=clip.powers.map(lambda values: values.to(place)))
                self._spent.add(key)
        self._table = None
        self._keys += part._keys
        self._records += [record.map(lambda values: values.to(place)) for record in part._records]
        return self

    def _prepared(self, key: Hashable, pred: Tensor) -> RepeatSummary:
        """Return the responses of a clip that fit a (N, T) prediction."""
        if key not in self:
            raise KeyError(
                f"clip {key!r} was not prepared; call prepare({key!r}, responses) once before the fit"
            )
        clip = self._clips[key]
        n_neurons, n_bins = clip.deviation.shape
        if pred.device != clip.deviation.device:
            raise ValueError(
                f"the prediction of clip {key!r} is on {pred.device}, its responses were prepared on "
                f"{clip.deviation.device}; call prepare with responses.to({str(pred.device)!r})"
            )
        if pred.shape[0] != n_neurons or pred.shape[1] < n_bins:
            raise ValueError(
                f"the prediction of clip {key!r} has shape (N, T) with N = {n_neurons} and T >= {n_bins}, "
                f"got shape {tuple(pred.shape)}"
            )
        return clip

    @checked
    def statistics(
        self, centring: str | None = None, reliability: Mapping[str, Tensor] | None = None
    ) -> ScoreStatistics:
        """Statistics of the predictions since the last `reset`, from which every `Metric` is computed.

        Parameters
        ----------
        centring : {"concat", "clip", "published"}, optional
            Another centring than the tracker's own.
        reliability : mapping of str to Tensor, optional
            Columns of `neuron_quality`, for the metrics that show them.

        Returns
        -------
        ScoreStatistics
            For S clips of N neurons.

        Raises
        ------
        ValueError
            When no prediction was given or ``centring`` is unknown.
        """
        centring = self.centring if centring is None else centring
        check_centring(centring, published=True)
        if not self._records:
            raise ValueError("ScoreTracker has seen no predictions; call update before compute")
        if self._table is None:
            rows = {key: row for row, key in enumerate(self._clips)}
            every = ClipPowers.cat([clip.powers for clip in self._clips.values()])
            self._table = (rows, every.unflatten(len(rows), -1))
        rows, every = self._table
        order = torch.tensor([rows[key] for key in self._keys], device=every.n_bins.device)
        clips = every.map(lambda values: values.index_select(0, order))
        first, *others = self._records
        prediction = first.map(lambda *values: torch.cat(values), *others)
        return ScoreStatistics(prediction, clips, PooledPowers.of(clips), centring, reliability or {})

    def compute(self, centring: str | None = None) -> dict[str, Tensor]:
        """Scores of the predictions since the last `reset`, as a fit computes them after every epoch.

        Parameters
        ----------
        centring : {"concat", "clip", "published"}, optional
            Another centring than the tracker's own.

        Returns
        -------
        dict of str to Tensor, shape (N,)
            The registered metrics that are computed ``per_epoch``: ``"cc"`` and ``"cc_norm"``, float64, NaN
            where undefined. Neurons of `single_repeat_neurons` have ``cc_norm`` equal to ``cc``.

        Raises
        ------
        ValueError
            When no prediction was given or ``centring`` is unknown.
        """
        statistics = self.statistics(centring)
        return {name: metric.compute(statistics) for name, metric in METRICS.items() if metric.per_epoch}

    def report(self) -> dict[str, Tensor]:
        """All that is known about the predictions since the last `reset`, each (N,).

        Returns
        -------
        dict of str to Tensor
            ``cc``; ``cc_norm_concat``, ``cc_norm_clip``, ``cc_norm_published``; ``fve``; ``mse``; ``n_bins``;
            ``ceiling`` (see `deepSTRF.metrics.ceiling`, ``method="power"``); ``single_repeat`` (bool: nothing
            can be corrected and ``cc_norm`` is the raw ``cc``).
        """
        statistics = self.statistics()
        scores = {name: METRICS.get(name).compute(statistics) for name in ("cc", "fve", "mse")}
        for centring in CENTRINGS:
            scores[f"cc_norm_{centring}"] = statistics.cc_norm(centring)
        scores["n_bins"] = statistics.pooled.count
        scores["ceiling"] = statistics.powers.ceiling("clip" if self.centring == "clip" else "concat")
        scores["single_repeat"] = statistics.single_repeat
        return scores


class NoDataError(ValueError):
    """A result was requested before any data was given."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has seen no data; call update first")


class PairStatistics:
    """Running comparison of predictions with PSTHs: correlation, explained variance, squared error.

    Each update may hold any clips, or any part of one; neurons may have no data in it. Results don't depend
    on how the data was cut, nor on large offsets.

    Examples
    --------
    >>> import torch
    >>> pred, psth = torch.rand(2, 4, 3, 1, 50, generator=torch.manual_seed(0))
    >>> running = PairStatistics()
    >>> for clip in range(4):
    ...     running.update(pred[clip : clip + 1], psth[clip : clip + 1])
    >>> from deepSTRF.metrics import corrcoef
    >>> torch.allclose(running.corrcoef(), corrcoef(pred, psth, reduction="none"))
    True
    """

    def __init__(self) -> None:
        self._moments: PairMoments | None = None
        self._error: Tensor | None = None

    @checked
    def update(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Take in a piece.

        Parameters
        ----------
        pred : Tensor, shape (B, N, 1, T)
            Predicted rates.
        target : Tensor, shape (B, N, 1, T) or (B, N, R, T)
            A PSTH, or single repeats to be averaged; NaN where nothing was recorded.
        mask : Tensor of bool, optional
            True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).

        Raises
        ------
        ValueError
            When shapes disagree, or the number of neurons is not that of earlier updates.
        TypeError
            When ``mask`` is not bool.
        """
        check_pair(pred, target, mask, target_name="target")
        self._add(*pooled_moments(pred, target, mask))

    def _add(self, moments: PairMoments, error: Tensor) -> None:
        if self._moments is None or self._error is None:
            self._moments, self._error = moments, error
            return
        _check_same_neurons(self._error, error)
        self._moments, self._error = self._moments.merge(moments), self._error + error

    def merge(self, other: Self) -> Self:
        """Add what another instance has seen (another process, another shard), and return self."""
        if other._moments is not None and other._error is not None:
            self._add(other._moments, other._error)
        return self

    def reset(self) -> None:
        """Discard everything."""
        self._moments = self._error = None

    def _state(self) -> tuple[PairMoments, Tensor]:
        if self._moments is None or self._error is None:
            raise NoDataError("PairStatistics")
        return self._moments, self._error

    @property
    def n_bins(self) -> Tensor:
        """Bins seen per neuron, (N,)."""
        return self._state()[0].count

    def corrcoef(self) -> Tensor:
        """Pearson correlation per neuron, (N,), as `deepSTRF.metrics.corrcoef`."""
        return self._state()[0].correlation()

    def fve(self) -> Tensor:
        """Fraction of variance explained per neuron, (N,), as `deepSTRF.metrics.fve`."""
        moments, error = self._state()
        return moments.explained_variance(error)

    def mse(self) -> Tensor:
        """Mean squared error per neuron, (N,), as `deepSTRF.metrics.mse_loss`."""
        moments, error = self._state()
        return keep_where(moments.count > 0, error / moments.count.clamp(min=1))


def _check_same_neurons(known: Tensor, new: Tensor) -> None:
    """Raise ValueError when a piece holds another number of neurons than those before."""
    if known.shape != new.shape:
        raise ValueError(
            f"every update holds the same neurons: earlier ones had N = {len(known)}, this one has "
            f"N = {len(new)}; fill a clip in which neurons are missing with NaN"
        )


class RepeatStatistics:
    """Running signal and noise power of repeated responses.

    Every batch entry of an update is one whole clip; clips may differ in length, in their number of repeats
    and in the neurons they hold.

    Examples
    --------
    >>> import torch
    >>> responses = torch.rand(4, 3, 5, 60, generator=torch.manual_seed(0))
    >>> running = RepeatStatistics()
    >>> for clip in range(4):
    ...     running.update(responses[clip : clip + 1])
    >>> from deepSTRF.metrics import signal_power
    >>> torch.allclose(running.signal_power(), signal_power(responses, reduction="none"))
    True
    """

    def __init__(self) -> None:
        self._pooled: PooledPowers | None = None

    @checked
    def update(self, responses: Tensor, mask: Tensor | None = None) -> None:
        """Take in clips.

        Parameters
        ----------
        responses : Tensor, shape (B, N, R, T)
            Single repeats, one clip per batch entry, NaN where nothing was recorded.
        mask : Tensor of bool, optional
            True where a bin counts; expands to (B, N, 1, T) or (B, N, R, T).

        Raises
        ------
        ValueError
            When the shape is wrong, or the number of neurons is not that of earlier updates.
        TypeError
            When ``mask`` is not bool.
        """
        check_responses(responses, mask)
        self._add(PooledPowers.of_responses(responses, mask))

    def _add(self, powers: PooledPowers) -> None:
        if self._pooled is None:
            self._pooled = powers
            return
        _check_same_neurons(self._pooled.bins, powers.bins)
        self._pooled = self._pooled.merge(powers)

    def merge(self, other: Self) -> Self:
        """Add what another instance has seen, and return self."""
        if other._pooled is not None:
            self._add(other._pooled)
        return self

    def reset(self) -> None:
        """Discard everything."""
        self._pooled = None

    def _state(self, centring: str) -> PooledPowers:
        check_centring(centring)
        if self._pooled is None:
            raise NoDataError("RepeatStatistics")
        return self._pooled

    def signal_power(self, centring: str = "clip") -> Tensor:
        """Signal power per neuron, (N,), as `deepSTRF.metrics.signal_power`."""
        return self._state(centring).powers(centring)[0]

    def noise_power(self, centring: str = "clip") -> Tensor:
        """Noise power per neuron, (N,), as `deepSTRF.metrics.noise_power`."""
        return self._state(centring).powers(centring)[1]

    def snr(self, centring: str = "clip") -> Tensor:
        """Signal-to-noise ratio per neuron, (N,), as `deepSTRF.metrics.snr`."""
        return signal_to_noise(*self._state(centring).powers(centring))

    def ceiling(self, centring: str = "concat") -> Tensor:
        """Noise ceiling per neuron, (N,), as `deepSTRF.metrics.ceiling` with ``method="power"``."""
        return self._state(centring).ceiling(centring)
