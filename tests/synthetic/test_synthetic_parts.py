"""The sounds and the spike generator on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from deepSTRF.datasets.audio.synthetic import (  # inner: tested by itself
    SOUND_KINDS,
    Neuron,
    draw_neuron,
    draw_spikes,
    make_sound,
)


@pytest.mark.parametrize("kind", SOUND_KINDS)
@pytest.mark.parametrize("n_samples", [1, 2, 37, 16000])
def test_sounds_of_any_length(kind, n_samples):
    sound = make_sound(kind, n_samples, 16000, np.random.default_rng(1))
    assert sound.shape == (n_samples,)
    assert sound.dtype == np.float32
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() < 1


@pytest.mark.parametrize("kind", SOUND_KINDS)
def test_sounds_span_the_frequencies_and_change_in_time(kind):
    sounds = [make_sound(kind, 32000, 16000, np.random.default_rng(seed)) for seed in range(12)]
    power = np.mean([np.abs(np.fft.rfft(sound)) ** 2 for sound in sounds], axis=0)
    hz = np.fft.rfftfreq(32000, 1 / 16000)
    shares = [power[(hz >= low) & (hz < 2 * low)].sum() / power.sum() for low in (300, 600, 1200, 2400, 4800)]
    assert min(shares) > 0.01
    assert power[hz < 80].sum() / power.sum() < 0.01
    envelopes = np.array(sounds).reshape(12, 200, 160).std(axis=2)
    assert (envelopes.std(axis=1) / envelopes.mean(axis=1)).min() > 0.2


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"kind is one of 'modulated_noise'.*got 'speech'"):
        make_sound("speech", 100, 16000, np.random.default_rng(0))


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.7, 2.0, 12.0])
def test_counts_are_poisson(rate):
    counts = draw_spikes(torch.full((1, 4000), rate), 10, np.random.default_rng(0)).ravel()
    for spikes in range(int(rate) + 3):
        share = poisson.pmf(spikes, rate)
        spread = np.sqrt(share * (1 - share) / counts.size)
        assert abs((counts == spikes).mean() - share) <= 4.5 * spread
    assert counts.dtype == np.int16


def test_repeats_bins_and_neurons_are_independent():
    counts = draw_spikes(torch.full((3, 5000), 1.0), 3, np.random.default_rng(0)).reshape(9, -1)
    off_diagonal = np.corrcoef(counts)[~np.eye(9, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.07
    assert abs(np.corrcoef(counts[0, 1:], counts[0, :-1])[0, 1]) < 0.07


def test_draws_of_a_neuron_do_not_depend_on_those_after_it():
    rate = torch.rand(4, 50)
    few = draw_spikes(rate[:2], 3, np.random.default_rng(5))
    np.testing.assert_array_equal(draw_spikes(rate, 3, np.random.default_rng(5))[:2], few)


def test_neurons_take_the_kinds_in_turn():
    hz = np.geomspace(500, 8000, 24)
    neurons = [draw_neuron(number, hz, seed=0) for number in range(6)]
    assert [neuron.kind for neuron in neurons] == ["strf", "ln", "gain", "onoff", "strf", "ln"]
    assert all(500 < neuron.best_frequency_hz < 8000 for neuron in neurons)
    assert draw_neuron(3, hz, seed=0) == neurons[3]
    assert draw_neuron(3, hz, seed=1) != neurons[3]


def test_a_kernel_peaks_at_the_best_frequency_and_the_latency():
    neuron = Neuron("strf", 2000.0, 0.3, 10.0, 0.4, 0.0, 0.5, 20.0)
    kernel = neuron.kernel(np.array([1000.0, 2000.0, 4000.0]), n_lags=9, dt_ms=5.0)
    assert np.unravel_index(kernel.argmax(), kernel.shape) == (1, 6)  # 2 kHz, 10 ms ago
