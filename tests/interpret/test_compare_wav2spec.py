"""Front-end against reference: registration, flags, devices, errors, and the calls of the notebook."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.interpret import compare_wav2spec
from deepSTRF.utils import compare_wav2spec_to_groundtruth

matplotlib.use("Agg")

FS, DT, HOP, F, T = 16000, 5.0, 80, 4, 30


class FrameMeans(nn.Module):
    """A front-end whose output is known: band f is (f + 1) times the mean of each frame."""

    def __init__(self, n_filters: int = F) -> None:
        super().__init__()
        self.audio_fs, self.hop = FS, HOP
        self.gain = nn.Parameter(torch.arange(1.0, n_filters + 1)[:, None])
        self.dropout = nn.Dropout(0.9)  # would ruin the output outside eval mode

    @property
    def frequencies_hz(self) -> torch.Tensor:
        return torch.linspace(500.0, 8000.0, self.gain.shape[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x.unfold(-1, HOP, HOP).mean(-1)[:, :, None] * self.gain)


@pytest.fixture
def ds() -> SimpleNamespace:
    stims = [torch.randn(1, T * HOP) for _ in range(3)]
    return SimpleNamespace(stims=stims, dt=DT, audio_fs=FS, return_waveform=True)


def truth_of(ds: SimpleNamespace) -> list[torch.Tensor]:
    front_end = FrameMeans().eval()
    return [front_end(stim[None]).detach()[0] for stim in ds.stims]


def test_notebook_calls(ds):
    import matplotlib.pyplot as plt

    pred, truth, fig = compare_wav2spec_to_groundtruth(
        ds, FrameMeans(), stim_idx=np.int64(1), ground_truth_stims=truth_of(ds), suptitle="clip 1"
    )
    assert isinstance(pred, np.ndarray)
    assert pred.shape == truth.shape == (F, T)
    assert np.corrcoef(pred.ravel(), truth.ravel())[0, 1] == pytest.approx(1.0, abs=1e-6)
    assert fig.number in plt.get_fignums(), "plt.show() must find it"
    titles = [ax.get_title(loc="left") for ax in fig.axes[:3]]
    assert titles[0] == "front-end (r = 1.000 with the reference)"
    assert titles[1:] == ["reference", "difference"]
    assert fig.axes[2].get_xlim() == (0.0, T * DT / 1000)
    assert fig.axes[0].get_ylabel() == "frequency (kHz)"
    plt.close(fig)
    assert fig.number not in plt.get_fignums()


def test_flags_gradients_and_parameters_are_as_before(ds):
    front_end = FrameMeans()
    front_end.dropout.eval()  # a mixed state must come back mixed
    compare_wav2spec(ds.stims[0], front_end, truth_of(ds)[0])
    assert front_end.training
    assert not front_end.dropout.training
    assert front_end.gain.grad is None


def test_double_precision_front_end_and_raw_values(ds):
    compared = compare_wav2spec(ds.stims[0], FrameMeans().double(), truth_of(ds)[0], z_score=False)
    np.testing.assert_allclose(compared.pred, truth_of(ds)[0][0], atol=1e-6)
    scored = compare_wav2spec(ds.stims[0], FrameMeans(), truth_of(ds)[0])
    assert scored.pred.dtype == np.float32
    assert float(scored.pred.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(scored.pred.std()) == pytest.approx(1.0, abs=1e-5)


def test_constant_reference_has_no_correlation_but_still_draws(ds):
    compared = compare_wav2spec(ds.stims[0], FrameMeans(), torch.ones(F, T))
    assert np.isnan(compared.r)
    assert not compared.truth.any()


def test_unequal_lengths_are_cut_with_a_warning(ds):
    longer = torch.cat([truth_of(ds)[0], torch.zeros(1, F, 2)], dim=-1)
    with pytest.warns(UserWarning, match=r"30 bins, the reference has 32; comparing the first 30"):
        compared = compare_wav2spec(ds.stims[0], FrameMeans(), longer, z_score=False)
    assert compared.truth.shape == (F, T)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ground_truth_stims": None}, ValueError, "ground_truth_stims is missing"),
        ({"ground_truth_stims": []}, ValueError, "ground_truth_stims holds 0 clips"),
        ({"ground_truth_stims": [torch.zeros(5, T)] * 3}, ValueError, "4 bands, the reference has 5"),
        ({"ground_truth_stims": [torch.zeros(2, F, T)] * 3}, ValueError, "reference spectrogram must be one"),
        ({"stim_idx": 3}, IndexError, r"dataset has 3 \(0 .. 2\)"),
        ({"stim_idx": "0"}, TypeError, "stim_idx must be an integer"),
        ({"wav2spec": print}, TypeError, "wav2spec must be an nn.Module"),
        ({"wav2spec": nn.Flatten(0)}, ValueError, "output of wav2spec must be one spectrogram"),
    ],
)
def test_wrong_arguments_say_what_to_do(ds, change, error, message):
    arguments = {"wav2spec": FrameMeans(), "ground_truth_stims": truth_of(ds), **change}
    with pytest.raises(error, match=message):
        compare_wav2spec_to_groundtruth(ds, **arguments)


def test_spectrogram_mode_and_other_rates_are_refused(ds):
    with pytest.raises(ValueError, match="return_waveform=True"):
        compare_wav2spec_to_groundtruth(
            SimpleNamespace(**{**vars(ds), "return_waveform": False}), FrameMeans(), ground_truth_stims=[]
        )
    with pytest.raises(ValueError, match="built for 16000 Hz"):
        compare_wav2spec_to_groundtruth(
            SimpleNamespace(**{**vars(ds), "audio_fs": 48000}), FrameMeans(), ground_truth_stims=[]
        )


def test_utils_holds_two_names_and_loads_nothing_early():
    code = (
        "import sys, deepSTRF.utils as utils\n"
        "if 'torch' in sys.modules: sys.exit('utils imported torch')\n"
        "if dir(utils) != ['compare_wav2spec_to_groundtruth', 'neural_collate']: sys.exit(str(dir(utils)))\n"
        "from deepSTRF.utils import neural_collate, compare_wav2spec_to_groundtruth\n"
        "if 'matplotlib' in sys.modules: sys.exit('matplotlib was imported before it was used')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import deepSTRF.utils

    with pytest.raises(AttributeError, match=r"no attribute 'hanning_smoother'"):
        _ = deepSTRF.utils.hanning_smoother
    with pytest.raises(ImportError, match=r"hanning_smooth of the earlier deepSTRF is now"):
        _ = deepSTRF.utils.hanning_smooth
