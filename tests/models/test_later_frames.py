"""The past of a whole clip: what a later frame holds (NaN, infinity, huge values) never reaches it.

The reference is the same module on the clip cut before that frame, which never saw it.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepSTRF.dsp.recursion import exponential_moving_average, first_order_recursion, linear_scan
from deepSTRF.models.attention import CausalTransformerEncoder
from deepSTRF.models.audio import Linear, Transformer
from deepSTRF.models.norms import CausalLayerNorm
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.registry import ACTIVATIONS, BACKBONES, KERNELS, MODELS, PREFILTERS, WAV2SPEC

BANDS, FRAMES, WIDTH = 12, 150, 6
#: Inside a block of every block length in use, at its edges, and near the start.
BAD_FRAMES = (3, 64, 90, 127)
BAD_VALUES = (math.nan, math.inf, -math.inf, 1e30)
#: Options of a code path of its own, beside the defaults of every registered name.
FRONT_END_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "gammatone": [{"compression": "pcen"}, {"rectify": "analytic"}, {"compression": "cuberoot"}],
    "leaf": [{"compression": "log"}, {"pcen_start": "first"}, {"pcen_start": "zero"}],
    "sincnet": [{"activation": "symlog"}, {"envelope": True}],
    "mel": [{"compression": "log1p"}, {"magnitude": "power", "compression": "none"}],
}
BACKBONE_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "lmu": [{"feedback": False}],
    "s4d": [{"init": "lin"}],
    "vanilla": [{"nonlinearity": "relu"}],
}


class TimeLast(nn.Module):
    """A module of sequences (B, T, D) with time on the last axis."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.transpose(1, 2)).transpose(1, 2)


def with_options(names: Any, options: dict[str, list[dict[str, Any]]]) -> list[Any]:
    """Every registered name with its defaults, then with each of its options."""
    cases = [(name, more) for name in names for more in [{}, *options.get(name, [])]]
    return [pytest.param(name, more, id="-".join([name, *map(str, more.values())])) for name, more in cases]


def assert_past_stays(module: nn.Module, x: Tensor, hop: int = 1) -> None:
    """Outputs before a bad frame equal those of the clip that ends there."""
    module = module.eval()
    with torch.no_grad():
        span = float((whole := module(x)).max() - whole.min())
        for frame in BAD_FRAMES:
            cut = module(x[..., : frame * hop])
            for value in BAD_VALUES:
                bad = x.clone()
                bad[..., frame * hop] = value
                past = module(bad)[..., :frame]
                torch.testing.assert_close(past, cut, rtol=1e-4, atol=1e-5 * span)
                assert torch.equal(past, whole[..., :frame]), (frame, value)


@pytest.mark.parametrize(("name", "options"), with_options(WAV2SPEC, FRONT_END_OPTIONS))
def test_front_ends(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    front_end = make_wav2spec(name, 8000, 5.0, n_filters=BANDS, f_max=4000.0, **options)
    assert_past_stays(front_end, 0.1 * torch.randn(2, 1, FRAMES * front_end.hop), front_end.hop)


@pytest.mark.parametrize("batch", [1, 17])  # PyTorch convolves 16 clips and more by another algorithm
@pytest.mark.parametrize("name", sorted(MODELS))
def test_models(name: str, batch: int) -> None:
    torch.manual_seed(0)
    cls = MODELS.get(name)
    takes = inspect.signature(cls).parameters
    if "n_frequency_bands" not in takes:
        model = cls(audio_fs=4000, out_neurons=3, dt_ms=5.0)
        assert_past_stays(model, 0.1 * torch.randn(min(batch, 2), 1, FRAMES * 20), 20)
        return
    assert_past_stays(cls(n_frequency_bands=34, out_neurons=3), torch.randn(batch, 1, 34, FRAMES))


@pytest.mark.parametrize(("name", "options"), with_options(BACKBONES, BACKBONE_OPTIONS))
def test_backbones(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES.get(name)(input_size=WIDTH, hidden_size=WIDTH, num_layers=2, **options)
    assert_past_stays(TimeLast(backbone), torch.randn(2, WIDTH, FRAMES))


@pytest.mark.parametrize("positional", ["sinusoidal", "rope"])
@pytest.mark.parametrize("window", [None, 5, 40])
def test_attention(window: int | None, positional: str) -> None:
    torch.manual_seed(0)
    encoder = CausalTransformerEncoder(2, 8, 2, context_window=window, rotary=positional == "rope")
    assert_past_stays(TimeLast(encoder), torch.randn(2, 8, FRAMES))
    model = Transformer(BANDS, out_neurons=2, embedding_dim=8, context_window=window, positional=positional)
    assert_past_stays(model, torch.randn(2, 1, BANDS, FRAMES))


@pytest.mark.parametrize("name", sorted(PREFILTERS))
def test_prefilters(name: str) -> None:
    torch.manual_seed(0)
    build = PREFILTERS.get(name)
    dt = {"dt": 5.0} if "dt" in inspect.signature(build).parameters else {}
    assert_past_stays(build(BANDS, **dt), torch.rand(2, 1, BANDS, FRAMES))
    model = Linear(BANDS, 5, 2, prefiltering={"prefiltering": name, **dt})
    assert_past_stays(model, torch.rand(2, 1, BANDS, FRAMES))


@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernels(name: str, batch: int) -> None:
    torch.manual_seed(0)
    model = Linear(BANDS, 7, 3, kernel={"kernel": name})
    assert_past_stays(model, torch.randn(batch, 1, BANDS, FRAMES))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_and_leaky_units(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS.get("dnet")(BANDS, 4, 5, out_neurons=3, output_decay=True, output_activation=name)
    assert_past_stays(model, torch.randn(2, 1, BANDS, FRAMES))


def test_normalisation_over_bands() -> None:
    assert_past_stays(CausalLayerNorm(BANDS, dim=-2), torch.randn(2, 1, BANDS, FRAMES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.999])
def test_recursions_are_the_loop_from_a_bad_frame_on(coefficient: float, dtype: torch.dtype) -> None:
    """Before a bad frame the loop's values, from it on no number: as the recursion says, not less."""
    torch.manual_seed(0)
    x = torch.randn(3, FRAMES, dtype=dtype)
    x[1, 70], x[2, 33] = math.nan, math.inf
    loop, y = [], torch.zeros(3, dtype=dtype)
    for t in range(FRAMES):
        y = coefficient * y + x[:, t]
        loop.append(y)
    want = torch.stack(loop, dim=-1)
    for solved in (
        first_order_recursion(x, coefficient)[0],
        first_order_recursion(x, torch.full((3,), coefficient, dtype=dtype))[0],
        linear_scan(x, torch.full_like(x, coefficient)),
    ):
        assert torch.equal(solved.isfinite(), want.isfinite())
        torch.testing.assert_close(solved[want.isfinite()], want[want.isfinite()], rtol=1e-4, atol=1e-5)
    mean, last = exponential_moving_average(x, coefficient)
    assert torch.equal(mean.isfinite(), want.isfinite())
    assert last.isfinite().tolist() == [True, False, False]
