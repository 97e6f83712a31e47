"""Adaptation to steps of level, and integration windows by context swap, on models that have known ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.dsp.recursion import freq_to_tau  # inner: parts of the front-ends
from deepSTRF.interpret.probes import Presentation, context_swap, level_step_responses

# not of the face: parts of the two probes, tested by themselves
from deepSTRF.interpret.probes.measures import decay_time_constant
from deepSTRF.interpret.probes.sounds import patchwork_noise, stepped  # inner: tested by itself
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram

FS, HOP, DT = 16000, 80, 5.0
#: A tone with whole periods per bin: its envelope is constant.
TONE_HZ = 2000.0


def linear(kernels, activation=None, prefiltering=None):
    """A Linear model of one band with these kernels (N, L) over lags, the current bin first; no bias."""
    kernels = torch.as_tensor(np.asarray(kernels), dtype=torch.float64)
    model = Linear(
        1, kernels.shape[1], len(kernels), norm="none", output_activation=activation,
        prefiltering=prefiltering,
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        model.readout.strf.kernel.weight[:, 0, 0] = kernels.flip(-1)
        model.readout.strf.kernel.bias.zero_()
    return model


def presented(model, **options):
    """A presentation with a cochleagram of one band: the mean absolute sample of each bin."""

    def envelope(sounds):
        return sounds.unfold(-1, HOP, HOP).abs().mean(-1).unsqueeze(1)

    return Presentation(model, cochleagram=envelope, audio_fs=FS, dt_ms=DT, **options)


def with_lags(*weights, length=12):
    kernel = np.zeros(length)
    for lag, weight in weights:
        kernel[lag] = weight
    return kernel


# ---------------------------------------------------------------------- level steps


class Subtractive(nn.Module):
    """``x - depth * m``, with a leaky mean ``m`` of the past: every step decays with its time constant."""

    def __init__(self, core, tau_ms, depth=0.8):
        super().__init__()
        self.core, self.decay, self.depth = core, float(np.exp(-DT / tau_ms)), depth

    def forward(self, x):
        mean, adapted = x[..., 0], []
        for frame in x.unbind(-1):
            adapted.append(frame - self.depth * mean)
            mean = self.decay * mean + (1 - self.decay) * frame
        return self.core(torch.stack(adapted, -1))


def test_steps_go_up_the_levels_and_down_again():
    found = level_step_responses(
        presented(linear([with_lags((0, 1.0))])), [-60.0, -40.0, -20.0], tone_hz=TONE_HZ
    )
    assert found.from_db.tolist() == [-60.0, -40.0, -20.0, -40.0]
    assert found.to_db.tolist() == [-40.0, -20.0, -40.0, -60.0]
    size = np.sqrt(2) * np.abs(np.sin(np.pi / 4 * np.arange(8))).mean()  # mean absolute value of the carrier
    np.testing.assert_allclose(found.steady[0], size * 10.0 ** (found.to_db / 20), rtol=1e-6)
    np.testing.assert_allclose(found.before[0], size * 10.0 ** (found.from_db / 20), rtol=1e-6)
    step = stepped(np.ones(160), np.array([0.0, -20.0]), FS)
    assert step[79] == 1.0
    assert step[80 + FS // 1000 :].tolist() == [pytest.approx(0.1)] * 64


def test_linear_models_do_not_adapt():
    kernels = [with_lags((0, 1.0)), with_lags((3, 1.0)), np.full(12, 1 / 12), -np.full(12, 1 / 12)]
    tone = level_step_responses(presented(linear(kernels)), tone_hz=TONE_HZ)
    np.testing.assert_allclose(tone.adaptation_index, 0.0, atol=1e-6)
    assert np.isnan(tone.tau_ms).all()
    noise = level_step_responses(presented(linear(kernels)))
    assert np.abs(noise.adaptation_index).max() < 0.05
    assert np.isnan(noise.tau_ms).all()
    assert np.isnan(noise.table()["level_up_tau_ms"]).all()


def test_a_phasic_linear_model_overshoots_alike_up_and_down_within_its_kernel():
    found = level_step_responses(
        presented(linear([with_lags((0, 1.0), (6, -0.5))])), [-40.0, -20.0], tone_hz=TONE_HZ
    )
    np.testing.assert_allclose(found.adaptation_index, 0.5, atol=1e-6)
    shape = found.evoked[0] - found.steady[0][:, None]
    np.testing.assert_allclose(shape[0, 1:], -shape[1, 1:], atol=1e-9)
    assert np.abs(shape[:, 7:]).max() < 1e-9


@pytest.mark.parametrize("tau_ms", [20.0, 80.0, 300.0])
@pytest.mark.parametrize(("carrier", "within"), [({"tone_hz": TONE_HZ}, 1e-3), ({}, 0.08)])
def test_the_time_constant_of_adaptation_is_found(tau_ms, carrier, within):
    core = linear([with_lags((0, 1.0)), with_lags((2, 2.0)), np.full(12, -1 / 12)])
    found = level_step_responses(presented(Subtractive(core, tau_ms)), **carrier)
    np.testing.assert_allclose(found.tau_ms, tau_ms, rtol=within)
    if tau_ms < 300.0:  # a second is enough to settle
        np.testing.assert_allclose(found.adaptation_index[:2], 0.8, atol=0.04)
    assert set(found.table().columns) == {
        f"level_{way}_{name}" for way in ("up", "down") for name in ("adaptation_index", "tau_ms")
    }


def test_adaptation_in_the_inferior_colliculus_has_the_published_time_constant():
    prefilter = {"prefiltering": "icadaptation", "dt": DT, "min_freq": 500.0, "max_freq": 8000.0}
    model = Linear(2, 1, 2, norm="none", output_activation=None, prefiltering=prefilter).double().eval()
    with torch.no_grad():
        model.readout.strf.kernel.weight[:, 0, :, 0] = torch.eye(2)
        model.readout.strf.kernel.bias.zero_()

    def both(sounds):
        return sounds.unfold(-1, HOP, HOP).abs().mean(-1).unsqueeze(1).repeat(1, 2, 1)

    presentation = Presentation(model, cochleagram=both, audio_fs=FS, dt_ms=DT)
    found = level_step_responses(
        presentation, [-60.0, -40.0, -20.0], tone_hz=[TONE_HZ, 2 * TONE_HZ], hold_ms=1500.0
    )
    expected = np.asarray(freq_to_tau(torch.tensor([500.0, 8000.0])))
    np.testing.assert_allclose(found.tau_ms[:, :2], expected[:, None].repeat(2, 1), rtol=1e-3)
    np.testing.assert_allclose(found.adaptation_index[:, :2], 1.0, atol=0.02)
    assert np.isnan(found.tau_ms[:, 2:]).all(), "rectified: a step down is met with silence"
    assert found.table()["level_up_tau_ms"] == pytest.approx(expected, rel=1e-3)


def test_what_is_no_exponential_has_no_time_constant():
    time = np.arange(0.0, 200.0, DT)
    rng = np.random.default_rng(0)
    assert decay_time_constant(time, 3.0 + 5.0 * np.exp(-time / 33.0), 0.99)[0] == pytest.approx(
        33.0, rel=1e-3
    )
    for curve in (np.ones(40), time, rng.normal(size=40), np.exp(-time / 0.5), np.ones(3)):
        assert np.isnan(decay_time_constant(time[: len(curve)], curve, 0.5)).all()


def test_level_steps_say_what_they_refuse():
    presentation = presented(linear([with_lags((0, 1.0))]))
    silent = level_step_responses(presented(linear([with_lags((0, 0.0))])))
    assert np.isnan(silent.adaptation_index).all()
    with pytest.raises(ValueError, match="two levels"):
        level_step_responses(presentation, [-20.0])
    with pytest.raises(ValueError, match="hold_ms=40"):
        level_step_responses(presentation, hold_ms=20.0)
    for wrong in (
        {"tone_hz": 9000.0},
        {"band_hz": (500.0, 9000.0)},
        {"hold_ms": -5.0},
        {"levels_db": [0, -5]},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            level_step_responses(presentation, **wrong)
    with pytest.raises(ValueError, match="not both"):
        level_step_responses(presentation, tone_hz=1000.0, band_hz=(500.0, 1000.0))


# ---------------------------------------------------------------------- context swap


def white(seconds=5.0, seed=0):
    """A sound whose bins have independent levels: to a kernel it is white."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat(rng.exponential(size=int(seconds * FS) // HOP), HOP)
    return [sizes * np.tile([1.0, -1.0], sizes.size // 2)]


def energy_window(kernel, share=0.75):
    """Shortest interval that holds this share of a kernel's energy, between bins, and its middle; in ms."""
    energy = kernel**2 / (kernel**2).sum()
    held = [np.convolve(energy, np.ones(n), "valid") for n in range(1, len(energy) + 1)]
    width = np.interp(share, [each.max() for each in held], np.arange(1, len(energy) + 1))
    best = held[round(width) - 1]
    first = np.flatnonzero(best > best.max() - 1e-12).mean()
    return DT * float(width), DT * (float(first) + 0.5 * (round(width) - 1))


KERNELS = np.stack(
    [
        *(np.arange(64) < n for n in (4, 8, 16, 40)),
        (np.arange(64) >= 10) & (np.arange(64) < 18),
        np.exp(-np.arange(64) / 8.0),
        np.exp(-0.5 * ((np.arange(64) - 14) / 5.0) ** 2) * np.cos((np.arange(64) - 14) / 3.0),
    ]
).astype(float)


def test_a_segment_longer_than_the_kernel_makes_the_response_its_own():
    lags = 8
    kernel = np.random.default_rng(1).normal(size=lags)
    durations = np.array([20.0, 40.0, 60.0, 120.0])
    found = context_swap(presented(linear([kernel])), durations, sounds=white())
    assert found.n_segments.tolist() == [250, 125, 83, 41]
    for row, bins in zip(found.correlation[0], (durations / DT).astype(int), strict=True):
        alone = np.arange(found.lag_ms.size)
        alone = (alone >= lags - 1) & (alone < bins)
        np.testing.assert_allclose(row[alone], 1.0, atol=1e-12)
        assert alone.any() == (bins >= lags)
        assert row[~alone].max() < 1.0 - 1e-6
        gone = slice(bins + lags - 1, None)  # nothing of the segment is left
        assert np.abs(row[gone]).max(initial=0.0) < 4 / np.sqrt(40)
    np.testing.assert_allclose(found.peak[0, 1:], 1.0, atol=1e-12)
    assert found.peak[0, 0] < 1.0


@pytest.mark.parametrize("sounds", [white(20.0), None])
def test_the_window_is_where_the_energy_of_the_kernel_lies(sounds):
    found = context_swap(presented(linear(KERNELS)), sounds=sounds)
    widths, middles = np.transpose([energy_window(kernel) for kernel in KERNELS])
    np.testing.assert_allclose(found.window_ms, widths, rtol=0.10)
    assert (np.abs(found.centre_ms - middles) < 0.1 * widths + 1.0).all()
    table = found.table()
    np.testing.assert_array_equal(table["context_window_ms"], found.window_ms)


def test_the_correlation_is_the_share_of_energy_inside_the_segment():
    kernel = np.exp(-np.arange(64) / 8.0)
    found = context_swap(presented(linear([kernel])), [40.0, 80.0], sounds=white(60.0))
    inside = np.cumsum(kernel**2) / (kernel**2).sum()
    for row, bins in zip(found.correlation[0], (8, 16), strict=True):
        np.testing.assert_allclose(row[:bins], inside[:bins], atol=0.1)


def test_a_recurrent_memory_and_a_threshold():
    class Leaky(nn.Module):
        def forward(self, x):
            state, out = torch.zeros_like(x[..., 0]), []
            for frame in x.unbind(-1):
                state = 0.9 * state + frame
                out.append(state)
            return torch.stack(out, -1)

    found = context_swap(presented(Leaky()), sounds=white(20.0))
    assert found.window_ms[0] == pytest.approx(energy_window(0.9 ** np.arange(200))[0], rel=0.1)
    rectified = context_swap(presented(linear(KERNELS[:3] - 0.1, nn.ReLU())), sounds=white())
    assert (np.diff(rectified.window_ms) > 0).all()


def test_a_neuron_that_answers_few_segments_has_a_window_from_those():
    """A threshold that is crossed only where the sound stays loud for longer than segments of 10 ms."""
    quiet, loud = white(2.0)[0] * 1e-3, np.repeat(white(4.0)[0].reshape(-1, HOP)[::8], 8, axis=0).reshape(-1)
    model = linear(np.stack([KERNELS[0], KERNELS[0]]), nn.ReLU())
    with torch.no_grad():
        model.readout.strf.kernel.bias.copy_(torch.tensor([0.0, -14.0]))
    found = context_swap(presented(model), [10.0, 20.0, 40.0, 80.0], sounds=[quiet, loud])
    assert np.isnan(found.peak[1]).tolist() == [True, False, False, False]
    assert found.window_ms[1] == 20.0
    assert 10.0 < found.window_ms[0] < 20.0


def test_context_swap_says_what_it_cannot_tell():
    model = linear(np.stack([np.zeros(64), KERNELS[0], np.ones(64)]))
    found = context_swap(presented(model), [12.0, 14.0, 20.0, 40.0], sounds=white(), max_lag_ms=100.0)
    assert found.durations_ms.tolist() == [15.0, 20.0, 40.0]
    assert found.lag_ms.size == 20
    assert np.isnan(found.window_ms[[0, 2]]).all(), "silent, and longer than the longest segment"
    assert np.isnan(found.centre_ms[[0, 2]]).all()
    assert np.isnan(found.correlation[0]).all()
    assert found.window_ms[1] == 15.0
    with pytest.raises(ValueError, match="give 5 segments of 100 ms"):
        context_swap(presented(model), [20.0, 100.0], sound_s=0.5)
    with pytest.raises(ValueError, match=r"sounds=\[sound\]"):
        context_swap(presented(model), sounds=white()[0])
    with pytest.raises(ValueError, match="criterion"):
        context_swap(presented(model), criterion=1.0)
    with pytest.raises(ValueError, match="ascending"):
        context_swap(presented(model), [40.0, 20.0])


def test_a_front_end_widens_the_window():
    narrow, wide = (
        context_swap(
            Linear(6, 1, wav2spec=CausalMelSpectrogram(audio_fs=FS, n_mels=6, win_ms=win_ms), norm="none"),
            sound_s=5.0,
        )
        for win_ms in (10.0, 80.0)
    )
    assert narrow.window_ms[0] < 20.0 < wide.window_ms[0] < 80.0


def test_patchwork_noise_covers_its_range_and_no_more():
    sound = patchwork_noise(FS, FS, (1000.0, 4000.0), HOP, level_db=-20.0)
    assert np.sqrt((sound**2).mean()) == pytest.approx(0.1)
    power, hertz = np.abs(np.fft.rfft(sound)) ** 2, np.fft.rfftfreq(FS, 1 / FS)
    assert power[(hertz > 900) & (hertz < 4200)].sum() > 0.95 * power.sum()
    assert patchwork_noise(800, FS, (1000.0, 1000.0), HOP).std() == pytest.approx(1.0, rel=0.05)
