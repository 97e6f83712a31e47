"""Per-band input standardisation: exact statistics over clips, saved with the model, folded into the STRF."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepSTRF.models.audio import Linear
from deepSTRF.models.norms import BandStandardizer  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram


def ragged_clips() -> list[torch.Tensor]:
    scale = torch.tensor([1.0, 10.0, 1e-6, 1e4]).view(1, 4, 1)
    return [scale * (5 + torch.randn(1, 4, frames)) for frames in (30, 7, 1, 120)]


def test_statistics_equal_those_of_all_frames_together() -> None:
    clips = ragged_clips()
    standardizer = BandStandardizer(4).double().fit(clips)
    everything = torch.cat(clips, dim=-1)[0].double()
    torch.testing.assert_close(standardizer.mean, everything.mean(1))
    torch.testing.assert_close(standardizer.std, everything.std(1, unbiased=False))
    z = standardizer(everything)
    torch.testing.assert_close(z.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(z.std(1, unbiased=False), torch.ones(4, dtype=torch.float64))


def test_clips_are_read_one_at_a_time_and_in_any_rank() -> None:
    clips = ragged_clips()

    def stream() -> Iterator[torch.Tensor]:
        yield clips[0][0]
        yield clips[1]
        yield from (clip.unsqueeze(0) for clip in clips[2:])

    a, b = BandStandardizer(4).fit(stream()), BandStandardizer(4).fit(clips)
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.std, b.std)


def test_a_constant_band_keeps_its_scale() -> None:
    clip = torch.randn(1, 3, 50)
    clip[0, 1] = -9.2103
    clip[0, 2] = 0.0
    standardizer = BandStandardizer(3).fit([clip, clip])
    assert standardizer.std[1:].tolist() == [1.0, 1.0]
    assert float(standardizer(clip)[0, 1:].abs().max()) < 1e-5


def test_unfitted_is_an_error_that_names_the_call() -> None:
    model = Linear(4, 2, 2, standardize=True)
    assert not model.standardizer.fitted
    with pytest.raises(RuntimeError, match="fit_standardization"):
        model(torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="standardize=True"):
        Linear(4, 2, 2).fit_standardization(ragged_clips())
    with pytest.raises(TypeError, match="standardize"):
        Linear(4, 2, 2, standardize=1)


def test_bad_clips() -> None:
    with pytest.raises(ValueError, match="no frames"):
        BandStandardizer(4).fit([])
    with pytest.raises(ValueError, match=r"clip 1 must be \(\.\.\., 4, T\)"):
        BandStandardizer(4).fit([torch.zeros(4, 3), torch.zeros(5, 3)])
    bad = torch.zeros(1, 4, 3)
    bad[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        BandStandardizer(4).fit([bad])


def test_a_failed_refit_keeps_the_old_numbers() -> None:
    standardizer = BandStandardizer(4).fit(ragged_clips())
    mean = standardizer.mean.clone()
    with pytest.raises(ValueError, match="not finite"):
        standardizer.fit([*ragged_clips(), torch.full((4, 2), float("inf"))])
    assert torch.equal(standardizer.mean, mean)


def test_through_a_front_end_with_flags_restored() -> None:
    model = Linear(10, 3, 2, wav2spec=CausalMelSpectrogram(16000, n_mels=10), standardize=True)
    model.readout.eval()
    waves = [torch.randn(1, 800), torch.randn(1, 1, 1600)]
    assert model.fit_standardization(waves) is model
    assert model.training
    assert not model.readout.training
    spectra = torch.cat([model.wav2spec(w.reshape(1, 1, -1)) for w in waves], -1)[0, 0]
    torch.testing.assert_close(model.standardizer.mean, spectra.mean(1), rtol=1e-5, atol=1e-5)
    assert not model.standardizer.mean.requires_grad


def test_state_travels_with_state_dict_copies_pickles_and_checkpoints(tmp_path: object) -> None:
    model = Linear(4, 2, 2, standardize=True).fit_standardization(ragged_clips()).eval()
    x = torch.randn(1, 1, 4, 9)
    twin = Linear(4, 2, 2, standardize=True).eval()
    twin.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path)
    for other in (
        twin,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        Linear.from_pretrained(tmp_path),
    ):
        assert other.standardizer.fitted
        assert torch.equal(other(x), model(x))
    fresh = Linear(4, 2, 2, standardize=True)
    model.load_state_dict(fresh.state_dict())
    assert not model.standardizer.fitted


def test_it_is_frozen_and_follows_double() -> None:
    model = Linear(4, 2, 2, standardize=True).fit_standardization(ragged_clips())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in Linear(4, 2, 2).parameters())
    assert model.double()(torch.zeros(1, 1, 4, 9, dtype=torch.float64)).dtype == torch.float64


def test_streams(assert_streams: Callable[..., None]) -> None:
    model = Linear(4, 3, 2, standardize=True).fit_standardization(ragged_clips()).eval()
    assert_streams(model, torch.randn(2, 1, 4, 20))


def test_folded_weights_are_the_map_on_the_raw_spectrogram() -> None:
    model = Linear(4, 3, 2, standardize=True).fit_standardization(ragged_clips()).double()
    x = 100 * torch.randn(1, 1, 4, 30, dtype=torch.float64)
    model(x)
    model.eval()
    # away from the clip's start, where zero padding meets the standardised input
    linear_part = (model(x) - model(torch.zeros_like(x))).detach()[0, :, 0, 2:]
    folded = functional.conv2d(x, model.STRF_weight(folded=True).unsqueeze(1))[0, :, 0]
    torch.testing.assert_close(folded, linear_part)


def test_folding_through_a_prefilter_is_refused() -> None:
    model = Linear(4, 3, 2, standardize=True, prefiltering=nn.ReLU()).fit_standardization(ragged_clips())
    assert model.STRF_weight().shape == (2, 4, 3)
    with pytest.raises(ValueError, match="prefilter"):
        model.STRF_weight(folded=True)
