"""One bank for every registered waveform front-end.

A new front-end is checked with its default arguments; one case per variant with a code path of its own goes
into WAV2SPEC_CASES.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from deepSTRF.models import wav2spec
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import (
    CausalGammatone,
    CausalLEAF,
    CausalMelSpectrogram,
    Gammatonegram,
    SincNet,
    WaveformFrontEnd,
    make_wav2spec,
)
from deepSTRF.registry import WAV2SPEC

#: (label, constructor).
WAV2SPEC_CASES: list[tuple[str, Callable[[], nn.Module]]] = [
    ("mel", lambda: CausalMelSpectrogram(audio_fs=16000)),
    ("mel-power-cubic", lambda: CausalMelSpectrogram(16000, magnitude="power", compression="cubic")),
    ("mel-log1p", lambda: CausalMelSpectrogram(16000, n_mels=8, compression="log1p", mel_scale="slaney")),
    (
        "mel-offset",
        lambda: CausalMelSpectrogram(16000, n_mels=8, log_offset=1e-3, win_ms=20.0, norm="slaney"),
    ),
    (
        "mel-none-erb",
        lambda: CausalMelSpectrogram(16000, n_mels=8, compression="none", scale="erb", win_ms=6.5),
    ),
    ("mel-rahman", lambda: CausalMelSpectrogram.rahman_native(16000, n_mels=20)),
    ("gammatone", lambda: CausalGammatone(16000, n_filters=6)),
    (
        "gammatone-full-cuberoot",
        lambda: CausalGammatone(16000, n_filters=4, rectify="full", compression="cuberoot"),
    ),
    (
        "gammatone-analytic-none",
        lambda: CausalGammatone(16000, n_filters=6, rectify="analytic", compression="none"),
    ),
    ("gammatone-pcen", lambda: CausalGammatone(16000, n_filters=4, compression="pcen", kernel_ms=20.0)),
    ("gammatonegram", lambda: Gammatonegram(8000, n_filters=5, f_max=4000.0)),
    (
        "gammatonegram-log",
        lambda: Gammatonegram(8000, n_filters=4, f_max=3900.0, window_ms=5.0, compression="log"),
    ),
    ("sincnet-signed", lambda: SincNet(16000, n_filters=6, kernel_size=251)),
    (
        "sincnet-signed-short",
        lambda: SincNet(16000, n_filters=3, kernel_size=81, activation="symlog", init="linear"),
    ),
    (
        "sincnet-envelope",
        lambda: SincNet(16000, n_filters=6, kernel_size=251, envelope=True, env_window_ms=10.0),
    ),
    (
        "sincnet-published",
        lambda: SincNet(16000, n_filters=4, envelope=True, rectify="abs", parameterization="hz"),
    ),
    ("leaf", lambda: CausalLEAF(16000, n_filters=6)),
    (
        "leaf-log-hard",
        lambda: CausalLEAF(8000, n_filters=4, compression="log", pool_window="hard", kernel_ms=15.0),
    ),
    ("leaf-first", lambda: CausalLEAF(16000, n_filters=4, pcen_start="first", learn_filters=False)),
    ("leaf-zero", lambda: CausalLEAF(16000, n_filters=4, pcen_start="zero", f_min=200.0, max_stride=1)),
]

covered = {type(constructor()) for _, constructor in WAV2SPEC_CASES}
WAV2SPEC_CASES += [
    (name, lambda name=name: make_wav2spec(name, audio_fs=16000, dt_ms=5.0))
    for name, cls in WAV2SPEC.items()
    if cls not in covered
]

N_FRAMES = 12


@pytest.fixture(params=WAV2SPEC_CASES, ids=[label for label, _ in WAV2SPEC_CASES])
def front_end(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param[1]().eval()


def sound(front_end: nn.Module, batch: int = 1, n_frames: int = N_FRAMES) -> torch.Tensor:
    return torch.randn(batch, 1, n_frames * front_end.hop)


def test_every_registered_front_end_has_a_case() -> None:
    covered = {type(constructor()) for _, constructor in WAV2SPEC_CASES}
    assert not set(dict(WAV2SPEC.items()).values()) - covered


def test_contract_attributes(front_end: nn.Module) -> None:
    assert isinstance(front_end.out_channels, int)
    assert front_end.n_filters == front_end.out_channels
    assert isinstance(front_end.hop, int)
    assert front_end.hop == round(front_end.audio_fs * front_end.hop_ms / 1000)
    assert isinstance(front_end.latency_ms, float)
    assert front_end.latency_ms >= 0
    trained = [p for p in front_end.parameters() if p.requires_grad]
    assert front_end.is_learnable is bool(trained)
    assert sum(len(group["params"]) for group in front_end.param_groups(1e-3)) == len(trained)
    centres = getattr(front_end, "frequencies_hz", None)
    if centres is None:  # optional, yet given by every front-end that the package exports
        assert type(front_end).__name__ not in wav2spec.__all__
        return
    assert centres.shape == (front_end.out_channels,)
    assert bool((centres[1:] > centres[:-1]).all())


@pytest.mark.parametrize("batch", [1, 3])
def test_shape(front_end: nn.Module, batch: int) -> None:
    for n_frames in (1, 2, N_FRAMES):
        assert front_end(sound(front_end, batch, n_frames)).shape == (
            batch,
            1,
            front_end.out_channels,
            n_frames,
        )


def test_eval_is_deterministic_and_clips_in_a_batch_do_not_meet(front_end: nn.Module) -> None:
    x = sound(front_end, batch=2)
    y = front_end(x)
    assert torch.equal(y, front_end(x))
    torch.testing.assert_close(y[1:], front_end(x[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frame", [0, 5, N_FRAMES - 2])
def test_causal(front_end: nn.Module, assert_causal: Callable[..., None], training: bool, frame: int) -> None:
    assert_causal(front_end.train(training), sound(front_end), frame, front_end.hop)


def test_every_sample_is_heard(front_end: nn.Module) -> None:
    x = sound(front_end).requires_grad_()
    (gradient,) = torch.autograd.grad(front_end(x).square().sum(), x)
    per_frame = gradient[0, 0].reshape(N_FRAMES, front_end.hop)
    assert bool((per_frame.abs().amax(1) > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streams(front_end: nn.Module, assert_streams: Callable[..., None], dtype: torch.dtype) -> None:
    assert_streams(front_end.to(dtype), sound(front_end, batch=2).to(dtype), front_end.hop)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.zeros_like(x),
        lambda x: torch.ones_like(x),
        lambda x: x.sign(),
        lambda x: 14 * x / x.abs().max(),
        lambda x: 1e-8 * x,
        lambda x: torch.cat([torch.zeros_like(x), x], -1),
        lambda x: torch.cat([x, torch.zeros_like(x)], -1),
    ],
    ids=["silence", "dc", "full-scale", "peaks-of-14", "1e-8", "silence-then-sound", "sound-then-silence"],
)
def test_finite_output_and_gradients(
    front_end: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = make(sound(front_end)).requires_grad_()
    y = front_end(x)
    assert bool(torch.isfinite(y).all())
    y.sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in front_end.parameters() if p.grad is not None)


def test_every_band_of_every_parameter_gets_a_gradient(front_end: nn.Module) -> None:
    if not front_end.is_learnable:
        pytest.skip("a fixed front-end: nothing to learn")
    front_end(sound(front_end, n_frames=40)).square().sum().backward()
    for name, parameter in front_end.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).all()), name


def test_float64_agrees_with_float32(front_end: nn.Module) -> None:
    x = sound(front_end)
    exact = copy.deepcopy(front_end).double()(x.double()).detach()
    assert exact.dtype == torch.float64
    span = float(exact.max() - exact.min())
    assert float((front_end(x).detach().double() - exact).abs().max()) < 1e-4 * span


def test_bad_input_is_refused_before_any_computation(front_end: nn.Module) -> None:
    x = sound(front_end)
    with pytest.raises(ValueError, match="expected waveforms"):
        front_end(x[0])
    with pytest.raises(ValueError, match="expected waveforms"):
        front_end(x.unsqueeze(0))
    with pytest.raises(ValueError, match="mono"):
        front_end(x.expand(1, 2, -1))
    for length in (x.shape[-1] - 1, 1, 0):
        with pytest.raises(ValueError, match="multiple of hop"):
            front_end(x[..., :length])
        with pytest.raises(ValueError, match="multiple of hop"):
            front_end.step(x[..., :length], front_end.init_state(1))
    with pytest.raises(TypeError, match="floating-point"):
        front_end(x.to(torch.int16))


def test_state_dict_round_trip(front_end: nn.Module, request: pytest.FixtureRequest) -> None:
    twin = dict(WAV2SPEC_CASES)[request.node.callspec.id]().eval()
    with torch.no_grad():
        for parameter in front_end.parameters():
            parameter.mul_(1.01)
    twin.load_state_dict(front_end.state_dict())
    x = sound(front_end)
    assert torch.equal(twin(x), front_end(x))


def test_saved_inside_a_model(front_end: nn.Module, tmp_path: object) -> None:
    model = Linear(front_end.out_channels, 3, 2, wav2spec=front_end).eval()
    model.save_pretrained(tmp_path)
    twin = Linear.from_pretrained(tmp_path)
    assert type(twin.wav2spec) is type(front_end)
    x = sound(front_end)
    assert torch.equal(twin(x), model(x))


def test_under_autocast_the_front_end_stays_in_float32(front_end: nn.Module) -> None:
    x = sound(front_end)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = front_end(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, front_end(x))


# ------------------------------ the base class and the factory


def test_make_wav2spec_calls_of_the_page() -> None:
    mel = make_wav2spec("mel", audio_fs=16000, dt_ms=5.0)
    assert (type(mel), mel.hop, mel.out_channels, mel.f_max) == (CausalMelSpectrogram, 80, 34, 8000.0)
    assert make_wav2spec("MEL", audio_fs=16000, dt_ms=5.0, n_filters=20).n_mels == 20


def test_make_wav2spec_refuses() -> None:
    with pytest.raises(ValueError, match=r"legal names:.*'mel'"):
        make_wav2spec("mell", audio_fs=16000, dt_ms=5.0)
    with pytest.raises(TypeError, match="no argument 'kernel'"):
        make_wav2spec("mel", audio_fs=16000, dt_ms=5.0, kernel=3)


@pytest.mark.parametrize("audio_fs", [0, -1.0, float("nan"), float("inf")])
def test_bad_rates(audio_fs: float) -> None:
    with pytest.raises(ValueError, match="audio_fs"):
        CausalMelSpectrogram(audio_fs)


def test_hop_must_be_whole_and_the_error_names_legal_rates() -> None:
    with pytest.raises(ValueError, match=r"220\.5 samples.*44000 or 44200 Hz"):
        CausalMelSpectrogram(44100)
    assert CausalMelSpectrogram(48828.125, hop_ms=4.99712, win_ms=10.0).hop == 244


def test_explicit_f_max_above_nyquist_is_an_error() -> None:
    with pytest.raises(ValueError, match="Nyquist"):
        CausalMelSpectrogram(16000, f_max=22627.0)
    with pytest.raises(ValueError, match="f_min"):
        CausalMelSpectrogram(16000, f_min=9000.0)


def test_base_class_says_what_is_missing() -> None:
    bare = WaveformFrontEnd(16000, 4, 5.0)
    with pytest.raises(NotImplementedError, match="transform"):
        bare(torch.zeros(1, 1, 80))
    with pytest.raises(AttributeError, match="frequencies_hz"):
        _ = bare.frequencies_hz
    assert getattr(bare, "frequencies_hz", None) is None  # what a fit and its report read
