"""model.predict: units, order, devices, and errors in the words of dataset and model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram


def spectrogram_dataset(bands: int = 6) -> SimpleNamespace:
    return SimpleNamespace(stims=[torch.randn(1, bands, frames) for frames in (12, 5)], dt=5.0, F=bands)


def waveform_dataset(audio_fs: int = 16000, hop: int = 80, samples: int = 800) -> SimpleNamespace:
    return SimpleNamespace(stims=[torch.randn(1, samples)], dt=5.0, audio_fs=audio_fs, hop=hop)


def waveform_model() -> Linear:
    return Linear(6, 3, 2, wav2spec=CausalMelSpectrogram(16000, n_mels=6))


def test_clips_in_the_order_asked_for() -> None:
    model, dataset = Linear(6, 3, 2), spectrogram_dataset()
    first, second = model.predict(dataset)
    picked = model.predict(dataset, clips=[1, 0, -1])
    for rate, expected in zip(picked, (second, first, second), strict=True):
        assert torch.equal(rate, expected)
    assert model.predict(dataset, clips=[]) == []
    with pytest.raises(IndexError, match="2 clips"):
        model.predict(dataset, clips=[2])


def test_units() -> None:
    model, dataset = Linear(6, 3, 2), spectrogram_dataset()
    torch.testing.assert_close(model.predict(dataset, unit="hz")[0], 200 * model.predict(dataset)[0])
    with pytest.raises(ValueError, match="unit"):
        model.predict(dataset, unit="khz")


def test_modes_are_restored_also_after_an_error() -> None:
    model = Linear(6, 3, 2).train()
    model.readout.strf.eval()
    model.predict(spectrogram_dataset())
    with pytest.raises(ValueError, match="bands"):
        model.predict(spectrogram_dataset(7))
    assert model.training
    assert model.readout.training
    assert not model.readout.strf.training
    assert torch.is_grad_enabled()


def test_the_models_dtype_and_place_decide() -> None:
    model = Linear(6, 3, 2).double()
    assert model.predict(spectrogram_dataset())[0].dtype == torch.float64
    assert model.predict(spectrogram_dataset(), device="cpu")[0].device.type == "cpu"


def test_waveforms() -> None:
    assert waveform_model().predict(waveform_dataset())[0].shape == (2, 10)


def test_a_misfit_is_told_in_the_words_of_the_dataset() -> None:
    with pytest.raises(ValueError, match=r"n_frequency_bands=6, clip 0 has 7 bands.*dataset\.F"):
        Linear(6, 3, 2).predict(spectrogram_dataset(7))
    with pytest.raises(ValueError, match=r"waveform.*no front-end.*make_wav2spec"):
        Linear(6, 3, 2).predict(waveform_dataset())
    with pytest.raises(ValueError, match="return_waveform=True"):
        waveform_model().predict(spectrogram_dataset())
    with pytest.raises(ValueError, match=r"16000 Hz.*48000 Hz.*audio_fs=dataset\.audio_fs"):
        waveform_model().predict(waveform_dataset(audio_fs=48000, hop=240))
    with pytest.raises(ValueError, match=r"hop is 80 samples.*160 samples"):
        waveform_model().predict(waveform_dataset(hop=160))
    with pytest.raises(ValueError, match="multiple of hop"):
        waveform_model().predict(waveform_dataset(samples=801))


def test_an_output_of_the_wrong_rank_is_named() -> None:
    class Flat(NeuralModel):
        def __init__(self) -> None:
            super().__init__(2)
            self.readout = nn.Flatten(2)

    with pytest.raises(ValueError, match=r"\(1, N, 1, T\).*\(1, 1, 72\)"):
        Flat().predict(spectrogram_dataset())
