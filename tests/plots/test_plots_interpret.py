"""Figures of interpretation: registration, orientation, limits, errors, and movies that can be read back."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from deepSTRF.plots import (
    movies,
    plot_dstrf_panel,
    plot_modulation_transfer,
    plot_nonlinearity_scatter,
    plot_nonlinearity_table,
    plot_probe_courses,
    plot_probe_curves,
    plot_response_areas,
    plot_strf_confidence,
    plot_tuning_curves,
    save_dstrf_movie,
)
from deepSTRF.plots.dstrf import filter_limit, strongest_bins  # inner: defaults of the panel and of the movie

F, L, T, DT = 6, 4, 30, 5.0
HERTZ = np.geomspace(500.0, 16000.0, F)


@pytest.fixture
def clip() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "stim": rng.normal(size=(F, T)),
        "dstrf": rng.normal(size=(T, L, F)),
        "pred": rng.random(T),
        "response": rng.poisson(0.3, size=(3, T)).astype(float),
    }


def image_of(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def test_panel_shows_the_filter_of_each_bin_with_the_current_frame_at_the_right(clip):
    figure, axes = plot_dstrf_panel(**clip, dt_ms=DT, bins=[3, 17], frequencies_hz=HERTZ)
    for ax, t in zip(axes[3:], (3, 17), strict=True):
        np.testing.assert_array_equal(image_of(ax), clip["dstrf"][t].T)
        left, right, bottom, top = ax.images[0].get_extent()
        assert (left, right) == (L * DT, 0.0)
        assert bottom < top
        assert ax.images[0].origin == "lower"
    np.testing.assert_allclose(
        axes[2].lines[0].get_ydata(), np.linalg.norm(clip["dstrf"].reshape(T, -1), axis=1)
    )
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), clip["response"].mean(0))
    figure.canvas.draw()


def test_frames_after_the_response_stand_right_of_zero(clip, tmp_path, monkeypatch):
    _, axes = plot_dstrf_panel(**clip, dt_ms=DT, bins=[3, 17], lookahead=2)
    for ax in axes[3:5]:
        assert tuple(ax.images[0].get_extent()[:2]) == ((L - 2) * DT, -2 * DT)
    shown = []
    monkeypatch.setitem(
        movies.FORMATS, ".gif", lambda path, film: shown.append(film.figure) or path.write_bytes(b"")
    )
    response = clip.pop("response").mean(0)
    save_dstrf_movie(tmp_path / "a.gif", **clip, response=response, dt_ms=DT, lookahead=2)
    assert tuple(shown[0].axes[2].images[0].get_extent()[:2]) == ((L - 2) * DT, -2 * DT)
    for call in (plot_dstrf_panel, lambda **given: save_dstrf_movie(tmp_path / "a.gif", **given)):
        with pytest.raises(ValueError, match=f"lookahead must lie in 0 .. {L - 1}"):
            call(**clip, lookahead=L)


def test_bins_share_limits_unless_each_has_its_own(clip):
    def limits(**options):
        _, axes = plot_dstrf_panel(**clip, bins=[3, 17], **options)
        return [ax.images[0].get_clim() for ax in axes[3:5]]

    shared, own = limits(), limits(shared_clim=False)
    assert shared[0] == shared[1]
    assert own == [(-m, m) for m in np.abs(clip["dstrf"][[3, 17]]).max(axis=(1, 2))]


def test_panel_starts_where_the_excerpt_does_and_takes_tensors(clip):
    tensors = {name: torch.from_numpy(value) for name, value in clip.items()}
    _, axes = plot_dstrf_panel(**tensors, dt_ms=DT, start_s=2.0, bins=[0])
    assert axes[0].get_xlim() == (2.0, 2.0 + T * DT / 1000)
    assert axes[3].get_title(loc="left") == "2.00 s"
    _, axes = plot_dstrf_panel(clip["stim"], clip["dstrf"], clip["pred"])
    assert axes[3].get_title(loc="left").startswith("bin ")
    assert [line.get_label() for line in axes[1].lines[:1]] == ["predicted"]


def test_bins_are_the_strongest_of_equal_parts():
    assert strongest_bins(np.array([0.0, 3.0, 0.0, 1.0, 0.0, np.nan]), 3) == [1, 3, 4]
    assert strongest_bins([1.0, 2.0], 6) == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dstrf": np.zeros((T, F, L))}, "one neuron is dstrf"),
        ({"dstrf": np.zeros((T - 1, L, F))}, "dstrf must have shape"),
        ({"pred": np.zeros(T - 1)}, "pred must cover the 30 bins"),
        ({"response": np.zeros(T + 1)}, "response must cover"),
        ({"bins": [T]}, "bins must be time bins from 0 to 29"),
        ({"bins": []}, "bins must be time bins"),
    ],
)
def test_panel_refuses_what_does_not_fit(clip, change, message):
    with pytest.raises(ValueError, match=message):
        plot_dstrf_panel(**{**clip, **change})


def test_gif_has_a_frame_per_shown_bin_at_its_rate(clip, tmp_path):
    seen = []
    two = np.stack([clip["dstrf"]] * 2, axis=1)
    path = save_dstrf_movie(
        tmp_path / "cell.gif", clip["stim"], two, np.stack([clip["pred"]] * 2, 1),
        np.stack([clip["response"].mean(0)] * 2, 1), DT,
        every=4, fps=20, titles=["a", "b"], on_frame=lambda: seen.append(1),
    )  # fmt: skip
    with Image.open(path) as movie:
        assert movie.n_frames == len(seen) == 8
        assert movie.info["duration"] == 50
        first = np.asarray(movie.convert("RGB"))
        movie.seek(5)
        assert (np.asarray(movie.convert("RGB")) != first).any()
    assert path.stat().st_size < 300_000


def movie_of(clip, path, n_bins=3, n_neurons=1, **options):
    return save_dstrf_movie(
        path, clip["stim"][:, :n_bins], np.stack([clip["dstrf"][:n_bins]] * n_neurons, axis=1),
        np.stack([clip["pred"][:n_bins]] * n_neurons, axis=1), dt_ms=DT, **options,
    )  # fmt: skip


@pytest.mark.parametrize("fps", [12.5, 24, 30, 50])
def test_a_gif_lasts_as_long_as_its_rate_says(clip, tmp_path, fps):
    with Image.open(movie_of(clip, tmp_path / "cell.gif", T, fps=fps)) as movie:
        lasts = 0
        for frame in range(movie.n_frames):
            movie.seek(frame)
            assert movie.info["duration"] >= 20  # browsers slow shorter ones down
            lasts += movie.info["duration"]
    assert lasts == pytest.approx(1000 * T / fps, abs=10)


def test_a_page_holds_all_frames_and_asks_nothing_of_the_network(clip, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"animation.embed_limit": 0.001}):
        page = movie_of(clip, tmp_path / "cell.html", 12, fps=25, titles=["<b>"]).read_text(encoding="utf-8")
    assert [one.name for one in tmp_path.iterdir()] == ["cell.html"]
    frames = re.findall(r'"(iVBOR[^"]+)"', page)
    assert len(frames) == 12
    assert len(set(frames)) == 12
    with Image.open(io.BytesIO(base64.b64decode(frames[-1]))) as image:
        assert f'width="{image.width}" height="{image.height}"' in page
    assert "var fps = 25," in page
    assert 'max="11"' in page
    assert "&lt;b&gt;" in page
    rest = re.sub(r'"iVBOR[^"]+"', "", page)
    assert not re.search(r"https?:|<link|<script src|@import|{{", rest)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
@pytest.mark.parametrize(("n_neurons", "dpi"), [(1, 80), (3, 81)])
def test_mp4_has_every_frame_at_its_rate_and_even_sides(clip, tmp_path, monkeypatch, n_neurons, dpi):
    monkeypatch.setattr("deepSTRF.plots.movies.DPI", dpi)  # 81: an odd number of pixels
    path = movie_of(clip, tmp_path / "cell.mp4", 9, n_neurons, fps=12.5)
    asked = "stream=codec_name,width,height,r_frame_rate,nb_read_frames,pix_fmt"
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-count_frames", "-show_entries", asked, "-of", "default=nk=0", str(path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    facts = dict(line.split("=") for line in told.splitlines() if "=" in line)
    assert facts["codec_name"] == "h264"
    assert facts["pix_fmt"] == "yuv420p"  # what all players know
    assert facts["nb_read_frames"] == "9"
    assert facts["r_frame_rate"] == "25/2"
    assert int(facts["width"]) % 2 == int(facts["height"]) % 2 == 0


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
def test_what_ffmpeg_says_is_passed_on(clip, tmp_path):
    (tmp_path / "cell.mp4").mkdir()
    with pytest.raises(RuntimeError, match=r"ffmpeg could not write .*write a \.gif or \.html instead"):
        movie_of(clip, tmp_path / "cell.mp4")


def test_movies_that_cannot_be_made(clip, tmp_path, monkeypatch):
    from matplotlib import animation

    monkeypatch.setattr(animation.FFMpegWriter, "isAvailable", classmethod(lambda cls: False))
    with pytest.raises(FileNotFoundError, match=r"ffmpeg.*\.gif or \.html"):
        movie_of(clip, tmp_path / "cell.mp4")
    assert not any(tmp_path.iterdir())
    for name, options, message in (
        ("cell.avi", {}, r"\.gif, \.html, \.mp4"),
        ("c.gif", {"n_neurons": 7}, "at most 6 neurons"),
        ("c.gif", {"every": 0}, "every"),
        ("c.gif", {"fps": 60}, r"at most 50 frames per second.*every=2"),
        ("c.gif", {"fps": "fast"}, "fps must be a positive number"),
        ("c.gif", {"quantile": 2.0}, "quantile"),
        ("c.gif", {"titles": ["a", "b"]}, "titles"),
    ):
        with pytest.raises(ValueError, match=message):
            movie_of(clip, tmp_path / name, **options)
    with pytest.raises(ValueError, match="bins by neurons"):
        save_dstrf_movie(tmp_path / "c.gif", clip["stim"], clip["dstrf"], np.zeros(4))
    for ending in ("gif", "html", "mp4"):
        with pytest.raises(FileNotFoundError, match=r"folder .* does not exist"):
            movie_of(clip, tmp_path / "no" / f"c.{ending}")


def test_confidence_fades_what_is_not_sure_and_runs_through_the_peak():
    strf = np.zeros((F, L))
    strf[2, 1] = 1.0
    figure, axes = plot_strf_confidence(strf, strf - 0.5, strf + 0.5, DT, frequencies_hz=HERTZ)
    alpha = np.asarray(axes[0].images[0].get_alpha())
    assert (alpha == 1.0).sum() == 1
    assert alpha[2, 1] == 1.0
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), strf[2])
    np.testing.assert_array_equal(axes[1].lines[0].get_xdata(), [17.5, 12.5, 7.5, 2.5])
    np.testing.assert_array_equal(axes[2].lines[0].get_xdata(), strf[:, 1])
    assert axes[0].get_title(loc="left") == f"1 of {F * L} weights are sure"
    figure.canvas.draw()
    with pytest.raises(ValueError, match="one STRF"):
        plot_strf_confidence(strf, strf[:1], strf)


def test_scatter_counts_what_it_cannot_draw():
    measures = {"complexity": [1.0, 2.0, np.nan], "gain change": [0.1, 0.2, 0.3], "hold": [np.nan, 1.0, 2.0]}
    _, axes = plot_nonlinearity_scatter(measures, names=["a", "b", "c"])
    assert [ax.get_title(loc="left") for ax in axes] == ["n = 2, 1 NaN", "n = 1, 2 NaN"]
    assert [text.get_text() for text in axes[0].texts] == ["a", "b"]
    np.testing.assert_array_equal(axes[0].collections[0].get_offsets(), [[0.1, 1.0], [0.2, 2.0]])
    with pytest.raises(KeyError, match="against must be one of"):
        plot_nonlinearity_scatter(measures, against="score")
    with pytest.raises(ValueError, match="lengths"):
        plot_nonlinearity_scatter({"complexity": [1.0], "hold": [1.0, 2.0]})
    with pytest.raises(ValueError, match="at least two"):
        plot_nonlinearity_scatter({"complexity": [1.0]})


def test_table_starts_its_bars_at_a_linear_neuron():
    measures = {"gain change": [0.5, np.nan], "complexity": [1.0, 3.0]}
    _, (gain, complexity) = plot_nonlinearity_table(measures, ["a", "b"])
    assert [bar.get_x() for bar in gain.patches] == [0.0, 0.0]
    assert [bar.get_x() for bar in complexity.patches] == [1.0, 1.0]
    assert [text.get_text() for text in gain.texts] == ["0.50", "–"]
    assert [tick.get_text() for tick in gain.get_yticklabels()] == ["a", "b"]
    low, high = gain.get_ylim()
    assert low > high, "the first neuron stands at the top"


def test_modulation_is_drawn_as_magnitude_over_its_bins():
    power = np.arange(15.0).reshape(3, 5)
    rates, scales = [-20, -10, 0, 10, 20], [0.0, 0.5, 1.0]
    _, (ax, _) = plot_modulation_transfer([power, power], rates, scales, ["a", "b"], max_rate_hz=15.0)
    np.testing.assert_allclose(image_of(ax), np.sqrt(power))
    assert ax.get_xlim() == (-15.0, 15.0)
    assert ax.get_ylim() == (0.0, 1.25)
    with pytest.raises(ValueError, match="negative"):
        plot_modulation_transfer(-power, rates, scales)


def test_areas_and_curves_put_every_tone_and_level_in_its_place():
    tones, levels = np.geomspace(0.5, 8.0, 5), np.array([-60.0, -40.0, -20.0])
    response = np.arange(30.0).reshape(2, 3, 5) - 10
    threshold = np.array([[-50.0, np.nan, -40.0, -40.0, -30.0]] * 2)
    figure, axes = plot_response_areas(response, tones, levels, threshold, ["a", "b"])
    mesh = axes[1].collections[0]
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(3, 5), response[1])
    assert mesh.get_clim() == (-19.0, 19.0)
    assert axes[0].collections[0].get_clim() == (-10.0, 10.0)
    assert axes[0].get_ylim() == (-70.0, -10.0), "louder is higher"
    _, shared = plot_response_areas(response, tones, levels, shared_clim=True)
    assert {ax.collections[0].get_clim() for ax in shared} == {(-19.0, 19.0)}
    figure.canvas.draw()
    _, ax = plot_tuning_curves(response[1], tones, levels, best_khz=float("nan"))
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), response[1, 2])
    assert len(ax.lines) == 4, "no mark for a neuron without a best frequency"
    with pytest.raises(ValueError, match="response must have shape"):
        plot_tuning_curves(response, tones, levels)
    with pytest.raises(ValueError, match="must ascend"):
        plot_response_areas(response, tones[::-1], levels)
    with pytest.raises(ValueError, match="threshold_db"):
        plot_response_areas(response, tones, levels, threshold[:1])


def test_probe_curves_take_one_neuron_or_many_and_log_axes():
    figure, ax = plot_probe_curves([2.0, 4.0, 8.0], np.ones((8, 3)), "rate (Hz)", "modulation",
                                   [str(n) for n in range(8)], log_x=True)  # fmt: skip
    assert (
        len(
            {
                line.get_color() if isinstance(line.get_color(), str) else tuple(line.get_color())
                for line in ax.lines
            }
        )
        == 8
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "4", "8"]
    figure.canvas.draw()
    _, ax = plot_probe_curves([1, 2], [0.0, np.nan], "x", "y")
    assert len(ax.lines) == 1


def test_probe_courses_are_one_line_per_sound_with_gaps_where_nothing_is_known():
    courses = np.arange(12.0).reshape(3, 4)
    courses[1, 2] = np.nan
    figure, ax = plot_probe_courses([-7.5, -2.5, 2.5, 7.5], courses, ["20 ms", "40 ms", "80 ms"], ylabel="r")
    for line, course in zip(ax.lines, courses, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), course)
    assert len({tuple(line.get_color()) for line in ax.lines[:3]}) == 3
    assert list(ax.lines[-1].get_xdata()) == [0.0, 0.0], "the onset lies within"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["20 ms", "40 ms", "80 ms"]
    figure.canvas.draw()
    _, ax = plot_probe_courses([2.5, 7.5], [1.0, 2.0])
    assert len(ax.lines) == 2
    with pytest.raises(ValueError, match="courses must have shape"):
        plot_probe_courses([2.5, 7.5], np.ones((2, 3)))
    with pytest.raises(ValueError, match="titles"):
        plot_probe_courses([2.5, 7.5], np.ones((3, 2)), ["a", "b"])


def test_played_ripples_have_rates_of_octave_steps_and_a_cell_each():
    rates, scales = [-16.0, -8.0, -4.0, 4.0, 8.0, 16.0], [0.0, 0.25, 1.0]
    power = np.arange(18.0).reshape(3, 6) ** 2
    figure, (panel,) = plot_modulation_transfer(power, rates, scales)
    figure.canvas.draw()
    np.testing.assert_allclose(image_of(panel), np.sqrt(power))
    assert [text.get_text() for text in panel.get_xticklabels()] == ["−16", "−8", "−4", "4", "8", "16"]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["0", "0.25", "1"]
    assert panel.get_xlim() == (-0.5, 5.5)
    assert panel.lines[0].get_xdata()[0] == 2.5  # between down and up
    _, (few,) = plot_modulation_transfer(power, rates, scales, max_rate_hz=8.0)
    np.testing.assert_allclose(image_of(few), np.sqrt(power)[:, 1:5])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_modulation_transfer(np.ones((3, 5)), range(5), range(3), ncols=0), "ncols"),
        (
            lambda: plot_modulation_transfer(np.ones((3, 5)), range(5), [0, 2, 1]),
            "scales_cyc_oct must ascend",
        ),
        (
            lambda: plot_modulation_transfer(np.full((3, 5), np.nan), range(5), range(3)),
            "power must be finite",
        ),
        (
            lambda: plot_modulation_transfer(np.ones((3, 5)), range(5), range(3), max_rate_hz=-1),
            "max_rate_hz",
        ),
        (
            lambda: plot_response_areas(np.ones((2, 3)), [0.0, 1.0, 2.0], [1, 2]),
            "frequencies_khz must be above",
        ),
        (lambda: plot_response_areas(np.ones((2, 3)), [0.5, 1.0, 2.0], [1, 2], ncols=1.5), "ncols"),
        (lambda: plot_probe_curves([0, 1], [1, 2], "x", "y", log_x=True), "log_x"),
        (lambda: strongest_bins([1.0, 2.0], 0), "count"),
        (lambda: filter_limit(np.ones((4, 2)), 3.0), "quantile"),
    ],
)
def test_figures_refuse_in_words(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_bins_are_visible_beside_an_outburst_and_are_whole(clip):
    clip["dstrf"] *= 0.01
    clip["dstrf"][20:] *= 1000  # longer than the tenth of the clip that may saturate
    figure, axes = plot_dstrf_panel(**clip, dt_ms=DT, bins=[3, 8])
    assert axes[3].images[0].get_clim()[1] <= np.abs(clip["dstrf"][[3, 8]]).max()
    figure.canvas.draw()
    for ax in axes[:3]:  # labels fit beside their own panel
        box, own = ax.yaxis.label.get_window_extent(), ax.get_window_extent()
        assert box.y0 >= own.y0 - 0.15 * own.height
        assert box.y1 <= own.y1 + 0.15 * own.height
    with pytest.raises(ValueError, match="bins must be time bins"):
        plot_dstrf_panel(**clip, bins=[1.7])


def test_a_field_without_a_band_says_so_and_a_column_names_its_span():
    strf = np.zeros((F, L))
    strf[2, 1] = 3.0
    missing = np.full((F, L), np.nan)
    _, axes = plot_strf_confidence(strf, missing, missing, DT)
    assert axes[0].get_title(loc="left") == "no band: too few clips"
    assert np.asarray(axes[0].images[0].get_alpha()).min() == 1.0
    assert axes[2].get_title(loc="left") == "10 to 15 ms back"  # of four columns the second, lag 2


def test_what_differs_by_rounding_looks_it():
    _, ax = plot_probe_curves([-10, 20], [1.0, 1.0 + 1e-9], "delay (ms)", "share", include=(0, 1))
    low, high = ax.get_ylim()
    assert low <= 0
    assert high >= 1
    ax.figure.canvas.draw()
    assert ax.yaxis.get_offset_text().get_text() == ""
    assert [text.get_text() for text in ax.get_xticklabels()] == ["−10", "20"]


def test_names_of_dots_that_are_close_do_not_lie_over_each_other():
    measures = {"complexity": [1.57, 1.575, 1.45, 1.9], "hold": [0.0, 0.1, 0.0, 3.0]}
    figure, (ax,) = plot_nonlinearity_scatter(measures, names=["sim001", "sim005", "sim002", "sim004"])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
