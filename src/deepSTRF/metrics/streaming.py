"""Metrics that see the data once, piece by piece, and equal the one-shot value whatever the pieces.

`PairStatistics` takes any pieces, also parts of a clip. `RepeatStatistics` and `ScoreTracker` take whole
clips: what they estimate is defined clip by clip. All keep float64 moments only, never the data.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor

from ._moments import PairMoments, keep_where
from ._repeats import clip_target
from ._scoring import clip_series, explained_variance, total_squared_error
from ._totals import RepeatTotals, signal_to_noise
from ._validation import check_centring, check_mask, check_pair, check_responses
from .tracker import ScoreTracker

__all__ = ["PairStatistics", "RepeatStatistics", "ScoreTracker"]


class NoDataError(ValueError):
    """Raised when a result is asked for before any data was given."""


def _nothing_yet(name: str) -> NoDataError:
    return NoDataError(f"{name} has seen no data; call update first")


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
        check_pair(pred, target, "target")
        check_mask(mask, target)
        series = clip_series(pred, target, mask)
        self._add(PairMoments.of(*series).pool(0), total_squared_error(*series))

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
        """Forget everything."""
        self._moments = self._error = None

    def _state(self) -> tuple[PairMoments, Tensor]:
        if self._moments is None or self._error is None:
            raise _nothing_yet("PairStatistics")
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
        return explained_variance(error, moments.yy, moments.mean_y, moments.count)

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
        self._totals: RepeatTotals | None = None

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
        check_responses(responses)
        check_mask(mask, responses)
        parts = clip_target(responses.detach(), mask).parts.unflatten(*responses.shape[:2])
        self._add(RepeatTotals.of(parts))

    def _add(self, totals: RepeatTotals) -> None:
        if self._totals is None:
            self._totals = totals
            return
        _check_same_neurons(self._totals.bins, totals.bins)
        self._totals = self._totals.merge(totals)

    def merge(self, other: Self) -> Self:
        """Add what another instance has seen, and return self."""
        if other._totals is not None:
            self._add(other._totals)
        return self

    def reset(self) -> None:
        """Forget everything."""
        self._totals = None

    def _powers(self, centring: str) -> tuple[Tensor, Tensor]:
        check_centring(centring)
        if self._totals is None:
            raise _nothing_yet("RepeatStatistics")
        return self._totals.powers(centring)

    def signal_power(self, centring: str = "clip") -> Tensor:
        """Signal power per neuron, (N,), as `deepSTRF.metrics.signal_power`."""
        return self._powers(centring)[0]

    def noise_power(self, centring: str = "clip") -> Tensor:
        """Noise power per neuron, (N,), as `deepSTRF.metrics.noise_power`."""
        return self._powers(centring)[1]

    def snr(self, centring: str = "clip") -> Tensor:
        """Signal-to-noise ratio per neuron, (N,), as `deepSTRF.metrics.snr`."""
        return signal_to_noise(*self._powers(centring))

    def ceiling(self, centring: str = "concat") -> Tensor:
        """Noise ceiling per neuron, (N,), as `deepSTRF.metrics.ceiling` with ``method="power"``."""
        self._powers(centring)
        if self._totals is None:
            raise _nothing_yet("RepeatStatistics")
        return self._totals.ceiling(centring)
