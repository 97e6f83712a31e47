"""Maximally exciting stimuli: closed forms where there are any, and never worse than where they started."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import deepSTRF.interpret.exciting as exciting
from deepSTRF.interpret import exciting_sound, exciting_spectrogram
from deepSTRF.models.audio import Linear, LinearNonlinear, StateNet
from deepSTRF.models.gradients import NoFrontEndError  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram

FS = 16000


def norms(stimulus):
    return np.sqrt((stimulus.reshape(len(stimulus), -1) ** 2).sum(1))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_of_a_linear_model_it_is_the_strf(norm):
    torch.manual_seed(0)
    model = Linear(6, 5, 4, norm=norm).double().eval()
    if norm == "batch":
        with torch.no_grad():
            model.readout.bn.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    found = exciting_spectrogram(model, [0, -1, 1], energy=9.0)
    strfs = model.STRFs(folded=True).numpy()[[0, 3, 1]]
    expected = 3.0 * strfs / norms(strfs)[:, None, None]
    np.testing.assert_allclose(found.stimulus, expected, atol=1e-10)
    np.testing.assert_allclose(found.response - found.null_response, 3.0 * norms(strfs), rtol=1e-10)
    np.testing.assert_allclose(found.agreement, 1.0, atol=1e-6)
    assert found.neurons == [0, 3, 1]
    assert found.converged.all()


@pytest.mark.parametrize("energy", [1.0, 25.0])
def test_a_monotonic_output_changes_nothing(energy):
    torch.manual_seed(0)
    model = LinearNonlinear(6, 5, 2, output_activation=nn.Sigmoid()).double().eval()
    found = exciting_spectrogram(model, energy=energy, n_starts=2)
    shape = model.STRF_gradmap()[:, 0].numpy()
    shape /= norms(shape)[:, None, None]
    cosine = (found.stimulus * shape).sum((1, 2)) / np.sqrt(energy)
    assert (cosine > 0.999).all()


class Energy(nn.Module):
    """x' A x with known eigenvalues: the best stimulus is the first eigenvector, of either sign."""

    F, receptive_field = 3, 4

    def __init__(self):
        super().__init__()
        q, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)).double())
        self.axes = nn.Parameter(q)
        self.register_buffer("gains", torch.linspace(4.0, -4.0, 12).double())

    def forward(self, x):
        parts = (x.flatten(1) @ self.axes) ** 2
        total = (parts * self.gains).sum(1)
        return torch.cat([torch.zeros(len(x), 1, 1, 3), total.reshape(-1, 1, 1, 1)], dim=-1)


def test_of_an_energy_neuron_it_is_the_first_eigenvector():
    model = Energy()
    found = exciting_spectrogram(model, energy=2.0, n_steps=300)
    assert found.response.item() == pytest.approx(2.0 * 4.0, rel=1e-4)  # largest eigenvalue times energy
    first = model.axes[:, 0].detach().numpy().reshape(3, 4)
    assert abs((found.stimulus[0] * first).sum()) / np.sqrt(2.0) > 0.999
    assert found.start_response.item() < found.response.item()
    assert found.n_steps.item() > 1
    assert not exciting_spectrogram(model, energy=2.0, n_steps=1).converged.any()


def test_searching_in_parts_finds_the_same(monkeypatch):
    torch.manual_seed(0)
    model = LinearNonlinear(6, 5, 5, output_activation=nn.Sigmoid()).double().eval()
    together = exciting_spectrogram(model, n_steps=5)
    monkeypatch.setattr(exciting, "BATCH_VALUES", 60)
    np.testing.assert_allclose(exciting_spectrogram(model, n_steps=5).stimulus, together.stimulus, atol=1e-9)


def test_a_threshold_is_crossed_from_a_random_start():
    model = Linear(4, 3, norm="none", output_activation=nn.ReLU()).double().eval()
    with torch.no_grad():
        model.readout.strf.kernel.bias.fill_(-0.05)  # silent at the null stimulus: no gradient there
    found = exciting_spectrogram(model, energy=4.0, n_starts=8)
    assert found.null_response.item() == 0
    assert found.response.item() > 0


def test_the_null_stimulus_is_where_the_model_rests():
    model = Linear(4, 3, 2, norm="none", standardize=True).double()
    model.fit_standardization([5.0 + torch.randn(1, 4, 200)])
    found = exciting_spectrogram(model, energy=1.0)
    np.testing.assert_allclose(found.null, model.standardizer.mean.numpy()[:, None].repeat(3, 1))
    np.testing.assert_allclose(norms(found.stimulus), 1.0, rtol=1e-9)
    shifted = exciting_spectrogram(model, energy=1.0, null=np.arange(12.0).reshape(4, 3))
    np.testing.assert_allclose(shifted.stimulus, found.stimulus, atol=1e-9)


def test_recurrent_models_and_what_stays_as_it_was():
    torch.manual_seed(0)
    model = StateNet(8, 3, out_neurons=2).train()
    found = exciting_spectrogram(model, T=12, energy=2.0, n_steps=10, n_starts=2)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert found.stimulus.shape == (2, 8, 12)
    assert (found.response >= found.start_response).all()
    np.testing.assert_allclose(norms(found.stimulus), np.sqrt(2.0), rtol=1e-4)


def test_a_sound_through_the_front_end(tmp_path):
    torch.manual_seed(0)
    model = Linear(8, 3, 2, norm="none", wav2spec=CausalMelSpectrogram(audio_fs=FS, n_mels=8)).eval()
    with torch.no_grad():
        model.readout.strf.kernel.weight.zero_()
        model.readout.strf.kernel.weight[0, 0, 5] = 1.0
        model.readout.strf.kernel.weight[0, 0, 1] = -1.0
    found = exciting_sound(model, 0, duration_ms=15.0, rms=0.05, n_steps=40, n_starts=2)
    assert found.stimulus.shape == (1, 240)
    assert np.sqrt((found.stimulus**2).mean()) == pytest.approx(0.05, rel=1e-4)
    assert found.response.item() > found.start_response.item() + 0.5
    spectrum = np.abs(np.fft.rfft(found.stimulus[0]))
    peak = np.fft.rfftfreq(240, 1 / FS)[spectrum.argmax()]
    bands = model.wav2spec.frequencies_hz.numpy()
    assert np.abs(bands - peak).argmin() == 5
    samples, rate = soundfile.read(found.write_wav(tmp_path / "loud.wav", 0))
    assert rate == FS
    assert np.abs(samples).max() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(NoFrontEndError, match="exciting_spectrogram"):
        exciting_sound(Linear(4, 3))


def test_a_spectrogram_becomes_a_file(tmp_path):
    found = exciting_spectrogram(Linear(4, 3, 2), [1])
    hertz = 500.0 * 2.0 ** np.arange(4)
    for scale in ("amplitude", "ln"):
        file = found.write_wav(
            tmp_path / f"{scale}.wav", 1, frequencies_hz=hertz, dt_ms=5.0, audio_fs=FS, scale=scale
        )
        assert len(soundfile.read(file)[0]) == 240 + 2 * 2400
    with pytest.raises(ValueError, match="frequencies_hz="):
        found.write_wav(tmp_path / "a.wav", 1)
    with pytest.raises(ValueError, match=r"one of \[1\]"):
        found.write_wav(tmp_path / "a.wav", 0)


def test_illegal_arguments():
    model = Linear(4, 3, 2)
    for wrong in (
        {"energy": 0.0},
        {"n_steps": 0},
        {"n_starts": 0},
        {"reduce": "peak"},
        {"null": np.zeros(3)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            exciting_spectrogram(model, **wrong)
    with pytest.raises(IndexError, match="neuron 2"):
        exciting_spectrogram(model, 2)
