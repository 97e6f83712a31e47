"""Response figures: registration to the bin, orientation, axes in s and kHz, errors, no side effects."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deepSTRF.plots import plot_neuron_panel, plot_psth_vs_pred, plot_rasters, plot_stim_with_response

F, T, R, DT = 6, 40, 5, 5.0
FREQUENCIES = np.geomspace(500.0, 16000.0, F)


@pytest.fixture
def clip() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "stim": rng.normal(size=(F, T)),
        "response": rng.poisson(0.3, size=(R, T)).astype(float),
        "pred": rng.random(T),
    }


def value_at(ax, x: float, y: float) -> float:
    """The image value drawn at data coordinates (x, y), worked out from the extent as matplotlib does."""
    image = ax.images[0]
    left, right, bottom, top = image.get_extent()
    data = np.asarray(image.get_array())
    rows, columns = data.shape
    column = int((x - left) / (right - left) * columns)
    share = (y - bottom) / (top - bottom)  # 0 at the extent's lower edge
    row = int(share * rows) if image.origin == "lower" else int((1 - share) * rows)
    return float(data[row, column])


def test_every_bin_lies_exactly_on_its_time_and_band(clip):
    _, axes = plot_stim_with_response(**clip, dt_ms=DT)
    for t in (0, 17, T - 1):
        for band in (0, 3, F - 1):
            assert value_at(axes[0], (t + 0.5) * DT / 1000, band) == clip["stim"][band, t]
    assert axes[0].get_xlim() == (0.0, T * DT / 1000)
    assert axes[0].get_ylim() == (-0.5, F - 0.5)


def test_raster_shows_the_first_repeat_at_the_top(clip):
    _, axes = plot_stim_with_response(**clip, dt_ms=DT)
    raster = axes[1]
    low, high = raster.get_ylim()
    assert low > high, "the repeat axis must count downwards"
    for repeat in (1, 3, R):
        for t in (0, 20, T - 1):
            assert value_at(raster, (t + 0.5) * DT / 1000, repeat) == clip["response"][repeat - 1, t]
    assert [tick.get_text() for tick in raster.get_yticklabels()] == ["1", str(R)]


def test_psth_is_drawn_at_bin_centres_and_ignores_missing_repeats(clip):
    clip["response"][2, 10:] = np.nan
    _, axes = plot_stim_with_response(**clip, dt_ms=DT)
    measured, predicted = axes[2].lines
    np.testing.assert_allclose(measured.get_ydata(), np.nanmean(clip["response"], axis=0))
    np.testing.assert_allclose(measured.get_xdata(), (np.arange(T) + 0.5) * DT / 1000)
    np.testing.assert_allclose(predicted.get_ydata(), clip["pred"])


def test_single_repeat_has_no_raster_and_bins_without_dt(clip):
    figure, axes = plot_stim_with_response(clip["stim"], clip["response"][0], clip["pred"])
    assert len(axes) == 2
    assert axes[-1].get_xlabel() == "time bin"
    assert axes[0].get_xlim() == (0.0, T)
    assert isinstance(figure, Figure)


def test_frequency_axis_reads_khz_at_round_frequencies(clip):
    _, axes = plot_stim_with_response(**clip, dt_ms=DT, frequencies_hz=FREQUENCIES)
    assert axes[0].get_ylabel() == "frequency (kHz)"
    labels = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert labels == ["0.5", "1", "2", "5", "10"]
    # 1 kHz is one octave of five above the first band, and bands are one octave apart
    np.testing.assert_allclose(axes[0].get_yticks()[:3], [0.0, 1.0, 2.0], atol=1e-9)


def test_descending_and_scrambled_frequencies_label_the_right_band(clip):
    _, axes = plot_stim_with_response(**clip, dt_ms=DT, frequencies_hz=FREQUENCIES[::-1])
    ticks = dict(zip([t.get_text() for t in axes[0].get_yticklabels()], axes[0].get_yticks(), strict=True))
    assert ticks["0.5"] == pytest.approx(F - 1)
    scrambled = FREQUENCIES[[2, 0, 1, 3, 4, 5]]
    _, axes = plot_stim_with_response(**clip, dt_ms=DT, frequencies_hz=scrambled)
    for tick, text in zip(axes[0].get_yticks(), axes[0].get_yticklabels(), strict=True):
        assert float(text.get_text()) == pytest.approx(scrambled[int(tick)] / 1000, rel=0.01)


def test_torch_tensors_of_any_kind_draw_as_arrays_do(clip):
    tensors = {
        "stim": torch.tensor(clip["stim"], dtype=torch.bfloat16, requires_grad=True)[None],
        "response": torch.tensor(clip["response"]),
        "pred": torch.tensor(clip["pred"], requires_grad=True),
    }
    _, axes = plot_stim_with_response(**tensors, dt_ms=DT)
    np.testing.assert_allclose(axes[2].lines[1].get_ydata(), clip["pred"])


def test_all_missing_and_silent_neurons_still_draw(clip):
    for fill in (np.nan, 0.0):
        figure, _ = plot_stim_with_response(clip["stim"], np.full((R, T), fill), clip["pred"], dt_ms=DT)
        figure.draw_without_rendering()


def test_given_axes_are_drawn_on_and_their_layout_is_left_alone(clip):
    figure = Figure()
    axes = figure.subplots(3, 1)
    before = figure.get_layout_engine()
    returned, panels = plot_stim_with_response(**clip, axes=axes)
    assert returned is figure
    assert panels == list(axes)
    assert figure.get_layout_engine() is before
    with pytest.raises(ValueError, match=r"axes must hold 3 axes .* got 2"):
        plot_stim_with_response(**clip, axes=axes[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stim": np.zeros(T)}, r"stim must have shape \(F, T\)"),
        ({"stim": np.zeros((2, F, T))}, r"stim must have shape"),
        ({"response": np.zeros((R, T + 1))}, "one grid of bins"),
        ({"response": np.zeros((1, R, T))}, "response must have shape"),
        ({"pred": np.zeros(T - 1)}, "pred must have shape"),
        ({"pred": np.zeros((1, T))}, "pred must be one non-empty series"),
        ({"dt_ms": 0.0}, "dt_ms must be a positive number"),
        ({"frequencies_hz": np.ones(F + 1)}, "frequencies_hz holds 7"),
        ({"response": [[0.0], [0.0, 1.0]]}, "response must be numeric with one shape"),
    ],
)
def test_wrong_shapes_name_the_argument(clip, change, message):
    with pytest.raises(ValueError, match=message):
        plot_stim_with_response(**{**clip, **change})


def test_psth_against_prediction(clip):
    target = clip["response"].mean(axis=0)
    figure, ax = plot_psth_vs_pred(target, clip["pred"], dt_ms=DT, title="neuron 3")
    assert isinstance(figure, Figure)
    assert ax.get_title(loc="left") == "neuron 3"
    assert ax.get_xlim() == (0.0, T * DT / 1000)
    assert ax.lines[0].get_color() == "#222222"
    given = Figure().subplots()
    assert plot_psth_vs_pred(target, clip["pred"], ax=given, legend=False)[1] is given
    assert given.get_legend() is None
    with pytest.raises(ValueError, match=r"target has 40 bins, pred has 39"):
        plot_psth_vs_pred(target, clip["pred"][:-1])
    with pytest.raises(ValueError, match="target must be one non-empty series"):
        plot_psth_vs_pred(target[None], clip["pred"])


def test_neuron_panel_holds_the_receptive_field_on_the_same_bands(clip):
    strf = np.zeros((F, 9))
    figure, axes = plot_neuron_panel(**clip, dt_ms=DT, strf=strf, frequencies_hz=FREQUENCIES)
    assert len(axes) == 4
    assert axes[-1].get_xlim() == (45.0, 0.0)
    assert axes[-1].get_xlabel() == "ms before the response"
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    for ax in axes:  # no text runs off the page
        box = ax.get_tightbbox(renderer)
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.width + 1
    with pytest.raises(ValueError, match="strf must have shape"):
        plot_neuron_panel(**clip, strf=np.zeros((F + 1, 9)))


def test_drawing_leaves_pyplot_alone_and_imports_are_light():
    code = (
        "import sys, numpy as np\n"
        "import deepSTRF.plots as plots\n"
        "heavy = [m for m in ('matplotlib', 'torch', 'scipy') if m in sys.modules]\n"
        "if heavy: sys.exit(f'imported {heavy}')\n"
        "plots.plot_strf_grid(np.zeros((2, 4, 3)))\n"
        "plots.plot_stim_with_response(np.zeros((4, 9)), np.zeros((2, 9)))\n"
        "if 'matplotlib.pyplot' in sys.modules: sys.exit('pyplot was imported')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_raster_of_a_trace_spans_its_values():
    potential = -65 + 5 * np.sin(np.arange(400).reshape(4, 100))  # mV, never positive
    _, axes = plot_stim_with_response(np.zeros((8, 100)), potential, dt_ms=5.0)
    low, high = axes[1].images[0].get_clim()
    assert low == potential.min()
    assert potential.max() - 2 < high <= potential.max()
    _, axes = plot_stim_with_response(np.zeros((8, 100)), np.eye(4, 100), dt_ms=5.0)
    assert axes[1].images[0].get_clim() == (0, 1)


def test_rasters_keep_repeats_apart():
    repeats = np.zeros((3, 400))
    repeats[1] = 1.0
    figure, axes = plot_rasters([repeats] * 3, dt_ms=5.0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., 0].astype(float)  # dark where there is a spike
    box = axes[0].get_window_extent()
    middle = int((box.x0 + box.x1) / 2)
    column = image[::-1, middle][int(box.y0) + 2 : int(box.y1) - 1]
    assert ((column > 20) & (column < 235)).sum() <= 4  # edges of the row and no more
