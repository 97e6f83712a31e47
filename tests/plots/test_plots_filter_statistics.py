"""Figures of subspaces and patterns: orientation, shares, stays, and what is drawn pale or left empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from deepSTRF.plots import plot_eigen_spectrum, plot_filter_patterns, plot_tuning_surface
from deepSTRF.plots._style import PALETTE  # inner: colours are not part of the face

F, L, B, DT = 6, 4, 5, 5.0
HERTZ = np.geomspace(500.0, 16000.0, F)
EDGES = np.stack([np.linspace(-1, 1, B + 1), np.linspace(0, 10, B + 1)])


def image_of(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def test_a_surface_has_direction_1_across_and_is_pale_or_empty_where_bins_are_few():
    rng = np.random.default_rng(0)
    mean, count = rng.random((B, B)), np.full((B, B), 20)
    mean[0, 1], count[0, 1] = np.nan, 0
    count[2, 3], mean[2, 3] = 2, 50.0
    directions = rng.normal(size=(2, L, F))
    figure, axes = plot_tuning_surface(mean, EDGES, count, directions, DT, frequencies_hz=HERTZ, title="a")
    mesh, veil = axes[0].collections[:2]
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), np.nan), mean.T)
    assert mesh.get_clim()[1] < 1.0, "a cell of two bins does not set the colours"
    assert mesh.colorbar.extend == "max"
    assert axes[0].get_xlim() == (-1.0, 1.0)
    assert axes[0].get_ylim() == (0.0, 10.0)
    pale = ~np.ma.getmaskarray(veil.get_array())
    assert [tuple(at) for at in np.argwhere(pale)] == [(1, 0), (3, 2)], "second direction upwards"
    assert axes[0].get_title(loc="right") == "pale: < 5 time bins"
    for ax, direction in zip(axes[1:], directions, strict=True):
        np.testing.assert_array_equal(image_of(ax), direction.T)
        assert ax.images[0].get_extent()[:2] == [L * DT, 0.0]
    figure.canvas.draw()


def test_a_curve_has_its_spread_and_its_counts():
    mean, sd, count = np.arange(B) * 1.0, np.full(B, 0.5), np.arange(B) + 1
    figure, axes = plot_tuning_surface(
        torch.from_numpy(mean), EDGES[:1], count, np.ones((1, L, F)), sd=sd, response_label="spikes"
    )
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), mean)
    np.testing.assert_allclose(axes[0].lines[0].get_xdata(), [-0.8, -0.4, 0.0, 0.4, 0.8], atol=1e-12)
    assert [bar.get_height() for bar in axes[1].patches] == count.tolist()
    assert len(axes) == 3
    figure.canvas.draw()
    _, (curve, below) = plot_tuning_surface(mean, EDGES[0])
    assert not below.get_visible()
    assert curve.get_xlabel() == "sound along the direction"
    _, (surface,) = plot_tuning_surface(np.ones((B, B)), EDGES + 50.0)
    assert surface.get_xlim() == (49.0, 51.0), "zero is not dragged in"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.ones((B, B + 1))}, "take one neuron"),
        ({"edges": EDGES[:1]}, "edges"),
        ({"count": np.ones(B)}, "count must have the shape"),
        ({"directions": np.ones((1, L, F))}, r"directions must be \(2, L, F\)"),
        ({"edges": EDGES * np.nan}, "no such direction"),
        ({"frequencies_hz": HERTZ[:2], "directions": np.ones((2, L, F))}, "frequencies_hz holds 2"),
    ],
)
def test_surfaces_refuse_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        plot_tuning_surface(**{"mean": np.ones((B, B)), "edges": EDGES, **change})


LABELS = np.array([0, 0, 0, 1, 1, -1, 2, 2, 2, 2])


def patterns(**change):
    given = {
        "centres": np.random.default_rng(0).normal(size=(3, L, F)),
        "labels": LABELS,
        "dwell": [[3, 1], [2, 2, 5], []],
        "transitions": [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [np.nan] * 3],
        "dt_ms": DT,
    }
    return plot_filter_patterns(**{**given, **change})


def test_patterns_share_limits_and_carry_one_colour_throughout():
    figure, axes = patterns(frequencies_hz=HERTZ, title="a neuron")
    maps, (order, stays, steps) = axes[:3], axes[3:]
    assert len({ax.images[0].get_clim() for ax in maps}) == 1
    assert [ax.get_title(loc="left") for ax in maps] == ["A: 33% of bins", "B: 22% of bins", "C: 44% of bins"]
    bars = [(c.get_paths()[0].get_extents().bounds, tuple(c.get_facecolor()[0])) for c in order.collections]
    for (bounds, colour), (start, n, name) in zip(bars, [(0, 3, 0), (3, 2, 1), (6, 4, 2)], strict=True):
        np.testing.assert_allclose(bounds, (start * 0.005, name - 0.4, n * 0.005, 0.8))
        assert colour == to_rgba(PALETTE[name])
    assert len(order.patches) == 1, "the bin left out"
    assert [line.get_color() for line in stays.lines] == list(PALETTE[:3])
    # two stays, of 1 and 3 bins: all last one bin, half of them three
    np.testing.assert_allclose(stays.lines[0].get_xdata(), [0, 5, 10, 15, 20])
    np.testing.assert_allclose(stays.lines[0].get_ydata(), [100, 100, 50, 50, 0])
    texts = [text.get_text() for text in stays.get_legend().get_texts()]
    assert texts == ["A: mean 10 ms, n = 2", "B: mean 15 ms, n = 3", "C: no whole stay"]
    assert [text.get_text() for text in steps.texts] == ["50", "50", "0", "0", "20", "80", "–", "–", "–"]
    figure.canvas.draw()


def test_a_window_shows_an_excerpt_and_bins_stand_for_ms():
    _, axes = patterns(window=(2, 7), dt_ms=None)
    assert axes[3].get_xlim() == (2.0, 7.0)
    assert axes[0].get_title(loc="left") == "A: 33% of bins", "of all bins"
    assert axes[3].get_xlabel() == "time bin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centres": np.ones((2, L, F))}, "labels must be whole numbers from -1 to 1"),
        ({"centres": np.ones((9, L, F))}, "more than 8 cannot be distinguished"),
        ({"dwell": [[1]]}, "dwell must hold 3 series"),
        ({"transitions": np.eye(2)}, r"transitions be \(3, 3\)"),
        ({"window": (5, 5)}, "window must be two bins"),
        ({"dt_ms": 0.0}, "dt_ms must be a positive number"),
    ],
)
def test_patterns_refuse_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        patterns(**change)


def test_a_spectrum_is_cumulative_shares_or_signed_values():
    _, ax = plot_eigen_spectrum([[3.0, 1.0, 0.0], [1.0, 1.0, 2.0]], names=["a", "b"])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0, 75, 100, 100])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0, 25, 50, 100])
    many = np.random.default_rng(0).random((9, 20))
    many[3] = 0.0  # a silent neuron has no shares
    _, ax = plot_eigen_spectrum(torch.from_numpy(many), n_shown=4)
    shares = 100 * np.cumsum(many, 1)[:, :4] / many.sum(1).clip(1e-300)[:, None]
    np.testing.assert_allclose(ax.lines[-1].get_ydata()[1:], np.median(np.delete(shares, 3, 0), axis=0))
    figure, ax = plot_eigen_spectrum([[18.0, -8.0, 2.0], [10.0, 3.0, -1.0]], title="curvature")
    raising, lowering = ax.lines[:2]
    assert sorted(raising.get_ydata()) == [2.0, 3.0, 10.0, 18.0]
    assert sorted(lowering.get_ydata()) == [-8.0, -1.0]
    assert lowering.get_xdata().tolist() == [2, 3]
    figure.canvas.draw()
    for wrong, message in (
        ({"eigenvalues": np.ones((2, 2, 2))}, "eigenvalues must be"),
        ({"eigenvalues": [1.0], "names": ["a", "b"]}, "names holds 2"),
        ({"eigenvalues": [1.0], "n_shown": 0}, "n_shown must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_eigen_spectrum(**wrong)
