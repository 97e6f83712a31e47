"""Scores of a model epoch after epoch: everything that does not depend on the prediction is computed once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from ._moments import keep_where
from ._repeats import ClipParts, ClipTarget, clip_target
from ._scoring import PredictionMoments, explained_variance, noise_corrected, squared_error
from ._totals import RepeatTotals
from ._validation import check_centring, check_clip, check_mask, check_tensor, shape_text

__all__ = ["ScoreTracker"]


class ScoreTracker:
    """Correlation and noise-corrected correlation of a model, from one pass over its predictions per epoch.

    `prepare` boils the responses of a clip down to PSTH, signal power and masks, once. Each epoch then is
    `reset`, an `update` per batch (two dot products per neuron) and `compute`. Results equal `corrcoef` and
    `normalized_corrcoef` on all clips together, in any order and grouping.

    Parameters
    ----------
    centring : {"concat", "clip", "published"}
        Which noise-corrected correlation ``compute()`` returns; see `normalized_corrcoef`.

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

    def __init__(self, centring: str = "concat") -> None:
        check_centring(centring, published=True)
        self.centring = centring
        self._targets: dict[Hashable, ClipTarget] = {}
        self._keys: list[Hashable] = []
        self._records: list[PredictionMoments] = []
        self._pooled: tuple[tuple[Hashable, ...], ClipParts, RepeatTotals] | None = None

    def __contains__(self, clip_key: object) -> bool:
        return clip_key in self._targets

    def prepare(self, clip_key: Hashable, responses: Tensor, mask: Tensor | None = None) -> None:
        """File the responses of one clip; a key filed before is replaced.

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
        clip = responses.detach().unsqueeze(0)
        check_mask(mask, clip)
        for known in self._targets.values():
            if len(known.count) != len(responses):
                raise ValueError(
                    f"all clips hold the same neurons: earlier ones had N = {len(known.count)}, clip "
                    f"{clip_key!r} has N = {len(responses)}; fill missing neurons with NaN "
                    "(dataset.response_block does)"
                )
            break
        self._targets[clip_key] = clip_target(clip, mask)
        self._pooled = None

    def reset(self) -> None:
        """Forget the predictions; the prepared clips stay."""
        self._keys.clear()
        self._records.clear()

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
                f"{shape_text(pred)}"
            )
        values = pred.detach()[:, :, 0]
        for entry, key in enumerate(clip_keys):
            target = self._target(key, values[entry])
            self._records.append(PredictionMoments.of(target, values[entry, :, : target.deviation.shape[1]]))
            self._keys.append(key)

    def _target(self, key: Hashable, pred: Tensor) -> ClipTarget:
        if key not in self._targets:
            raise KeyError(
                f"clip {key!r} was not prepared; call prepare({key!r}, responses) once before the fit"
            )
        target = self._targets[key]
        n_neurons, n_bins = target.deviation.shape
        if pred.device != target.deviation.device:
            raise ValueError(
                f"the prediction of clip {key!r} is on {pred.device}, its responses were prepared on "
                f"{target.deviation.device}; call prepare with responses.to({str(pred.device)!r})"
            )
        if pred.shape[0] != n_neurons or pred.shape[1] < n_bins:
            raise ValueError(
                f"the prediction of clip {key!r} has shape (N, T) with N = {n_neurons} and T >= {n_bins}, "
                f"got shape {shape_text(pred)}"
            )
        return target

    def _state(self) -> tuple[PredictionMoments, ClipParts, RepeatTotals]:
        """Predictions' moments and the responses' parts, the latter pooled once per sequence of clips."""
        if not self._records:
            raise ValueError("ScoreTracker has seen no predictions; call update before compute")
        keys = tuple(self._keys)
        if self._pooled is None or self._pooled[0] != keys:
            parts = ClipParts.cat([self._targets[key].parts.unflatten(1, -1) for key in keys])
            self._pooled = (keys, parts, RepeatTotals.of(parts))
        return PredictionMoments.stack(self._records), self._pooled[1], self._pooled[2]

    def compute(self, centring: str | None = None) -> dict[str, Tensor]:
        """Scores of the predictions since the last `reset`.

        Parameters
        ----------
        centring : {"concat", "clip", "published"}, optional
            Another centring than the tracker's own.

        Returns
        -------
        dict of str to Tensor, shape (N,)
            ``"cc"`` and ``"cc_norm"``, float64, NaN where undefined. Neurons of `single_repeat` have
            ``cc_norm`` equal to ``cc``.

        Raises
        ------
        ValueError
            When no prediction was given or ``centring`` is unknown.
        """
        centring = self.centring if centring is None else centring
        check_centring(centring, published=True)
        moments, parts, totals = self._state()
        return {
            "cc": moments.correlation("concat"),
            "cc_norm": noise_corrected(moments, parts, totals, centring),
        }

    def report(self) -> dict[str, Tensor]:
        """All that is known about the predictions since the last `reset`, each (N,).

        Returns
        -------
        dict of str to Tensor
            ``cc``; ``cc_norm_concat``, ``cc_norm_clip``, ``cc_norm_published``; ``fve``; ``mse``; ``n_bins``;
            ``ceiling`` (see `deepSTRF.metrics.ceiling`, ``method="power"``); ``single_repeat`` (bool: nothing
            can be corrected and ``cc_norm`` is the raw ``cc``).
        """
        moments, parts, totals = self._state()
        pooled = moments.pooled()
        error = squared_error(pooled)
        scores = {"cc": pooled.correlation()}
        for centring in ("concat", "clip", "published"):
            scores[f"cc_norm_{centring}"] = noise_corrected(moments, parts, totals, centring)
        scores["fve"] = explained_variance(error, pooled.yy, pooled.mean_y, pooled.count)
        scores["mse"] = keep_where(pooled.count > 0, error / pooled.count.clamp(min=1))
        scores["n_bins"] = pooled.count
        scores["ceiling"] = totals.ceiling("clip" if self.centring == "clip" else "concat")
        scores["single_repeat"] = totals.bins == 0
        return scores
