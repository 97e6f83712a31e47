"""HTML of the report: templates, figures and sounds as data URIs, and sortable tables of neurons.

The page contains everything and loads nothing from the network. Text from a recording or a user is escaped by
the templates.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
import wave
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepSTRF._files import read_bytes
from deepSTRF._text import printable
from deepSTRF._validation import checked
from deepSTRF.interpret.sonify import LISTENING_PEAK, SILENCE_MS
from deepSTRF.plots._style import NO_GLYPH

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure, SubFigure

MIME = {".gif": "image/gif", ".wav": "audio/wav"}
#: Resolution of images inside a vector figure: sharp on dense screens and in print.
IMAGE_DPI = 160
#: A fixed salt and no date: the same figure gives the same bytes.
SALT = "deepSTRF"
#: Silence before and after a sound, that of written files.
SILENCE_S = SILENCE_MS / 1000.0
#: Text where there is no number.
NO_NUMBER = "–"
#: A longer name does not fit above a small panel.
LONGEST_NAME = 12


def render(template: str, **context: Any) -> str:
    """HTML of one file in ``report/templates``; a missing variable raises `jinja2.UndefinedError`."""
    return _environment().get_template(template).render(**context)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deepSTRF.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty cell
        finalize=_seen,
    )
    environment.filters["number"] = number
    return environment


def _seen(value: Any) -> Any:
    """A text with what cannot be seen spelled out, before it is escaped; HTML that was made here as it is."""
    return printable(value, keep="\n\t") if type(value) is str else value


@checked
def figure_html(figure: Figure | SubFigure, alt: str, caption: str = "", wide: bool = True) -> str:
    """Return a matplotlib figure as an HTML figure with alternative text.

    Parameters
    ----------
    figure : matplotlib Figure
        The figure.
    alt : str
        Description for readers who cannot see it.
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


def svg_data_uri(figure: Figure | SubFigure) -> str:
    """A figure as an SVG data URI; text becomes outlines, so it looks the same on every machine."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "path"}), warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes, and stands in the tables
        warnings.filterwarnings("ignore", message=NO_GLYPH)
        figure.figure.savefig(buffer, format="svg", dpi=IMAGE_DPI, metadata={"Date": None, "Creator": None})
    return _uri("image/svg+xml", buffer.getvalue())


def field_thumbnail(field: NDArray[Any]) -> str:
    """A receptive field (F, T_lags) as a PNG data URI: one pixel per weight, low bands at the bottom."""
    from matplotlib.image import imsave

    limit = float(np.nanmax(np.abs(field))) or 1.0
    buffer = io.BytesIO()
    imsave(buffer, field, format="png", cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", metadata={})
    return _uri("image/png", buffer.getvalue())


def wav_data_uri(sound: NDArray[Any], audio_fs: float) -> str:
    """A sound (T_audio,) as a WAV data URI (16 bit, mono): scaled to one peak, with silence around it."""
    samples = np.asarray(sound, dtype=np.float64)
    if samples.ndim != 1 or samples.size == 0 or not np.isfinite(samples).all():
        raise ValueError(f"sound must be a series of finite samples (T_audio,), got shape {samples.shape}")
    if not audio_fs > 0:
        raise ValueError(f"audio_fs must be a positive number of hertz, got {audio_fs!r}")
    peak = float(np.abs(samples).max())
    scaled = samples * (LISTENING_PEAK * np.iinfo(np.int16).max / peak) if peak > 0 else samples
    silence = np.zeros(round(SILENCE_S * audio_fs))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(round(audio_fs))
        file.writeframes(np.concatenate([silence, scaled, silence]).round().astype("<i2").tobytes())
    return _uri("audio/wav", buffer.getvalue())


def file_data_uri(path: Path) -> str:
    """A movie or sound file as a data URI."""
    return _uri(MIME[path.suffix.lower()], read_bytes(path))


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def number(value: float | None, decimals: int = 3) -> str:
    """A number for a table: fixed decimals, a true minus sign, and a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NO_NUMBER
    text = f"{value:.{decimals}f}"
    if not float(text):  # what rounds to zero has no sign
        text = text.lstrip("-")
    return text.replace("-", "−")


def short_name(name: str, index: int) -> str:
    """A neuron's name where it is short, else its number in the tables."""
    shown = printable(name)
    return shown if shown.strip() and len(shown) <= LONGEST_NAME else f"#{index}"


def cell(value: float, decimals: int, prefix: str = "", bar: float | None = None) -> dict[str, Any]:
    """One cell of a sortable table; ``bar`` is the length of a bar behind the number, in percent."""
    if not math.isfinite(value):
        return {"text": NO_NUMBER, "value": "", "bar": None}
    return {"text": prefix + number(value, decimals), "value": f"{value:.6g}", "bar": bar}


def sortable_table(
    label: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[tuple[int | str, str, list[dict[str, Any]]]],
    *,
    sorted_by: str | None = None,
    thumbnails: Sequence[str | None] | None = None,
    meanings: bool = False,
) -> str:
    """HTML of a sortable table of neurons.

    ``columns`` holds (name, meaning), ``rows`` (index, neuron, cells of the columns), ``thumbnails`` a small
    image per row; ``meanings`` adds a list of what the columns mean.
    """
    return render(
        "neurons.html.j2",
        label=label,
        columns=columns,
        rows=list(rows),
        sorted_by=sorted_by,
        thumbnails=thumbnails,
        meanings=meanings,
    )
