"""Adaptation prefilters: recursion against loops and kernels, time constants, names, streams, gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.models import AdapTrans, ICAdaptation, NeuralModel, make_prefiltering
from deepSTRF.models.audio import Linear
from deepSTRF.models.prefiltering import (  # inner: tested by itself
    Willmore_Adaptation,
    a_to_tau,
    freq_to_tau,
    get_CFs,
    tau_to_a,
)

F = 6
PAGE = {"prefiltering": "AdapTrans", "dt": 1.0, "min_freq": 500, "max_freq": 20000, "scale": "mel"}


def build(kind: str, dt: float = 5.0, **options: Any) -> nn.Module:
    return make_prefiltering(kind, F, dt, **options)


def spectrogram(frames: int = 120, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, F, frames, dtype=torch.float64) - 5.0


def past_mean(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The recursion as the paper states it: a loop in float64."""
    means = np.empty_like(x)
    means[..., 0] = x[..., 0]
    for t in range(1, x.shape[-1]):
        means[..., t] = a * means[..., t - 1] + (1 - a) * x[..., t - 1]
    return means


def convolve(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """(B, F, T) with (F, 1, K), the first frame repeated to the left."""
    padded = nn.functional.pad(x, (kernel.shape[-1] - 1, 0), mode="replicate")
    return nn.functional.conv1d(padded, kernel, groups=F)


# ------------------------------ what they compute


def test_adaptrans_is_the_published_recursion() -> None:
    prefilter = build("adaptrans").double()
    with torch.no_grad():
        prefilter.d_off.mul_(torch.linspace(0.5, 3.0, F))
        prefilter.p.copy_(torch.linspace(0.2, 1.5, F))
    x = spectrogram()
    a_on, a_off = (a.detach().numpy() for a in prefilter.get_a())
    w = prefilter.get_w().detach().numpy()[:, None]
    frames = x[:, 0].numpy()
    on = np.maximum(frames - w * past_mean(frames, a_on), 0)
    off = np.maximum(past_mean(frames, a_off) - w * frames, 0)
    assert np.abs(prefilter(x).detach().numpy() - np.stack([on, off], 1)).max() < 1e-12


def test_icadaptation_is_the_published_recursion() -> None:
    prefilter = build("icadaptation").double()
    x = spectrogram()
    frames = x[:, 0].numpy()
    expected = np.maximum(frames - past_mean(frames, prefilter.a.numpy()), 0)
    assert np.abs(prefilter(x)[:, 0].numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("kind", ["adaptrans", "icadaptation"])
@pytest.mark.parametrize("dt", [1.0, 5.0])
def test_long_kernels_agree_with_the_recursion(kind: str, dt: float) -> None:
    prefilter = build(kind, dt).double().requires_grad_(False)
    x = spectrogram(3000)
    x[..., 1500:] += 1.0  # a step of unit size
    kernels = prefilter.build_kernels()
    kernels = kernels if isinstance(kernels, tuple) else (kernels,)
    longest = 12 * float(freq_to_tau(500.0)) / dt
    assert all(abs(kernel.shape[-1] - longest) <= 2 for kernel in kernels)
    y = prefilter(x)
    for channel, kernel in enumerate(kernels):
        error = (convolve(x[:, 0], kernel).relu() - y[:, channel]).abs().max()
        assert float(error) < 1e-3
    # the published length, three time constants, differs by more: why the recursion exists
    short = prefilter.build_kernels(round(3 * float(freq_to_tau(500.0)) / dt) + 1)
    short = short[0] if isinstance(short, tuple) else short
    assert 1e-3 < float((convolve(x[:, 0], short).relu() - y[:, 0]).abs().max()) < 0.5


def test_kernels_have_the_published_sums() -> None:
    prefilter = build("adaptrans", init_w=0.75)
    on, off = prefilter.build_kernels(131)
    assert on.shape == off.shape == (F, 1, 131)
    newest, past = on[..., -1], on[..., :-1].sum(-1)
    assert torch.allclose(newest, torch.ones(F, 1))
    assert torch.allclose(past, torch.full((F, 1), -0.75), atol=1e-5)
    assert torch.allclose(off[..., -1], torch.full((F, 1), -0.75), atol=1e-5)
    assert torch.allclose(off[..., :-1].sum(-1), torch.ones(F, 1), atol=1e-5)
    kernel = build("icadaptation").build_kernels(131)
    assert kernel.shape == (F, 1, 131)
    assert float(kernel.sum(-1).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="kernel_size"):
        prefilter.build_kernels(1)


def test_a_constant_input_is_exact_in_float32() -> None:
    x = torch.full((1, 1, F, 500), -9.2103)
    assert float(build("icadaptation")(x).abs().max()) == 0.0
    on, off = build("adaptrans")(-x)[0]
    assert torch.allclose(on, torch.full_like(on, 0.25 * 9.2103), rtol=1e-6)
    assert torch.equal(on, off)


def test_the_bin_width_does_not_change_the_memory() -> None:
    """The response to a step, sampled every 5 ms, is the same for bins of 1 ms and of 5 ms."""
    fine, coarse = torch.zeros(1, 1, F, 1001).double(), torch.zeros(1, 1, F, 201).double()
    fine[..., 1:], coarse[..., 1:] = 1.0, 1.0
    slow = build("icadaptation", 1.0).double()(fine)[..., 1::5]
    quick = build("icadaptation", 5.0).double()(coarse)[..., 1:]
    assert torch.allclose(slow, quick, atol=1e-6)  # buffers were rounded to float32


# ------------------------------ numbers


def test_time_constants() -> None:
    assert freq_to_tau(500.0) == pytest.approx(216.61, abs=0.01)
    assert freq_to_tau(20_000.0) == pytest.approx(48.39, abs=0.01)
    assert tau_to_a(216.61, dt=5.0) == pytest.approx(0.97718, abs=1e-5)
    assert tau_to_a(48.39, dt=5.0) == pytest.approx(0.90183, abs=1e-5)
    for value in (np.array([50.0, 200.0]), torch.tensor([50.0, 200.0])):
        back = a_to_tau(tau_to_a(value, dt=2.0), dt=2.0)
        assert type(back) is type(value)
        assert np.allclose(np.asarray(back), [50, 200], rtol=1e-4)


def test_initial_values() -> None:
    prefilter = make_prefiltering("AdapTrans", 34, dt=5.0).requires_grad_(False)
    a_on, a_off = prefilter.get_a()
    assert torch.equal(a_on, a_off)
    assert float(a_on[0]) == pytest.approx(0.97718, abs=1e-5)
    assert float(a_on[-1]) == pytest.approx(0.90183, abs=1e-5)
    assert float(prefilter.d_on[0]) == pytest.approx(0.1528, abs=1e-4)
    assert float(prefilter.d_on[-1]) == pytest.approx(0.3299, abs=1e-4)
    assert torch.allclose(prefilter.p, torch.full((34,), 0.57735))
    assert torch.allclose(prefilter.get_w(), torch.full((34,), 0.75))


@pytest.mark.parametrize("frequency", [10.0, 57_900.0, 120_000.0])
def test_time_constants_hold_outside_their_domain(frequency: float) -> None:
    with pytest.warns(UserWarning, match="nearer end"):
        tau = freq_to_tau(frequency)
    assert 10 < tau < 400
    with pytest.warns(UserWarning, match="nearer end"):
        prefilter = make_prefiltering("adaptrans", 12, 5.0, min_freq=5.0, max_freq=120_000.0)
    assert bool(torch.isfinite(prefilter(torch.randn(1, 1, 12, 30))).all())
    with pytest.raises(ValueError, match="above 0 Hz"):
        freq_to_tau(np.array([100.0, 0.0]))


@pytest.mark.parametrize("scale", ["mel", "greenwood", "erb", "log", "linear", "bark", "MEL"])
def test_centre_frequencies(scale: str) -> None:
    centers = get_CFs(500, 20000, 34, scale)
    assert centers.shape == (34,)
    assert (float(centers[0]), float(centers[-1])) == (500, 20000)
    assert bool((centers.diff() > 0).all())


def test_greenwood_is_the_right_way_round() -> None:
    position = np.linspace(np.log10(500 / 165.4 + 0.88) / 2.1, np.log10(20000 / 165.4 + 0.88) / 2.1, 5)
    expected = 165.4 * (10 ** (2.1 * position) - 0.88)
    assert np.allclose(get_CFs(500, 20000, 5, "greenwood").numpy(), expected)


# ------------------------------ as modules


@pytest.mark.parametrize("kind", ["adaptrans", "icadaptation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streams(kind: str, dtype: torch.dtype, assert_streams: Callable[..., None]) -> None:
    assert_streams(build(kind).to(dtype), spectrogram(100).to(dtype))


@pytest.mark.parametrize("kind", ["adaptrans", "icadaptation"])
def test_causal(kind: str, assert_causal: Callable[..., None]) -> None:
    assert_causal(build(kind), torch.randn(1, 1, F, 80), 40)


def test_gradients_reach_every_parameter() -> None:
    prefilter = build("adaptrans").double()
    x = (spectrogram(40) + 5.0).requires_grad_()
    assert sum(p.numel() for p in prefilter.parameters()) == 3 * F
    assert torch.autograd.gradcheck(prefilter, (x[:1, :, :, :12],))
    prefilter(x).square().mean().backward()
    for name in ("d_on", "d_off", "p"):
        assert bool((getattr(prefilter, name).grad != 0).all()), name


def test_parameters_or_buffers() -> None:
    assert set(dict(build("adaptrans").named_parameters())) == {"d_on", "d_off", "p"}
    fixed = build("adaptrans", learnable=False)
    assert not list(fixed.parameters())
    assert set(fixed.state_dict()) == {"d_on", "d_off", "p"}
    assert torch.equal(fixed(torch.ones(1, 1, F, 9)), build("adaptrans")(torch.ones(1, 1, F, 9)))
    assert set(build("willmore").state_dict()) == {"a"}
    assert not list(build("willmore").parameters())
    assert Willmore_Adaptation is ICAdaptation
    assert AdapTrans([0.9], [1.0], learnable=False).get_w().item() == 1.0


# ------------------------------ in a model


def test_the_dictionary_of_the_models_page() -> None:
    model = Linear(34, 9, 119, prefiltering=PAGE)
    assert isinstance(model.prefiltering, AdapTrans)
    assert model.count_trainable_params() == 73_287
    assert model.receptive_field is None
    a_on, _ = model.prefiltering.get_a()
    assert float(a_to_tau(a_on.detach(), dt=1.0)[0]) == pytest.approx(216.61, rel=1e-3)
    for key, name in (("type", "adaptrans"), ("prefiltering", "ADAPTRANS"), ("type", "Willmore")):
        assert Linear(F, 3, 2, prefiltering={key: name, "dt": 5.0}).prefiltering.F == F
    assert isinstance(
        Linear(F, 3, 2, prefiltering={"type": "ICAdaptation", "dt": 5}).prefiltering, ICAdaptation
    )


def test_a_model_with_a_prefilter_is_saved(tmp_path: Path) -> None:
    for index, prefiltering in enumerate((PAGE, build("adaptrans"), build("icadaptation"))):
        model = Linear(F, 3, 2, prefiltering=prefiltering).eval()
        with torch.no_grad():
            for parameter in model.prefiltering.parameters():
                parameter.add_(0.1)
        model.save_pretrained(tmp_path / str(index))
        twin = NeuralModel.from_pretrained(tmp_path / str(index))
        x = torch.randn(1, 1, F, 30)
        assert torch.equal(twin(x), model(x))


def test_polarity_of_a_linear_model() -> None:
    model = Linear(F, 3, 2, prefiltering=PAGE)
    weight = model.readout.strf.kernel.weight.detach()
    assert torch.equal(model.STRFs("ON"), weight[:, 0])
    assert torch.equal(model.STRFs("OFF"), weight[:, 1])


@pytest.mark.parametrize("standardize", [False, True])
def test_the_gradient_map_around_silence_is_the_mean_slope_of_both_sides(standardize: bool) -> None:
    """A rectifier has no slope at 0, where the null stimulus lies: the map takes the mean of its two."""
    model = Linear(F, 3, 2, prefiltering=PAGE, norm="none", standardize=standardize).double()
    if standardize:
        model.fit_standardization([spectrogram(200)])
    frames, step = 8, 1e-3
    null = torch.zeros(1, 1, F, frames, dtype=torch.float64)
    if standardize:
        null = null + model.standardizer.mean.view(1, 1, -1, 1)
    found = model.STRF_gradmap(frames)[:, 0]
    expected = torch.empty_like(found)
    model.eval()
    with torch.no_grad():
        for band in range(F):
            for frame in range(frames):
                moved = torch.zeros_like(null)
                moved[..., band, frame] = step
                slope = (model(null + moved) - model(null - moved)) / (2 * step)
                expected[:, band, frame] = slope[0, :, 0, -1]
    assert float(expected.abs().min(1).values.max()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


# ------------------------------ bad input


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'adaptrans'"):
        make_prefiltering("adaptran", F, 5.0)
    with pytest.raises(ValueError, match="kind"):
        make_prefiltering(3, F, 5.0)
    with pytest.raises(ValueError, match="dt"):
        make_prefiltering("adaptrans", F, 0.0)
    with pytest.raises(ValueError, match="scale"):
        make_prefiltering("adaptrans", F, 5.0, scale="octaves")
    with pytest.raises(ValueError, match="max_freq"):
        make_prefiltering("adaptrans", F, 5.0, min_freq=9000.0, max_freq=500.0)
    with pytest.raises(ValueError, match="n_frequency_bands"):
        make_prefiltering("adaptrans", 0, 5.0)
    with pytest.raises(ValueError, match="init_w_vals"):
        make_prefiltering("adaptrans", F, 5.0, init_w=1.0)
    with pytest.raises(TypeError, match="learnable"):
        make_prefiltering("adaptrans", F, 5.0, learnable="yes")
    with pytest.raises(ValueError, match=r"1\.5 to 1\.5$"):
        make_prefiltering("adaptrans", F, 5.0, init_w=1.5)
    with pytest.raises(ValueError, match="tau must be above 0"):
        tau_to_a(torch.tensor([5.0, 0.0]))
    for bad in (0.0, 1.0, 1.2, float("nan")):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            a_to_tau(bad)
    for bad in ([[0.5]], [], [0.5, 1.0], [0.0], [float("nan")]):
        with pytest.raises(ValueError, match="init_a_vals"):
            ICAdaptation(bad)
    with pytest.raises(ValueError, match="one value per band"):
        AdapTrans([0.9, 0.9], [0.75])


def test_bad_input() -> None:
    for shape in ((1, F, 20), (1, 2, F, 20), (1, 1, F + 1, 20), (1, 1, F, 0)):
        with pytest.raises(ValueError, match=rf"\(B, 1, {F}, T\)"):
            build("adaptrans")(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"prefiltering .*has 6 bands.*n_frequency_bands=7"):
        Linear(7, 3, 2, prefiltering=build("adaptrans"))
    with pytest.raises(ValueError, match=r"missing .*'dt'"):
        Linear(F, 3, 2, prefiltering={"prefiltering": "adaptrans"})
    with pytest.raises(ValueError, match=r"min_frq.*min_freq"):
        Linear(F, 3, 2, prefiltering={"prefiltering": "adaptrans", "dt": 5.0, "min_frq": 200})


def test_one_dictionary_serves_all_kinds() -> None:
    """`learnable` and `init_w` belong to AdapTrans; configurations of other kinds may hold them too."""
    for kind in ("adaptrans", "icadaptation", "willmore"):
        slot = {"prefiltering": kind, "dt": 5.0, "learnable": False, "init_w": 0.5}
        model = Linear(8, 3, 2, prefiltering=slot)
        assert not any(parameter.requires_grad for parameter in model.prefiltering.parameters())
