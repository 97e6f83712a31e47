"""`score_model`: a fitted model against the recording and its noise ceiling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF.metrics import NeuronQuality, ScoreTracker, neuron_quality
from deepSTRF.models.causal import placement
from deepSTRF.models.prediction import predict_clips
from deepSTRF.protocols import DatasetLike
from deepSTRF.training._checks import check_non_negative
from deepSTRF.training.model_rules import check_prediction
from deepSTRF.training.score_table import ScoreTable, neuron_names

__all__ = ["score_model", "score_predictions"]

#: Resamples behind the ceiling's interval: enough for its second digit.
N_BOOTSTRAP = 200


def score_model(
    model: nn.Module,
    dataset: DatasetLike,
    *,
    centring: str = "concat",
    n_bootstrap: int = N_BOOTSTRAP,
    warmup_ms: float = 0.0,
    device: str | torch.device | None = None,
) -> ScoreTable:
    """Score a model on the clips of a data set (usually the test view), neuron by neuron.

    Clips are read one at a time, so memory does not grow with the recording. The published form of the
    noise-corrected correlation stands beside ours, so that numbers printed elsewhere can be compared.

    Parameters
    ----------
    model : nn.Module
        A fitted model.
    dataset : DatasetLike
        Clips to score; ``split.apply(dataset)[2]`` gives the test view.
    centring : {"concat", "clip", "published"}
        Of ``cc_norm``.
    n_bootstrap : int
        Resamples behind the interval of the noise ceiling; 0 leaves the interval out.
    warmup_ms : float
        Onset of every clip that is left out, as in the fit.
    device : str or torch.device, optional
        Where to run the model; None is where it is. The model returns to its place.

    Returns
    -------
    ScoreTable
        Columns cc, cc_norm, cc_norm_published, fve, mse, snr, ccmax, ccmax_low, ccmax_high.

    Raises
    ------
    ModelRuleError
        When the prediction does not fit the recording.
    ValueError
        When ``centring`` is unknown, or the warm-up covers a whole clip.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4)
    >>> table = score_model(Linear(ds.F, 9, 3).eval(), ds, n_bootstrap=0)
    >>> len(table), table.mean("cc_norm").n + table.mean("cc_norm").n_nan
    (3, 3)
    """
    home, _ = placement(model)
    try:
        if device is not None:
            model.to(device)
        return score_predictions(
            lambda clip: predict_clips(model, dataset, clips=[clip])[0],
            dataset,
            centring=centring,
            n_bootstrap=n_bootstrap,
            warmup_ms=warmup_ms,
        )
    finally:
        model.to(home)


def score_predictions(
    predict: Callable[[int], Tensor],
    dataset: DatasetLike,
    *,
    centring: str = "concat",
    n_bootstrap: int = N_BOOTSTRAP,
    warmup_ms: float = 0.0,
) -> ScoreTable:
    """Score predictions, wherever they come from, on the clips of a data set.

    Parameters
    ----------
    predict : callable
        ``predict(clip)`` returns the rates (N, T) of a clip.
    dataset, centring, n_bootstrap, warmup_ms
        As in `score_model`.

    Returns
    -------
    ScoreTable
        As from `score_model`.

    Raises
    ------
    ModelRuleError, ValueError
        As in `score_model`.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4)
    >>> table = score_predictions(lambda clip: ds.response_block(clip).mean(1), ds, n_bootstrap=0)
    >>> table["cc"].round(6).tolist()
    [1.0, 1.0, 1.0]
    """
    tracker = ScoreTracker(centring=centring)
    skip = math.ceil(check_non_negative("warmup_ms", warmup_ms) / dataset.dt - 1e-9)
    scored = _WithoutOnset(dataset, skip)
    for clip in range(len(dataset)):
        responses = scored.response_block(clip)
        tracker.prepare(clip, responses)
        tracker.update([clip], _checked(predict(clip), responses, skip))
    quality = neuron_quality(
        scored, centring="clip" if centring == "published" else centring, n_bootstrap=n_bootstrap
    )
    columns = _columns(tracker.report(), quality, centring)
    reasons = _reasons(quality, columns)
    facts = {
        "centring": centring,
        "n_clips": len(dataset),
        "warmup_ms": float(warmup_ms),
        "dt_ms": float(dataset.dt),
        "smoothing_ms": quality.smoothing_ms,
        "n_bootstrap": n_bootstrap,
        "confidence": quality.confidence,
    }
    return ScoreTable(neuron_names(dataset.nrn_meta), columns, reasons, facts)


class _WithoutOnset:
    """The responses of a data set without the first bins of each clip: what `neuron_quality` reads."""

    def __init__(self, dataset: DatasetLike, skip: int) -> None:
        self._dataset = dataset
        self._skip = skip
        self.dt = dataset.dt

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def response_block(self, clip: int) -> Tensor:
        """(N, R, T) without the onset."""
        block = self._dataset.response_block(clip)
        if block.shape[-1] <= self._skip:
            raise ValueError(
                f"warmup_ms covers {self._skip} bins, but clip {clip} has only {block.shape[-1]}: nothing is "
                "left to score; pass a shorter warmup_ms, or leave the clip out with dataset.select"
            )
        return block[..., self._skip :]


def _checked(rates: Tensor, responses: Tensor, skip: int) -> Tensor:
    neurons, _, bins = responses.shape
    pred = check_prediction(rates[None, :, None, :], batch=1, neurons=neurons, bins=bins + skip)
    return pred[..., skip:]


def _columns(
    report: dict[str, Tensor], quality: NeuronQuality, centring: str
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    chosen = {
        "cc": report["cc"],
        "cc_norm": report[f"cc_norm_{centring}"],
        "cc_norm_published": report["cc_norm_published"],
        "fve": report["fve"],
        "mse": report["mse"],
        "snr": quality.snr,
        "ccmax": quality.ccmax,
        "ccmax_low": quality.ccmax_low,
        "ccmax_high": quality.ccmax_high,
    }
    return {name: np.asarray(values.double().cpu()) for name, values in chosen.items()}


def _reasons(
    quality: NeuronQuality, columns: dict[str, np.ndarray[Any, np.dtype[np.float64]]]
) -> tuple[str, ...]:
    """Why a value is missing, per neuron.

    A neuron recorded once has the plain correlation for a score; where it has none either, repeats are not
    the reason.
    """
    once = (quality.n_repeats_max == 1).tolist()
    flat = np.isnan(columns["fve"])  # no variance of the response to explain
    return tuple(
        "silent: the response never varies" if once[index] and flat[index] else reason
        for index, reason in enumerate(quality.reasons)
    )
