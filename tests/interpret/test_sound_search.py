"""Search of sounds without gradients: known optima, level, budget, noise, and what the gradient finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from deepSTRF.interpret import ClosedLoop, SoundFamily, exciting_sound, search_sound
from deepSTRF.interpret.probes import Presentation
from deepSTRF.interpret.sound_search import _Evolution  # the strategy by itself: closed forms
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.streaming import Stream

FS, HOP = 16000, 80


def energy_at(hertz):
    """A neuron that answers each bin with its amplitude at one frequency."""
    wave = np.exp(-2j * np.pi * hertz * np.arange(HOP) / FS)
    return lambda samples: np.abs(samples.reshape(-1, HOP) @ wave) / HOP


def loop_of(respond, **options):
    return ClosedLoop(respond, audio_fs=FS, dt_ms=5.0, **options)


@pytest.fixture(scope="module")
def model():
    """Two neurons behind a mel front-end: one wants a narrow band on and another off, one a wide band."""
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=12)
    model = Linear(12, 5, 2, wav2spec=mel, norm="none", output_activation=nn.Softplus())
    with torch.no_grad():
        kernel = model.readout.strf.kernel
        kernel.weight.zero_()
        kernel.weight[0, 0, 5, -2], kernel.weight[0, 0, 7, -2] = 1.0, -0.5
        kernel.weight[1, 0, 3:7, -3:] = 0.2
        kernel.bias.fill_(-1.0)
    return model.eval()


# ---- the strategy


def test_the_strategy_finds_the_top_of_a_narrow_ridge():
    top = np.array([0.8, -0.5, 0.3, 0.0, -1.0, 1.2])
    scale = np.geomspace(1.0, 100.0, 6)
    strategy = _Evolution(6, 9, np.random.default_rng(0))
    for _ in range(300):
        points = strategy.ask()
        strategy.tell(points, -(scale * (points - top) ** 2).sum(axis=1))
    np.testing.assert_allclose(strategy.centre, top, atol=1e-6)
    # spreads follow the curvature: variance falls as its inverse
    slope = np.polyfit(np.log(scale), np.log(strategy.variance), 1)[0]
    assert -1.6 < slope < -0.5


def test_the_strategy_sees_only_the_order_of_values():
    plain, other = (_Evolution(4, 8, np.random.default_rng(3)) for _ in range(2))
    for _ in range(30):
        first, second = plain.ask(), other.ask()
        np.testing.assert_array_equal(first, second)
        values = -(first**2).sum(axis=1)
        plain.tell(first, values)
        other.tell(second, np.exp(5.0 * values) * 1e-9)


def test_without_a_slope_the_step_neither_grows_nor_shrinks():
    rng, steps = np.random.default_rng(0), []
    for seed in range(20):
        strategy = _Evolution(8, 10, np.random.default_rng(seed))
        for _ in range(40):
            strategy.tell(strategy.ask(), rng.standard_normal(10))
        steps.append(math.log(strategy.step))
    assert abs(np.mean(steps)) < 0.7  # random selection: no drift by more than a factor of two


# ---- families


def test_points_cover_the_ranges_evenly():
    family = SoundFamily({"a": (-1.0, 3.0), "b": (100.0, 6400.0)}, lambda p: np.ones(10), FS, log=["b"])
    draws = [family.parameters(point) for point in np.random.default_rng(0).standard_normal((4000, 2))]
    a, b = (np.array([draw[name] for draw in draws]) for name in "ab")
    np.testing.assert_allclose(np.quantile(a, [0.25, 0.5, 0.75]), [0.0, 1.0, 2.0], atol=0.1)
    np.testing.assert_allclose(np.log2(np.quantile(b, [0.5]) / 800.0), 0.0, atol=0.15)
    assert a.min() >= -1.0
    assert b.max() <= 6400.0


def test_chords_have_the_levels_that_their_names_state():
    family = SoundFamily.tones(FS, 400.0, (500.0, 2000.0), n_tones=3, n_frames=2, range_db=60.0)
    assert list(family.ranges) == [f"{f} Hz, {t} ms" for f in (500, 1000, 2000) for t in (100, 300)]
    levels = dict.fromkeys(family.ranges, -60.0) | {"1000 Hz, 100 ms": 0.0, "1000 Hz, 300 ms": -20.0}
    sound = family.synthesize(levels)
    first, last = sound[:1600], sound[-1600:]  # held outside of the two points
    amplitude = [
        np.abs(part @ np.exp(-2j * np.pi * 1000 * np.arange(1600) / FS)) / 800 for part in (first, last)
    ]
    np.testing.assert_allclose(amplitude, [1.0, 0.1], rtol=0.01)
    middle = sound[3199 - 160 : 3200 + 160]  # -10 dB half way
    assert np.sqrt(2 * (middle**2).mean()) == pytest.approx(10**-0.5, rel=0.02)


def test_noise_bands_are_where_they_are_said_to_be():
    family = SoundFamily.noise_bands(FS, 500.0, (250.0, 6000.0))
    sound = family.synthesize(
        {"centre_hz": 1000.0, "bandwidth_octaves": 1.0, "am_rate_hz": 8.0, "am_depth": 1.0}
    )
    power, hertz = np.abs(np.fft.rfft(sound)) ** 2, np.fft.rfftfreq(sound.size, 1 / FS)
    inside = (hertz > 1000 / 2**0.5 - 20) & (hertz < 1000 * 2**0.5 + 20)
    assert power[inside].sum() > 0.99 * power.sum()
    envelope = (sound.reshape(-1, 10) ** 2).mean(axis=1)
    spectrum = np.abs(np.fft.rfft(envelope - envelope.mean()))
    assert np.fft.rfftfreq(envelope.size, 10 / FS)[spectrum[:20].argmax()] == 8.0
    narrow = family.synthesize(
        {"centre_hz": 260.0, "bandwidth_octaves": 0.001, "am_rate_hz": 2.0, "am_depth": 0.0}
    )
    assert narrow.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoundFamily({}, lambda p: 0, FS), "one range"),
        (lambda: SoundFamily({"a": (1.0, 1.0)}, lambda p: 0, FS), "ascending"),
        (lambda: SoundFamily({"a": (0.0, 1.0)}, lambda p: 0, FS, log=["a"]), "above 0"),
        (lambda: SoundFamily({"a": (0.0, 1.0)}, lambda p: 0, FS, log=["b"]), "names of parameters"),
        (lambda: SoundFamily({"a": (0.0, 1.0)}, "sine", FS), "synthesize"),
        (lambda: SoundFamily.tones(FS, 100.0, (500.0, 9000.0)), "below 8000"),
        (lambda: SoundFamily.tones(FS, 100.0, (500.0, 501.0)), "too dense"),
        (lambda: SoundFamily.noise_bands(FS, 0.0, (500.0, 4000.0)), "duration_ms"),
    ],
)
def test_what_a_family_refuses(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


# ---- the search


@pytest.mark.parametrize("reduce", ["mean", "last"])
def test_it_finds_the_best_frequency_and_keeps_the_level(reduce, tmp_path):
    family = SoundFamily(
        {"hertz": (100.0, 6400.0)},
        lambda p: 7.0 * np.sin(2 * np.pi * p["hertz"] * np.arange(1590) / FS),
        FS,
        log=["hertz"],
    )
    heard = []

    def respond(samples):
        heard.append(samples)
        return energy_at(1400.0)(samples)

    loop = loop_of(respond, chunk_ms=1e4)
    found = search_sound(Presentation(loop, lead_ms=50.0), family, n_trials=150, rms=0.02, reduce=reduce)
    assert found.parameters["hertz"] == pytest.approx(1400.0, rel=0.02)
    assert found.sound.shape == (1600,)  # whole bins
    assert np.sqrt((found.sound**2).mean()) == pytest.approx(0.02)
    assert found.response == pytest.approx(0.02 / math.sqrt(2), rel=0.05 if reduce == "mean" else 0.15)
    assert found.null_response == 0
    assert found.response_error < 1e-12
    levels = [np.sqrt((one[800:] ** 2).mean()) for one in heard[1:]]  # the first counts the neurons
    assert all(level == pytest.approx(0.02) or level == 0 for level in levels)
    assert found.n_trials == len(heard) - 1 == loop.n_trials - 1 <= 150
    samples, rate = soundfile.read(found.write_wav(tmp_path / "found.wav"))
    assert rate == FS
    assert samples.size == 1600 + 2 * 0.15 * FS  # silence around it


def test_the_response_is_of_trials_that_did_not_choose():
    # every sound is alike: single trials reach far above the mean, the measured response must not
    responses = []
    for seed in range(12):
        loop = loop_of(lambda samples: np.full(samples.size // HOP, 0.2), spikes=True, seed=seed)
        family = SoundFamily.noise_bands(FS, 50.0, (200.0, 4000.0))
        found = search_sound(Presentation(loop, lead_ms=5.0), family, n_trials=100, seed=seed)
        assert found.trial_responses.max() > 0.4
        responses.append(found.response)
    # 3 trials of 10 bins each: standard error of the mean over seeds 0.2 ** 0.5 / 360 ** 0.5
    assert np.mean(responses) == pytest.approx(0.2, abs=4 * math.sqrt(0.2 / (12 * 20)))


def test_a_stream_with_spikes_reaches_most_of_what_the_gradient_finds(model):
    best = exciting_sound(model, duration_ms=100.0, reduce="mean", n_steps=60)
    family = SoundFamily.tones(FS, 100.0, (100.0, 7000.0), n_tones=24, n_frames=1)
    for neuron in (0, 1):
        loop = ClosedLoop(Stream(model), spikes=True)
        found = search_sound(Presentation(loop, lead_ms=30.0), family, neuron, n_trials=300)
        sound = torch.from_numpy(found.sound).float()[None, None]
        with torch.no_grad():
            true = model(sound)[0, neuron, 0].mean().item()
        null, top = best.null_response[neuron], best.response[neuron]
        assert (true - null) / (top - null) > 0.6
        assert abs(found.response - true) < 5 * found.response_error
        assert np.sqrt((found.sound**2).mean()) == pytest.approx(
            np.sqrt((best.stimulus[0] ** 2).mean()), rel=1e-4
        )


def test_a_model_by_itself_gives_the_same_as_its_stream(model):
    family = SoundFamily.noise_bands(FS, 50.0, (200.0, 4000.0))
    live = search_sound(Presentation(Stream(model.double()), lead_ms=30.0), family, n_trials=60)
    offline = search_sound(Presentation(model, lead_ms=30.0), family, n_trials=60)
    model.float()
    np.testing.assert_allclose(live.trial_responses, offline.trial_responses, atol=1e-12)
    np.testing.assert_allclose(live.sound, offline.sound, atol=1e-12)


def test_progress_is_told_and_can_end_the_search():
    calls = []

    def progress(n_trials, mean):
        calls.append((n_trials, mean))
        return len(calls) == 3

    family = SoundFamily.noise_bands(FS, 50.0, (200.0, 4000.0))
    found = search_sound(loop_of(energy_at(1000.0)), family, n_trials=200, population=10, progress=progress)
    assert [n for n, _ in calls] == [10, 20, 30]
    assert found.trial_responses.size == 30
    np.testing.assert_allclose(
        found.trial_responses.reshape(-1, found.population).mean(1), [mean for _, mean in calls]
    )
    assert found.n_trials == 30 + 6 * 5


FAMILY = SoundFamily.noise_bands(FS, 50.0, (200.0, 4000.0))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (lambda loop: search_sound(loop, FAMILY, 1), "neuron must be one of"),
        (lambda loop: search_sound(loop, FAMILY, n_trials=10), "n_trials must be 22"),
        (lambda loop: search_sound(loop, FAMILY, population=3), "population must be 4"),
        (lambda loop: search_sound(loop, FAMILY, reduce="max"), "reduce"),
        (lambda loop: search_sound(loop, FAMILY, rms=0.0), "rms"),
        (
            lambda loop: search_sound(loop, SoundFamily.noise_bands(8000, 50.0, (200.0, 3000.0))),
            "16000 samples",
        ),
        (
            lambda loop: search_sound(loop, SoundFamily({"a": (0.0, 1.0)}, lambda p: np.zeros(80), FS)),
            "not silence",
        ),
    ],
)
def test_what_a_search_refuses(search, message):
    with pytest.raises((ValueError, IndexError), match=message):
        search(loop_of(energy_at(1000.0)))


def test_the_least_budget_that_is_named_is_enough():
    assert search_sound(loop_of(energy_at(1000.0)), FAMILY, n_trials=22).n_trials == 22
