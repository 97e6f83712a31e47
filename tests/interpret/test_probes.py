"""Probes on models whose answers are known: by formula, or because the neuron was simulated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret.probes import (
    PROBES,
    Presentation,
    am_responses,
    click_responses,
    forward_masking,
    gap_responses,
    noise_responses,
    oddball_responses,
    plain_cochleagram,
    probe_battery,
    ripple_pattern,
    ripple_responses,
    sweep_responses,
    tone_responses,
    two_tone_responses,
)

# not of the face: what probes make of their first argument, what Presentation.for_dataset uses, their sounds
from deepSTRF.interpret.probes.presentation import as_presentation, dataset_cochleagram
from deepSTRF.interpret.probes.sounds import (  # inner: tested by itself
    amplitude_of,
    noise,
    ramped,
    sweep,
    tone,
)
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram

FS, HOP, DT = 16000, 80, 5.0
HERTZ = 500.0 * 2.0 ** (np.arange(24) / 6)


def linear(strfs, activation=None, **options):
    """A Linear model with these STRFs (N, F, T) and no bias."""
    strfs = torch.as_tensor(np.asarray(strfs), dtype=torch.float32)
    n, bands, lags = strfs.shape
    model = Linear(bands, lags, n, norm="none", output_activation=activation, **options).eval()
    with torch.no_grad():
        kernel = model.readout.strf.kernel
        kernel.weight.zero_()
        kernel.weight[:, 0] = strfs
        kernel.bias.zero_()
    return model


def envelope(sounds):
    """A cochleagram of one band: the mean absolute sample of each bin."""
    return sounds.unfold(-1, HOP, HOP).abs().mean(-1).unsqueeze(1)


def presented(model, cochleagram=envelope, **options):
    return Presentation(model, cochleagram=cochleagram, audio_fs=FS, dt_ms=DT, **options)


def delayed(lags, gain=1.0, length=12):
    """Single-band STRFs, one spike of weight at each lag."""
    strfs = np.zeros((len(lags), 1, length))
    strfs[np.arange(len(lags)), 0, length - 1 - np.asarray(lags)] = gain
    return strfs


@pytest.fixture(scope="module")
def simulated():
    ds = SyntheticDataset(n_neurons=4, n_clips=1, n_repeats=1, clip_seconds=0.2, seed=1)
    return ds, Presentation.for_dataset(linear(ds.true_strfs, nn.ReLU()), ds)


# ---------------------------------------------------------------------- the presentation


def test_a_presentation_returns_the_rates_of_eval_mode_in_any_batch():
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=6)
    model = Linear(6, 4, 5, wav2spec=mel).train()
    sounds = 0.1 * np.random.default_rng(0).normal(size=(5, 1600))
    presentation = Presentation(model, neurons=[-1, 0], lead_ms=100.0)
    rates = presentation.play(sounds)
    assert model.training
    assert rates.shape == (5, 2, 40)
    x = torch.cat([torch.zeros(5, 1600), torch.from_numpy(sounds).float()], dim=1).unsqueeze(1)
    expected = model.eval()(x)[:, [4, 0], 0].detach().numpy()
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    one_by_one = Presentation(model, neurons=[-1, 0], lead_ms=100.0, batch_samples=1).play(sounds)
    np.testing.assert_allclose(one_by_one, rates, atol=1e-6)
    np.testing.assert_allclose(
        presentation.evoked(rates)[..., 0], rates[..., 20] - rates[..., 14:19].mean(-1)
    )
    assert as_presentation(presentation) is presentation
    doubled = Presentation(model.double()).play(sounds)
    assert doubled.shape == (5, 5, 80)  # 300 ms of silence


def test_a_presentation_makes_spectrograms_as_the_recording_was_made():
    options = {"n_neurons": 1, "n_clips": 1, "n_repeats": 1, "clip_seconds": 0.5}
    sound = SyntheticDataset(**options, return_waveform=True).stims[0]
    ds = SyntheticDataset(**options)
    cochleagram, fs = dataset_cochleagram(ds)
    assert fs == FS
    torch.testing.assert_close(cochleagram(sound), ds.stims[0])
    plain = NeuralDataset.from_arrays([torch.ones(4, 9)], [np.ones((1, 1, 9))], dt_ms=5.0)
    with pytest.raises(ValueError, match="cochleagram="):
        Presentation.for_dataset(Linear(4, 3), plain)


def test_shown_spectrograms_follow_silence():
    presentation = Presentation(linear(delayed([2])), dt_ms=DT, lead_ms=50.0)
    rates = presentation.show([np.array([[1.0, 2.0, 3.0, 4.0]])], silence=-1.0)
    assert rates[0, 0, 2:].tolist() == [-1.0] * 8 + [-1.0, -1.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="for_dataset"):
        presentation.play([np.zeros(80)])
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=6)
    assert Presentation(Linear(6, 4, wav2spec=mel)).show([np.ones((6, 3))]).shape == (1, 1, 63)


def test_a_model_of_the_users_own_is_probed():
    class Own(nn.Module):
        def forward(self, x):
            return x.mean(2, keepdim=True).repeat(1, 3, 1, 1)

    presentation = presented(Own())
    assert presentation.neurons == [0, 1, 2]
    assert click_responses(presentation, watched_ms=20.0).evoked.shape == (3, 3, 4)


def test_what_a_presentation_refuses():
    mel = Linear(6, 4, wav2spec=CausalMelSpectrogram(audio_fs=FS, n_mels=6))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        Presentation("model")
    with pytest.raises(ValueError, match="front-end"):
        Presentation(mel, cochleagram=envelope, audio_fs=FS)
    with pytest.raises(ValueError, match="dt_ms"):
        Presentation(Linear(1, 4))
    with pytest.raises(ValueError, match="together"):
        Presentation(Linear(1, 4), audio_fs=FS, dt_ms=DT)
    with pytest.raises(IndexError, match="neuron 3"):
        Presentation(mel, neurons=[3])
    with pytest.raises(ValueError, match="multiple of 80"):
        Presentation(mel).play([np.zeros(81)])
    with pytest.raises(ValueError, match="one length"):
        Presentation(mel).play([np.zeros(80), np.zeros(160)])
    with pytest.raises(ValueError, match="nothing to play"):
        Presentation(mel).play([])
    with pytest.raises(ValueError, match=r"\(1, F, 61\)"):
        presented(Linear(1, 4), lambda sounds: torch.zeros(len(sounds), 1, 3)).play([np.zeros(80)])


# ---------------------------------------------------------------------- sounds


def test_sounds_have_their_levels_and_ramps():
    assert amplitude_of(-20.0) == 0.1
    np.testing.assert_allclose(
        ramped(np.ones(4), 1000.0, ramp_ms=2.0), [0.146, 0.854, 0.854, 0.146], atol=1e-3
    )
    assert np.std(tone(1000.0, FS, FS, level_db=-20.0)) == pytest.approx(0.1, abs=5e-4)
    assert np.std(noise(FS, FS, level_db=-20.0, ramp_ms=0.0)) == pytest.approx(0.1, abs=5e-4)
    assert sweep(500.0, 2000.0, 800, FS).shape == (800,)


# ---------------------------------------------------------------------- tones


def v_shaped(sounds):
    """Answers a tone with its level above a V-shaped threshold: tip -60 dB at 2 kHz, 40 dB per octave."""
    part = sounds.numpy()[:, -sounds.shape[1] // 4 :]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(part.shape[1]), axis=1))
    hertz = np.fft.rfftfreq(part.shape[1], 1 / FS)[spectrum.argmax(1)]
    level = 10 * np.log10((part**2).mean(1) + 1e-20)
    above = np.maximum(level + 60 - 40 * np.abs(np.log2(np.maximum(hertz, 1) / 2000)), 0)
    values = torch.zeros(len(sounds), 1, sounds.shape[1] // HOP)
    values[:, 0, 60:] = torch.from_numpy(above)[:, None]
    return values


def test_threshold_best_frequency_and_q10_of_a_v_shaped_area():
    tones = 2000.0 * 2.0 ** (np.arange(-12, 13) / 8)
    # tails shorter than the analysis window: the last quarter of lead and tone lies inside the tone
    area = tone_responses(
        presented(linear([[[1.0]], [[0.0]], [[-1.0]]]), v_shaped), tones, np.arange(-75.0, -10.0, 5.0),
        duration_ms=495.0, tail_ms=5.0, criterion=0.01,
    )  # fmt: skip
    assert area.response.shape == (3, 13, 25)
    assert area.best_khz[0] == pytest.approx(2.0, rel=0.01)
    assert area.characteristic_khz[0] == pytest.approx(2.0, rel=0.01)
    assert area.lowest_threshold_db[0] == pytest.approx(-60, abs=2.0)
    assert area.bandwidth_octaves[0] == pytest.approx(0.5, rel=0.1)
    assert area.q10[0] == pytest.approx(1 / (2**0.25 - 2**-0.25), rel=0.1)
    for at, octave in ((4, -1.0), (20, 1.0)):
        assert area.threshold_db[0, at] == pytest.approx(-60 + 40 * abs(octave), abs=2.5)
    assert np.isnan(area.best_khz[1:]).all()
    assert np.isnan(area.q10[1:]).all()
    assert len(area.table()) == 3


def test_simulated_neurons_answer_tones_at_their_best_frequency(simulated):
    ds, presentation = simulated
    area = tone_responses(presentation, levels_db=[-60.0, -40.0, -20.0], duration_ms=50.0)
    truth = np.array([neuron["best_frequency_hz"] for neuron in ds.nrn_meta])
    assert np.abs(np.log2(1000 * area.best_khz / truth)).max() < 0.2  # bands are 1/6 octave wide
    assert (area.baseline >= 0).all()


def test_soft_tones_measure_the_bandwidth_of_known_neurons(simulated):
    sds = np.array([0.2, 0.35, 0.5])
    spectral = np.exp(-0.5 * (np.log2(HERTZ / 2000)[None] / sds[:, None]) ** 2)
    temporal = np.exp(-0.5 * ((DT * np.arange(9)[::-1] - 12.0) / 4.0) ** 2)
    presentation = Presentation.for_dataset(linear(spectral[:, :, None] * temporal), simulated[0])
    area = tone_responses(presentation, levels_db=np.arange(-100.0, -50.0, 10.0))
    expected = 2.3548 * sds
    assert area.width_octaves[:, 2] == pytest.approx(expected, rel=0.15)  # -80 dB: no splatter
    assert area.bandwidth_octaves == pytest.approx(expected, rel=0.2)
    assert (np.diff(area.q10) < 0).all()
    np.testing.assert_allclose(area.best_khz, 2.0, rtol=0.08)


# ---------------------------------------------------------------------- clicks and noise


def test_a_click_arrives_when_the_weight_says():
    found = click_responses(presented(linear(delayed([0, 3, 7]))), [-20.0, 0.0], watched_ms=100.0)
    np.testing.assert_allclose(found.latency_ms, np.array([2.5, 17.5, 37.5])[:, None].repeat(2, 1))
    np.testing.assert_allclose(found.evoked[:, 1], 10 * found.evoked[:, 0], rtol=1e-5)
    assert found.duration_ms[1, 0] == pytest.approx(5.0)
    assert (found.rebound == 0).all()
    with_rebound = delayed([2]) - 0.4 * delayed([6])
    assert click_responses(presented(linear(with_rebound))).rebound == pytest.approx(0.4, rel=1e-4)


def test_simulated_neurons_answer_clicks_at_their_latency(simulated):
    ds, presentation = simulated
    found = click_responses(presentation)
    truth = np.array([neuron["latency_ms"] for neuron in ds.nrn_meta])
    assert np.abs(found.latency_ms[:, -1] - truth).max() < 5.0  # one bin


def test_rate_level_functions():
    class Nonmonotonic(nn.Module):
        def forward(self, drive):  # neurons last
            level = 20 * torch.log10(drive.clamp_min(1e-6))
            return torch.stack(
                [(level[..., 0] + 90).clamp_min(0), 30 - (level[..., 0] + 50).abs()], -1
            ).clamp_min(0)

    model = linear(delayed([0, 0]), Nonmonotonic())
    found = noise_responses(presented(model), np.arange(-80.0, 0.0, 10.0), n_tokens=2)
    assert found.best_level_db.tolist() == [-10.0, -50.0]
    assert found.monotonicity[0] == 1.0
    assert found.monotonicity[1] < 0.1
    assert found.onset_index[0] == pytest.approx(0.0, abs=0.05)
    assert found.evoked.shape == (2, 8, 60)
    phasic = linear(delayed([0]) - delayed([1]))
    burst = noise_responses(presented(phasic), [-20.0], n_tokens=1)
    assert burst.onset_index[0] > 0.9
    assert burst.latency_ms[0] < 10.0
    silent = noise_responses(presented(linear(delayed([0], gain=-1.0))), [-20.0])
    assert np.isnan(silent.threshold_db).all()


# ---------------------------------------------------------------------- modulation


def test_a_delay_is_a_phase_and_passes_all_rates():
    found = am_responses(
        presented(linear(delayed([0, 4]))), [4.0, 10.0, 20.0], carrier_hz=2000.0, level_db=0.0
    )
    size = np.sqrt(2) * np.abs(np.sin(np.pi / 4 * np.arange(8))).mean()  # mean absolute value of the carrier
    np.testing.assert_allclose(found.mean, size, rtol=0.02)
    np.testing.assert_allclose(found.modulation, size, rtol=0.02)
    np.testing.assert_allclose(found.vector_strength, 0.5, atol=0.01)
    np.testing.assert_allclose(found.phase[0], 0, atol=0.05)
    np.testing.assert_allclose(found.phase[1], -2 * np.pi * np.array([4, 10, 20]) * 0.02, atol=0.05)


def test_a_smoother_follows_slow_modulation_only():
    strfs = np.concatenate([np.full((1, 1, 12), 1 / 12), delayed([0])])
    found = am_responses(presented(linear(strfs)), [2.0, 16.0], n_tokens=1)
    assert found.best_rate_hz[0] == 2.0
    assert found.modulation[0, 1] < 0.2 * found.modulation[0, 0]
    assert found.modulation[1, 1] > 0.9 * found.modulation[1, 0]
    with pytest.raises(ValueError, match="below 100 Hz"):
        am_responses(presented(linear(strfs)), [200.0])


def upward(sign=1.0):
    """An STRF whose ridge climbs an octave in 25 ms: (1, 24, 20)."""
    octaves, ms = np.log2(HERTZ / 2000.0)[:, None], DT * (np.arange(20) - 10.0)[None]
    moving = np.cos(2 * np.pi * (sign * 16.0 * ms / 1000 - 0.8 * octaves))
    return (moving * np.exp(-0.5 * (octaves / 0.5) ** 2 - 0.5 * (ms / 20.0) ** 2))[None]


def test_drawn_ripples_measure_the_fourier_transform_of_a_linear_model():
    strfs = np.concatenate([upward(), upward(-1.0)])
    presentation = Presentation(linear(strfs), dt_ms=DT, frequencies_hz=HERTZ)
    found = ripple_responses(presentation, [4.0, 8.0, 16.0], [0.0, 0.4, 0.8], domain="spectrogram", depth=0.5)
    assert found.rates_hz.tolist() == [-16.0, -8.0, -4.0, 4.0, 8.0, 16.0]
    lags = DT / 1000 * np.arange(20)[::-1]
    x = np.log2(HERTZ / HERTZ[0])
    for s, scale in enumerate(found.scales_cyc_oct):
        for r, rate in enumerate(found.rates_hz):
            wave = np.exp(-2j * np.pi * (rate * lags[None] + scale * x[:, None]))
            np.testing.assert_allclose(found.component[:, s, r], 0.5 * (strfs * wave).sum((1, 2)), atol=2e-4)
    assert found.best_rate_hz.tolist() == [16.0, 16.0]
    np.testing.assert_allclose(found.best_scale_cyc_oct, 0.8)
    assert found.direction_index[0] > 0.9
    assert found.direction_index[1] < -0.9
    climbing = ripple_pattern(HERTZ, np.arange(3) * DT, 10.0, 1.0)
    assert (np.diff(climbing[4:8].argmax(0)) >= 0).all()
    with pytest.raises(ValueError, match="frequencies_hz"):
        ripple_responses(Presentation(linear(strfs), dt_ms=DT), domain="spectrogram")


@pytest.fixture(scope="module")
def direction_neurons():
    ds = SyntheticDataset(n_neurons=1, n_clips=1, n_repeats=1, clip_seconds=0.2)
    assert np.allclose(ds.frequencies_hz, HERTZ, rtol=1e-3)
    return Presentation.for_dataset(linear(np.concatenate([upward(), upward(-1.0)]), nn.ReLU()), ds)


def test_sounds_tell_the_direction_too(direction_neurons):
    ripples = ripple_responses(direction_neurons, [16.0], [0.8], duration_ms=500.0)
    assert ripples.direction_index[0] > 0.5
    assert ripples.direction_index[1] < -0.5
    sweeps = sweep_responses(direction_neurons, [20.0, 40.0])
    assert (sweeps.direction_index[0] > 0.1).all()
    assert (sweeps.direction_index[1] < -0.1).all()
    np.testing.assert_allclose(sweeps.best_direction_index[0], -sweeps.best_direction_index[1], atol=0.25)


# ---------------------------------------------------------------------- gaps, pairs, sequences


def test_a_neuron_that_integrates_needs_longer_gaps():
    strfs = np.concatenate([delayed([0], length=40), np.full((1, 1, 40), 1 / 40)])
    found = gap_responses(presented(linear(strfs)), [5.0, 10.0, 20.0, 50.0, 100.0, 200.0], n_tokens=2)
    assert (np.diff(found.change[1]) > 0).all()
    assert found.threshold_ms[1] == pytest.approx(100.0, rel=0.15)  # half of its 200 ms
    assert found.threshold_ms[0] <= 10.0
    before = found.time_ms < -205.0
    assert np.abs(found.difference[:, :, before]).max() < 1e-6
    assert gap_responses(presented(linear(np.zeros((1, 1, 3)))), [5.0, 20.0]).threshold_ms[0] != 0


def two_bands(sounds):
    """Energy near 1 kHz and near 4 kHz, without a real filter: by Fourier components per bin."""
    frames = sounds.unfold(-1, HOP, HOP) * torch.hann_window(HOP, dtype=sounds.dtype)
    spectrum = torch.fft.rfft(frames).abs() / HOP
    return torch.stack([spectrum[..., 3:8].sum(-1), spectrum[..., 16:25].sum(-1)], dim=1)


def test_inhibition_is_seen_with_a_second_tone():
    strfs = np.zeros((2, 2, 3))
    strfs[:, 0, -1], strfs[0, 1, -1] = 1.0, -0.5
    found = two_tone_responses(
        presented(linear(strfs, nn.ReLU()), two_bands), [1000.0, 1000.0], [2000.0, 4000.0]
    )
    assert found.suppression[0, 1] == pytest.approx(0.5, abs=0.05)
    assert abs(found.suppression[1, 1]) < 0.02
    assert abs(found.suppression[0, 0]) < 0.05
    assert found.most_khz[0] == 4.0
    with pytest.raises(ValueError, match="one per neuron"):
        two_tone_responses(presented(linear(strfs), two_bands), [1000.0] * 3)


def adapting(n_bands):
    prefilter = {"prefiltering": "icadaptation", "dt": DT, "min_freq": 500.0, "max_freq": 8000.0}
    return linear(np.eye(n_bands)[:, :, None] * np.array([0.0, 0.0, 1.0]), prefiltering=prefilter)


def test_masking_is_adaptation_not_linear():
    straight = forward_masking(presented(linear(delayed([0, 3]))), 1000.0, [10.0, 40.0])
    np.testing.assert_allclose(straight.recovery, 1.0, rtol=1e-4)
    assert straight.recovery_ms.tolist() == [10.0, 10.0]
    masked = forward_masking(presented(adapting(2), two_bands, neurons=[0]), 1000.0, [10.0, 200.0, 800.0])
    assert (np.diff(masked.recovery[0]) > 0).all()
    assert masked.recovery[0, 0] < 0.3
    assert masked.recovery[0, 2] > 0.9
    assert 10.0 < masked.recovery_ms[0] < 800.0
    other = forward_masking(presented(adapting(2), two_bands, neurons=[0]), 1000.0, [10.0], masker_hz=4000.0)
    assert other.recovery[0, 0] > 0.98


def test_only_what_adapts_prefers_the_rare_tone():
    options = {"apart_octaves": 2.0, "n_tones": 30, "rare": 0.2, "period_ms": 150.0}
    straight = oddball_responses(presented(linear(np.ones((1, 2, 3))), two_bands), 2000.0, **options)
    assert abs(straight.common_ssa_index[0]) < 1e-5
    assert straight.rare.shape == (1, 2, 30)
    prefilter = {"prefiltering": "icadaptation", "dt": DT, "min_freq": 500.0, "max_freq": 8000.0}
    both = linear(np.ones((1, 2, 1)), prefiltering=prefilter)
    found = oddball_responses(presented(both, two_bands), 2000.0, **options)
    assert found.common_ssa_index[0] > 0.05
    assert (found.ssa_index > 0).all()
    with pytest.raises(ValueError, match="rare"):
        oddball_responses(presented(both, two_bands), 2000.0, rare=0.9)


def test_every_probe_gives_a_table(direction_neurons):
    probes = [
        tone_responses(direction_neurons, [1000.0, 2000.0], [-20.0]),
        click_responses(direction_neurons),
        noise_responses(direction_neurons, [-20.0], n_tokens=1),
        gap_responses(direction_neurons, [20.0], n_tokens=1),
    ]
    table = probes[0].table().joined(*(probe.table() for probe in probes[1:]))
    assert table.neurons == (0, 1)
    assert table.to_csv().startswith("neuron,tone_best_khz")
    assert len(table.to_csv().splitlines()) == 3


def test_a_plain_cochleagram_puts_tones_where_they_are_and_nothing_into_the_past():
    cochleagram = plain_cochleagram(HERTZ[::3], FS, DT)
    tone = torch.sin(2 * np.pi * HERTZ[9] / FS * torch.arange(1600.0))[None].repeat(2, 1)
    tone[:, :800] = 0
    frames = cochleagram(tone)
    assert frames.shape == (2, 8, 20)
    assert (frames[:, :, :10] == 0).all()
    assert frames[0, :, 15].argmax() == 3
    later = tone.clone()
    later[:, 1200:] = 7.0
    assert torch.equal(cochleagram(later)[..., :15], frames[..., :15])
    with pytest.raises(ValueError, match="ascending"):
        plain_cochleagram(HERTZ[::-1], FS, DT)
    with pytest.raises(ValueError, match="no Fourier bin"):
        plain_cochleagram([100.0, 101.0], FS, DT)


def test_the_whole_battery_in_one_table(simulated):
    _, presentation = simulated
    said = []
    battery = probe_battery(presentation, progress=said.append)
    assert said == list(battery.results) == list(PROBES)
    assert len(battery.table) == 4
    area = battery.results["tones"]
    played = battery.results["two_tone"].probe_khz
    assert np.abs(np.log2(played / area.best_khz)).max() < 1 / 8
    assert np.isin(played, area.frequencies_khz).all()
    assert battery.table.to_csv().count("\n") == 5
    few = probe_battery(presentation, ["oddball", "clicks"])
    assert list(few.results) == ["clicks", "oddball"]
    with pytest.raises(ValueError, match="tones, clicks"):
        probe_battery(presentation, ["melody"])
    silent = probe_battery(presented(linear(np.zeros((1, 2, 3))), two_bands), ["masking"])
    assert np.isnan(silent.results["masking"].recovery).all()
