"""Movies of dynamic STRFs: a line moves through the spectrogram, above the filters of its time bin."""

from __future__ import annotations

import base64
import io
import os
import secrets
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._validation import checked_but
from deepSTRF.plots._style import (
    GREY,
    INK,
    LABEL_SIZE,
    NO_GLYPH,
    TICK_SIZE,
    VERMILION,
    FloatArray,
    as_array,
    as_spectrogram,
    bin_centres,
    check_frequencies,
    check_positive,
    check_titles,
    draw_field,
    draw_spectrogram,
    lag_label,
    left_title,
    new_figure,
    shown_text,
    tidy,
    time_edges,
    time_label,
)
from deepSTRF.plots.dstrf import LIMIT_QUANTILE, filter_limit

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from PIL.Image import Image

PANEL_INCHES, HEIGHT_INCHES = 2.1, 4.6
#: The widest a movie gets: more filters than this in a row are not legible.
MOST_FILTERS = 6
#: A second of sound at 200 bins/s is about one megabyte.
DPI = 80
#: Colours of a GIF, one fewer than the format holds: the last one marks pixels that do not change.
COLOURS, PALETTE_FRAMES = 255, 8
#: The format counts in hundredths of a second, and browsers slow a frame of one hundredth down to ten.
GIF_TICKS, FASTEST_GIF = 100.0, 50.0


@checked_but("fps", "titles", "every", "quantile")
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
    """Write a movie of dynamic STRFs: a line moves through the spectrogram, below are the filters of its bin.

    Parameters
    ----------
    path : path
        The ending selects the format: ``.gif``, ``.html`` (one file with controls to step through, which
        loads nothing from the network), or ``.mp4``, which needs the program ffmpeg.
    stim : array (F, T) or (1, F, T)
        Spectrogram.
    dstrf : array (T, L, F) or (T, K, L, F)
        Filters of one neuron, or of K of them side by side; the lag axis from the oldest frame to the
        current one.
    pred : array (T,) or (T, K)
        Predictions.
    response : array (T,) or (T, K), optional
        Recorded response, the mean over repeats.
    dt_ms : float, optional
        Bin in ms; without it axes count bins.
    every : int
        Draw one bin in so many.
    fps : float
        Frames per second, at most 50 in a GIF; the title states how much slower than the sound that is.
    lookahead : int
        Frames of the filters after the current one, ``result.lookahead``: they stand right of 0.
    shared_clim : bool
        One colour scale for all neurons instead of one each; it is constant over the movie in both cases.
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
    FileExistsError
        For a folder, pipe or device of this name.
    RuntimeError
        When ffmpeg fails.

    Examples
    --------
    >>> import tempfile
    >>> filters = np.random.default_rng(0).normal(size=(4, 3, 6))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     movie = save_dstrf_movie(folder + "/cell.gif", np.zeros((6, 4)), filters, np.zeros(4), dt_ms=5.0)
    ...     movie.read_bytes()[:3]
    b'GIF'
    """
    target = Path(path)
    _check_format(target, every, fps)
    check_positive(dt_ms, "dt_ms")
    spectrogram = as_spectrogram(stim, "stim")
    n_bands, n_bins = spectrogram.shape
    filters = _checked_filters(dstrf, n_bins, n_bands)
    n_neurons = filters.shape[1]
    check_titles(titles, n_neurons)
    scene = _Scene(
        stim=spectrogram,
        filters=filters,
        pred=_columns(pred, "pred", n_bins, n_neurons),
        response=None if response is None else _columns(response, "response", n_bins, n_neurons),
        titles=list(titles or [""] * n_neurons),
        frequencies_hz=check_frequencies(frequencies_hz, n_bands),
        dt_ms=dt_ms,
        start_s=start_s,
        lookahead=lookahead,
    )
    limits = [filter_limit(filters[:, k], quantile) for k in range(n_neurons)]
    figure, update, moving = scene.draw([max(limits)] * n_neurons if shared_clim else limits, cmap)
    if dt_ms:
        slower = 1000.0 / (dt_ms * every * fps)
        speed = f"{slower:.2g} x slower than the sound" if slower > 1.05 else "at the speed of the sound"
        left_title(figure.axes[0], speed, LABEL_SIZE)
    # the layout is computed once: for every frame it would take most of the time
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NO_GLYPH)
        figure.canvas.draw()
    figure.set_layout_engine("none")
    alt = f"dynamic STRF of {', '.join(shown_text(name) for name in scene.titles if name) or 'a neuron'}"
    film = Film(figure, update, moving, range(0, n_bins, every), float(fps), on_frame, escape(alt))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NO_GLYPH)
        _write_beside(target, film)
    return target


def _write_beside(target: Path, film: Film) -> None:
    """Write a movie that appears when it is complete; an older one stays until then."""
    place = Path(os.path.realpath(target))  # a link that the user named stays one
    part = place.with_name(f".{place.stem[:100]}.{os.getpid()}-{secrets.token_hex(4)}{target.suffix}")
    try:
        FORMATS[target.suffix.lower()](part, film)
        os.replace(part, place)
    except OSError as error:
        if error.errno is not None and error.filename in (None, os.fspath(part)):
            error.filename = os.fspath(target)
        raise
    except RuntimeError as error:  # of ffmpeg, which names the file that it was to write
        raise RuntimeError(str(error).replace(str(part), str(target))) from error
    finally:
        part.unlink(missing_ok=True)


def _check_format(target: Path, every: int, fps: float) -> None:
    """Check the file and its rate before anything is drawn."""
    ending = target.suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}, got {target.name!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; make it first")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} is a folder, pipe or device; name a file")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
    check_positive(fps, "fps")
    if ending == ".gif" and fps > FASTEST_GIF:
        raise ValueError(
            f"a GIF shows at most {FASTEST_GIF:g} frames per second (browsers slow others down), got "
            f"fps={fps:g}; draw every second bin with every=2, or write .html or .mp4"
        )


def _checked_filters(dstrf: Any, n_bins: int, n_bands: int) -> FloatArray:
    """Filters (T, K, L, F) of the neurons shown."""
    given = as_array(dstrf, "dstrf")
    filters = given[:, None] if given.ndim == 3 else given
    shape = filters.shape
    if len(shape) != 4 or shape[0] != n_bins or shape[3] != n_bands or 0 in shape:
        raise ValueError(
            f"dstrf must have shape (T, L, F) or (T, K, L, F) with T={n_bins} and F={n_bands} like "
            f"stim, got {given.shape}"
        )
    if shape[1] > MOST_FILTERS:
        raise ValueError(f"a movie shows at most {MOST_FILTERS} neurons, got {shape[1]}; choose some")
    return filters


def _columns(values: Any, name: str, n_bins: int, n_neurons: int) -> FloatArray:
    """Series (T, K), one column per neuron."""
    columns = as_array(values, name)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.shape != (n_bins, n_neurons):
        raise ValueError(
            f"{name} must have shape ({n_bins}, {n_neurons}), bins by neurons, got {columns.shape}"
        )
    return columns


@dataclass(frozen=True)
class _Scene:
    """Content of a movie: spectrogram (F, T), filters (T, K, L, F), predictions and responses (T, K)."""

    stim: FloatArray
    filters: FloatArray
    pred: FloatArray
    response: FloatArray | None
    titles: list[str]
    frequencies_hz: FloatArray | None
    dt_ms: float | None
    start_s: float
    lookahead: int

    def draw(self, limits: list[float], cmap: str) -> tuple[Figure, Callable[[int], None], list[Artist]]:
        """Return the figure, a function that sets it to one time bin, and the artists this changes."""
        n_bins, n_neurons = self.filters.shape[:2]
        figure = new_figure((max(5.0, PANEL_INCHES * n_neurons + 0.8), HEIGHT_INCHES))
        grid = figure.add_gridspec(3, n_neurons, height_ratios=(1.3, 0.8, 1.5))
        top = figure.add_subplot(grid[0, :])
        edges, x = time_edges(n_bins, self.dt_ms, self.start_s), bin_centres(n_bins, self.dt_ms, self.start_s)
        draw_spectrogram(top, self.stim, edges, self.frequencies_hz, cmap="magma")
        tidy(top)
        time_label(top, self.dt_ms, labelpad=1)
        lines = [top.axvline(x[0], color="white", linewidth=1.4)]
        images = []
        for k in range(n_neurons):
            trace, panel = figure.add_subplot(grid[1, k]), figure.add_subplot(grid[2, k])
            if self.response is not None:
                trace.plot(x, self.response[:, k], color=GREY, linewidth=0.9)
            trace.plot(x, self.pred[:, k], color=VERMILION, linewidth=1.1)
            trace.set_xlim(*edges)
            lines.append(trace.axvline(x[0], color=INK, linewidth=1.0))
            trace.set_xticks([])
            left_title(trace, self.titles[k], LABEL_SIZE)
            options: dict[str, Any] = {"limit": limits[k], "lookahead": self.lookahead, "cmap": cmap}
            image = draw_field(panel, self.filters[0, k].T, self.frequencies_hz, self.dt_ms, **options)
            images.append(image)
            lag_label(panel, self.dt_ms, "before")
            tidy(trace)
            for ax in (trace, panel):
                ax.tick_params(labelsize=TICK_SIZE - 1)
            trace.set_ylabel("" if k else "response")
            if k:
                panel.set_ylabel("")
                panel.set_yticks([])

        def update(t: int) -> None:
            for line in lines:
                line.set_xdata([x[t], x[t]])
            for k, image in enumerate(images):
                image.set_data(self.filters[t, k].T)

        return figure, update, [*images, *lines]


@dataclass(frozen=True)
class Film:
    """A drawn figure, a function that sets it to a time bin, the artists this changes, and the bins shown."""

    figure: Figure
    update: Callable[[int], None]
    moving: list[Artist]
    bins: range
    fps: float
    on_frame: Callable[[], None] | None
    title: str

    def count_frame(self) -> None:
        """Report one frame as done."""
        if self.on_frame is not None:
            self.on_frame()

    def still(self) -> Any:
        """Draw the background, which does not change, once."""
        canvas: Any = self.figure.canvas
        self.figure.set_dpi(DPI)
        for artist in self.moving:
            artist.set_animated(True)  # left out of the still background
        canvas.draw()
        return canvas.copy_from_bbox(self.figure.bbox)

    def frames(self, still: Any, bins: range) -> Iterator[NDArray[np.uint8]]:
        """Yield pixels (height, width, 3); only what changes is drawn again."""
        canvas: Any = self.figure.canvas
        for t in bins:
            self.update(t)
            canvas.restore_region(still)
            for artist in self.moving:
                if artist.axes is not None:
                    artist.axes.draw_artist(artist)
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def images(self) -> Iterator[Image]:
        """Yield frames with one palette for all, so that a file stores only what changes."""
        from PIL import Image

        still = self.still()
        # some frames from all over the movie have all its colours
        some = self.bins[:: max(1, len(self.bins) // PALETTE_FRAMES)]
        sample = np.concatenate(list(self.frames(still, some)))
        palette = Image.fromarray(sample).quantize(COLOURS)
        for frame in self.frames(still, self.bins):
            yield Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            self.count_frame()


def save_gif(target: Path, film: Film) -> None:
    """Write a GIF; its frames last whole hundredths of a second, unequal ones where the rate requires it."""
    images = list(film.images())
    ends = np.round(np.arange(len(images) + 1) * GIF_TICKS / film.fps)
    lengths = [int(ticks * 1000.0 / GIF_TICKS) for ticks in np.diff(ends)]
    images[0].save(target, format="GIF", save_all=True, append_images=images[1:], duration=lengths, loop=0)


def save_page(target: Path, film: Film) -> None:
    """Write one HTML file with the frames and controls, which loads nothing from the network."""
    frames = []
    for image in film.images():
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        frames.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    width, height = (round(inches * DPI) for inches in film.figure.get_size_inches())
    list_of_frames = ",\n".join(f'"{frame}"' for frame in frames)
    page = (
        PAGE.replace("{{width}}", str(width))
        .replace("{{height}}", str(height))
        .replace("{{last}}", str(len(frames) - 1))
        .replace("{{fps}}", f"{film.fps:g}")
        .replace("{{frames}}", list_of_frames)
        .replace("{{title}}", film.title)  # last: a title may itself hold one of these words
    )
    target.write_text(page, encoding="utf-8")


def save_mp4(target: Path, film: Film) -> None:
    """Write an mp4 through the program ffmpeg."""
    from matplotlib import animation

    if not animation.FFMpegWriter.isAvailable():
        raise FileNotFoundError(
            "mp4 needs the program ffmpeg, which was not found; write a .gif or .html instead"
        )
    rate: Any = film.fps  # the stubs of matplotlib require whole numbers, its writers do not
    # even numbers of pixels, as the pixel format requires
    even = ["-pix_fmt", "yuv420p", "-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2"]
    writer = animation.FFMpegWriter(fps=rate, codec="h264", extra_args=even)
    try:
        with writer.saving(film.figure, str(target), DPI):
            for t in film.bins:
                film.update(t)
                writer.grab_frame()
                film.count_frame()
    except (subprocess.CalledProcessError, BrokenPipeError) as error:
        output = getattr(error, "output", None) or str(error)
        raise RuntimeError(
            f"ffmpeg could not write {target}; write a .gif or .html instead. Output: {str(output)[-400:]}"
        ) from error


#: Writers by the ending of the file.
FORMATS: dict[str, Callable[[Path, Film], None]] = {".gif": save_gif, ".html": save_page, ".mp4": save_mp4}

#: Frames, a slider, buttons and keys: no library, no font, nothing from the network.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>
html { color-scheme: light dark; }
body { margin: 1rem auto; max-width: {{width}}px; padding: 0 .5rem; font: 1rem/1.4 system-ui, sans-serif; }
img { display: block; width: 100%; height: auto; background: #fff; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; margin-top: .5rem; }
input { flex: 1 1 10rem; }
button { min-width: 2.4rem; padding: .25rem .5rem; font: inherit; }
output { min-width: 6rem; text-align: right; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<img id="frame" width="{{width}}" height="{{height}}" alt="{{title}}">
<div class="bar">
<button id="back" aria-label="previous frame">&lt;</button>
<button id="play">Pause</button>
<button id="next" aria-label="next frame">&gt;</button>
<input id="at" type="range" min="0" max="{{last}}" value="0" aria-label="frame">
<output id="where" for="at"></output>
<label>speed <select id="speed">
<option value="0.25">1/4</option><option value="0.5">1/2</option><option value="1" selected>1</option>
<option value="2">2</option><option value="4">4</option>
</select></label>
</div>
<script>
var frames = [
{{frames}}
];
var fps = {{fps}}, now = 0, timer = null;
function get(id) { return document.getElementById(id); }
function show(k) {
  now = (k + frames.length) % frames.length;
  get("frame").src = "data:image/png;base64," + frames[now];
  get("at").value = now;
  get("where").textContent = (now + 1) + " of " + frames.length;
}
function run(on) {
  clearInterval(timer);
  timer = on ? setInterval(function () { show(now + 1); }, 1000 / (fps * get("speed").value)) : null;
  get("play").textContent = on ? "Pause" : "Play";
}
get("play").onclick = function () { run(timer === null); };
get("back").onclick = function () { run(false); show(now - 1); };
get("next").onclick = function () { run(false); show(now + 1); };
get("at").oninput = function () { run(false); show(Number(get("at").value)); };
get("speed").onchange = function () { if (timer !== null) run(true); };
show(0);
run(true);
</script>
</body>
</html>
"""
