"""CausalLEAF: documented start, independent float64 reference, legality of every learned value."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from deepSTRF.dsp import pcen
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import PCEN, CausalLEAF, make_wav2spec


def mel_points(f_min: float, f_max: float, n: int) -> np.ndarray:
    mel = np.linspace(2595 * np.log10(1 + f_min / 700), 2595 * np.log10(1 + f_max / 700), n)
    return 700 * (10 ** (mel / 2595) - 1)


def test_counts() -> None:
    leaf = CausalLEAF(48000)
    assert sum(p.numel() for p in leaf.parameters()) == 238
    assert all(p.shape == (34,) for p in leaf.parameters())
    assert Linear(34, 9, 119, wav2spec=leaf).count_trainable_params() == 37009

    def trained(**flags: bool) -> int:
        return sum(p.numel() for p in CausalLEAF(48000, **flags).parameters() if p.requires_grad)

    assert trained(learn_filters=False) == 5 * 34
    assert trained(learn_pooling=False) == 6 * 34
    assert trained(learn_pcen=False) == 3 * 34
    assert not CausalLEAF(48000, learn_filters=False, learn_pooling=False, learn_pcen=False).is_learnable
    assert sum(p.numel() for p in CausalLEAF(48000, compression="log").parameters()) == 3 * 34


def test_documented_start() -> None:
    leaf = CausalLEAF(48000, f_min=60.0, f_max=22627.0)
    centers = mel_points(60, 22627, 34)
    np.testing.assert_allclose(leaf.frequencies_hz.numpy(), centers, rtol=1e-6)
    np.testing.assert_allclose(leaf.frequencies_hz[:3].numpy(), [60, 143.09, 235.27], atol=0.01)
    omega = leaf.center_freq_.detach().numpy()
    np.testing.assert_allclose(omega * 48000 / (2 * np.pi), centers, rtol=1e-6)
    sigma = 48000 / (2 * np.pi * 24.7 * (0.00437 * centers + 1))
    np.testing.assert_allclose(leaf.gabor_sigma.detach().numpy(), sigma, rtol=1e-5)
    assert sigma[0] == pytest.approx(245, abs=0.5)
    assert sigma[-1] == pytest.approx(3.1, abs=0.05)
    assert leaf.pool_sigma.detach().tolist() == [240.0] * 34
    assert leaf.pcen is not None
    for value, start in (
        (leaf.pcen.alpha, 0.96), (leaf.pcen.delta, 2.0), (leaf.pcen.root, 0.5), (leaf.pcen.tau_ms, 122.5)
    ):  # fmt: skip
        np.testing.assert_allclose(value.detach().numpy(), start, rtol=1e-6)
    with pytest.raises(AttributeError):
        leaf.center_freq_ = torch.zeros(34)


def test_kernels() -> None:
    leaf = CausalLEAF(48000)
    real, imaginary = leaf._build_gabor()
    assert real.shape == imaginary.shape == (34, 1, leaf.plan.max_kernel_size)
    assert 8 * 245 <= real.shape[-1] <= 4096
    torch.testing.assert_close(real, real.flip(-1))
    torch.testing.assert_close(imaginary, -imaginary.flip(-1))
    sigma = leaf.gabor_sigma.detach()
    assert bool((torch.tensor(leaf.plan.kernel_sizes) >= 8 * sigma).all())
    assert bool((torch.tensor(leaf.plan.strides) <= torch.clamp(0.75 * sigma / 1.25, min=1)).all())
    for k in (0, 3, 11, 19, 27, 33):
        spectrum = np.abs(
            np.fft.fft(real[k, 0].detach().numpy() + 1j * imaginary[k, 0].detach().numpy(), 2**16)
        )
        peak = np.fft.fftfreq(2**16, 1 / 48000)[spectrum.argmax()]
        assert peak == pytest.approx(float(leaf.frequencies_hz[k]), abs=1.0)
        assert spectrum.max() == pytest.approx(1.0, abs=1e-3)
    short = CausalLEAF(48000, kernel_ms=15.0)
    assert short.plan.max_kernel_size == 721
    assert short._build_gabor()[0].shape == (34, 1, 721)
    subnormal = (real != 0) & (real.abs() < 1e-38)
    assert not bool(subnormal.any())


def reference_leaf(x: np.ndarray, leaf: CausalLEAF) -> np.ndarray:
    """(F, T) written from the docstring: plain convolutions and loops over frames in float64."""
    fs, hop = leaf.audio_fs, leaf.hop
    centers, out = mel_points(leaf.f_min, leaf.f_max, leaf.n_filters), []
    for center in centers:
        sigma = fs / (2 * np.pi * 24.7 * (0.00437 * center + 1))
        age = np.arange(math.ceil(12 * sigma) + 3)
        offset = 4 * sigma - age
        gabor = np.exp(-0.5 * (offset / sigma) ** 2) * np.exp(2j * np.pi * center / fs * offset)
        gabor[offset < -8 * sigma] = (
            0  # the kernel is long enough for the narrowest band that learning may reach
        )
        half = 0.5 * (math.erf((4 * sigma + 0.5) / (math.sqrt(2) * sigma)) + 1.0)
        gabor /= math.sqrt(2 * math.pi) * sigma * half
        z = np.convolve(x, gabor)[: len(x)]
        envelope = np.sqrt(np.abs(z) ** 2 + 1e-9)
        d = np.arange(8 * hop)
        window = np.exp(-0.5 * (d / hop) ** 2) * np.sin(np.pi / 2 * np.minimum((d + 0.5) / hop, 1)) ** 2
        window /= window.sum()
        out.append(np.convolve(envelope, window)[: len(x)][hop - 1 :: hop])
    energy = np.stack(out)
    memory, result = np.zeros(len(centers)), np.zeros_like(energy)
    a = np.exp(-leaf.hop_ms / 122.5)
    for t in range(energy.shape[1]):
        memory = a * memory + (1 - a) * energy[:, t]
        mean = memory / (1 - a ** (t + 1))
        result[:, t] = (energy[:, t] / (1e-6 + mean) ** 0.96 + 2.0) ** 0.5 - 2.0**0.5
    return result


def test_stride_1_agrees_with_an_independent_computation() -> None:
    leaf = CausalLEAF(16000, n_filters=5, max_stride=1).double()
    x = torch.randn(1, 1, 40 * leaf.hop, dtype=torch.float64)
    with torch.no_grad():
        ours = leaf(x)[0, 0].numpy()
    np.testing.assert_allclose(ours, reference_leaf(x[0, 0].numpy(), leaf), atol=1e-9)


def test_strides_and_float32_stay_close_to_it() -> None:
    leaf = CausalLEAF(16000, n_filters=12, f_min=200.0)
    x = 0.2 * torch.randn(1, 1, 60 * leaf.hop)
    with torch.no_grad():
        ours = leaf(x)[0, 0].numpy()
    expected = reference_leaf(x[0, 0].double().numpy(), leaf)
    assert np.abs(ours - expected).max() < 1e-2 * (expected.max() - expected.min())


def test_gain_for_a_tone_is_half_its_amplitude() -> None:
    leaf = CausalLEAF(16000, n_filters=6, f_min=500.0, f_max=6000.0, compression="log", log_floor=1e-9)
    for channel in (0, 3, 5):
        tone = 0.8 * torch.sin(2 * math.pi * leaf.frequencies_hz[channel] * torch.arange(8000) / 16000)
        with torch.no_grad():
            level = leaf(tone[None, None]).exp()[0, 0, channel, 50:]
        np.testing.assert_allclose(level.numpy(), 0.4, rtol=5e-3)


@pytest.mark.parametrize("channel", [0, 2, 5])
def test_click_latency(channel: int) -> None:
    leaf = CausalLEAF(16000, n_filters=6, f_min=300.0, f_max=6000.0, hop_ms=0.25, pool_ms=0.5, max_stride=1)
    leaf.pcen, leaf.compression = None, "log"
    click = torch.zeros(1, 1, 600 * leaf.hop)
    click[..., 0] = 1.0
    with torch.no_grad():
        leaf.log_floor = 1e-12
        level = leaf(click)[0, 0, channel].exp().numpy() - math.sqrt(1e-9)
    age_ms = (np.arange(600) + 0.5) * leaf.hop_ms
    centroid = (level * age_ms).sum() / level.sum()
    assert centroid == pytest.approx(float(leaf.channel_latency_ms[channel]) + leaf.hop_ms / 2, abs=0.3)
    assert leaf.latency_ms == pytest.approx(float(leaf.channel_latency_ms.mean()))


def test_no_dead_channel_at_60_hz() -> None:
    leaf = CausalLEAF(48000, f_min=60.0)
    leaf(0.2 * torch.randn(1, 1, 60 * leaf.hop)).square().sum().backward()
    for name, parameter in leaf.named_parameters():
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad.abs() > 1e-6).all()), name


def test_ten_thousand_random_steps_stay_legal() -> None:
    leaf = CausalLEAF(48000)
    generator = torch.Generator().manual_seed(0)
    sigma = leaf.gabor_sigma.detach().clone()
    with torch.no_grad():
        for _ in range(10_000):
            for parameter in leaf.parameters():
                parameter += 0.05 * torch.randn(34, generator=generator)
        for scale in (1.0, 1e3):
            for parameter in leaf.parameters():
                parameter *= scale
            assert bool((leaf.center_freq_ > 0).all())
            assert bool((leaf.center_freq_ <= math.pi).all())
            ratio = leaf.gabor_sigma / sigma
            assert bool((ratio >= 1 / 1.25 - 1e-6).all())
            assert bool((ratio <= 1.5 + 1e-6).all())
            assert bool((leaf.pool_sigma >= 119.9).all())
            assert bool((leaf.pool_sigma <= 480.1).all())
            assert leaf.pcen is not None
            for fraction in (leaf.pcen.alpha, leaf.pcen.root):
                assert bool(((fraction > 0) & (fraction < 1)).all())
            assert bool((leaf.pcen.delta > 0).all())
            assert bool(((leaf.pcen.tau_ms > 1.6) & (leaf.pcen.tau_ms < 10_001)).all())
    out = leaf(torch.randn(1, 1, 10 * leaf.hop))
    out.sum().backward()
    assert bool(torch.isfinite(out).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in leaf.parameters())
    assert all(bool((p.grad != 0).any()) for p in leaf.parameters())


def test_one_step_means_the_same_at_both_ends() -> None:
    leaf = CausalLEAF(48000)
    mel = 2595 * torch.log10(1 + leaf.frequencies_hz.double() / 700)
    with torch.no_grad():
        leaf.center_shift += 0.01
    moved = 2595 * torch.log10(1 + leaf.frequencies_hz.double() / 700) - mel
    spacing = mel.diff().mean()
    np.testing.assert_allclose((moved / spacing).numpy(), 0.01, rtol=0.02)


def test_centre_that_starts_at_nyquist_moves_both_ways() -> None:
    leaf = make_wav2spec("leaf", audio_fs=16000, dt_ms=5.0, n_filters=6)
    assert float(leaf.frequencies_hz[-1]) == 8000.0
    for push in (-0.2, 0.2):
        with torch.no_grad():
            leaf.center_shift.fill_(push)
        assert 7000 < float(leaf.frequencies_hz[-1]) < 8000.0


def test_windows_follow_their_formula() -> None:
    leaf = CausalLEAF(16000, n_filters=3, max_stride=1).double()
    with torch.no_grad():
        leaf.pooling_shift.copy_(torch.tensor([-0.5, 0.0, 0.5]))
        windows = torch.cat(leaf.build_filters()[1]).numpy()
        sigma = leaf.pool_sigma.numpy()
    d = np.arange(windows.shape[1])
    for row, width in zip(windows, sigma, strict=True):
        expected = np.sin(np.pi / 2 * np.minimum((d + 0.5) / 80, 1)) ** 2 * np.exp(-((d / width) ** 2) / 2)
        np.testing.assert_allclose(row, expected / expected.sum(), atol=1e-12)
    assert windows.shape[1] >= 4 * 2 * 80
    hard = CausalLEAF(16000, n_filters=2, pool_window="hard").double()
    assert set(hard.plan.strides) == {1}
    with torch.no_grad():
        row = hard.build_filters()[1][0][0].numpy()
    assert row.argmax() == 0
    assert row.sum() == pytest.approx(1.0)


def test_memory_does_not_depend_on_the_hop() -> None:
    assert CausalLEAF(16000, 4, hop_ms=10.0).pcen.tau_ms.detach().tolist() == pytest.approx([122.5] * 4)


def test_starts_differ_only_at_the_start() -> None:
    x = 0.2 * torch.randn(1, 1, 400 * 80)
    outs = {}
    for start in ("debiased", "zero", "first"):
        with torch.no_grad():
            outs[start] = CausalLEAF(16000, 4, f_min=300.0, pcen_start=start)(x)[0, 0]
    assert float(outs["zero"][:, 0].mean()) > 3 * float(outs["debiased"][:, 0].mean())
    torch.testing.assert_close(outs["zero"][:, 300:], outs["debiased"][:, 300:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outs["first"][:, 0], outs["debiased"][:, 0], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- what is
# remembered


def test_remembered_filters_follow_every_kind_of_change() -> None:
    leaf = CausalLEAF(16000, n_filters=4).eval()
    x = torch.randn(1, 1, 800)

    def fresh() -> torch.Tensor:
        twin = CausalLEAF(16000, n_filters=4).eval()
        twin.load_state_dict(leaf.state_dict())
        return twin(x).detach()

    with torch.no_grad():
        first = leaf(x)
        leaf.center_shift.data += 1.0
        assert torch.equal(leaf(x), fresh())
        leaf.pcen.tau_shift.data.fill_(-1.0)
        assert torch.equal(leaf(x), fresh())
        assert not torch.equal(leaf(x), first)
        assert leaf.double()(x.double()).dtype == torch.float64
        assert leaf.float()(x).dtype == torch.float32
    for parameter in leaf.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        leaf(x)
    probe = x.clone().requires_grad_()
    leaf(probe).sum().backward()  # filters remembered in inference mode serve a later backward pass
    assert bool(torch.isfinite(probe.grad).all())
    assert leaf._kept
    assert pickle.loads(pickle.dumps(leaf))._kept is None
    assert copy.deepcopy(leaf)._kept is None


def test_compiles() -> None:
    leaf = CausalLEAF(16000, n_filters=3)
    x = torch.randn(1, 1, 800)
    torch._dynamo.reset()  # a function is compiled for so many modules of a process only
    compiled = torch.compile(leaf, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), leaf(x), rtol=1e-5, atol=1e-6)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in leaf.parameters())


def test_refuses() -> None:
    for wrong, match in (
        ({"f_max": 9000.0}, "Nyquist"), ({"f_min": 0.0}, "f_min"), ({"pool_ms": 1.0}, "pool_ms"),
        ({"kernel_ms": 1.0}, "kernel_ms"), ({"compression": "cubic"}, "compression"),
        ({"pcen_start": "x"}, "start"),
        ({"pool_window": "hann"}, "pool_window"), ({"max_stride": 0}, "max_stride"),
        ({"n_filters": 0}, "n_filters"),
        ({"bandwidth_range": (1.1, 2.0)}, "bandwidth_range"), ({"pcen_tau_ms": 0.0}, "tau_ms"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            CausalLEAF(16000, **wrong)
    with pytest.raises(TypeError, match="learn_filters"):
        CausalLEAF(16000, learn_filters="no")
    with pytest.raises(ValueError, match=r"220\.5"):
        CausalLEAF(44100)


# ------------------------------------------------------------------------------------------- the gain control


def test_gain_control_behind_any_spectrogram() -> None:
    gain = PCEN(5, 5.0, tau_ms=50.0)
    energy = torch.rand(2, 1, 5, 30)
    expected, _ = pcen(energy[:, 0], 5.0 / 50.0, 0.96, 2.0, 0.5)
    torch.testing.assert_close(gain(energy)[:, 0], expected)
    assert sum(p.numel() for p in gain.parameters()) == 20
    state, pieces = gain.init_state(2), []
    for chunk in energy.split([1, 9, 20], -1):
        piece, state = gain.step(chunk, state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, -1), gain(energy), rtol=1e-5, atol=1e-6)
    model = Linear(5, 3, 2, prefiltering=PCEN(5, 5.0))
    assert model(energy).shape == (2, 2, 1, 30)
    with pytest.raises(ValueError, match="n_bands"):
        gain(torch.rand(2, 1, 4, 30))
    for wrong in ({"alpha": 1.0}, {"root": 0.0}, {"delta": -1.0}, {"start": "ones"}, {"n_bands": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PCEN(**{"n_bands": 3, "hop_ms": 5.0, **wrong})
