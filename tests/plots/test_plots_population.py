"""Receptive field grids, learning curves, score figures and front-end comparisons."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from deepSTRF.plots import (
    plot_learning_curve,
    plot_model_comparison,
    plot_noise_ceiling,
    plot_score_histogram,
    plot_score_scatter,
    plot_strf_grid,
    plot_wav2spec_comparison,
)

F, LAGS, DT = 6, 9, 5.0


def test_strf_grid_puts_now_at_the_right_and_low_bands_at_the_bottom():
    strf = np.zeros((F, LAGS))
    strf[1, LAGS - 1] = 2.0  # band 1, current bin
    _, (ax,) = plot_strf_grid([strf], dt_ms=DT)
    image = ax.images[0]
    left, right, bottom, top = image.get_extent()
    assert (left, right) == (LAGS * DT, 0.0), "the oldest lag is at the left edge, now at the right"
    assert image.origin == "lower"
    assert (bottom, top) == (-0.5, F - 0.5)
    assert ax.get_xlim() == (45.0, 0.0)
    assert ax.get_xlabel() == "ms before the response"
    np.testing.assert_array_equal(image.get_array(), strf)


def test_strf_colours_are_symmetric_per_panel_or_shared():
    fields = np.stack([np.full((F, LAGS), -1.0), np.full((F, LAGS), 3.0), np.zeros((F, LAGS))])
    _, axes = plot_strf_grid(fields)
    assert [ax.images[0].get_clim() for ax in axes] == [(-1.0, 1.0), (-3.0, 3.0), (-1.0, 1.0)]
    assert axes[0].get_xlim() == (LAGS, 0.0)
    assert axes[-1].get_xlabel() == "bins before the response"
    figure, axes = plot_strf_grid(fields, shared_clim=True)
    assert {ax.images[0].get_clim() for ax in axes} == {(-3.0, 3.0)}
    assert figure.axes[-1].get_ylabel() == "weight", "a shared scale has a colour bar"
    assert axes[0].images[0].get_cmap().name == "RdBu_r"


def test_strf_grid_hides_unused_cells_and_labels_only_the_outside():
    figure, axes = plot_strf_grid(np.zeros((5, F, LAGS)), [f"n{i}" for i in range(5)], DT, ncols=3)
    assert len(axes) == 5
    assert [ax.get_visible() for ax in figure.axes] == [True] * 5 + [False]
    assert [bool(ax.get_ylabel()) for ax in axes] == [True, False, False, True, False]
    assert [bool(ax.get_xlabel()) for ax in axes] == [False, False, True, True, True]
    assert axes[4].get_title(loc="left") == "n4"


def test_strf_grid_takes_lists_of_tensors_and_a_given_figure():
    figure = Figure()
    returned, axes = plot_strf_grid(
        [torch.zeros(F, LAGS, requires_grad=True)] * 2,
        figure=figure,
        frequencies_hz=np.geomspace(500, 8000, F),
    )
    assert returned is figure
    assert figure.get_layout_engine() is None
    assert axes[0].get_ylabel() == "frequency (kHz)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "strfs must be a non-empty"),
        ((np.zeros((F, LAGS)),), r"plot_strf_grid\(\[strf\]\)"),
        (([np.zeros((F, LAGS)), np.zeros((F, 3))],), "strfs must all have one shape"),
        ((np.zeros((2, F, LAGS)), ["one"]), "titles holds 1 texts for 2 panels"),
        ((np.zeros((2, F, LAGS)), None, DT, 0), "ncols must be a whole number"),
        ((np.zeros((2, F, LAGS)), None, DT, "2"), "ncols must be a whole number"),
    ],
)
def test_strf_grid_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_strf_grid(*arguments)


def test_one_text_is_no_sequence_of_titles():
    with pytest.raises(TypeError, match="titles must be a sequence of 2 texts"):
        plot_strf_grid(np.zeros((2, F, LAGS)), "ab")


def test_rows_of_a_learned_latent_are_no_frequency_bands():
    _, axes = plot_strf_grid([np.ones((4, 3))], band_label="channel")
    assert axes[0].get_ylabel() == "channel"
    _, axes = plot_strf_grid([np.ones((4, 3))], band_label="channel", frequencies_hz=[500.0, 1e3, 2e3, 4e3])
    assert axes[0].get_ylabel() == "frequency (kHz)"


def test_learning_curve_of_one_fit_and_of_seeds():
    one = {"train_loss": [3.0, 2.0, 1.5], "val_loss": [3.0, 2.5, 2.6], "val_cc_norm": [0.1, 0.3, 0.2]}
    _, axes = plot_learning_curve(one, best_epoch=1)
    assert [ax.get_ylabel() for ax in axes] == ["loss", "noise-corrected correlation"]
    np.testing.assert_array_equal(axes[0].lines[0].get_xdata(), [1, 2, 3])
    assert axes[0].lines[-1].get_xdata()[0] == 2, "best_epoch counts from 0, the axis from 1"
    shorter = {key: values[:2] for key, values in one.items()}
    _, axes = plot_learning_curve([one, shorter])
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels == ["train, mean of 2", "validation, mean of 2"]
    _, axes = plot_learning_curve({"train_loss": [1.0]})
    assert len(axes) == 1


@pytest.mark.parametrize(
    ("curves", "best", "message"),
    [({}, None, "curves is empty"), ([], None, "curves is empty"), ({"x": [1.0]}, None, "none of train_loss"),
     ({"train_loss": [1.0]}, 1, "best_epoch must be a 0-based epoch below 1")],
)  # fmt: skip
def test_learning_curve_errors(curves, best, message):
    with pytest.raises(ValueError, match=message):
        plot_learning_curve(curves, best_epoch=best)


def test_histogram_counts_every_neuron_and_reports_nan():
    scores = np.r_[np.linspace(0, 1, 50), np.nan, np.nan]
    _, ax = plot_score_histogram(scores)
    assert sum(patch.get_height() for patch in ax.patches) == 50
    assert ax.get_legend().get_title().get_text() == "n = 50, 2 without a score (NaN)"
    assert ax.lines[0].get_xdata()[0] == pytest.approx(0.5)
    _, ax = plot_score_histogram([np.nan])
    assert ax.get_legend().get_title().get_text() == "n = 0, 1 without a score (NaN)"
    with pytest.raises(ValueError, match="finite or NaN"):
        plot_score_histogram([np.inf])


def test_scatter_and_ceiling_have_equal_axes_and_the_line_of_equality():
    x, y = [0.1, 0.5, np.nan], [0.2, 0.4, 0.3]
    _, ax = plot_score_scatter(x, y, "a", "b")
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_title(loc="left") == "1 of 2 neurons above the line (1 NaN)"
    interval = [[0.4, 0.6], [0.6, 0.8], [np.nan, np.nan]]
    _, ax = plot_noise_ceiling([0.3, 0.5, 0.1], [0.5, 0.7, np.nan], interval)
    np.testing.assert_array_equal(ax.collections[-1].get_offsets(), [[0.5, 0.3], [0.7, 0.5]])
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), ax.lines[0].get_ydata())
    for call, message in (
        (lambda: plot_score_scatter([1.0], [1.0, 2.0], "a", "b"), "x holds 1 neurons"),
        (lambda: plot_noise_ceiling([1.0], [1.0, 2.0]), "cc holds 1 neurons"),
        (lambda: plot_noise_ceiling([1.0], [1.0], [1.0, 2.0]), "ccmax_interval must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_wav2spec_comparison_shares_one_scale_and_prints_the_correlation():
    rng = np.random.default_rng(0)
    pred = rng.normal(size=(F, 30))
    _, axes = plot_wav2spec_comparison(pred, 2 * pred, dt_ms=DT, suptitle="clip 0")
    assert axes[0].images[0].get_clim() == axes[1].images[0].get_clim()
    low, high = axes[2].images[0].get_clim()
    assert low == -high
    np.testing.assert_allclose(axes[2].images[0].get_array(), -pred)
    assert "r = 1.000" in axes[0].get_title(loc="left")
    assert axes[2].get_xlim() == (0.0, 0.15)
    _, axes = plot_wav2spec_comparison(np.zeros((F, 30)), pred)
    assert "r = nan" in axes[0].get_title(loc="left")
    with pytest.raises(ValueError, match="crop both"):
        plot_wav2spec_comparison(pred, pred[:, 1:])


def test_long_titles_break_instead_of_running_into_the_next_panel():
    names = ["exp45_1x32/P04-SH.En.C.U/cluster.07.data"] * 4
    figure, axes = plot_strf_grid(np.zeros((4, F, LAGS)), names, DT)
    figure.draw_without_rendering()
    boxes = [ax._left_title.get_window_extent() for ax in axes]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 <= right.x0


def test_wav2spec_comparison_labels_each_bank_with_its_own_frequencies():
    image = np.random.default_rng(0).normal(size=(F, 30))
    low, high = np.geomspace(500, 8000, F), np.geomspace(1000, 20000, F)
    _, axes = plot_wav2spec_comparison(image, image, frequencies_hz=low, truth_frequencies_hz=high)
    assert [ax.get_ylabel() for ax in axes] == ["frequency (kHz)", "frequency (kHz)", "frequency band"]
    ticks = [[tick.get_text() for tick in ax.get_yticklabels()] for ax in axes[:2]]
    assert ticks[0][0] == "0.5"
    assert ticks[1][-1] == "20"
    _, axes = plot_wav2spec_comparison(image, image, frequencies_hz=low, truth_frequencies_hz=low * 1.0001)
    assert axes[2].get_ylabel() == "frequency (kHz)"


@pytest.mark.parametrize("n_models", [2, 12])
def test_long_names_of_models_stand_apart_within_the_figure(n_models):
    names = [f"model_options.n_lags={n}, model_options.lambdas=[1.0, 10.0, 100.0]" for n in range(n_models)]
    figure, ax = plot_model_comparison(np.random.default_rng(0).random((n_models, 5)), names)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert min(box.y0 for box in boxes) >= 0
    assert ax.get_window_extent().height > 150  # the names leave room for the scores
