"""Pictures as data URIs: the page carries everything and asks nothing of the network."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

__all__ = ["field_thumbnail", "file_data_uri", "svg_data_uri"]

MIME = {".gif": "image/gif", ".wav": "audio/wav"}
#: Resolution of images inside a vector figure: sharp on dense screens and in print.
IMAGE_DPI = 160
#: A fixed salt and no date: the same figure gives the same bytes.
SALT = "deepSTRF"


def svg_data_uri(figure: Figure | SubFigure) -> str:
    """Return a figure as an SVG data URI; text becomes outlines, so it looks the same on every machine.

    Parameters
    ----------
    figure : matplotlib Figure
        The figure; it is not changed.

    Returns
    -------
    str
        ``data:image/svg+xml;base64,...``

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

    Parameters
    ----------
    field : array (F, T_lags)
        Weights; colours are symmetric about zero.

    Returns
    -------
    str
        ``data:image/png;base64,...``

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

    Parameters
    ----------
    path : Path
        A ``.gif`` or ``.wav`` file.

    Returns
    -------
    str
        ``data:image/gif;base64,...`` or ``data:audio/wav;base64,...``

    Raises
    ------
    KeyError
        For another ending.

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
