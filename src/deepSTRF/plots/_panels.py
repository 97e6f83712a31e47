"""The three panels every response figure is made of: spectrogram, raster, and PSTH with prediction."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepSTRF.plots._arrays import (
    FloatArray,
    as_array,
    as_series,
    as_spectrogram,
    check_frequencies,
    check_positive,
)
from deepSTRF.plots._style import BANDS, INK, TICK_SIZE, VERMILLION, draw_spectrogram, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ResponseData", "draw_panels", "draw_psth", "nan_psth", "response_data"]

LINE_WIDTH = 1.2
#: A bin at this percentile of the active ones gets full ink: one rare burst must not fade single spikes.
INK_PERCENTILE = 75


@dataclass(frozen=True)
class ResponseData:
    """One clip and one neuron, checked: spectrogram (F, T), repeats (R, T), PSTH (T,), prediction (T,)."""

    spectrogram: FloatArray
    repeats: FloatArray
    psth: FloatArray
    prediction: FloatArray | None
    frequencies_hz: FloatArray | None
    dt_ms: float | None

    @property
    def edges(self) -> tuple[float, float]:
        """Outer edges of the first and the last bin: seconds, or bins when the bin width is unknown."""
        return time_edges(self.spectrogram.shape[1], self.dt_ms)

    @property
    def centres(self) -> FloatArray:
        """Bin centres on the same axis."""
        return bin_centres(self.spectrogram.shape[1], self.dt_ms)


def time_edges(n_bins: int, dt_ms: float | None) -> tuple[float, float]:
    """Return where the first bin begins and the last one ends."""
    return 0.0, n_bins * (dt_ms / 1000.0 if dt_ms else 1.0)


def bin_centres(n_bins: int, dt_ms: float | None) -> FloatArray:
    """Return the middle of every bin: a line drawn there sits on its pixels."""
    step = dt_ms / 1000.0 if dt_ms else 1.0
    return (np.arange(n_bins, dtype=np.float64) + 0.5) * step


def nan_psth(repeats: FloatArray) -> FloatArray:
    """Average (R, T) over the repeats that were recorded; a bin nobody recorded stays NaN."""
    with warnings.catch_warnings():
        # an all-NaN bin is data that is missing, and stays NaN: nothing to warn about
        warnings.simplefilter("ignore", RuntimeWarning)
        mean: FloatArray = np.nanmean(repeats, axis=0)
    return mean


def response_data(
    stim: Any, response: Any, pred: Any, dt_ms: float | None, frequencies_hz: Any
) -> ResponseData:
    """Check shapes against each other; raises ValueError naming the two that disagree."""
    spectrogram = as_spectrogram(stim, "stim")
    n_bands, n_bins = spectrogram.shape
    repeats = as_array(response, "response")
    if repeats.ndim == 1:
        repeats = repeats[None]
    if repeats.ndim != 2 or 0 in repeats.shape:
        raise ValueError(f"response must have shape (R, T), (1, T) or (T,), got {repeats.shape}")
    if repeats.shape[1] != n_bins:
        raise ValueError(
            f"stim has {n_bins} time bins, response has {repeats.shape[1]}; both must be on one grid of bins"
        )
    prediction = None if pred is None else as_series(pred, "pred")
    if prediction is not None and prediction.size != n_bins:
        raise ValueError(f"pred must have shape ({n_bins},) like stim and response, got ({prediction.size},)")
    check_positive(dt_ms, "dt_ms")
    frequencies = check_frequencies(frequencies_hz, n_bands)
    return ResponseData(spectrogram, repeats, nan_psth(repeats), prediction, frequencies, dt_ms)


def draw_raster(ax: Axes, data: ResponseData, cmap: str) -> None:
    """Draw repeats as rows, the first at the top; bins that were not recorded stay white."""
    n_repeats = data.repeats.shape[0]
    finite = data.repeats[np.isfinite(data.repeats)]
    active = finite[finite > 0]
    top = float(np.percentile(active, INK_PERCENTILE)) if active.size else 1.0
    ax.imshow(
        data.repeats,
        origin="upper",
        aspect="auto",
        cmap=cmap,
        vmin=min(0.0, float(finite.min())) if finite.size else 0.0,
        vmax=top,
        # "antialiased" averages when bins are narrower than pixels, where "nearest" would drop spikes
        interpolation="antialiased",
        extent=(*data.edges, n_repeats + 0.5, 0.5),
    )
    ax.set_yticks([1, n_repeats])
    ax.set_ylabel("repeat")


def draw_psth(
    ax: Axes,
    x: FloatArray,
    target: FloatArray,
    prediction: FloatArray | None,
    target_label: str,
    prediction_label: str,
    legend: bool,
) -> None:
    """Draw the measured rate and, over it, the prediction."""
    ax.plot(x, target, color=INK, linewidth=LINE_WIDTH, label=target_label)
    if prediction is not None:
        ax.plot(x, prediction, color=VERMILLION, linewidth=LINE_WIDTH, label=prediction_label)
    if legend:
        # above the axes: a legend inside hides bins
        ax.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=2,
            frameon=False,
            fontsize=TICK_SIZE,
            borderaxespad=0.0,
            handlelength=1.4,
        )


def draw_panels(
    axes: list[Axes],
    data: ResponseData,
    spec_cmap: str,
    raster_cmap: str,
    response_label: str,
    legend: bool = True,
    band_label: str = BANDS,
) -> None:
    """Draw spectrogram, raster (when there are three axes) and PSTH on a shared time axis."""
    draw_spectrogram(axes[0], data.spectrogram, data.edges, data.frequencies_hz, band_label, cmap=spec_cmap)
    if len(axes) == 3:
        draw_raster(axes[1], data, raster_cmap)
    draw_psth(axes[-1], data.centres, data.psth, data.prediction, "measured", "predicted", legend)
    axes[-1].set_ylabel(response_label)
    axes[-1].set_xlabel("time (s)" if data.dt_ms else "time bin")
    for ax in axes:
        tidy(ax)
        ax.set_xlim(*data.edges)
        if ax is not axes[-1]:
            ax.tick_params(labelbottom=False)
