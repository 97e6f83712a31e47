"""Movies of filters that change: the sound passes by, and the filters of a moment stand below it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepSTRF.plots._arrays import (
    FloatArray,
    as_array,
    as_spectrogram,
    check_frequencies,
    check_positive,
    check_titles,
)
from deepSTRF.plots._film import FASTEST_GIF, FORMATS, Film
from deepSTRF.plots._panels import bin_centres, time_edges
from deepSTRF.plots._style import (
    GREY,
    INK,
    LABEL_SIZE,
    TICK_SIZE,
    VERMILLION,
    draw_spectrogram,
    left_title,
    new_figure,
    tidy,
)
from deepSTRF.plots.dynamic import LIMIT_QUANTILE, filter_limit, lag_edges

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

__all__ = ["save_dstrf_movie"]

PANEL_INCHES, HEIGHT_INCHES = 2.1, 4.6
#: The widest a movie gets: more filters than this in a row are not legible.
MOST_FILTERS = 6


def save_dstrf_movie(
    path: str | os.PathLike[str],
    stim: Any,
    dstrf: Any,
    pred: Any,
    response: Any = None,
    dt_ms: float | None = None,
    *,
    every: int = 1,
    fps: float = 20.0,
    lookahead: int = 0,
    shared_clim: bool = False,
    quantile: float = LIMIT_QUANTILE,
    cmap: str = "RdBu_r",
    start_s: float = 0.0,
    titles: Sequence[str] | None = None,
    frequencies_hz: Any = None,
    on_frame: Callable[[], None] | None = None,
) -> Path:
    """Write a movie of dynamic STRFs: a line walks through the spectrogram, below are the filters of then.

    Parameters
    ----------
    path : path
        The ending says what is written: ``.gif``, ``.html`` (one file with controls to step through, which
        asks nothing of the network), or ``.mp4``, which needs the program ffmpeg.
    stim : array (F, T) or (1, F, T)
        Spectrogram.
    dstrf : array (T, L, F) or (T, K, L, F)
        Filters of one neuron, or of K of them side by side; the lag axis from the oldest frame to the
        current one.
    pred : array (T,) or (T, K)
        Predictions.
    response : array (T,) or (T, K), optional
        What was recorded, the mean over repeats.
    dt_ms : float, optional
        Bin in ms; without it axes count bins.
    every : int
        Draw every so manieth bin.
    fps : float
        Frames per second, at most 50 in a GIF; the title says how much slower than the sound that is.
    lookahead : int
        Frames of the filters after the current one, ``result.lookahead``: they stand right of 0.
    shared_clim : bool
        One colour scale for all neurons instead of one each. It holds for the whole movie either way.
    quantile : float
        The scale ends at this quantile over time of the largest weights; weights beyond it saturate.
    cmap : str
        A diverging colour map; limits are symmetric about 0.
    start_s : float
        Time of the first bin on the axis, for an excerpt of a clip.
    titles : sequence of str, optional
        One per neuron.
    frequencies_hz : array (F,), optional
        Centre frequencies in Hz.
    on_frame : callable, optional
        Called after each frame, for a progress bar.

    Returns
    -------
    pathlib.Path
        The movie.

    Raises
    ------
    ValueError
        For another ending, shapes that do not fit each other, or more than six neurons.
    FileNotFoundError
        For ``.mp4`` without ffmpeg, or a folder that does not exist.
    RuntimeError
        When ffmpeg fails.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> filters = np.random.default_rng(0).normal(size=(4, 3, 6))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     movie = save_dstrf_movie(folder + "/cell.gif", np.zeros((6, 4)), filters, np.zeros(4), dt_ms=5.0)
    ...     movie.read_bytes()[:3]
    b'GIF'
    """
    target = Path(path)
    _check_choices(target, every, fps, quantile)
    check_positive(dt_ms, "dt_ms")
    scene = _Scene(stim, dstrf, pred, response, dt_ms, lookahead, titles, frequencies_hz)
    figure, update, moving = scene.draw(shared_clim, quantile, cmap, start_s, _speed(dt_ms, every, fps))
    moments = range(0, scene.n_bins, every)
    title = f"dynamic STRF of {', '.join(name for name in scene.titles if name) or 'a neuron'}"
    film = Film(figure, update, moving, moments, float(fps), on_frame or _nothing, escape(title))
    FORMATS[target.suffix.lower()](target, film)
    return target


class _Scene:
    """What a movie shows, checked, and the artists that change from frame to frame."""

    def __init__(
        self,
        stim: Any,
        dstrf: Any,
        pred: Any,
        response: Any,
        dt_ms: float | None,
        lookahead: int,
        titles: Any,
        hertz: Any,
    ) -> None:
        self.stim = as_spectrogram(stim, "stim")
        n_bands, self.n_bins = self.stim.shape
        filters = as_array(dstrf, "dstrf")
        self.filters = filters[:, None] if filters.ndim == 3 else filters
        shape = self.filters.shape
        if len(shape) != 4 or shape[0] != self.n_bins or shape[3] != n_bands or 0 in shape:
            raise ValueError(
                f"dstrf must have shape (T, L, F) or (T, K, L, F) with T={self.n_bins} and F={n_bands} like "
                f"stim, got {filters.shape}"
            )
        self.count = shape[1]
        if self.count > MOST_FILTERS:
            raise ValueError(f"a movie shows at most {MOST_FILTERS} neurons, got {self.count}; choose some")
        check_titles(titles, self.count)
        self.titles = titles or [""] * self.count
        self.hertz = check_frequencies(hertz, n_bands)
        self.pred = self._columns(pred, "pred")
        self.response = None if response is None else self._columns(response, "response")
        self.dt_ms = dt_ms
        self.edges = lag_edges(shape[2], lookahead, dt_ms)

    def _columns(self, values: Any, name: str) -> FloatArray:
        columns = as_array(values, name)
        columns = columns[:, None] if columns.ndim == 1 else columns
        if columns.shape != (self.n_bins, self.count):
            raise ValueError(
                f"{name} must have shape ({self.n_bins}, {self.count}), bins by neurons, got {columns.shape}"
            )
        return columns

    def draw(
        self, shared: bool, quantile: float, cmap: str, start_s: float, speed: str
    ) -> tuple[Figure, Callable[[int], None], list[Artist]]:
        """Return the figure, a function that sets it to one moment, and what that function changes."""
        figure = new_figure((max(5.0, PANEL_INCHES * self.count + 0.8), HEIGHT_INCHES))
        grid = figure.add_gridspec(3, self.count, height_ratios=(1.3, 0.8, 1.5))
        top = figure.add_subplot(grid[0, :])
        low, high = (edge + start_s for edge in time_edges(self.n_bins, self.dt_ms))
        x = bin_centres(self.n_bins, self.dt_ms) + start_s
        draw_spectrogram(top, self.stim, (low, high), self.hertz, cmap="magma")
        tidy(top)
        left_title(top, speed, LABEL_SIZE)
        top.set_xlabel("time (s)" if self.dt_ms else "time bin", labelpad=1)
        lines = [top.axvline(x[0], color="white", linewidth=1.4)]
        images = []
        limits = [filter_limit(self.filters[:, k], quantile) for k in range(self.count)]
        for k in range(self.count):
            trace, panel = figure.add_subplot(grid[1, k]), figure.add_subplot(grid[2, k])
            if self.response is not None:
                trace.plot(x, self.response[:, k], color=GREY, linewidth=0.9)
            trace.plot(x, self.pred[:, k], color=VERMILLION, linewidth=1.1)
            trace.set_xlim(low, high)
            lines.append(trace.axvline(x[0], color=INK, linewidth=1.0))
            trace.set_xticks([])
            left_title(trace, self.titles[k], LABEL_SIZE)
            limit = max(limits) if shared else limits[k]
            image = draw_spectrogram(
                panel, self.filters[0, k].T, self.edges, self.hertz, cmap=cmap, vmin=-limit, vmax=limit
            )
            images.append(image)
            panel.set_xlabel("ms before" if self.dt_ms else "bins before")
            for ax in (trace, panel):
                tidy(ax)
                ax.tick_params(labelsize=TICK_SIZE - 1)
            trace.set_ylabel("" if k else "response")
            if k:
                panel.set_ylabel("")
                panel.set_yticks([])
        _settle(figure)

        def update(moment: int) -> None:
            for line in lines:
                line.set_xdata([x[moment], x[moment]])
            for k, image in enumerate(images):
                image.set_data(self.filters[moment, k].T)

        return figure, update, [*images, *lines]


def _settle(figure: Figure) -> None:
    """Lay the figure out once: doing it for every frame would take most of the time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.canvas.draw()
    figure.set_layout_engine("none")


def _speed(dt_ms: float | None, every: int, fps: float) -> str:
    if not dt_ms:
        return ""
    slower = 1000.0 / (dt_ms * every * fps)
    return f"{slower:.2g} x slower than the sound" if slower > 1.05 else "at the speed of the sound"


def _check_choices(target: Path, every: int, fps: float, quantile: float) -> None:
    ending = target.suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}, got {target.name!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; make it first")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
    check_positive(fps, "fps")
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile must be above 0 and at most 1, got {quantile!r}")
    if ending == ".gif" and fps > FASTEST_GIF:
        raise ValueError(
            f"a GIF shows at most {FASTEST_GIF:g} frames per second (browsers slow others down), got "
            f"fps={fps:g}; draw every second bin with every=2, or write .html or .mp4"
        )


def _nothing() -> None:
    """Do nothing after a frame."""
