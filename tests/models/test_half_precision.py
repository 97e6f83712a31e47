"""Models in half precision: they run and agree with float32, or say what to do."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepSTRF.models.audio import ICNet, Linear, StateNet
from deepSTRF.models.wav2spec import WaveformFrontEnd, make_wav2spec
from deepSTRF.registry import BACKBONES, MODELS, PREFILTERS, WAV2SPEC

#: Differences from float32 as a share of the output's range: 8 or 11 bits, through a network of some layers.
TOLERANCE = {torch.float16: 0.03, torch.bfloat16: 0.15}
HALF = pytest.mark.parametrize("dtype", TOLERANCE)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "gammatone": [{"compression": "pcen"}, {"rectify": "analytic"}],
    "leaf": [{"compression": "log"}],
    "sincnet": [{"envelope": True}, {"parameterization": "hertz"}],
    "mel": [{"compression": "none"}],
}


def assert_agrees(model: nn.Module, x: Tensor, dtype: torch.dtype) -> nn.Module:
    """Compare a model with its copy in half precision; return the copy."""
    model.eval()
    half = copy.deepcopy(model).to(dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        want, got = model(x), half(x.to(dtype))
    assert got.dtype == dtype
    # an untrained network may vary by less than one step of the format
    step = torch.finfo(dtype).eps * float(want.abs().max())
    span = float(want.max() - want.min())
    assert float((got.float() - want).abs().max()) < TOLERANCE[dtype] * span + 4 * step
    return half


@HALF
@pytest.mark.parametrize("name", sorted(WAV2SPEC))
def test_front_ends(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = 0.1 * torch.randn(1, 1, 40 * 60)
    for options in [{}, *OPTIONS.get(name, [])]:
        front_end = make_wav2spec(name, 8000, 5.0, n_filters=12, f_max=4000.0, **options)
        half = assert_agrees(Linear(12, 9, 2, wav2spec=front_end, norm="none"), x, dtype)
        # filters and logarithms in float32 of the (rounded) parameters
        rounded = x.to(dtype)
        with torch.no_grad():
            frames, expected = half.wav2spec(rounded), copy.deepcopy(half.wav2spec).float()(rounded.float())
        torch.testing.assert_close(frames, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        # chunk by chunk, as in one call
        state, pieces = half.init_state(1), []
        with torch.no_grad():
            for chunk in rounded.split([40, 40 * 19, 40 * 40], dim=-1):
                y, state = half.step(chunk, state)
                pieces.append(y)
            whole = half(rounded)
        streamed = torch.cat(pieces, -1)
        span = float(whole.max() - whole.min())
        assert float((streamed - whole).abs().max()) < TOLERANCE[dtype] * span


@HALF
@pytest.mark.parametrize("name", sorted(MODELS))
def test_models(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cls = MODELS.get(name)
    if "n_frequency_bands" in inspect.signature(cls).parameters:
        assert_agrees(cls(n_frequency_bands=34, out_neurons=2), torch.randn(1, 1, 34, 60), dtype)
    else:
        assert_agrees(cls(audio_fs=4000, out_neurons=2), 0.1 * torch.randn(1, 1, 20 * 40), dtype)


@HALF
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_backbones(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    half = assert_agrees(StateNet(34, out_neurons=2, rnn_type=name), torch.randn(1, 1, 34, 60), dtype)
    x = torch.randn(1, 1, 34, 20, dtype=dtype)
    half.train()(x).float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in half.core.parameters())
    state = half.eval().init_state(1)
    with torch.no_grad():
        first, state = half.step(x[..., :7], state)
        rest, _ = half.step(x[..., 7:], state)
        whole = half(x)
    span = float(whole.max() - whole.min())
    assert float((torch.cat([first, rest], -1) - whole).abs().max()) < TOLERANCE[dtype] * span


@HALF
@pytest.mark.parametrize("name", sorted(PREFILTERS))
def test_prefilters(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dt = {"dt": 5.0} if "dt" in inspect.signature(PREFILTERS.get(name)).parameters else {}
    model = Linear(34, 9, 2, prefiltering={"prefiltering": name, **dt}, norm="none")
    assert_agrees(model, torch.rand(1, 1, 34, 60), dtype)


@HALF
def test_constants_of_front_ends_keep_their_digits(dtype: torch.dtype) -> None:
    """There and back again is no loss: filters are written from float64 each time."""
    bank = make_wav2spec("gammatone", 8000, 5.0, n_filters=6, f_max=4000.0)
    there = copy.deepcopy(bank).to(dtype)
    assert {buffer.dtype for buffer in there.buffers() if buffer.is_floating_point()} == {torch.float32}
    x = torch.randn(1, 1, 800)
    assert torch.equal(there.float()(x), bank(x))
    wide = there.double()
    assert torch.equal(wide(x.double()), copy.deepcopy(bank).double()(x.double()))


class Filtered(WaveformFrontEnd):
    """A user's front-end with a layer of its own, as the page on writing one shows."""

    def __init__(self, audio_fs: float) -> None:
        super().__init__(audio_fs, n_filters=4, hop_ms=5.0)
        self.conv = nn.Conv1d(1, 4, self.hop, stride=self.hop)

    def transform(self, padded: Tensor) -> Tensor:
        return self.conv(padded).abs().unsqueeze(1)


@HALF
def test_what_cannot_run_says_what_to_do_and_that_runs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Linear(4, 3, 2, wav2spec=Filtered(8000), norm="none").eval(), 0.1 * torch.randn(1, 1, 800)
    want = model(x)
    half = copy.deepcopy(model).to(dtype)
    with pytest.raises(TypeError, match=r"Filtered computes in float32.*model\.wav2spec\.float\(\)"):
        half(x.to(dtype))
    half.wav2spec.load_state_dict(model.wav2spec.state_dict())
    half.wav2spec.float()
    half.wav2spec.load_state_dict(model.wav2spec.state_dict())
    with torch.no_grad():
        for given in (x, x.to(dtype)):
            got = half(given)
            assert got.dtype == dtype
            assert float((got - want).abs().max()) < TOLERANCE[dtype] * float(want.max() - want.min())


def test_spectrograms_of_another_precision_are_refused_with_the_call() -> None:
    model = Linear(34, 9, 2).to(torch.bfloat16)
    with pytest.raises(TypeError, match=r"pass x\.to\(torch\.bfloat16\)"):
        model(torch.randn(1, 1, 34, 20))
    encoder = ICNet(audio_fs=4000, out_neurons=2)
    assert encoder(torch.randn(1, 1, 400)).dtype == torch.float32
