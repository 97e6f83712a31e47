"""Sounds played chunk by chunk to what answers: as the model at once; spikes, repeats, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.interpret import ClosedLoop, exciting_sound
from deepSTRF.interpret.probes import (
    Presentation,
    am_responses,
    noise_responses,
    plain_cochleagram,
    probe_battery,
    ripple_responses,
    tone_responses,
)
from deepSTRF.models.audio import Linear, StateNet
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.streaming import Stream

FS, HOP = 16000, 80


def rms_of_bins(samples):
    return np.sqrt((samples.reshape(-1, HOP) ** 2).mean(axis=1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=8)
    return StateNet(8, 3, out_neurons=2, wav2spec=mel).double().eval()


class Recorder:
    """A neuron that gives the level of each bin, and keeps what it was asked."""

    audio_fs, dt_ms = FS, 5.0

    def __init__(self):
        self.sizes, self.resets, self.heard = [], 0, 0

    def push(self, samples):
        self.sizes.append(samples.size)
        self.heard += samples.size
        bins = rms_of_bins(samples)
        return np.stack([bins, np.full(bins.size, float(self.heard))])

    def reset(self):
        self.resets += 1
        self.heard = 0


@pytest.mark.parametrize("chunk_ms", [0.1, 3.7, 5.0, 33.0, 1e4])
def test_a_stream_in_a_loop_answers_as_the_model_does(model, chunk_ms):
    sounds = 0.1 * np.random.default_rng(0).standard_normal((3, 12 * HOP))
    loop = ClosedLoop(Stream(model), chunk_ms=chunk_ms)
    assert loop.between == "reset"
    played = Presentation(loop, lead_ms=50.0).play(sounds)
    expected = Presentation(model, lead_ms=50.0).play(sounds)
    np.testing.assert_allclose(played, expected, atol=1e-12 * np.ptp(expected))
    assert loop.n_trials == 3
    assert loop.played_ms == pytest.approx(3 * 110.0)


def test_state_that_is_carried_on_hears_all_trials_as_one_sound(model):
    sounds = 0.1 * np.random.default_rng(1).standard_normal((3, 12 * HOP))
    presentation = Presentation(ClosedLoop(Stream(model), between="carry"), lead_ms=25.0)
    played = presentation.play(sounds)
    whole = np.concatenate([np.concatenate([np.zeros(5 * HOP), sound]) for sound in sounds])
    with torch.no_grad():
        expected = model(torch.from_numpy(whole)[None, None])[0, :, 0].numpy()
    np.testing.assert_allclose(np.concatenate(list(played), axis=-1), expected, atol=1e-12)


def test_chunks_resets_and_repeats_are_as_asked():
    rig = Recorder()
    loop = ClosedLoop(rig, chunk_ms=10.0, n_repeats=3)
    mean = loop.mean(np.ones(5 * HOP))
    assert rig.sizes == [2 * HOP, 2 * HOP, HOP] * 3
    assert (rig.resets, loop.n_trials) == (3, 3)
    np.testing.assert_array_equal(mean[1], [160, 160, 320, 320, 400])
    carried = ClosedLoop(Recorder(), between="carry")
    carried.trial(np.ones(HOP))
    assert carried.trial(np.ones(HOP))[1, 0] == 2 * HOP


def test_spikes_are_poisson_counts_of_the_rates():
    def respond(samples):
        n_bins = samples.size // HOP
        return np.stack([np.full(n_bins, 0.3), np.full(n_bins, 4.0), np.full(n_bins, -1.0)])

    loop = ClosedLoop(respond, audio_fs=FS, dt_ms=5.0, spikes=True)
    counts = loop.trial(np.zeros(20_000 * HOP))
    assert (counts == counts.round()).all()
    np.testing.assert_allclose(counts.mean(axis=1), [0.3, 4.0, 0.0], rtol=0.03)
    np.testing.assert_allclose(counts.var(axis=1), [0.3, 4.0, 0.0], rtol=0.05)
    again = ClosedLoop(respond, audio_fs=FS, dt_ms=5.0, spikes=True).trial(np.zeros(20_000 * HOP))
    np.testing.assert_array_equal(counts, again)  # of the same seed
    other = ClosedLoop(respond, audio_fs=FS, dt_ms=5.0, spikes=True, seed=1)
    assert (other.trial(np.zeros(100 * HOP)) != counts[:, :100]).any()
    averaged = ClosedLoop(respond, audio_fs=FS, dt_ms=5.0, spikes=True, n_repeats=400)
    np.testing.assert_allclose(averaged.mean(np.zeros(4 * HOP))[1], 4.0, atol=0.5)  # 5 standard errors


def test_a_battery_runs_on_a_stream_and_gives_the_same(model):
    options = {"lead_ms": 50.0}
    live, offline = Presentation(Stream(model), **options), Presentation(model, **options)
    names = ["clicks", "gaps", "ripples"]
    np.testing.assert_equal(live.frequency_range(), offline.frequency_range())
    found, expected = probe_battery(live, names).table, probe_battery(offline, names).table
    assert found.columns.keys() == expected.columns.keys()
    for name, column in found.columns.items():
        np.testing.assert_allclose(column, expected.columns[name], rtol=1e-6, err_msg=name)


def test_a_probe_takes_a_stream_and_a_function_directly(model):
    area = tone_responses(Stream(model), [500.0, 2000.0], [-40.0, -20.0])
    expected = tone_responses(model, [500.0, 2000.0], [-40.0, -20.0])
    np.testing.assert_allclose(area.response, expected.response, atol=1e-12)
    levels = noise_responses(Presentation(rms_of_bins, audio_fs=FS, dt_ms=5.0), [-40.0, -20.0], n_tokens=2)
    # a level meter: its rates are 0.01 and 0.1, but for the ramps
    np.testing.assert_allclose(levels.rate_level[0], [0.01, 0.1], rtol=0.1)


def test_modulation_transfer_of_a_noisy_neuron():
    # 5 spikes per bin, modulated in full with the sound: after 40 trials the component is found to 10 %
    loop = ClosedLoop(
        lambda samples: 50.0 * rms_of_bins(samples), audio_fs=FS, dt_ms=5.0, spikes=True, n_repeats=40
    )
    am = am_responses(Presentation(loop, lead_ms=20.0), [4.0, 10.0], carrier_hz=1000.0, n_tokens=1)
    np.testing.assert_allclose(am.modulation[0], 5.0, rtol=0.1)
    np.testing.assert_allclose(am.phase[0], 0.0, atol=0.1)


def test_streams_of_models_on_spectrograms_take_frames():
    torch.manual_seed(0)
    bands = 500.0 * 2.0 ** (np.arange(8) / 2)
    model = Linear(8, 3, 2, norm="none").double()
    made = {"cochleagram": plain_cochleagram(bands, FS, 5.0), "audio_fs": FS, "dt_ms": 5.0}
    shared = {"frequencies_hz": bands, "lead_ms": 50.0}
    live, offline = Presentation(Stream(model), **made, **shared), Presentation(model, **made, **shared)
    sound = 0.1 * np.random.default_rng(0).standard_normal((1, 10 * HOP))
    np.testing.assert_allclose(live.play(sound), offline.play(sound), atol=1e-12)
    drawn = ripple_responses(live, [10.0], [0.0], domain="spectrogram")
    expected = ripple_responses(offline, [10.0], [0.0], domain="spectrogram")
    np.testing.assert_allclose(drawn.amplitude, expected.amplitude, atol=1e-12)


def test_exciting_sound_of_a_stream_is_that_of_its_model(model):
    options = {"duration_ms": 20.0, "n_steps": 3, "n_starts": 1}
    found, expected = exciting_sound(Stream(model), 0, **options), exciting_sound(model, 0, **options)
    np.testing.assert_allclose(found.stimulus, expected.stimulus, atol=1e-12)
    with pytest.raises(TypeError, match="search_sound"):
        exciting_sound(rms_of_bins)


def test_a_model_in_training_mode_stays_so(model):
    model.train()
    tone_responses(Stream(model), [1000.0], [-20.0])
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClosedLoop("rig", dt_ms=5.0), "must be a function"),
        (lambda: ClosedLoop(nn.Identity(), dt_ms=5.0), "Stream"),
        (lambda: ClosedLoop(rms_of_bins, audio_fs=FS), "dt_ms must be given"),
        (lambda: ClosedLoop(rms_of_bins, audio_fs=FS, dt_ms=5.0, between="reset"), "reset"),
        (lambda: ClosedLoop(Recorder(), between="never"), "between"),
        (lambda: ClosedLoop(Recorder(), audio_fs=8000.0), "audio_fs must be 16000"),
        (lambda: ClosedLoop(Recorder(), chunk_ms=0.0), "chunk_ms"),
        (lambda: ClosedLoop(Recorder(), n_repeats=0), "n_repeats"),
        (lambda: ClosedLoop(Stream(Linear(8, 3)), audio_fs=FS, dt_ms=5.0), "spectrograms"),
        (lambda: Presentation(3), r"nn\.Module"),
    ],
)
def test_what_a_loop_refuses(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda samples: np.full(samples.size // HOP, np.nan), "NaN"),
        (lambda samples: np.zeros((1, 1, samples.size // HOP)), "one .batch=1"),
        (lambda samples: np.zeros(samples.size // HOP - 1), "answered 20 ms with 3 bins"),
        (lambda samples: None, "the answer"),
    ],
)
def test_answers_that_are_no_rates_are_refused(answer, message):
    loop = ClosedLoop(answer, audio_fs=FS, dt_ms=5.0)
    with pytest.raises((TypeError, ValueError), match=message):
        loop.trial(np.zeros(4 * HOP))
    assert loop.n_trials == 0


@pytest.mark.parametrize("sound", [np.zeros((2, HOP)), np.zeros(0), np.full(HOP, np.inf)])
def test_sounds_that_cannot_be_played_are_refused(sound):
    with pytest.raises(ValueError, match="sound must be finite"):
        ClosedLoop(Recorder()).trial(sound)


def test_a_part_of_a_bin_that_the_bins_would_hide_does_not_shift_later_trials(model):
    loop = ClosedLoop(Stream(model), between="carry")
    with pytest.raises(ValueError, match="whole bins of"):
        loop.trial(np.zeros(3 * HOP + 1))
    assert loop.target.frames == (0,)
    assert ClosedLoop(lambda x: np.zeros(round(x.size / 244.14)), audio_fs=48828.125, dt_ms=5.0).trial(
        np.zeros(488)
    ).shape == (1, 2)


@pytest.mark.parametrize("unit", ["fraction of maximum", "z-score", "spikes/s", "Hz"])
def test_spikes_are_not_drawn_of_rates_that_are_no_means_of_counts(unit):
    known = Linear(6, 3, wav2spec=CausalMelSpectrogram(FS, n_mels=6), norm="none").eval()
    known.fitted_on = FittedOn(response_unit=unit)
    with pytest.raises(ValueError, match="counts whose means are the rates"):
        ClosedLoop(Stream(known), spikes=True)
    ClosedLoop(Stream(known))


def test_part_of_a_bin_is_refused_and_spectrograms_are_not_shown_as_sound():
    with pytest.raises(ValueError, match="whole bins"):
        ClosedLoop(lambda samples: np.zeros(samples.size // HOP), audio_fs=FS, dt_ms=5.0).trial(np.zeros(130))
    with pytest.raises(ValueError, match="takes samples"):
        Presentation(Recorder(), lead_ms=10.0).show([np.zeros((3, 4))])
