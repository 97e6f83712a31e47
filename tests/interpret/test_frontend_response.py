"""Measured tuning and delays against designed ones, for front-ends of every kind of output."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import deepSTRF.models.wav2spec as front_ends
from deepSTRF.interpret import (
    front_end_response,
    initial_front_end,
    rf_duration_ms,
    waveform_fields,
)
from deepSTRF.models import Configurable
from deepSTRF.models.audio import Linear
from deepSTRF.models.gradients import NoFrontEndError  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.registry import WAV2SPEC

FS, HOP = 16000, 80


class Resonator(nn.Module, Configurable):
    """Second-order resonators by their impulse responses, and any compression: the tuning is known."""

    hop, audio_fs, latency_ms = HOP, FS, 4.0

    def __init__(self, centres_hz=(500.0, 2000.0), compression="none", delay_ms=0.0, gain=1.0):
        super().__init__()
        self.compression = compression
        self.out_channels = len(centres_hz)
        n = torch.arange(1200.0)
        late = round(delay_ms * FS / 1000)
        decay = torch.exp(-2 * math.pi * 100.0 * n / FS)
        taps = torch.stack([decay * torch.cos(2 * math.pi * f * n / FS) for f in centres_hz])
        taps = torch.cat([torch.zeros(len(centres_hz), late), taps], dim=1) / taps.abs().sum(1, keepdim=True)
        self.taps = nn.Parameter(gain * taps.unsqueeze(1))

    def forward(self, x):
        filtered = nn.functional.conv1d(
            nn.functional.pad(x, (self.taps.shape[-1] - 1, 0)), self.taps.flip(-1)
        )
        if self.compression == "samples":
            return filtered[..., HOP - 1 :: HOP].unsqueeze(1)
        power = filtered.square().unfold(-1, HOP, HOP).mean(-1)
        y = {
            "none": lambda: (power + 1e-16).sqrt(),
            "log": lambda: (power + 1e-12).log(),
            "root": lambda: (power + 1e-16) ** 0.1,
        }[self.compression]()
        return y.unsqueeze(1)


def designed_gain_db(module, tones):
    """From the taps, without the module."""
    taps = module.taps.detach()[:, 0].double().numpy()
    phases = np.exp(-2j * math.pi * np.outer(tones, np.arange(taps.shape[1])) / FS)
    gain = np.abs(taps @ phases.T)
    return 20 * np.log10(gain / gain.max(1, keepdims=True))


@pytest.mark.parametrize("compression", ["none", "log", "root", "samples"])
def test_tuning_is_that_of_the_filters_whatever_the_compression(compression):
    module = Resonator(compression=compression)
    measured = front_end_response(module, n_tones=80, lowest_hz=100.0)
    expected = designed_gain_db(module, measured.frequencies_hz)
    strong = expected > -35
    assert np.abs(measured.gain_db - expected)[strong].max() < 0.35
    assert measured.gain_db.max(1).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(measured.centre_hz, [500, 2000], rtol=0.05)


def test_a_mel_bank_is_where_it_says():
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=8)
    measured = front_end_response(mel)
    np.testing.assert_allclose(measured.centre_hz, mel.frequencies_hz, rtol=0.03)
    np.testing.assert_allclose(measured.click_latency_ms, 2.5, atol=0.26)
    np.testing.assert_array_equal(measured.stated_latency_ms, np.full(8, 2.5))
    assert np.nanmin(measured.gain_db) >= -60.0
    assert np.nanmax(np.abs(measured.click)) == 1.0


@pytest.mark.parametrize("delay_ms", [0.0, 3.0, 12.0])
def test_latency_follows_a_delay_to_a_fraction_of_a_bin(delay_ms):
    prompt = front_end_response(Resonator(), n_tones=8).click_latency_ms
    late = front_end_response(Resonator(delay_ms=delay_ms), n_tones=8).click_latency_ms
    np.testing.assert_allclose(late - prompt, delay_ms, atol=0.3)


def test_bands_that_hear_nothing_are_nan_not_a_guess():
    module = Resonator(compression="log")
    with torch.no_grad():
        module.taps[1] = 0.0
    measured = front_end_response(module, n_tones=20)
    assert np.isnan(measured.gain_db[1]).all()
    assert np.isnan(measured.centre_hz[1])
    assert np.isnan(measured.click_latency_ms[1])
    assert np.isfinite(measured.gain_db[0]).all()


@pytest.mark.parametrize("kind", sorted(WAV2SPEC.names()))
def test_every_registered_front_end_can_be_measured(kind):
    module = front_ends.make_wav2spec(kind, audio_fs=FS, dt_ms=5.0, n_filters=5).train()
    measured = front_end_response(module, n_tones=60)
    assert module.training
    assert measured.gain_db.shape == (5, 60)
    assert np.isfinite(measured.centre_hz).all()
    stated = module.frequencies_hz.detach().double().numpy()
    order, low = np.argsort(stated), stated > 200
    assert (np.diff(measured.centre_hz[order]) > 0).all()
    np.testing.assert_allclose(measured.centre_hz[low], stated[low], rtol=0.25)
    assert (measured.click_latency_ms > -2.5).all()


def test_nothing_of_the_module_changes():
    module = Resonator().train()
    before = module.taps.detach().clone()
    front_end_response(module, n_tones=8)
    assert module.training
    assert module.taps.grad is None
    assert torch.equal(module.taps, before)


def test_illegal_arguments():
    with pytest.raises(TypeError, match=r"model\.wav2spec"):
        front_end_response("mel")
    with pytest.raises(ValueError, match="lacks hop, audio_fs"):
        front_end_response(nn.Identity())
    with pytest.raises(ValueError, match="n_tones"):
        front_end_response(Resonator(), n_tones=3)
    for name, value in (
        ("amplitude", 0.0),
        ("amplitude", math.nan),
        ("lowest_hz", 0.0),
        ("lowest_hz", 9000.0),
    ):
        with pytest.raises(ValueError, match=name):
            front_end_response(Resonator(), **{name: value})


def test_the_start_of_a_learned_front_end_is_rebuilt_from_its_arguments():
    module = Resonator(gain=2.0)
    assert initial_front_end(module) is None  # it has not moved
    start = module.taps.detach().clone()
    with torch.no_grad():
        module.taps.add_(1.0)
    state = torch.get_rng_state()
    before = initial_front_end(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(before.taps, start)
    assert not before.training
    assert initial_front_end(CausalMelSpectrogram(audio_fs=FS)) is None
    assert initial_front_end(nn.Conv1d(1, 1, 1)) is None


# ---------------------------------------------------------------------- the field in the sound


def test_duration_is_the_notebooks_line():
    gradmap = torch.randn(5000) * torch.linspace(0, 1, 5000) ** 8
    for mass in (0.5, 0.99):
        array = gradmap.numpy().astype(np.float64)
        summed = np.cumsum(np.abs(array)[::-1])
        expected = np.searchsorted(summed, mass * summed[-1]) / FS * 1000
        assert rf_duration_ms(gradmap, FS, mass) == expected
        assert rf_duration_ms(array, FS, mass) == expected
    assert rf_duration_ms(np.zeros(9), FS) == 0.0
    for wrong in ({"gradmap": np.zeros((2, 9))}, {"mass": 0.0}, {"mass": 1.5}, {"audio_fs": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            rf_duration_ms(**{"gradmap": np.zeros(9), "audio_fs": FS, **wrong})


def test_waveform_field_ends_with_the_strongest_response():
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=6)
    model = Linear(6, 4, 3, wav2spec=mel).eval()
    sound = 0.1 * torch.randn(1, 150 * HOP)
    (field,) = waveform_fields(model, sound, -1)
    rates = model(sound.unsqueeze(0))[0, 2, 0]
    assert field.neuron == 2
    assert field.response_bin == 60 + int(rates[60:].argmax())  # 0.3 s of past
    end = (field.response_bin + 1) * HOP
    assert len(field.gradmap) == len(field.stim) == round(0.3 * FS)
    np.testing.assert_array_equal(field.stim, sound[0, end - len(field.stim) : end].numpy())
    expected = model.waveform_gradmap(sound[:, :end], neuron=2)
    np.testing.assert_array_equal(field.gradmap, expected[-len(field.gradmap) :].numpy())
    assert 0 < field.duration_ms <= 25.0

    (short,) = waveform_fields(model, sound[:, : 5 * HOP], 0)  # less sound than a field is cropped to
    assert len(short.gradmap) == len(short.stim) == 5 * HOP
    with pytest.raises(NoFrontEndError, match="STRF_gradmap"):
        waveform_fields(Linear(6, 4), sound, 0)
