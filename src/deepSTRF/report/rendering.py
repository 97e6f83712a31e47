"""Templates to HTML. Everything that comes from a recording or a user is escaped by the templates."""

from __future__ import annotations

import base64
import io
import math
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepSTRF.interpret.sonify import LISTENING_PEAK, SILENCE_MS
from deepSTRF.training.callbacks import shows_progress

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "LISTENING_PEAK",
    "SILENCE_S",
    "Begin",
    "field_thumbnail",
    "figure_html",
    "file_data_uri",
    "number",
    "open_bars",
    "render",
    "short_name",
    "silent",
    "svg_data_uri",
    "wav_data_uri",
]

# ------------------------------------------------------------------------------
# Pictures as data URIs: the page carries everything and asks nothing of the network.


MIME = {".gif": "image/gif", ".wav": "audio/wav"}
#: Resolution of images inside a vector figure: sharp on dense screens and in print.
IMAGE_DPI = 160
#: A fixed salt and no date: the same figure gives the same bytes.
SALT = "deepSTRF"


def svg_data_uri(figure: Figure | SubFigure) -> str:
    """Return a figure as an SVG data URI; text becomes outlines, so it looks the same on every machine.

    Examples
    --------
    >>> from deepSTRF.plots import plot_psth_vs_pred
    >>> figure, _ = plot_psth_vs_pred([0.0, 1.0], [0.5, 0.5])
    >>> svg_data_uri(figure)[:26]
    'data:image/svg+xml;base64,'
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "path"}):
        figure.figure.savefig(buffer, format="svg", dpi=IMAGE_DPI, metadata={"Date": None, "Creator": None})
    return _uri("image/svg+xml", buffer.getvalue())


def field_thumbnail(field: NDArray[Any]) -> str:
    """Return a receptive field as a tiny PNG data URI: one pixel per weight, low bands at the bottom.

    Shapes: field (F, T_lags).

    Examples
    --------
    >>> import numpy as np
    >>> field_thumbnail(np.eye(4))[:22]
    'data:image/png;base64,'
    """
    from matplotlib.image import imsave

    limit = float(np.nanmax(np.abs(field))) or 1.0
    buffer = io.BytesIO()
    imsave(buffer, field, format="png", cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", metadata={})
    return _uri("image/png", buffer.getvalue())


def file_data_uri(path: Path) -> str:
    """Return a movie or sound as a data URI.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sound = Path(folder) / "a.wav"
    ...     _ = sound.write_bytes(b"RIFF")
    ...     file_data_uri(sound)
    'data:audio/wav;base64,UklGRg=='
    """
    return _uri(MIME[path.suffix.lower()], path.read_bytes())


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


# ------------------------------------------------------------------------------
# Sounds as data URIs: short, in the page itself, made for listening rather than for measuring.


#: Silence before and after, that of written files.
SILENCE_S = SILENCE_MS / 1000.0


def wav_data_uri(sound: NDArray[Any], audio_fs: float) -> str:
    """Return a sound as a WAV data URI (16 bit, mono), scaled to a comfortable peak, with silence around it.

    Shapes: sound (T_audio,).

    Examples
    --------
    >>> wav_data_uri(np.sin(np.arange(800) * 0.3), 16000)[:22]
    'data:audio/wav;base64,'
    """
    samples = np.asarray(sound, dtype=np.float64)
    if samples.ndim != 1 or samples.size == 0 or not np.isfinite(samples).all():
        raise ValueError(f"sound must be a series of finite samples (T_audio,), got shape {samples.shape}")
    if not audio_fs > 0:
        raise ValueError(f"audio_fs must be a positive number of hertz, got {audio_fs!r}")
    peak = float(np.abs(samples).max())
    scaled = samples * (LISTENING_PEAK * np.iinfo(np.int16).max / peak) if peak > 0 else samples
    silence = np.zeros(round(SILENCE_S * audio_fs))
    content = np.concatenate([silence, scaled, silence]).round().astype("<i2").tobytes()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(round(audio_fs))
        file.writeframes(content)
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


# ------------------------------------------------------------------------------
# Progress of long work: a bar per step on a terminal, or nothing.


#: Begins a step: takes its title and how many pieces it has, returns a function that counts pieces done.
Begin: TypeAlias = Callable[[str, int], Callable[[int], None]]


def silent(title: str, total: int) -> Callable[[int], None]:
    """Begin a step that nobody watches.

    Examples
    --------
    >>> silent("probes", 4)(1)
    """

    def nothing(done: int) -> None:
        """Count nothing."""

    return nothing


@contextmanager
def open_bars(progress: bool | Literal["auto"] = "auto") -> Iterator[Begin]:
    """Open a display with one bar per step, on stderr.

    Examples
    --------
    >>> with open_bars(False) as begin:
    ...     count = begin("dynamic STRF", 100)
    ...     count(40)
    """
    if not shows_progress(progress):
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        running: list[tuple[TaskID, int]] = []

        def finish() -> None:
            for task, total in running:
                bars.update(task, completed=total)
            running.clear()

        def begin(title: str, total: int) -> Callable[[int], None]:
            finish()
            task = bars.add_task(title, total=total)
            running.append((task, total))
            return lambda done: bars.advance(task, done)

        yield begin
        finish()


# ------------------------------------------------------------------------------

#: What stands where there is no number.
NO_NUMBER = "–"
#: A longer name does not fit above a small panel.
LONGEST_NAME = 12


def number(value: float | None, decimals: int = 3) -> str:
    """Return a number for a table: fixed decimals, a true minus sign, and a dash where there is none.

    Examples
    --------
    >>> number(-0.12345), number(float("nan")), number(2000.0, 0), number(-0.001, 2)
    ('−0.123', '–', '2000', '0.00')
    """
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    text = f"{value:.{decimals}f}"
    if not float(text):  # what rounds to zero has no sign
        text = text.lstrip("-")
    return text.replace("-", "−")


def short_name(name: str, index: int) -> str:
    """Return a neuron's name where it is short, else its number, by which the tables find it.

    Examples
    --------
    >>> short_name("A1-3", 7), short_name("exp45_1x32/P04-SH.En.C.U/cluster.07", 7)
    ('A1-3', '#7')
    """
    return name if len(name) <= LONGEST_NAME else f"#{index}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deepSTRF.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty cell
    )
    environment.filters["number"] = number
    return environment


def render(template: str, **context: Any) -> str:
    """Fill one template of this room.

    Parameters
    ----------
    template : str
        File name in ``report/templates``.
    **context
        Its variables; a missing one raises `jinja2.UndefinedError`.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> render("definitions.html.j2", rows=[("bin", "5 ms & up")]).count("5 ms &amp; up")
    1
    """
    return _environment().get_template(template).render(**context)


def figure_html(figure: Figure | SubFigure, alt: str, caption: str = "", wide: bool = True) -> str:
    """Return a matplotlib figure as an HTML figure with alternative text.

    Parameters
    ----------
    figure : matplotlib Figure
        What to show.
    alt : str
        What a reader who cannot see it should know.
    caption : str
        Text below it.
    wide : bool
        Whether it takes the full width of the page.

    Returns
    -------
    str
        HTML.

    Examples
    --------
    >>> from deepSTRF.plots import plot_psth_vs_pred
    >>> figure, _ = plot_psth_vs_pred([0.0, 1.0], [0.5, 0.5])
    >>> 'alt="a line"' in figure_html(figure, alt="a line")
    True
    """
    width_px = round(figure.figure.get_figwidth() * 96)  # CSS inches: never stretched beyond its own size
    return render(
        "figure.html.j2", uri=svg_data_uri(figure), alt=alt, caption=caption, wide=wide, width_px=width_px
    )
