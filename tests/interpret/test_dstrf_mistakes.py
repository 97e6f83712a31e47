"""What users do wrong on the way to dynamic STRFs: each mistake is told in words that mend it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.interpret import contributions, occlusion, smooth_dstrf
from deepSTRF.interpret.dstrf import (
    ArraySink,
    FileSink,
    MomentSink,
    ReceptiveFieldError,
    curvature,
    dstrf,
    jackknifed_dstrf,
    measure_receptive_field,
    measure_window,
    stimulus_frames,
    switches,
)
from deepSTRF.interpret.dstrf.jackknife import OPTIONS  # inner: tested by itself
from deepSTRF.interpret.filter_statistics import find_shifts
from deepSTRF.models.audio import DeepEncoder, NetworkReceptiveField

F, T = 4, 30


def deep() -> DeepEncoder:
    torch.manual_seed(0)
    return DeepEncoder(F, 4, 3)


class TimeFirst(nn.Module):
    """(T, F) to (T, C), as models of the DSTRF toolbox are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.receptive_field = nn.Conv1d(F, 2, 3), 3

    def forward(self, x):
        return self.conv(functional.pad(x.transpose(0, -1), (2, 0)).unsqueeze(0))[0].T


class Filtered(nn.Module):
    """Three frames, and whatever a subclass makes of them."""

    def __init__(self, declared: Any = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, (F, 3))
        if declared is not None:
            self.receptive_field = declared

    def forward(self, x):
        return self.ended(self.conv(functional.pad(x, (2, 0))))

    def ended(self, y):
        return y


class Noisy(Filtered):
    def ended(self, y):
        return functional.dropout(y, 0.5)


class Pair(Filtered):
    def ended(self, y):
        return y, y


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (lambda x: x, TypeError, "must be an nn.Module, got function: let an nn.Module call"),
        (deep().state_dict(), TypeError, "load_state_dict"),
        ([deep()], TypeError, "jackknifed_dstrf"),
        ("fits/model-000", TypeError, "from_pretrained"),
        (deep().to("meta"), ValueError, "meta device"),
        (TimeFirst(), ValueError, r"cannot run on frames \(1, 1, 4, 30\): .*wrap one of other shapes"),
        (Pair(), ValueError, "returned a tuple"),
        (Noisy(), ReceptiveFieldError, "differently each time it is given the same clip"),
        (Filtered(0), ValueError, "receptive_field must be a number of frames, 1 or more"),
        (Filtered(-1), ValueError, "delete the attribute to have it measured"),
        (Filtered("3"), ValueError, "got '3'"),
        (Filtered(2.5), ValueError, "got 2.5"),
        (nn.BatchNorm2d(1, track_running_stats=False), ValueError, "must map"),
    ],
)
def test_models_that_are_none(model, error, text) -> None:
    with pytest.raises(error, match=text):
        dstrf(model, torch.randn(F, T))


def test_statistics_of_the_clip_are_named_among_the_causes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, (F, 1)), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ReceptiveFieldError, match="normalise by no statistics of the clip"):
        dstrf(model, torch.randn(F, T))


@pytest.mark.parametrize("declared", [3, 3.0, torch.tensor(3)])
def test_numbers_of_any_kind_state_a_receptive_field(declared) -> None:
    assert dstrf(Filtered(declared), torch.randn(F, T)).receptive_field == 3


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"baseline": 1.0}, ValueError, "baseline is where a path begins"),
        ({"baseline": torch.zeros(F)}, ValueError, "give one, e.g. n_steps=16"),
        ({"n_steps": 2, "baseline": "mean"}, TypeError, "baseline must be a number or a tensor, got 'mean'"),
        ({"times": np.arange(T) > 3}, TypeError, "times must be numbers, got a mask"),
        ({"neurons": torch.tensor([True, False, True])}, TypeError, "neurons must be numbers, got a mask"),
        ({"sink": "dstrf.npy"}, TypeError, "FileSink"),
        ({"sink": ArraySink}, TypeError, "the class ArraySink"),
        ({"sink": [ArraySink(), None]}, TypeError, "sink or a sequence of sinks, got None"),
        ({"sink": []}, ValueError, "nothing would be kept"),
        (
            {"skip_nonlinearity": "readout.fc"},
            ValueError,
            "skip_nonlinearity must name the last step of the model",
        ),
        ({"skip_nonlinearity": "core"}, ValueError, "skip_nonlinearity must name the last step of the model"),
        ({"skip_nonlinearity": "readout"}, ValueError, "mixes the entries of its input"),
    ],
)
def test_arguments_that_mean_nothing(arguments, error, text) -> None:
    model = NetworkReceptiveField(n_frequency_bands=F, temporal_window_size=3, out_neurons=3)
    with pytest.raises(error, match=text):
        dstrf(model, torch.randn(F, T), **arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: curvature(model, x, 0, [5]),
        lambda model, x: measure_receptive_field(model, F),
        lambda model, x: measure_window(model, F),
        smooth_dstrf,
        occlusion,
        stimulus_frames,
        switches,
    ],
)
def test_all_calls_want_a_module(call) -> None:
    with pytest.raises(TypeError, match=r"must be an nn.Module, got OrderedDict: load weights"):
        call(deep().state_dict(), torch.randn(F, T))


def test_contributions_want_a_result() -> None:
    model, x = deep(), torch.randn(F, T)
    for wrong in (dstrf(model, x).weights, model, smooth_dstrf(model, x, n_samples=1)):
        with pytest.raises(TypeError, match="result must be what dstrf"):
            contributions(wrong, x)
    mean = jackknifed_dstrf([model, deep()], x)
    total = contributions(mean, x).sum((2, 3))
    torch.testing.assert_close(total, mean.response - mean.intercept, atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_shift", [1.5, -1, 5, True])
def test_shifts_stay_within_the_filter(max_shift) -> None:
    with pytest.raises(ValueError, match=r"max_shift must be a whole number of lags, 0 .. 4"):
        find_shifts(torch.randn(3, 4, 2), torch.randn(4, 2), max_shift)


def test_a_softmax_over_neurons_has_no_slope() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, (F, 1)), nn.Softmax(1))
    x = torch.randn(F, T)
    with pytest.raises(ValueError, match="this Softmax mixes"):
        dstrf(model, x, skip_nonlinearity="1")
    with pytest.raises(ValueError, match="this Softmax mixes"):
        curvature(model, x, 0, [5], skip_nonlinearity="1")


def test_half_precision_in_files(tmp_path) -> None:
    with pytest.raises(ValueError, match="numpy has no bfloat16"):
        FileSink(tmp_path / "dstrf.npy", dtype=torch.bfloat16)
    model, x = deep().bfloat16(), torch.randn(F, T)
    path, kept = dstrf(model, x, sink=[FileSink(tmp_path / "dstrf.npy"), ArraySink()]).weights
    assert np.load(path).dtype == np.float32
    np.testing.assert_array_equal(np.load(path), kept.float().numpy())


def test_a_sink_that_does_not_open_leaves_no_other_behind(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    sinks = [FileSink(tmp_path / "one.npy"), MomentSink(), FileSink(tmp_path / "file" / "two.npy")]
    with pytest.raises(OSError, match="file"):
        dstrf(deep(), torch.randn(F, T), sink=sinks)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("models", "options", "error", "text"),
    [
        (deep(), {}, TypeError, r"models must be a sequence of fits, got a DeepEncoder: give \[model\]"),
        (["model-000.pt"], {}, TypeError, "from_pretrained"),
        ([deep()], {"agreement": "0.75"}, ValueError, "agreement must be above 0.5"),
        ([deep()], {"filter_q": 0.75}, TypeError, "no option 'filter_q'"),
        ([deep()], {"sink": "mean.npy"}, TypeError, "FileSink"),
    ],
)
def test_jackknives(models, options, error, text) -> None:
    with pytest.raises(error, match=text):
        jackknifed_dstrf(models, torch.randn(F, T), **options)


def test_the_options_of_a_jackknife_are_those_of_dstrf() -> None:
    known = set(inspect.signature(dstrf).parameters) - {"model", "stimulus"}
    # files of a jackknife are raw: their product with the stimulus is the response
    assert known == set(OPTIONS) | {"lags", "times", "sink", "budget_bytes", "unit"}
