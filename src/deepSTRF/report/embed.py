"""Pictures as data URIs: the page carries everything and asks nothing of the network."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

__all__ = ["field_thumbnail", "svg_data_uri"]

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


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
