"""`Stream` itself: shapes, refusals, states in files, parts of the user's own, latency, bounded memory."""

from __future__ import annotations

import copy
import gc
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn

from deepSTRF.models.audio import Linear, StateNet, Transformer
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.streaming import FramewiseMixin
from deepSTRF.models.wav2spec import CausalMelSpectrogram, WaveformFrontEnd, make_wav2spec
from deepSTRF.streaming import Stream
from deepSTRF.streaming.stream import FRAMES_PER_STEP, TIMED_PUSHES  # inner: sizes of pieces and of memory

FS, HOP, BANDS, NEURONS = 8000, 40, 6, 2


def heard(**options: Any) -> Linear:
    front_end = CausalMelSpectrogram(FS, n_mels=BANDS)
    return Linear(BANDS, 3, NEURONS, wav2spec=front_end, norm="none", **options).eval()


def seen(**options: Any) -> Linear:
    return Linear(BANDS, 3, NEURONS, norm="none", **options).eval()


def sound(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def offline(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """Rates (B, N, T) of sounds (B, n), or of frames (B, F, n)."""
    with torch.no_grad():
        return model(torch.from_numpy(np.ascontiguousarray(x)).unsqueeze(1))[:, :, 0].numpy()


def close(found: Any, expected: np.ndarray) -> bool:
    found = np.asarray(found)
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= 1e-6 * np.ptp(expected))


# ------------------------------------------------------------------ what goes in, what comes out


def test_shapes_follow_what_was_pushed() -> None:
    x = sound(3, 5 * HOP)
    one, three = Stream(heard()), Stream(heard(), batch=3)
    assert one.push(x[0]).shape == one.push(x[:1]).shape == (NEURONS, 5)
    assert one.push(x[0, :7]).shape == (NEURONS, 0)
    assert [rates.shape for rates in one.push([x[0, 7:100]])] == [(NEURONS, 2)]
    assert three.push(x).shape == (3, NEURONS, 5)
    assert [rates.shape for rates in three.push([x[0], x[1, :0], x[2, : HOP + 1]])] == [
        (NEURONS, 5),
        (NEURONS, 0),
        (NEURONS, 1),
    ]
    assert three.frames == (10, 5, 6)
    assert three.push(x[1], streams=1).shape == (NEURONS, 5)
    assert three.push(x[:2], streams=[1, 0]).shape == (2, NEURONS, 5)
    assert three.push([], streams=[]) == []
    assert three.push(np.empty((3, 0), np.float32)[:2], streams=[0, -2]).shape == (2, NEURONS, 0)
    frames = Stream(seen(), batch=2)
    assert frames.hop == 1
    assert frames.audio_fs is None
    assert frames.push(sound(2, BANDS, 4)).shape == (2, NEURONS, 4)
    assert frames.push(sound(BANDS, 4), streams=0).shape == (NEURONS, 4)
    assert Stream(seen()).push(sound(BANDS, 1)).shape == (NEURONS, 1)


def test_streams_of_a_batch_know_nothing_of_each_other() -> None:
    model, x = heard(), sound(3, 8 * HOP)
    stream, parts = Stream(model, batch=3), [[], [], []]
    for streams, cut in (([2, 0], (0, 50)), ([1], (0, 321)), ([0, 2], (50, 99)), ([0, 1, 2], (None, None))):
        starts = [cut[0] if cut[0] is not None else {0: 99, 1: 321, 2: 99}[one] for one in streams]
        chunks = [x[one, start : cut[1]] for one, start in zip(streams, starts, strict=True)]
        for one, rates in zip(streams, stream.push(chunks, streams=streams), strict=True):
            parts[one].append(rates)
    assert close([np.concatenate(one, -1) for one in parts], offline(model, x))
    stream.reset([1])
    assert stream.frames == (8, 0, 8)
    assert close(stream.push(x[1], streams=1), offline(model, x)[1])


def test_what_comes_out_is_of_the_kind_of_what_went_in() -> None:
    x = sound(2, 2 * HOP)
    stream = Stream(heard(), batch=2)
    array, tensor = stream.push([x[0], torch.from_numpy(x[1])])
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.is_inference()
    tensor += 1  # a tensor like any other
    assert stream.push(x.astype(np.float64)).dtype == np.float32
    precise = Stream(heard(), dtype=torch.float64)
    assert precise.push(x[0]).dtype == np.float64
    needs_gradient = torch.zeros(HOP, requires_grad=True)
    assert not Stream(heard()).push(needs_gradient).requires_grad


def test_float64_of_a_float32_model_is_its_double() -> None:
    model, x = heard(), sound(1, 6 * HOP).astype(np.float64)
    stream = Stream(model, dtype=torch.float64)
    expected = offline(copy.deepcopy(model).double(), x)[0]
    assert np.abs(stream.push(x[0]) - expected).max() <= 1e-12 * np.ptp(expected)
    assert model.readout.strf.kernel.weight.dtype == torch.float32


def test_arrays_of_any_layout_are_samples() -> None:
    model, x = heard(), sound(1, 4 * HOP)
    expected = offline(model, x)[0]
    read_only = x[0].copy()
    read_only.setflags(write=False)
    for given in (read_only, x[0][::-1].copy()[::-1], x[0].astype(">f4"), np.repeat(x[0], 2)[::2],
                  np.asfortranarray(x), x.astype(np.longdouble)):  # fmt: skip
        assert close(Stream(model).push(given), expected)
    half = Stream(model).push(x[0].astype(np.float16))
    assert close(half, offline(model, x.astype(np.float16).astype(np.float32))[0])


def test_a_buffer_of_the_callers_may_be_used_again() -> None:
    model, x = heard(), sound(1, 8 * HOP)
    stream, buffer, parts = Stream(model), np.empty(25, np.float32), []
    for start in range(0, 8 * HOP, 25):
        chunk = x[0, start : start + 25]
        buffer[: len(chunk)] = chunk
        rates = stream.push(buffer[: len(chunk)])
        parts.append(rates.copy())
        buffer[:] = np.nan
        rates[:] = np.nan  # and so may the rates
    assert close(np.concatenate(parts, -1), offline(model, x)[0])


def test_flush_completes_the_last_bin_with_silence() -> None:
    model, x = heard(), sound(2, 3 * HOP + 7)
    silent = np.concatenate([x, np.zeros((2, HOP - 7), np.float32)], -1)
    stream = Stream(model, batch=2)
    parts = [stream.push(x), stream.flush()]
    assert close(np.concatenate(parts, -1), offline(model, silent))
    assert stream.flush().shape == (2, NEURONS, 0)
    stream.push([x[0, :5], x[1, :0]])
    assert [rates.shape for rates in stream.flush()] == [(NEURONS, 1), (NEURONS, 0)]
    single = Stream(model)
    single.push(torch.zeros(3))
    flushed = single.flush()
    assert isinstance(flushed, torch.Tensor)
    assert flushed.shape == (NEURONS, 1)
    assert Stream(seen(), batch=2).flush().shape == (2, NEURONS, 0)


# ------------------------------------------------------------------ what is refused, and changes nothing


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (np.zeros(9, np.int16), TypeError, r"samples must be floating point, got int16.*samples / 32768\.0"),
        (np.zeros(9, np.int32), TypeError, r"/ 2147483648\.0"),
        (np.zeros(9, np.uint8), TypeError, r"\(samples - 128\.0\) / 128"),
        (torch.zeros(9, dtype=torch.int64), TypeError, r"got int64"),
        (np.zeros(9, bool), TypeError, "got bool"),
        (np.zeros(9, np.complex64), TypeError, "got complex64"),
        (np.array(["a"]), TypeError, "floating-point samples"),
        (np.ma.masked_array(np.zeros(9)), TypeError, r"got MaskedArray: np\.asarray"),
        ("text", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
        (3.0, TypeError, "got float"),
        (np.float32(3), TypeError, "got float32"),
        (np.zeros(()), ValueError, r"\(n\) or \(1, n\) samples for 1 stream\(s\), got \(\)"),
        (np.zeros((2, 9)), ValueError, r"got \(2, 9\).*a list of arrays"),
        (np.zeros((1, 1, 9)), ValueError, r"got \(1, 1, 9\)"),
        (np.full(9, np.nan), ValueError, r"NaN, infinite.*nothing was pushed.*nan_to_num"),
        (np.array([0, np.inf]), ValueError, "infinite"),
        (np.array([0, -np.inf], np.float32), ValueError, "infinite"),
        (torch.tensor([0.0, math.nan]), ValueError, "NaN"),
        (np.array([4e29]), ValueError, r"at most 3\.2e\+29"),
        (np.array([1e300]), ValueError, r"above the range of torch\.float32"),
        ([np.zeros(9), np.zeros(9)], ValueError, "a list of 2 arrays for 1 streams"),
        ([], ValueError, "a list of 0 arrays for 1 streams"),
        ([0.0] * 9, ValueError, "a list of 9 arrays for 1 streams"),
        ([np.zeros((2, 9))], ValueError, r"samples\[0\] must be \(n\)"),
    ],
)
def test_wrong_samples_are_named_and_change_nothing(given: Any, error: type, text: str) -> None:
    model, x = heard(), sound(1, 4 * HOP)
    stream = Stream(model)
    first = stream.push(x[0, :50])
    with pytest.raises(error, match=text):
        stream.push(given)
    assert close(np.concatenate([first, stream.push(x[0, 50:])], -1), offline(model, x)[0])


def test_a_bad_chunk_of_one_stream_changes_no_stream() -> None:
    model, x = heard(), sound(2, 4 * HOP)
    stream = Stream(model, batch=2)
    bad = x[1].copy()
    bad[-1] = np.nan
    with pytest.raises(ValueError, match=r"samples\[1\] holds values that are NaN"):
        stream.push([x[0], bad])
    assert stream.frames == (0, 0)
    assert close(stream.push(x), offline(model, x))


def test_large_finite_samples_pass() -> None:
    stream = Stream(heard())
    assert np.isfinite(stream.push(np.full(HOP, 1e25, np.float32))).all() in (True, False)  # no refusal
    assert Stream(heard(), dtype=torch.float64).push(np.full(HOP, 1e200)).shape == (NEURONS, 1)


@pytest.mark.parametrize("size", [1e17, 1e20, 3e29])
@pytest.mark.parametrize("name", ["mel", "gammatone", "gammatonegram", "sincnet", "leaf"])
def test_samples_whose_squares_overflow_give_nan_where_the_prediction_of_the_whole_sound_does(
    name: str, size: float
) -> None:
    """Not before them, not in another stream, and not after ``reset``."""
    torch.manual_seed(0)
    front_end = make_wav2spec(name, 16000, 5.0, n_filters=6)
    model = Linear(front_end.out_channels, 3, out_neurons=2, wav2spec=front_end, norm="none").eval()
    x = sound(2, 60 * 80)
    first = 30 * 80
    loud = x[0].copy()
    loud[first : first + 10] = np.float32(size)
    stream = Stream(model, batch=2)
    made = np.concatenate([stream.push(chunk) for chunk in np.array_split(np.stack([loud, x[1]]), 7, -1)], -1)
    whole = offline(model, np.stack([loud, x[1]]))
    assert close(made[1], whole[1])
    assert close(made[0][:, :30], whole[0][:, :30])
    lost, lost_offline = (~np.isfinite(rates[0][:, 30:]).all(axis=0) for rates in (made, whole))
    assert lost[0] == lost_offline[0]
    assert not (lost & ~lost_offline).any()
    stream.reset()
    assert close(stream.push(x), offline(model, x))


def test_frames_of_a_spectrogram_are_checked() -> None:
    stream = Stream(seen(), batch=2)
    with pytest.raises(ValueError, match=r"must be \(2, 6, n\) frames.*got \(2, 5, 4\)"):
        stream.push(sound(2, 5, 4))
    with pytest.raises(ValueError, match=r"one frame \(F,\) is frame\[:, None\]"):
        Stream(seen()).push(sound(BANDS))
    with pytest.raises(TypeError, match=r"in the unit of the fit"):
        Stream(seen()).push(np.zeros((BANDS, 2), np.int64))


@pytest.mark.parametrize(
    ("streams", "error", "text"),
    [
        ([0, 2], IndexError, r"streams holds 2, and this Stream has 2 \(0\.\.1\)"),
        (-3, IndexError, "holds -3"),
        ([0, 0], ValueError, "a stream twice"),
        ([0, -2], ValueError, "a stream twice"),
        ("0", TypeError, "an integer, a list of integers or None"),
        (True, TypeError, "streams"),
        (0.0, TypeError, "streams"),
        ([0.0], TypeError, "streams must hold integers"),
        ([True], TypeError, "streams must hold integers"),
        ([[0]], TypeError, "streams must hold integers"),
        ([None], TypeError, "streams must hold integers"),
    ],
)
def test_wrong_streams_are_named(streams: Any, error: type, text: str) -> None:
    stream = Stream(heard(), batch=2)
    with pytest.raises(error, match=text):
        stream.push([np.zeros(9), np.zeros(9)], streams=streams)
    with pytest.raises(error, match=text):
        stream.reset(streams)


def test_an_array_for_streams_out_of_step_is_an_error_a_list_is_not() -> None:
    stream = Stream(heard(), batch=2)
    stream.push(sound(5), streams=1)
    with pytest.raises(ValueError, match=r"not in step \(samples of their incomplete bins: \[0, 5\]\)"):
        stream.push(sound(2, HOP))
    assert [rates.shape for rates in stream.push(list(sound(2, HOP)))] == [(NEURONS, 1)] * 2
    with pytest.raises(ValueError, match="names no stream"):
        stream.push(np.empty((0, 5)), streams=[])


# ------------------------------------------------------------------ models


def test_the_model_stays_as_it_was() -> None:
    model = StateNet(
        BANDS, out_neurons=NEURONS, kernel_size=3, wav2spec=make_wav2spec("leaf", FS, 5.0, n_filters=BANDS)
    )
    model.train()
    model.readout.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [part.training for part in model.modules()]
    stream = Stream(model)
    first = stream.push(sound(5 * HOP))
    assert [part.training for part in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    stream.reset()
    assert np.array_equal(stream.push(sound(5 * HOP)), first)  # the model as it was
    with torch.enable_grad():
        assert not Stream(model).push(torch.zeros(HOP)).requires_grad


class Loudness(nn.Module):
    """A front-end as a user writes one: no step."""

    def __init__(self) -> None:
        super().__init__()
        self.hop, self.audio_fs, self.out_channels = HOP, FS, 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unfold(-1, HOP, HOP).square().mean(-1).unsqueeze(1)


class SteppingLoudness(FramewiseMixin, Loudness):
    """The same with a step: every frame by itself."""


class Smoothed(WaveformFrontEnd):
    """A user's transform with memory; the base has its step."""

    def __init__(self) -> None:
        super().__init__(audio_fs=FS, n_filters=1, hop_ms=5.0)
        self.left_context = HOP

    def transform(self, padded: torch.Tensor) -> torch.Tensor:
        return padded.unfold(-1, 2 * HOP, HOP).square().mean(-1).unsqueeze(1)


class Halved(Smoothed):
    """Overrides forward, inherits a step that does not follow it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


def test_front_ends_of_the_users_own() -> None:
    with pytest.raises(TypeError, match=r"slot 'wav2spec' \(Loudness\) cannot run.*init_state.*step"):
        Stream(Linear(1, 3, NEURONS, wav2spec=Loudness()))
    for front_end in (SteppingLoudness(), Smoothed()):
        model = Linear(1, 3, NEURONS, wav2spec=front_end, norm="none").eval()
        x = sound(1, 6 * HOP)
        stream = Stream(model)
        assert close(
            np.concatenate([stream.push(x[0, :61]), stream.push(x[0, 61:])], -1), offline(model, x)[0]
        )
    with pytest.raises(ValueError, match=r"Halved: step does not give what forward gives \(they differ"):
        Stream(Linear(1, 3, NEURONS, wav2spec=Halved(), norm="none"))


def test_models_without_a_stream_say_what_helps() -> None:
    with pytest.raises(ValueError, match="context_window"):
        Stream(Transformer(BANDS, out_neurons=NEURONS))
    with pytest.raises(TypeError, match=r"frames up to 2 after its own"):
        Stream(Linear(BANDS, None, NEURONS, lags=(-2, 3)))
    for wrong in (nn.Linear(2, 2), None, "model", Linear):
        with pytest.raises(TypeError, match="model"):
            Stream(wrong)
    with pytest.raises(ValueError, match="batch"):
        Stream(seen(), batch=0)
    for wrong in (torch.float16, torch.int64):
        with pytest.raises(ValueError, match=r"dtype must be torch\.float32"):
            Stream(seen(), dtype=wrong)
    with pytest.raises(ValueError, match="device"):
        Stream(seen(), device="nonsense")


def test_prefilters_and_standardisation_are_part_of_it() -> None:
    front_end = CausalMelSpectrogram(FS, n_mels=BANDS)
    prefilter = {"prefiltering": "adaptrans", "dt": 5.0}
    model = Linear(BANDS, 3, NEURONS, wav2spec=front_end, prefiltering=prefilter, standardize=True)
    model.fit_standardization([torch.randn(1, 20 * HOP)])
    x = sound(1, 10 * HOP)
    stream = Stream(model)
    parts = [stream.push(part) for part in np.split(x[0], [3, 40, 41, 300])]
    assert close(np.concatenate(parts, -1), offline(model.eval(), x)[0])


# ------------------------------------------------------------------ states


def test_a_state_goes_through_a_file_into_another_stream(tmp_path: Path) -> None:
    model, x = heard(), sound(2, 9 * HOP)
    stream = Stream(model, batch=2)
    first = stream.push([x[0, :100], x[1, :33]])
    save_file(stream.state_dict(), tmp_path / "state.safetensors")
    rest = stream.push([x[0, 100:], x[1, 33:]])
    other = Stream(copy.deepcopy(model), batch=2)
    other.push(x)
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))  # arrays are as good as tensors
    assert other.frames == (2, 0)
    for found, expected in zip(other.push([x[0, 100:], x[1, 33:]]), rest, strict=True):
        assert np.array_equal(found, expected)
    assert close(np.concatenate([first[0], rest[0]], -1), offline(model, x)[0])
    precise = Stream(copy.deepcopy(model).double(), batch=2)  # the same weights, more digits
    precise.load_state_dict(stream.state_dict())
    assert precise.push(x).dtype == np.float64


def test_a_state_is_a_copy() -> None:
    stream = Stream(heard())
    stream.push(sound(100))
    saved = stream.state_dict()
    copies = {name: value.clone() for name, value in saved.items()}
    stream.push(sound(333))
    assert all(torch.equal(value, copies[name]) for name, value in saved.items())
    for value in saved.values():
        value.zero_()


def test_states_of_others_are_refused_and_change_nothing() -> None:
    model, x = heard(), sound(1, 4 * HOP)
    stream = Stream(model)
    first, good = stream.push(x[0, :90]), stream.state_dict()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.readout.strf.kernel.weight[0, 0, 0, 0] += 1e-3
    other_hop = Linear(
        BANDS, 3, NEURONS, wav2spec=CausalMelSpectrogram(FS, n_mels=BANDS, hop_ms=10.0), norm="none"
    )
    wrong: list[tuple[Any, type, str]] = [
        (None, TypeError, "state must be a dictionary"),
        ({}, ValueError, r"not one of a Stream of this Linear: it lacks"),
        ({**good, "more": torch.zeros(1)}, ValueError, "unknown: more"),
        ({k: v for k, v in good.items() if k != "frames"}, ValueError, "it lacks frames"),
        (Stream(changed).state_dict(), ValueError, "belongs to another model"),
        (Stream(other_hop).state_dict(), ValueError, "another model"),
        (Stream(model, batch=2).state_dict(), ValueError, r"holds 2 streams.*Stream\(model, batch=2\)"),
        ({**good, "remainder": torch.zeros(1, 1, 3)}, ValueError, r"remainder of the state is \(1, 1, 3\)"),
        ({**good, "remainder_samples": torch.tensor([HOP])}, ValueError, "from 0 to 39"),
        ({**good, "remainder_samples": torch.tensor([-1])}, ValueError, "from 0 to 39"),
    ]
    for state, error, text in wrong:
        with pytest.raises(error, match=text):
            stream.load_state_dict(state)
    assert close(np.concatenate([first, stream.push(x[0, 90:])], -1), offline(model, x)[0])


# ------------------------------------------------------------------ latency and memory


def test_latency_is_that_of_bin_front_end_and_look_ahead() -> None:
    model = Linear(BANDS, 3, NEURONS, wav2spec=make_wav2spec("gammatone", FS, 5.0, n_filters=BANDS))
    assert Stream(model).latency_ms == pytest.approx(5.0 + model.latency_ms)
    assert model.latency_ms > 0
    spectral = seen()
    assert math.isnan(Stream(spectral).latency_ms)
    assert Stream(spectral).dt_ms is None
    spectral.fitted_on = FittedOn(neurons=("a", "b"), dt_ms=4.0)
    stream = Stream(spectral)
    assert stream.latency_ms == 4.0
    assert stream.neurons == ("a", "b")
    assert "2 neurons" in repr(stream)


def test_timing_counts_and_keeps_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(heard(), batch=2)
    empty = stream.timing()
    assert empty.chunks == empty.frames == 0
    assert math.isnan(empty.median_ms)
    assert math.isnan(empty.p99_ms)
    assert math.isnan(empty.real_time_factor)
    clock = iter(np.arange(0, 1000.0, 0.001))
    monkeypatch.setattr("deepSTRF.streaming.stream.time.perf_counter", lambda: next(clock))
    for _ in range(10):
        stream.push(sound(2, HOP))
    measured = stream.timing()
    assert (measured.chunks, measured.frames) == (10, 20)
    assert measured.median_ms == pytest.approx(1.0)
    assert measured.p99_ms == pytest.approx(1.0)
    assert measured.real_time_factor == pytest.approx(5.0)  # bins of 5 ms in 1 ms
    assert len(stream._times) == TIMED_PUSHES


def test_an_hour_in_one_push_is_computed_in_pieces() -> None:
    frames = 3 * FRAMES_PER_STEP + 5
    model, x = heard(), sound(1, frames * HOP + 3)
    steps = []
    stream = Stream(model)
    step = stream._model.step
    stream._model.step = lambda chunk, state: steps.append(chunk.shape[-1] // HOP) or step(chunk, state)
    rates = stream.push(x[0])
    assert max(steps) <= FRAMES_PER_STEP
    assert sum(steps) == frames
    assert close(rates, offline(model, x[:, : frames * HOP])[0])


def test_memory_is_flat_over_an_hour_of_sound() -> None:
    """An hour in chunks of any size: neither objects nor the memory of the process nor the state grow."""
    rate, rng = 800, np.random.default_rng(0)
    front_end = CausalMelSpectrogram(rate, n_mels=BANDS, f_min=20.0, f_max=400.0, hop_ms=50.0, win_ms=100.0)
    stream = Stream(StateNet(BANDS, out_neurons=NEURONS, kernel_size=3, wav2spec=front_end), batch=2)
    noise = sound(2, 5 * rate)

    def push(seconds: int) -> tuple[int, int]:
        pushed = 0
        while pushed < seconds * rate:
            size = int(rng.integers(0, 5 * rate))
            stream.push([noise[0, :size], noise[1, : size // 2]])
            pushed += size
        gc.collect()
        pages = Path("/proc/self/statm")
        resident = 4096 * int(pages.read_text().split()[1]) if pages.exists() else 0
        return len(gc.get_objects()), resident

    objects, resident = push(300)
    objects_later, resident_later = push(3600)
    assert objects_later - objects < 100
    assert resident_later - resident < 20e6
    held = sum(value.numel() * value.element_size() for value in stream.state_dict().values())
    assert held < 10_000


# ------------------------------------------------------------------ what a model or a state must be


def test_models_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match="meta device"):
        Stream(heard().to("meta"))
    with pytest.raises(ValueError, match="device='meta'"):
        Stream(heard(), device="meta")


def test_a_fit_on_standardised_stimuli_warns_that_raw_ones_give_other_rates() -> None:
    model = seen()
    model.fitted_on = FittedOn(standardized=True)
    with pytest.warns(UserWarning, match="must be standardised in the same way"):
        Stream(model)
    model.fitted_on = FittedOn(standardized=False)
    Stream(model)


@pytest.mark.parametrize("name", ["frames", "remainder_samples"])
@pytest.mark.parametrize("value", [torch.tensor([1.5]), torch.tensor(3), torch.tensor([1j])])
def test_counts_of_a_state_that_are_no_integers_leave_the_stream_as_it_was(name: str, value: Any) -> None:
    stream, x = Stream(heard()), sound(3 * HOP)
    stream.push(x[: HOP + 7])
    with pytest.raises(ValueError, match="integers"):
        stream.load_state_dict({**stream.state_dict(), name: value})
    assert close(stream.push(x[HOP + 7 :]), offline(stream.model, x[None])[0, :, 1:])
    with pytest.raises(TypeError, match=f"got str as {name}"):
        stream.load_state_dict({**stream.state_dict(), name: "a"})
