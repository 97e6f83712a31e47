"""Filters as small panels, and one colour per pattern: what the figures of changing filters share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepSTRF.plots._arrays import FloatArray, as_array
from deepSTRF.plots._style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    draw_spectrogram,
    symmetric_limit,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["EMPTY", "MAP_INCHES", "PALETTE", "checked_maps", "draw_filter"]

#: One colour per pattern: what is left of Okabe and Ito's palette stands at the end.
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, SKY, "#CC79A7", "#B8A900", INK)
#: Paper where there is nothing to draw.
EMPTY = "#EFEFEF"
MAP_INCHES = 1.9


def draw_filter(
    ax: Axes,
    image: FloatArray,
    frequencies: FloatArray | None,
    dt_ms: float | None,
    limit: float | None,
    cmap: str = "RdBu_r",
) -> None:
    """One (L, F) map: frequency up, the current frame at the right."""
    own, edges = limit or symmetric_limit(image), (len(image) * (dt_ms or 1.0), 0.0)
    draw_spectrogram(ax, image.T, edges, frequencies, cmap=cmap, vmin=-own, vmax=own)
    ax.set_xlabel("ms before the response" if dt_ms else "bins before the response")
    tidy(ax)


def checked_maps(maps: Any, name: str, count: int | None) -> FloatArray:
    """Filters (K, L, F), of as many as are said or can be told apart."""
    fields = as_array(maps, name)
    if fields.ndim != 3 or 0 in fields.shape or (count is not None and len(fields) != count):
        wanted = "K" if count is None else str(count)
        raise ValueError(f"{name} must be ({wanted}, L, F), got {fields.shape}; take one neuron")
    if count is None and len(fields) > len(PALETTE):
        raise ValueError(
            f"{name} holds {len(fields)} patterns; more than {len(PALETTE)} cannot be told apart"
        )
    return fields
