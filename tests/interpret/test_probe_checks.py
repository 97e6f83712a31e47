"""Sounds that cannot be played as asked are refused: they would give a number that means something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import exciting_spectrogram, waveform_fields
from deepSTRF.interpret.probes import (
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

# not of the face: the limit that the battery keeps to
from deepSTRF.interpret.probes.presentation import HIGHEST_SHARE
from deepSTRF.models.audio import ICNet, Linear, StateNet
from deepSTRF.models.wav2spec import CausalMelSpectrogram

FS = 16000
BANDS = 500.0 * 2.0 ** (np.arange(8) / 4)


@pytest.fixture(scope="module")
def presentation():
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=8)
    return Presentation(Linear(8, 3, 2, wav2spec=mel, norm="none"), lead_ms=50.0)


@pytest.fixture(scope="module")
def drawn():
    return Presentation(Linear(8, 3, norm="none"), dt_ms=5.0, frequencies_hz=BANDS, lead_ms=50.0)


FOLDS_BACK = "below 8000 Hz, half of the 16000"


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (lambda presentation: tone_responses(presentation, [1000.0, 9000.0], [-20.0]), FOLDS_BACK),
        (lambda presentation: noise_responses(presentation, [-20.0], band_hz=(4000.0, 9000.0)), FOLDS_BACK),
        (
            lambda presentation: noise_responses(presentation, [-20.0], band_hz=(2000.0, 1000.0)),
            "band_hz must be two ascending",
        ),
        (lambda presentation: am_responses(presentation, [4.0], carrier_hz=8000.0), FOLDS_BACK),
        (lambda presentation: am_responses(presentation, [4.0], n_tokens=0), "n_tokens must be at least 1"),
        (
            lambda presentation: am_responses(presentation, [2.0], duration_ms=100.0),
            "20 Hz or more for a whole period",
        ),
        (lambda presentation: sweep_responses(presentation, range_hz=(100.0, 20000.0)), FOLDS_BACK),
        (
            lambda presentation: sweep_responses(presentation, range_hz=(100.0,)),
            "range_hz must be two ascending",
        ),
        (
            lambda presentation: ripple_responses(presentation, [0.5], [0.0]),
            "1 Hz or more for a whole period",
        ),
        (lambda presentation: ripple_responses(presentation, [4.0], [11.0]), "at most 10"),
        (lambda presentation: two_tone_responses(presentation, -500.0), "probe_hz must lie above 0"),
        (
            lambda presentation: two_tone_responses(presentation, 1000.0, [500.0, 9000.0]),
            "frequencies_hz must lie above 0",
        ),
        (lambda presentation: forward_masking(presentation, 1000.0, masker_hz=9000.0), "masker_hz must lie"),
        (
            lambda presentation: forward_masking(presentation, 1000.0, masker_level_db=np.nan),
            "masker_level_db must be finite",
        ),
        (lambda presentation: oddball_responses(presentation, 7500.0), r"got 8919\.05 Hz"),
        (lambda presentation: gap_responses(presentation, [5.0], marker_ms=0.0), "marker_ms"),
        (lambda presentation: click_responses(presentation, watched_ms=-1.0), "watched_ms"),
        (lambda presentation: tone_responses(presentation, duration_ms=0.0), "duration_ms"),
        (lambda presentation: tone_responses(presentation, tail_ms=-5.0), "tail_ms"),
        (lambda presentation: presentation.play([np.full(80, np.nan)]), "sounds must be finite"),
        (lambda presentation: presentation.bins(float("nan")), "a duration in ms"),
        (lambda presentation: probe_battery(presentation, None), "probes must be different names"),
    ],
)
def test_what_cannot_be_played(presentation, probe, message):
    with pytest.raises(ValueError, match=message):
        probe(presentation)


def test_drawn_ripples_are_no_denser_than_the_bands(drawn):
    assert ripple_responses(drawn, [8.0], [2.0], domain="spectrogram").amplitude.shape == (1, 1, 2)
    with pytest.raises(ValueError, match="at most 2"):
        ripple_responses(drawn, [8.0], [3.0], domain="spectrogram")
    with pytest.raises(ValueError, match="mean must be finite"):
        ripple_responses(drawn, [8.0], [1.0], domain="spectrogram", mean=float("nan"))
    with pytest.raises(ValueError, match="patterns must be finite"):
        drawn.show([np.full((8, 4), np.nan)])


def test_bands_in_any_order_are_heard_in_theirs(drawn):
    """A learned bank need not ascend: ripples are drawn band by band, from the lowest to the highest."""
    order = np.random.default_rng(0).permutation(8)
    shuffled = Linear(8, 3, norm="none")
    with torch.no_grad():
        shuffled.readout.strf.kernel.weight.copy_(drawn.model.readout.strf.kernel.weight[:, :, order])
        shuffled.readout.strf.kernel.bias.copy_(drawn.model.readout.strf.kernel.bias)
    other = Presentation(shuffled, dt_ms=5.0, frequencies_hz=BANDS[order], lead_ms=50.0)
    assert other.frequency_range() == drawn.frequency_range() == (500.0, pytest.approx(BANDS[-1]))
    for scale in (0.0, 1.0):
        np.testing.assert_array_equal(
            ripple_pattern(BANDS[order], [0.0, 30.0], 4.0, scale),
            ripple_pattern(BANDS, [0.0, 30.0], 4.0, scale)[order],
        )
    expected = ripple_responses(drawn, [4.0], [1.0], domain="spectrogram").component
    found = ripple_responses(other, [4.0], [1.0], domain="spectrogram").component
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_a_presentation_refuses_in_its_arguments():
    model, silent = Linear(8, 3, norm="none"), lambda sounds: torch.zeros(len(sounds), 8, 10)
    with pytest.raises(ValueError, match=r"220\.5 samples per bin"):
        Presentation(model, cochleagram=silent, audio_fs=44100, dt_ms=5.0)
    # NS1's own rate: 244.14 samples
    ones = lambda sounds: torch.ones(len(sounds), 8, sounds.shape[1] // 244)  # noqa: E731
    recorder = Presentation(model, cochleagram=ones, audio_fs=48828.125, dt_ms=5.0)
    assert recorder.hop == 244
    assert recorder.play([np.zeros(244 * 3)]).shape == (1, 1, 63)
    with pytest.raises(TypeError, match="callable"):
        Presentation(model, cochleagram=3, audio_fs=FS, dt_ms=5.0)
    for bands in (BANDS[:3], np.append(BANDS[:-1], np.nan), np.linspace(0.0, 8000.0, 8)):
        with pytest.raises(ValueError, match="8 positive finite numbers"):
            Presentation(model, dt_ms=5.0, frequencies_hz=bands)
    with pytest.raises(ValueError, match="at least one neuron"):
        Presentation(model, dt_ms=5.0, neurons=[])
    with pytest.raises(ValueError, match="below 8000 Hz"):
        plain_cochleagram([500.0, 10000.0], FS, 5.0)
    with pytest.raises(ValueError, match="floor"):
        plain_cochleagram([500.0, 1000.0], FS, 5.0, floor=0.0)


def test_the_battery_plays_the_oddball_of_a_neuron_at_the_top_where_it_can_be_played():
    ds = SyntheticDataset(n_neurons=1, n_clips=1, n_repeats=1, clip_seconds=0.2)
    model = Linear(24, 3, norm="none")
    with torch.no_grad():
        model.readout.strf.kernel.weight.zero_()
        model.readout.strf.kernel.weight[..., -1, -1] = 1.0
    presentation = Presentation.for_dataset(model, ds)
    battery = probe_battery(presentation, ["tones", "oddball"])
    assert battery.results["tones"].best_khz[0] > 6.8
    assert battery.results["oddball"].high_khz[0] <= HIGHEST_SHARE * FS / 1000 + 1e-9


@pytest.mark.parametrize("backbone", ["GRU", "S4D", "LMU"])
def test_a_model_that_drifts_in_silence_answers_sounds_only(backbone):
    """State-space backbones have not settled for seconds: their drift is no response."""
    torch.manual_seed(0)
    ds = SyntheticDataset(n_neurons=1, n_clips=1, n_repeats=1, clip_seconds=0.2)
    presentation = Presentation.for_dataset(StateNet(24, out_neurons=2, rnn_type=backbone), ds)
    silent = presentation.play([np.zeros(80 * 40)])
    assert np.abs(presentation.evoked(silent)).max() == 0.0
    noise = presentation.evoked(presentation.play([0.1 * np.random.default_rng(0).standard_normal(80 * 40)]))
    assert np.abs(noise).max() > 1e-3
    softest = tone_responses(presentation, [1000.0, 2000.0], [-140.0, -20.0]).response[:, 0]
    assert np.abs(softest).max() < 1e-6 * np.abs(silent).max()  # below the floor of the cochleagram


def test_a_whiff_of_excitation_beside_suppression_is_no_tuning():
    ds = SyntheticDataset(n_neurons=1, n_clips=1, n_repeats=1, clip_seconds=0.2)
    model = Linear(24, 3, out_neurons=2, norm="none")
    with torch.no_grad():
        model.readout.strf.kernel.weight.fill_(-1.0)
        model.readout.strf.kernel.weight[:, :, :4] = torch.tensor([0.5, 2.0])[:, None, None, None]
    area = tone_responses(Presentation.for_dataset(model, ds), levels_db=[-60.0, -40.0, -20.0])
    assert (area.response.max(axis=(1, 2)) > 0).all()
    assert np.isnan(area.best_khz).tolist() == [True, False]
    assert np.isnan(area.threshold_db[0]).all()
    assert area.best_khz[1] < 0.8
    # the same neuron with the sign turned is tuned
    with torch.no_grad():
        model.readout.strf.kernel.weight.neg_()
    assert np.isfinite(tone_responses(Presentation.for_dataset(model, ds)).best_khz).all()


def test_long_bins_show_slow_rates_only():
    """Usual rates that the bins cannot show are left out; a rate that was asked for is refused."""
    mel = CausalMelSpectrogram(audio_fs=FS, n_mels=8, hop_ms=20.0, win_ms=40.0)
    presentation = Presentation(Linear(8, 3, wav2spec=mel, norm="none"))
    assert presentation.dt_ms == 20.0
    battery = probe_battery(presentation)
    assert battery.results["am"].rates_hz.tolist() == [2.0, 4.0, 8.0, 16.0]
    assert battery.results["ripples"].rates_hz.tolist() == [-16.0, -8.0, -4.0, -2.0, 2.0, 4.0, 8.0, 16.0]
    with pytest.raises(ValueError, match="show rates below 25 Hz, got 32"):
        am_responses(presentation, [16.0, 32.0])
    with pytest.raises(ValueError, match="show rates below 25 Hz"):
        ripple_responses(presentation, [25.0])


def test_two_channels_are_not_one_sound_and_a_null_stimulus_is_finite(presentation):
    with pytest.raises(ValueError, match="one channel"):
        waveform_fields(presentation.model, torch.zeros(2, 1600))
    with pytest.raises(ValueError, match="stim must be finite"):
        waveform_fields(presentation.model, torch.full((1600,), torch.nan))
    with pytest.raises(ValueError, match="at least one neuron"):
        exciting_spectrogram(Linear(8, 3), [])
    with pytest.raises(TypeError, match=r"nn\.Module with F"):
        exciting_spectrogram(lambda spectrogram: spectrogram)
    with pytest.raises(ValueError, match="null must be finite"):
        exciting_spectrogram(Linear(8, 3), null=float("nan"))
    with pytest.raises(ValueError, match="real numbers"):
        exciting_spectrogram(Linear(8, 3), null="silence")


def test_a_model_of_long_memory_has_settled_where_the_baseline_is_read():
    """Of a sound nobody can hear nothing is evoked, however long the start of the silence echoes."""
    model = ICNet(audio_fs=FS, out_neurons=2, dt_ms=5.0, encoder_channels=4, bottleneck_channels=4)
    presentation = Presentation(model)
    memory_ms = 1000 * model.wav2spec.receptive_field_samples / FS
    assert memory_ms > 400
    assert 0.75 * presentation.lead_bins * 5.0 >= memory_ms
    evoked = presentation.evoked(presentation.play([1e-12 * np.ones(80 * 20)]))
    assert np.abs(evoked).max() < 1e-6 * np.abs(presentation.play([np.zeros(80)])).max()
    assert Presentation(Linear(8, 100), dt_ms=5.0).lead_bins == 134  # 500 ms of memory, and a quarter to read
    assert Presentation(Linear(8, 9), dt_ms=5.0).lead_bins == 60
    assert Presentation(Linear(8, 5000), dt_ms=5.0).lead_bins == 1000


def test_bins_too_long_for_the_usual_modulation_rates_are_named() -> None:
    from deepSTRF.interpret.probes.presentation import modulation_rates

    assert modulation_rates((2.0, 4.0, 64.0), None, 10.0).tolist() == [2.0, 4.0]
    with pytest.raises(ValueError, match=r"2000 ms show modulation below 0\.25 Hz.*starts at 2 Hz"):
        modulation_rates((2.0, 4.0), None, 2000.0)
