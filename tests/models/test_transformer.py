"""Transformer: equal to PyTorch's layers with a mask, causal, blockwise within a window, and streamable."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from deepSTRF.models.attention import (  # inner: tested by itself
    CausalSelfAttention,
    CausalTransformerLayer,
    SinusoidalPositionalEncoding,
    build_causal_window_mask,
)
from deepSTRF.models.audio import Transformer

BANDS = 12
SMALL: dict[str, Any] = {"n_frequency_bands": BANDS, "embedding_dim": 8, "out_neurons": 3}


def build(**options: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(**{**SMALL, **options}).eval()


def randomised(module: nn.Module) -> nn.Module:
    """No bias at zero, no gain at one: an oracle must see them all."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


# ------------------------------ facts


def test_counts() -> None:
    assert Transformer(34, out_neurons=119).count_trainable_params() == 35_783
    assert Transformer(32, n_heads=2, out_neurons=49).count_trainable_params() == 32_257
    assert Transformer(34, out_neurons=119, positional="rope").count_trainable_params() == 35_783
    d = 8
    two = build(n_layers=2).count_trainable_params() - build().count_trainable_params()
    assert two == 12 * d**2 + 13 * d


def test_attributes() -> None:
    model = build(freq_patch_size=4, time_patch_size=3, n_heads=2, n_layers=2)
    assert (model.K_F, model.K_T, model.F_p, model.token_dim, model.H) == (4, 3, 3, 24, 24)
    assert (model.n_heads, model.n_layers, model.context_window, model.embedding_dim) == (2, 2, None, 8)
    assert (model.T, build(time_patch_size=15).T, build(context_window=7).T) == (9, 15, 7)


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("patch", [1, 4])
def test_receptive_field(window: int, layers: int, patch: int) -> None:
    model = build(context_window=window, n_layers=layers, time_patch_size=patch).double()
    assert model.receptive_field == layers * (window - 1) + patch
    x = torch.randn(1, 1, BANDS, 30, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[..., 20].sum(), x)
    seen = gradient[0, 0].abs().amax(0).nonzero().flatten()
    assert (20 - int(seen[0]) + 1, int(seen[-1])) == (model.receptive_field, 20)
    assert build().receptive_field is None


def test_state_dict_names_are_those_of_pytorch() -> None:
    ours = build(n_layers=2).core.tsfm.state_dict()
    layer = nn.TransformerEncoderLayer(8, 1, 32, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


# ------------------------------ equations


@pytest.mark.parametrize("window", [None, 1, 2, 7, 40, 200])
@pytest.mark.parametrize("frames", [1, 33, 64, 100])
def test_equals_masked_attention_of_pytorch(window: int | None, frames: int) -> None:
    torch.manual_seed(1)
    ours = randomised(CausalTransformerLayer(12, n_heads=3, context_window=window)).double().eval()
    theirs = nn.TransformerEncoderLayer(12, 3, 48, dropout=0.0, batch_first=True).double().train()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, frames, 12, dtype=torch.float64)
    mask = build_causal_window_mask(frames, window)
    torch.testing.assert_close(ours(x), theirs(x, src_mask=mask), rtol=0, atol=1e-12)


def test_mask() -> None:
    expected = [[j > i or i - j >= 3 for j in range(6)] for i in range(6)]
    assert build_causal_window_mask(6, 3).tolist() == expected
    assert torch.equal(build_causal_window_mask(6), build_causal_window_mask(6, 6))
    with pytest.raises(ValueError, match="context_window"):
        build_causal_window_mask(6, 0)


def test_sinusoidal_code() -> None:
    code = SinusoidalPositionalEncoding(6)(torch.zeros(1, 50, 6, dtype=torch.float64))[0]
    for frame in (0, 1, 49):
        for i in range(3):
            angle = frame * 10000 ** (-2 * i / 6)
            assert math.isclose(code[frame, 2 * i], math.sin(angle), abs_tol=1e-12)
            assert math.isclose(code[frame, 2 * i + 1], math.cos(angle), abs_tol=1e-12)
    with pytest.raises(ValueError, match=r"\(B, T, 6\)"):
        SinusoidalPositionalEncoding(6)(torch.zeros(1, 50, 8))


def test_rotary_code_turns_pairs_by_the_frame_number() -> None:
    """Against complex numbers: q_m * conj(k_n) exp(i (m - n) w), summed over pairs."""
    torch.manual_seed(2)
    attention = randomised(CausalSelfAttention(8, 2, rotary=True)).double().eval()
    x = torch.randn(1, 20, 8, dtype=torch.float64)
    q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).view(20, 3, 2, 4).unbind(1)
    speed = torch.tensor([1.0, 10000 ** (-2 / 4)], dtype=torch.float64)
    number = torch.arange(20, dtype=torch.float64)
    turn = torch.exp(1j * number.view(-1, 1, 1) * speed)
    pairs = [torch.view_as_complex(part.reshape(20, 2, 2, 2).contiguous()) * turn for part in (q, k)]
    scores = torch.einsum("mhp,nhp->hmn", pairs[0], pairs[1].conj()).real / 2.0
    weights = scores.masked_fill(build_causal_window_mask(20), -math.inf).softmax(-1)
    y = torch.einsum("hmn,nhd->mhd", weights, v).reshape(20, 8)
    expected = y @ attention.out_proj.weight.T + attention.out_proj.bias
    torch.testing.assert_close(attention(x)[0], expected, rtol=0, atol=1e-12)


def test_rotary_and_no_code_do_not_know_the_clock() -> None:
    x = torch.randn(1, 1, BANDS, 60, dtype=torch.float64)
    for positional, same in (("rope", True), ("none", True), ("sinusoidal", False)):
        model = build(context_window=6, n_layers=2, positional=positional).double()
        whole, later = model(x), model(x[..., 20:])
        agrees = torch.allclose(whole[..., 31:], later[..., 11:], rtol=0, atol=1e-12)
        assert agrees is same, positional


def test_patches_are_flattened_embedding_first() -> None:
    model = build(freq_patch_size=4, time_patch_size=3, positional="none").double()
    x = torch.randn(2, 1, BANDS, 10, dtype=torch.float64)
    weight, bias = model.core.patchify.weight, model.core.patchify.bias
    tokens = torch.zeros(2, 10, 8, 3, dtype=torch.float64)
    for t in range(10):
        for patch in range(3):
            for lag in range(min(3, t + 1)):
                bands = x[:, 0, 4 * patch : 4 * patch + 4, t - lag]
                tokens[:, t, :, patch] += bands @ weight[:, 0, :, 2 - lag].T
    tokens = (tokens + bias.view(8, 1)).flatten(2)
    expected = model.readout(model.core.tsfm(tokens).transpose(1, 2))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)


# ------------------------------ time


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("positional", ["sinusoidal", "rope", "none"])
def test_causal(window: int | None, positional: str, assert_causal: Callable[..., None]) -> None:
    model = build(context_window=window, positional=positional, n_layers=2, n_heads=2, time_patch_size=3)
    for frame in (0, 17, 38):
        assert_causal(model, torch.randn(1, 1, BANDS, 40), frame)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positional", ["sinusoidal", "rope", "none"])
@pytest.mark.parametrize("window", [1, 5, 50])
def test_streams(
    window: int, positional: str, dtype: torch.dtype, assert_streams: Callable[..., None]
) -> None:
    options = {"n_layers": 2, "n_heads": 2, "time_patch_size": 3, "freq_patch_size": 6}
    model = build(context_window=window, positional=positional, **options).to(dtype)
    assert_streams(model, torch.randn(2, 1, BANDS, 70, dtype=dtype))


def test_streams_of_one_batch_may_have_started_at_different_times() -> None:
    model = build(context_window=4, n_layers=2).double()
    old, new = torch.randn(1, 1, BANDS, 25).double(), torch.randn(1, 1, BANDS, 9).double()
    _, state = model.step(old[..., :16], model.init_state(1))
    joined = _join(state, model.init_state(1))
    y, _ = model.step(torch.cat([old[..., 16:], new]), joined)
    torch.testing.assert_close(y[0], model(old)[0, ..., 16:], rtol=0, atol=1e-12)
    torch.testing.assert_close(y[1], model(new)[0], rtol=0, atol=1e-12)


def _join(a: Any, b: Any) -> Any:
    return torch.cat([a, b]) if isinstance(a, torch.Tensor) else {key: _join(a[key], b[key]) for key in a}


def test_hours_into_a_stream_the_code_is_still_exact() -> None:
    encoding = SinusoidalPositionalEncoding(4)
    hour = 3_600_000 // 5
    state = {"position": torch.tensor([24 * hour])}
    code = encoding.step(torch.zeros(1, 1, 4), state)[0][0, 0]
    assert math.isclose(code[0], math.sin(24 * hour), abs_tol=1e-6)


def test_without_a_window_there_is_no_stream_and_the_text_says_why() -> None:
    with pytest.raises(ValueError, match=r"without a context_window.*Transformer\(context_window=60\)"):
        build().init_state(1)


def test_memory_of_a_window_is_linear_in_the_clip() -> None:
    """The largest tensor that attention makes grows with T, not with T squared."""

    def largest(frames: int, window: int | None) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            build(context_window=window)(torch.randn(1, 1, BANDS, frames)).sum().backward()
        return max(sizes)

    assert largest(2048, 16) <= 2.1 * largest(1024, 16)


# ------------------------------ training


def test_dropout_acts_in_train_mode_only() -> None:
    model, x = build(context_window=5, dropout=0.5), torch.randn(1, 1, BANDS, 20)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    unbounded = build(dropout=0.5).train()
    assert not torch.equal(unbounded(x), unbounded(x))
    assert torch.equal(build(dropout=0.0).train()(x), build(dropout=0.5)(x))


def test_layers_start_differently() -> None:
    first, second = build(n_layers=2).core.tsfm.layers
    assert not torch.equal(first.self_attn.in_proj_weight, second.self_attn.in_proj_weight)


@pytest.mark.parametrize("window", [None, 6])
def test_compiles(window: int | None) -> None:
    model = build(context_window=window, n_layers=2, n_heads=2)
    x = torch.randn(2, 1, BANDS, 25)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)


def test_learns_a_delay_that_a_frame_by_itself_does_not_hold() -> None:
    torch.manual_seed(0)
    model = Transformer(4, embedding_dim=16, context_window=6, positional="rope", dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x = torch.randn(8, 1, 4, 40)
    target = torch.nn.functional.pad(x[:, :, :1], (3, 0))[..., :40]
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = ((model(x) - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_pickles() -> None:
    model, x = build(context_window=5), torch.randn(1, 1, BANDS, 20)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


# ------------------------------ bad arguments


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"context_window": 0}, r"context_window must be at least 1, got 0.*None"),
        ({"context_window": -3}, "context_window"),
        ({"embedding_dim": 7}, r"even.*got 7; 6 or 8 would work"),
        ({"embedding_dim": 1}, r"even.*got 1; 2 would work"),
        ({"embedding_dim": 6, "n_heads": 2, "positional": "rope"}, r"width per head.*got 3; 2 or 4"),
        ({"n_heads": 3}, r"n_heads must divide the width 8, got 3; these do: \[1, 2, 4, 8\]"),
        ({"freq_patch_size": 5}, r"freq_patch_size.*12 bands, got 5.*\[1, 2, 3, 4, 6, 12\]"),
        ({"positional": "learned"}, r"'sinusoidal', 'rope', 'none'"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"n_layers": 0}, "n_layers"),
        ({"time_patch_size": 0}, "time_patch_size"),
        ({"embedding_dim": 0}, "embedding_dim"),
    ],
)
def test_illegal_values(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build(**options)


@pytest.mark.parametrize(
    "options", [{"context_window": 2.5}, {"dropout": "0.1"}, {"n_heads": True}, {"embedding_dim": 8.0}]
)
def test_illegal_types(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        build(**options)


def test_an_odd_token_is_fine_without_a_code() -> None:
    assert build(embedding_dim=7, positional="none")(torch.randn(1, 1, BANDS, 5)).shape == (1, 3, 1, 5)
