"""Figures of front-ends and of receptive fields in the waveform: axes, places, file size, errors."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from deepSTRF.plots import plot_filterbank, plot_wav2spec_comparison, plot_waveform_field
from deepSTRF.plots._style import GREY  # inner: colours are not part of the face

TONES = np.geomspace(100.0, 20000.0, 60)
CENTRES = np.array([500.0, 2000.0, 8000.0])
CURVES = -20.0 * np.abs(np.log2(TONES / CENTRES[:, None]))
FS = 16000.0


def everything(**changes):
    arguments = {
        "frequencies_hz": TONES,
        "gain_db": CURVES,
        "centre_hz": CENTRES,
        "latency_ms": [4.0, 3.0, 2.0],
        "initial_gain_db": CURVES,
        "initial_centre_hz": CENTRES / 2.0,
        "initial_latency_ms": [5.0, 4.0, 3.0],
        "stated_latency_ms": [3.0, 3.0, 3.0],
    }
    return {**arguments, **changes}


def test_filterbank_axes_are_in_kilohertz_decibel_and_milliseconds():
    figure, axes = plot_filterbank(**everything())
    assert isinstance(figure, Figure)
    tuning, shifts, delays = axes
    labels = [(ax.get_xlabel(), ax.get_ylabel()) for ax in axes]
    assert labels == [
        ("frequency (kHz)", "gain (dB)"),
        ("centre frequency before learning (kHz)", "moved by (octaves)"),
        ("centre frequency (kHz)", "click latency (ms)"),
    ]
    assert all(ax.get_xscale() == "log" for ax in axes)
    assert "1" in [tick.get_text() for tick in tuning.get_xticklabels()]
    assert tuning.get_ylim() == (-40.0, 2.0)
    learned = tuning.get_lines()[-1]
    np.testing.assert_allclose(learned.get_xdata(), TONES / 1000)
    np.testing.assert_allclose(learned.get_ydata(), CURVES[-1])
    np.testing.assert_allclose(shifts.get_lines()[0].get_ydata(), 1.0)  # one octave up, each
    np.testing.assert_allclose(shifts.get_lines()[0].get_xdata(), CENTRES / 2000)
    assert shifts.get_ylim()[0] < -1 < 1 < shifts.get_ylim()[1]
    texts = [text.get_text() for text in delays.get_legend().get_texts()]
    assert texts == ["before", "learned", "stated"]
    figure.savefig(io.BytesIO(), format="png")


def test_before_is_grey_and_behind_what_was_learned():
    _, (tuning, *_) = plot_filterbank(**everything())
    lines = tuning.get_lines()
    assert [to_rgba(line.get_color())[:3] == to_rgba(GREY)[:3] for line in lines] == [True] * 3 + [False] * 3


def test_filterbank_without_a_before_shows_centres():
    _, axes = plot_filterbank(TONES, CURVES, centre_hz=CENTRES)
    assert [ax.get_ylabel() for ax in axes] == ["gain (dB)", "centre frequency (kHz)"]
    np.testing.assert_allclose(axes[1].get_lines()[0].get_ydata(), CENTRES / 1000)
    assert axes[0].get_title(loc="left") == "tuning of 3 channels"
    _, axes = plot_filterbank(torch.tensor(TONES), torch.tensor(CURVES))
    assert len(axes) == 1


def test_dead_channels_and_unmoved_ones():
    dead = CURVES.copy()
    dead[1] = np.nan
    figure, axes = plot_filterbank(
        TONES,
        dead,
        centre_hz=[500.0, np.nan, 8000.0],
        initial_centre_hz=CENTRES,
        latency_ms=[1.0, np.nan, 1.0],
    )
    assert axes[0].get_title(loc="left") == "tuning of 2 channels"
    assert axes[1].get_ylim() == (-0.02, 0.02)
    figure.savefig(io.BytesIO(), format="png")
    figure, _ = plot_filterbank(TONES, np.full((1, 60), np.nan), centre_hz=[np.nan])
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"frequencies_hz": -TONES}, "frequencies_hz"),
        ({"gain_db": CURVES[:, :-1]}, "gain_db"),
        ({"gain_db": CURVES[:0]}, "gain_db"),
        ({"initial_gain_db": CURVES[0]}, "initial_gain_db"),
        ({"centre_hz": CENTRES[:2]}, "centre_hz"),
        ({"latency_ms": [1.0]}, "latency_ms"),
        ({"stated_latency_ms": [1.0]}, "stated_latency_ms"),
        ({"centre_hz": None}, "latency_ms is drawn over centre_hz"),
    ],
)
def test_filterbank_errors_name_the_argument(changes, named):
    with pytest.raises(ValueError, match=named):
        plot_filterbank(**everything(**changes))


# ---------------------------------------------------------------------- waveform


def test_waveform_field_runs_back_from_the_response():
    field = np.zeros(1600)  # 100 ms
    field[-1], field[-160] = 2.0, -1.0  # the last sample, and 10 ms earlier
    _, axes = plot_waveform_field(field, FS, duration_ms=20.0)
    whole, zoom = axes
    assert whole.get_xlim() == (100.0, 0.0)
    assert zoom.get_xlim() == (26.0, 0.0)
    assert whole.get_xlabel() == "ms before the end of the response bin"
    assert whole.get_ylabel() == "gradient"
    line = zoom.get_lines()[0]
    ages, values = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    sample = 1000 / FS
    assert ages[values == 2.0] == pytest.approx([0.5 * sample])
    assert ages[values == -1.0] == pytest.approx([159.5 * sample])
    assert whole.get_title(loc="left") == "receptive field (shaded: 20 ms)"
    assert zoom.get_title(loc="left") == "its last 26 ms"


@pytest.mark.parametrize(
    ("duration_ms", "zoom_ms", "expected"),
    [(None, None, 10.0), (90.0, None, 10.0), (20.0, 50.0, 50.0), (None, 1e6, 100.0)],
)
def test_the_zoom_is_shorter_than_the_whole(duration_ms, zoom_ms, expected):
    _, axes = plot_waveform_field(np.ones(1600), FS, duration_ms=duration_ms, zoom_ms=zoom_ms)
    assert axes[1].get_xlim()[0] == pytest.approx(expected)


def test_the_sound_is_drawn_below_on_the_same_axis():
    _, axes = plot_waveform_field(torch.ones(800), FS, stim=torch.randn(800))
    assert len(axes) == 4
    assert [ax.get_ylabel() for ax in axes] == ["gradient", "", "sound", ""]
    assert axes[0].get_xlim() == axes[2].get_xlim()
    assert axes[2].get_xlabel()
    assert not axes[0].get_xlabel()


def test_five_seconds_at_48_khz_stay_a_small_file_and_keep_their_peaks():
    rng = np.random.default_rng(0)
    field = rng.normal(size=240_000)
    field[100_000] = 40.0
    figure, axes = plot_waveform_field(field, 48000.0)
    shown = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert shown.max() == 40.0
    assert shown.min() == field.min()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    assert buffer.tell() < 600_000


def test_a_map_of_zeros_is_drawn():
    figure, axes = plot_waveform_field(np.zeros(100), FS, suptitle="silent cell")
    low, high = axes[0].get_ylim()
    assert low < 0 < high
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gradmap": np.zeros((2, 9))}, "gradmap"),
        ({"gradmap": [1.0]}, "gradmap"),
        ({"audio_fs": 0.0}, "audio_fs"),
        ({"duration_ms": -1.0}, "duration_ms"),
        ({"zoom_ms": np.inf}, "zoom_ms"),
        ({"stim": np.zeros(8)}, "stim has 8 samples, gradmap 9"),
    ],
)
def test_waveform_errors_name_the_argument(changes, named):
    with pytest.raises(ValueError, match=named):
        plot_waveform_field(**{"gradmap": np.zeros(9), "audio_fs": FS, **changes})


def test_figures_can_be_drawn_into_one_of_the_callers():
    mine = Figure(figsize=(6, 8))
    top, bottom = mine.subfigures(2, 1)
    assert plot_filterbank(**everything(), figure=top)[0] is top
    assert plot_waveform_field(np.ones(90), FS, figure=bottom, suptitle="RF")[0] is bottom


def test_a_comparison_of_other_bands_has_no_difference():
    image = np.random.default_rng(0).normal(size=(4, 30))
    _, axes = plot_wav2spec_comparison(image, image, 5.0, difference=False)
    assert [ax.get_title(loc="left") for ax in axes] == ["front-end", "reference"]
    assert axes[-1].get_xlabel() == "time (s)"
