"""Templates to HTML. Everything that comes from a recording or a user is escaped by the templates."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from deepSTRF.report.embed import svg_data_uri

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure, SubFigure

__all__ = ["figure_html", "number", "render", "short_name"]

#: What stands where there is no number.
NO_NUMBER = "–"
#: A longer name does not fit above a small panel.
LONGEST_NAME = 12


def number(value: float | None, decimals: int = 3) -> str:
    """Return a number for a table: fixed decimals, a true minus sign, and a dash where there is none.

    Parameters
    ----------
    value : float or None
        The number.
    decimals : int
        Digits after the point.

    Returns
    -------
    str
        Its text.

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

    Parameters
    ----------
    name : str
        Its name.
    index : int
        Its index in the recording.

    Returns
    -------
    str
        Name, or ``#index``.

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
