"""Do learned front-ends learn, and do strides stay within their promise on real sounds?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deepSTRF.dsp.filterbank import pooled_filterbank, prepare_bank  # inner: parts of the front-ends
from deepSTRF.models.wav2spec import CausalGammatone, CausalLEAF, SincNet
from deepSTRF.models.wav2spec.filterbank import PooledFilterbank  # base class, for the type only

FS = 8000
RECOVERY = {
    "sincnet": lambda **kw: SincNet(
        FS, 6, 151, f_min=300.0, f_max=2500.0, envelope=True, env_window_ms=10.0, **kw
    ),
    "leaf": lambda **kw: CausalLEAF(FS, 6, f_min=300.0, f_max=2500.0, **kw),
}


def wandering_noise(n_clips: int = 2, seconds: float = 0.6) -> torch.Tensor:
    """(B, 1, T_audio): dense noise under a spectral peak whose frequency wanders, as in natural sound."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(int(FS * seconds)) / FS
    clips = []
    for _ in range(n_clips):
        frequency = torch.exp(
            torch.empty(500, 1).uniform_(math.log(100), math.log(3900), generator=generator)
        )
        phase, speed = (
            2 * math.pi * torch.rand(500, 1, generator=generator),
            torch.rand(2, generator=generator),
        )
        path = (
            math.log(900)
            + torch.sin(4 * math.pi * speed[0] * t + 6)
            + 0.6 * torch.sin((25 + 19 * speed[1]) * t)
        )
        level = torch.exp(-0.5 * ((torch.log(frequency) - path) / 0.3) ** 2)
        clips.append(0.07 * (level * torch.cos(2 * math.pi * frequency * t + phase)).sum(0))
    return torch.stack(clips).unsqueeze(1)


def fit(student: PooledFilterbank, x: torch.Tensor, target: torch.Tensor, steps: int = 300) -> None:
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (student(x) - target).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", list(RECOVERY))
def test_bands_move_to_a_target_two_channels_away(kind: str) -> None:
    x = wandering_noise()
    teacher, student = RECOVERY[kind](), RECOVERY[kind]()
    with torch.no_grad():
        teacher.center_shift.fill_(2.0)
        target = teacher(x)
    others = [p for name, p in student.named_parameters() if name != "center_shift"]
    for parameter in others:
        parameter.requires_grad_(False)
    fit(student, x, target)
    assert bool(((student.center_shift - 2.0).abs() < 0.3).all()), student.center_shift
    error = (student.frequencies_hz / teacher.frequencies_hz - 1).abs()
    assert float(error.max()) < 0.03


def test_raw_hertz_does_not_move() -> None:
    x = wandering_noise()
    teacher, student = RECOVERY["sincnet"](), RECOVERY["sincnet"](parameterization="hz")
    with torch.no_grad():
        teacher.center_shift.fill_(2.0)
        target = teacher(x)
    start = student.frequencies_hz.clone()
    fit(student, x, target, steps=100)
    needed = (teacher.frequencies_hz - start).abs()
    assert bool(((student.frequencies_hz - start).abs() < 0.02 * needed).all())


def test_own_learning_rate_without_weight_decay() -> None:
    for front_end, factor in ((SincNet(FS, 4), 10), (CausalLEAF(FS, 4), 3)):
        (group,) = front_end.param_groups(1e-3)
        assert group["lr"] == pytest.approx(factor * 1e-3)
        assert group["weight_decay"] == 0.0
        assert len(group["params"]) == len(list(front_end.parameters()))
    assert (
        CausalLEAF(FS, 4, learn_filters=False, learn_pooling=False, learn_pcen=False).param_groups(1e-3) == []
    )
    assert CausalGammatone(FS, 4).param_groups(1e-3) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", list(RECOVERY))
def test_same_on_the_gpu(kind: str) -> None:
    x = wandering_noise(n_clips=1)
    front_end = RECOVERY[kind]()
    expected = front_end(x)
    expected.square().mean().backward()
    gradients = [p.grad.clone() for p in front_end.parameters()]
    front_end.zero_grad()
    on_gpu = front_end.cuda()(x.cuda())
    on_gpu.square().mean().backward()
    torch.testing.assert_close(on_gpu.cpu(), expected, rtol=1e-4, atol=1e-5)
    for parameter, gradient in zip(front_end.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), gradient, rtol=1e-2, atol=1e-5)
    frames, _ = front_end.step(x[..., :400].cuda(), front_end.init_state(1))
    torch.testing.assert_close(frames, on_gpu[..., :10], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- strides on real
# clips


@pytest.fixture(scope="module")
def clips(ns1_dir: Path) -> list[torch.Tensor]:
    """Seven stretches of half a second of real NS1 sound at 48 kHz, each from another part of its clip."""
    from deepSTRF.dsp import resample_exact

    soundfile = pytest.importorskip("soundfile")
    files = sorted(path for path in (ns1_dir / "spikesandwav" / "SH.En.C").iterdir() if path.is_file())
    stretches = []
    for number, path in enumerate(files[::3]):
        sound, _ = soundfile.read(path, dtype="float32")
        resampled = resample_exact(torch.from_numpy(sound), 48828.125, 48000)
        start = 240 * 130 * number
        stretches.append(resampled[start : start + 24000].reshape(1, 1, -1))
    return stretches


def largest_error(
    make: Callable[..., PooledFilterbank], change: dict[str, float], clips: list[torch.Tensor]
) -> float:
    """Largest difference between default strides and stride 1, as a share of each clip's output range."""
    strided, reference = make(), make(max_stride=1)
    errors = []
    with torch.no_grad():
        for module in (strided, reference):
            for name, value in change.items():
                getattr(module, name).fill_(value)
        for clip in clips:
            expected = reference(clip)
            errors.append(float((strided(clip) - expected).abs().max() / (expected.max() - expected.min())))
    assert max(strided.plan.strides) >= 12
    assert set(reference.plan.strides) == {1}
    return max(errors)


LEARNED = [{}, {"bandwidth_shift": 3.0}, {"bandwidth_shift": -3.0, "pooling_shift": -3.0}]
CUTOFFS = [{}, {"width_shift": 3.0}, {"width_shift": -3.0, "center_shift": 0.5}]


@pytest.mark.ns1
@pytest.mark.parametrize("change", LEARNED)
@pytest.mark.parametrize("compression", ["pcen", "log"])
def test_leaf_strides(clips: list[torch.Tensor], change: dict[str, float], compression: str) -> None:
    error = largest_error(lambda **kw: CausalLEAF(48000, 34, compression=compression, **kw), change, clips)
    assert error < 1e-2


@pytest.mark.ns1
@pytest.mark.parametrize("change", CUTOFFS)
def test_sincnet_strides(clips: list[torch.Tensor], change: dict[str, float]) -> None:
    def make(**options: int) -> SincNet:
        return SincNet(
            48000, 34, 753, f_min=500.0, f_max=22627.0, envelope=True, env_window_ms=10.0, **options
        )

    assert largest_error(make, change, clips) < 1e-2


@pytest.mark.ns1
@pytest.mark.parametrize("compression", ["none", "log", "pcen"])
def test_gammatone_strides(clips: list[torch.Tensor], compression: str) -> None:
    def make(**options: int) -> CausalGammatone:
        return CausalGammatone(48000, 34, rectify="analytic", compression=compression, **options)

    assert largest_error(make, {}, clips) < 1e-2


@pytest.mark.ns1
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_power_at_the_same_strides(clips: list[torch.Tensor], shift: float) -> None:
    strided, reference = CausalLEAF(48000, 34), CausalLEAF(48000, 34, max_stride=1)
    with torch.no_grad():
        for clip in clips:
            outs = []
            for module in (strided, reference):
                module.bandwidth_shift.fill_(shift)
                bank = prepare_bank(*module.build_filters(), module.plan)
                padded = torch.nn.functional.pad(clip[:, 0], (module.plan.history, 0))
                outs.append(pooled_filterbank(padded, bank, module.plan, "power")[..., :100])
            error = (outs[0] - outs[1]).abs().max() / (outs[1].max() - outs[1].min())
            assert float(error) < 1e-3
