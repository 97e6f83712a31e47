"""Linear and the base class: the documented calls, counts, names, receptive fields."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import AudioEncodingModel, Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram


def test_documented_counts() -> None:
    count = lambda **options: Linear(34, out_neurons=119, **options).count_trainable_params()  # noqa: E731
    assert count(temporal_window_size=9) == 36_771
    assert count(temporal_window_size=9, wav2spec=CausalMelSpectrogram(audio_fs=48000)) == 36_771
    assert count(temporal_window_size=15) == 61_047
    assert count(temporal_window_size=9, norm="none") == 36_771 - 238
    assert count(temporal_window_size=9, standardize=True) == 36_771


def test_names_of_public_checkpoints() -> None:
    assert set(Linear(34, 9, 119).state_dict()) == {
        "readout.strf.kernel.weight", "readout.strf.kernel.bias", "readout.bn.weight", "readout.bn.bias",
        "readout.bn.running_mean", "readout.bn.running_var", "readout.bn.num_batches_tracked",
        "output_scale.scale", "output_scale.offset", "output_scale._started",  # ours; 1 and 0 where they lack
    }  # fmt: skip
    assert Linear(34, 9, 119).readout.strf.kernel.weight.shape == (119, 1, 34, 9)


def test_calls_of_the_notebooks() -> None:
    torch.manual_seed(0)
    model = Linear(n_frequency_bands=34, temporal_window_size=9, out_neurons=119)
    assert model(torch.randn(1, 34, 50).unsqueeze(0))[0, :, 0, :].shape == (119, 50)
    model = Linear(
        n_frequency_bands=34,
        temporal_window_size=9,
        out_neurons=119,
        wav2spec=CausalMelSpectrogram(audio_fs=48000),
    )
    stim = torch.randn(1, 4800)
    assert model(stim.unsqueeze(0))[0, :, 0, :].shape == (119, 20)
    assert (model.T, model.F, model.O) == (9, 34, 119)
    assert (model.receptive_field, model.latency_ms) == (9, 2.5)


def test_initial_draws_do_not_depend_on_the_front_end() -> None:
    torch.manual_seed(0)
    plain = Linear(34, 9, 3)
    torch.manual_seed(0)
    heard = Linear(34, 9, 3, wav2spec=CausalMelSpectrogram(48000))
    assert torch.equal(plain.STRF_weight(), heard.STRF_weight())
    bound = 1 / np.sqrt(34 * 9)
    assert float(plain.STRF_weight().abs().max()) <= bound


def test_strf_weight() -> None:
    model = Linear(6, 4, 3)
    weight = model.STRF_weight()
    assert weight.shape == (3, 6, 4)
    assert torch.equal(weight, model.readout.strf.kernel.weight.detach()[:, 0])
    assert torch.equal(model.STRFs(), weight)
    assert torch.equal(model.STRF_weight("ON"), weight)
    with pytest.raises(ValueError, match="polarity"):
        model.STRF_weight("OFF")
    for _ in range(3):
        model(torch.randn(1, 1, 6, 50))
    x = torch.randn(1, 1, 6, 20)
    model.eval()
    with torch.no_grad():
        linear_part = model(x) - model(torch.zeros_like(x))
    folded = functional.conv2d(functional.pad(x, (3, 0)), model.STRF_weight(folded=True).unsqueeze(1))
    torch.testing.assert_close(folded, linear_part, atol=1e-5, rtol=1e-4)


def test_two_polarities() -> None:
    class OnOff(nn.Module):
        out_channels, F, receptive_field = 2, 6, 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.relu(), (-x).relu()], 1)

    model = Linear(6, 4, 3, prefiltering=OnOff())
    weight = model.readout.strf.kernel.weight.detach()
    assert torch.equal(model.STRF_weight(), weight[:, 0])
    assert torch.equal(model.STRF_weight("off"), weight[:, 1])
    assert model.receptive_field == 4 + 3 - 1


def test_kernel_argument() -> None:
    kernel = nn.Sequential(nn.Conv2d(1, 3, (6, 1)), nn.Conv2d(3, 3, (1, 4), groups=3))
    model = Linear(6, 4, 3, kernel=kernel)
    assert model.STRF_weight().shape == (3, 6, 4)
    with pytest.raises(ValueError, match="no-such-kernel"):
        Linear(6, 4, 3, kernel={"kernel": "no-such-kernel"})
    with pytest.raises(TypeError, match="kernel"):
        Linear(6, 4, 3, kernel="separable")


def test_an_incomplete_model_says_so() -> None:
    class Headless(NeuralModel):
        pass

    with pytest.raises(ValueError, match="no readout"):
        Headless(2).validate()

    class Wrong(AudioEncodingModel):
        def __init__(self) -> None:
            super().__init__(4, 2, 2)
            object.__setattr__(self, "readout", "none")

    with pytest.raises(TypeError, match="readout"):
        Wrong().validate()


def test_param_groups_split_off_a_learnable_front_end() -> None:
    class Learned(CausalMelSpectrogram):
        def __init__(self) -> None:
            super().__init__(16000, n_mels=6)
            self.gain = nn.Parameter(torch.ones(()))

    model = Linear(6, 4, 3, wav2spec=Learned())
    groups = model.param_groups(1e-3, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [4, 1]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1), (1e-2, 0.0)]
    torch.optim.AdamW(groups)
    assert len(Linear(6, 4, 3).param_groups(1e-3)) == 1


def test_a_front_end_of_the_users_needs_no_more_than_the_page_asks() -> None:
    class Loudness(nn.Module):
        out_channels, hop, audio_fs = 1, 80, 16000

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.unfold(-1, self.hop, self.hop).square().mean(-1).unsqueeze(2)

    model = Linear(1, 3, 2, wav2spec=Loudness()).eval()
    assert model(torch.randn(1, 1, 800)).shape == (1, 2, 1, 10)
    assert model.latency_ms == 0.0
    assert len(model.param_groups(1e-3)) == 1
    with pytest.raises(TypeError, match=r"slot 'wav2spec' \(Loudness\)"):
        model.init_state(1)
