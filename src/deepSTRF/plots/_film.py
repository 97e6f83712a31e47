"""Frames to files: GIF, a page with controls, mp4. Nothing here knows what the frames show."""

from __future__ import annotations

import base64
import io
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = ["FASTEST_GIF", "FORMATS", "Film", "save_gif", "save_mp4", "save_page"]

#: Small enough for a mail: a second of sound at 200 bins/s is about one megabyte.
DPI = 80
#: Colours of a GIF, one fewer than the format holds: the last one marks pixels that do not change.
COLOURS, PALETTE_FRAMES = 255, 8
#: The format counts in hundredths of a second, and browsers slow a frame of one hundredth down to ten.
GIF_TICKS, FASTEST_GIF = 100.0, 50.0


@dataclass(frozen=True)
class Film:
    """A figure, how it is set to a moment, and which moments are shown.

    Attributes
    ----------
    figure : matplotlib Figure
        Drawn once, so that it has a canvas.
    update : callable
        Sets the figure to one moment.
    moving : list of Artist
        What that changes.
    moments : range
        Which are shown.
    fps : float
        Frames per second.
    on_frame : callable
        Called after each frame.
    title : str
        What it is, for those who cannot see it.
    """

    figure: Figure
    update: Callable[[int], None]
    moving: list[Artist]
    moments: range
    fps: float
    on_frame: Callable[[], None]
    title: str

    def still(self) -> Any:
        """Draw what does not change, once."""
        canvas: Any = self.figure.canvas
        self.figure.set_dpi(DPI)
        for artist in self.moving:
            artist.set_animated(True)  # left out of the still background
        canvas.draw()
        return canvas.copy_from_bbox(self.figure.bbox)

    def frames(self, still: Any, moments: range) -> Iterator[NDArray[np.uint8]]:
        """Yield pixels (height, width, 3); only what changes is drawn again."""
        canvas: Any = self.figure.canvas
        for moment in moments:
            self.update(moment)
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
        some = self.moments[:: max(1, len(self.moments) // PALETTE_FRAMES)]
        sample = np.concatenate(list(self.frames(still, some)))
        palette = Image.fromarray(sample).quantize(COLOURS)
        for frame in self.frames(still, self.moments):
            yield Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            self.on_frame()


def save_gif(target: Path, film: Film) -> None:
    """Write a GIF. Its frames last whole hundredths of a second, unequal ones where the rate asks for it."""
    images = list(film.images())
    ends = np.round(np.arange(len(images) + 1) * GIF_TICKS / film.fps)
    lengths = [int(ticks * 1000.0 / GIF_TICKS) for ticks in np.diff(ends)]
    images[0].save(target, format="GIF", save_all=True, append_images=images[1:], duration=lengths, loop=0)


def save_page(target: Path, film: Film) -> None:
    """Write one HTML file with the frames and controls, which asks nothing of the network."""
    frames = []
    for image in film.images():
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        frames.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    width, height = (round(inches * DPI) for inches in film.figure.get_size_inches())
    list_of_frames = ",\n".join(f'"{frame}"' for frame in frames)
    page = (
        PAGE.replace("{{title}}", film.title)
        .replace("{{width}}", str(width))
        .replace("{{height}}", str(height))
        .replace("{{last}}", str(len(frames) - 1))
        .replace("{{fps}}", f"{film.fps:g}")
        .replace("{{frames}}", list_of_frames)
    )
    target.write_text(page, encoding="utf-8")


def save_mp4(target: Path, film: Film) -> None:
    """Write an mp4 through the program ffmpeg."""
    from matplotlib import animation

    if not animation.FFMpegWriter.isAvailable():
        raise FileNotFoundError(
            "mp4 needs the program ffmpeg, which was not found; write a .gif or .html instead"
        )
    rate: Any = film.fps  # the stubs of matplotlib ask for whole numbers, its writers do not
    # even numbers of pixels, as the pixel format asks
    even = ["-pix_fmt", "yuv420p", "-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2"]
    writer = animation.FFMpegWriter(fps=rate, codec="h264", extra_args=even)
    try:
        with writer.saving(film.figure, str(target), DPI):
            for moment in film.moments:
                film.update(moment)
                writer.grab_frame()
                film.on_frame()
    except (subprocess.CalledProcessError, BrokenPipeError) as error:
        said = getattr(error, "output", None) or str(error)
        raise RuntimeError(
            f"ffmpeg could not write {target}; write a .gif or .html instead. It said: {str(said)[-400:]}"
        ) from error


#: What writes a file with this ending.
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
