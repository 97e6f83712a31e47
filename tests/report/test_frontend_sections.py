"""The sections on front-ends: what is measured reaches the page, sounds can be played, nothing is fetched."""

from __future__ import annotations

import base64
import html
import io
import re
import wave

import numpy as np
import pytest
import torch

from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.experiments.examples import (  # inner: tested by itself
    NeuronExample,
    examples_from_bytes,
    examples_to_bytes,
)
from deepSTRF.interpret import front_end_response
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalLEAF, CausalMelSpectrogram, WaveformFrontEnd
from deepSTRF.report import ReportParts
from deepSTRF.report.gather import (  # inner: what is tried here is not part of the face
    example_waveform_field,
    gather_parts,
    measure_front_end,
    render_report,
)
from deepSTRF.report.parts import FrontEndParts  # inner: tested by itself
from deepSTRF.report.rendering import LISTENING_PEAK, SILENCE_S, wav_data_uri  # inner: tested by itself
from deepSTRF.report.sections.fields import front_end, waveform_field  # inner: tested by itself

FS, BANDS = 8000, 5


def example(neuron: str = "b <i>", sound: np.ndarray | None = None) -> NeuronExample:
    stim = np.zeros((BANDS, 200), dtype=np.float32)
    return NeuronExample("best", neuron, 0.7, "clip 3", stim, stim[:2], stim[0], sound=sound)


@pytest.fixture(scope="module")
def model() -> Linear:
    torch.manual_seed(0)
    leaf = CausalLEAF(FS, n_filters=BANDS, f_min=200.0)
    with torch.no_grad():
        leaf.center_shift.add_(0.5)
    return Linear(BANDS, 4, 3, wav2spec=leaf).eval()


@pytest.fixture(scope="module")
def measured(model):
    sound = np.random.default_rng(0).normal(size=FS).astype(np.float32)
    examples, neurons = [example(), example(sound=sound)], ["a", "b <i>", "c"]
    return {
        "front_end": measure_front_end(model),
        "waveform_field": example_waveform_field(model, examples, neurons),
    }


@pytest.fixture(scope="module")
def page(measured) -> str:
    parts = ReportParts(
        "LEAF", **measured, strfs=np.zeros((3, BANDS, 4)), dt_ms=5.0, neurons=["a", "b <i>", "c"]
    )
    return render_report(parts)


def wavs(page: str) -> list[tuple[int, np.ndarray]]:
    sounds = []
    for encoded in re.findall(r'src="data:audio/wav;base64,([^"]+)"', page):
        with wave.open(io.BytesIO(base64.b64decode(encoded))) as file:
            assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
            sounds.append((file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")))
    return sounds


def test_gathered_parts_are_what_interpret_measures(model, measured):
    channels, (shown, field) = measured["front_end"], measured["waveform_field"]
    assert channels.name == "CausalLEAF"
    np.testing.assert_array_equal(channels.learned.gain_db, front_end_response(model.wav2spec).gain_db)
    moved = channels.learned.centre_hz / channels.initial.centre_hz
    assert (moved[:-1] > 1.02).all()
    assert shown.neuron == "b <i>"
    assert field.neuron == 1
    assert field.audio_fs == FS


def test_the_page_shows_both_sections_and_says_what_was_learned(page):
    assert 'id="front-end"' in page
    assert 'id="waveform"' in page
    text = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r'"data:[^"]*"', "", page)))
    median = float(re.search(r"moved the centre frequencies by ([\d.]+) octaves", text)[1])
    assert 0.05 < median < 0.7
    assert re.search(r"99% of the absolute gradient lies in the shaded \d+ ms", text)
    assert "The readout covers 20 ms; the rest is the front-end's own window and memory" in text
    assert "scaled to the same peak" in text
    assert "b <i>" in text
    assert "<i>" not in page.replace("b &lt;i&gt;", "")  # escaped wherever it stands
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)


def test_sounds_are_short_self_contained_and_at_one_peak(page, measured):
    _, field = measured["waveform_field"]
    (rate, sound), (_, gradient) = wavs(page)
    assert rate == FS
    edge = round(SILENCE_S * FS)
    for played, original in ((sound, field.stim), (gradient, field.gradmap)):
        assert np.abs(played).max() == pytest.approx(LISTENING_PEAK * 32767, abs=1)
        assert (played[:edge] == 0).all()
        assert (played[-edge:] == 0).all()
        inside = played[edge:-edge].astype(float)
        assert len(inside) == len(original)
        assert np.corrcoef(inside, original)[0, 1] > 0.999
        assert len(played) / rate < 2.5


def test_every_player_and_figure_is_named(page):
    assert page.count("<audio controls") == 2
    assert re.findall(r'<audio[^>]* aria-label="([^"]+)"', page) == [
        "The sound before the response",
        "The receptive field",
    ]
    section = page[page.index('id="front-end"') :]
    assert re.search(r'alt="Tuning curves, centre frequencies and click latencies of 5 channels', section)


def test_a_fixed_front_end_has_no_before():
    mel = CausalMelSpectrogram(FS, n_mels=BANDS)
    model = Linear(BANDS, 4, wav2spec=mel)
    channels = measure_front_end(model)
    assert channels is not None
    assert channels.initial is None
    assert example_waveform_field(model, [], []) is None
    section = front_end(ReportParts("mel", front_end=channels))
    assert "Nothing in this front-end was learned." in section.body


def test_sections_are_left_out_without_their_parts():
    assert measure_front_end(Linear(BANDS, 4)) is None
    assert example_waveform_field(Linear(BANDS, 4), [], []) is None
    assert front_end(ReportParts("x")) is None
    assert waveform_field(ReportParts("x")) is None


def test_a_front_end_without_frequencies_is_not_probed():
    class Power(WaveformFrontEnd):
        def transform(self, padded):
            return padded.unfold(-1, self.hop, self.hop).square().mean(-1).unsqueeze(2)

    sound = np.random.default_rng(0).normal(size=FS).astype(np.float32)
    model = Linear(1, 4, wav2spec=Power(FS, 1, 5.0))
    assert measure_front_end(model) is None
    assert example_waveform_field(model, [example("a", sound)], ["a"]) is not None


def test_channels_without_response_are_counted(model):
    learned = front_end_response(model.wav2spec, n_tones=20)
    for values in (learned.gain_db, learned.centre_hz, learned.click_latency_ms):
        values[2] = np.nan
    section = front_end(ReportParts("x", front_end=FrontEndParts("Mine", learned, None)))
    assert "1 channel responds to no tone." in section.body


def test_a_silent_map_makes_no_player():
    mel = CausalMelSpectrogram(FS, n_mels=BANDS)  # below its floor no gradient reaches the sound
    silence = np.zeros(FS, dtype=np.float32)
    assert example_waveform_field(Linear(BANDS, 4, wav2spec=mel), [example("a", silence)], ["a"]) is None


def test_wav_errors_and_silence():
    for wrong in (np.zeros((2, 9)), np.zeros(0), np.array([np.nan])):
        with pytest.raises(ValueError, match="finite samples"):
            wav_data_uri(wrong, FS)
    with pytest.raises(ValueError, match="audio_fs"):
        wav_data_uri(np.zeros(9), 0.0)
    ((rate, samples),) = wavs(f'src="{wav_data_uri(np.zeros(9), 48828.125)}"')
    assert rate == 48828
    assert not samples.any()


def test_examples_keep_their_sound_on_disk():
    sound = np.arange(5, dtype=np.float32)
    first, second = examples_from_bytes(examples_to_bytes([example(sound=sound), example()]))
    np.testing.assert_array_equal(first.sound, sound)
    assert second.sound is None


def test_a_run_that_hears_waveforms_reports_both(tmp_path):
    options = {"n_neurons": 3, "n_clips": 5, "n_repeats": 4, "return_waveform": True, "audio_fs": FS}
    config = ExperimentConfig(dataset_options=options, wav2spec="mel", epochs=1)
    run = run_experiment(config, tmp_path / "run", progress=False)
    best = next(one for one in run.examples if one.role == "best")
    assert best.sound.shape == (best.stim.shape[1] * 40,)
    assert [one.sound is None for one in run.examples if one.role != "best"] == [True] * (
        len(run.examples) - 1
    )
    parts = gather_parts(run)
    assert parts.front_end is not None
    assert parts.waveform_field[0].neuron == best.neuron
