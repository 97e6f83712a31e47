"""Public checkpoints: every family loads by name and shape, and then computes what its equations say.

The weights are made here, by the public names; each oracle is written from the equations alone.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import (
    ConvNet2D,
    DeepEncoder,
    DNet,
    ICNet,
    Linear,
    LinearNonlinear,
    NetworkReceptiveField,
    StateNet,
    Transformer,
)
from deepSTRF.models.io import load_public_state_dict
from deepSTRF.models.io.legacy import convert_public_state  # what is renamed, without loading it
from deepSTRF.models.wav2spec import (
    CausalGammatone,
    CausalLEAF,
    CausalMelSpectrogram,
    EarlierGammatone,
    EarlierLEAF,
    Gammatonegram,
    SincNet,
)

F, T, N, H = 12, 5, 3, 4
FRAMES = 30


def make(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Random weights by name; ``__`` stands for a dot."""
    return {
        name.replace("__", "."): 0.5 * torch.randn(shape, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def positive(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return state | {name: state[name].abs() + 0.5 for name in names}


def sound(channels: int = 1) -> Tensor:
    return torch.randn(2, channels, F, FRAMES, dtype=torch.float64)


def loaded(model: Any, state: dict[str, Tensor], **options: Any) -> Any:
    return load_public_state_dict(model.double(), state, **options).eval()


# ------------------------------ the equations


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, C, F, T) with (O, C, F, K): (B, O, T), newest tap last."""
    padded = functional.pad(x, (weight.shape[-1] - 1, 0))
    frames = [
        torch.einsum("bcft,ocft->bo", padded[..., t : t + weight.shape[-1]], weight)
        for t in range(x.shape[-1])
    ]
    return torch.stack(frames, -1) + bias.unsqueeze(-1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over axis 1."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    shape = (-1, *[1] * (x.ndim - 2))
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight.view(shape) + bias.view(shape)


def batch_norm(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    gain = state["readout.bn.weight"] / torch.sqrt(state["readout.bn.running_var"] + 1e-5)
    return (x - state["readout.bn.running_mean"].unsqueeze(-1)) * gain.unsqueeze(-1) + state[
        "readout.bn.bias"
    ].unsqueeze(-1)


def softplus_output(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    beta = functional.softplus(state["readout.activation._raw_beta"]).unsqueeze(-1)
    floor = functional.softplus(state["readout.activation._raw_b"]).unsqueeze(-1)
    return torch.log1p(torch.exp(beta * x)) / beta + floor


def affine(x: Tensor, state: dict[str, Tensor], name: str = "readout.fc") -> Tensor:
    return torch.einsum("bct,nc->bnt", x, state[f"{name}.weight"]) + state[f"{name}.bias"].unsqueeze(-1)


def softplus_names() -> dict[str, tuple[int, ...]]:
    return {"readout__activation___raw_beta": (N,), "readout__activation___raw_b": (N,)}


def strf_state(channels: int = 1) -> dict[str, Tensor]:
    state = make(
        readout__strf__kernel__weight=(N, channels, F, T),
        readout__strf__kernel__bias=(N,),
        readout__bn__weight=(N,),
        readout__bn__bias=(N,),
        readout__bn__running_mean=(N,),
        readout__bn__running_var=(N,),
    )
    counter = {"readout.bn.num_batches_tracked": torch.tensor(7)}
    return positive(state, "readout.bn.running_var") | counter


def strf_output(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    drive = causal_conv(x, state["readout.strf.kernel.weight"], state["readout.strf.kernel.bias"])
    return batch_norm(drive, state)


def assert_equal(model: Any, x: Tensor, expected: Tensor, atol: float = 1e-11) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:, :, 0], expected, rtol=0, atol=atol)


# ------------------------------ models


def test_linear_and_linear_nonlinear() -> None:
    state, x = strf_state(), sound()
    assert_equal(loaded(Linear(F, T, N), state), x, strf_output(x, state))
    state |= make(**softplus_names())
    assert_equal(loaded(LinearNonlinear(F, T, N), state), x, softplus_output(strf_output(x, state), state))


def hidden_state(activated: bool) -> dict[str, Tensor]:
    return make(
        core__0__kernel__weight=(H, 1, F, T),
        core__0__kernel__bias=(H,),
        core__1__ln__weight=(H,),
        core__1__ln__bias=(H,),
        readout__fc__weight=(N, H),
        readout__fc__bias=(N,),
        **(softplus_names() if activated else {}),
    )


def hidden_units(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    drive = causal_conv(x, state["core.0.kernel.weight"], state["core.0.kernel.bias"])
    return layer_norm(drive, state["core.1.ln.weight"], state["core.1.ln.bias"])


def test_network_receptive_field() -> None:
    state, x = hidden_state(activated=True), sound()
    expected = softplus_output(affine(torch.tanh(hidden_units(x, state)), state), state)
    assert_equal(loaded(NetworkReceptiveField(F, T, H, N), state), x, expected)


def test_dnet() -> None:
    """y = rho y + alpha h from the first frame on: the limit of the public model's kernel of 14 taps."""
    state, x = hidden_state(activated=False) | make(core__3__d=(H,)), sound()
    state["core.3.d"] = torch.tensor([0.2, -0.5, 0.9, 1.2]).double()
    hidden = torch.sigmoid(hidden_units(x, state))
    alpha = 1 / (1 + state["core.3.d"] ** 2)
    y = [hidden[..., 0]]
    for t in range(FRAMES):
        y.append((1 - alpha) * y[-1] + alpha * hidden[..., t])
    expected = affine(torch.stack(y[1:], -1), state)
    assert_equal(loaded(DNet(F, T, H, out_neurons=N), state), x, expected)
    state["core.3.d"][2] = 3.0  # 10 frames: 0.9^14 = 23% of its memory lay beyond the kernel
    with pytest.raises(ValueError, match=r"core\.3: the leak of unit\(s\) \[2\] was cut off after 14 frames"):
        load_public_state_dict(DNet(F, T, H, out_neurons=N), state)
    loaded(DNet(F, T, H, out_neurons=N), state, refit_required=True)


def test_convnet2d() -> None:
    C, K_F, K_T = 3, 3, 2
    flat = C * (F - 3 * (K_F - 1))
    shapes: dict[str, tuple[int, ...]] = {}
    for index, channels in ((1, 1), (4, C), (7, C)):
        shapes |= {f"core__{index}__weight": (C, channels, K_F, K_T), f"core__{index}__bias": (C,)}
        shapes |= {f"core__{index + 1}__ln__weight": (C,), f"core__{index + 1}__ln__bias": (C,)}
    shapes |= {"readout__fc__0__weight": (H, flat), "readout__fc__0__bias": (H,)}
    shapes |= {"readout__fc__2__weight": (N, H), "readout__fc__2__bias": (N,)}
    state, x = make(**shapes, **softplus_names()), sound()
    y = functional.pad(x, (3 * (K_T - 1), 0))
    for index in (1, 4, 7):
        y = functional.conv2d(y, state[f"core.{index}.weight"], state[f"core.{index}.bias"])
        y = layer_norm(y, state[f"core.{index + 1}.ln.weight"], state[f"core.{index + 1}.ln.bias"])
        y = functional.leaky_relu(y, 0.1)
    y = functional.leaky_relu(affine(y.flatten(1, 2), state, "readout.fc.0"), 0.1)
    expected = softplus_output(affine(y, state, "readout.fc.2"), state)
    model = ConvNet2D(F, (K_F, K_T), c_hidden=C, n_hidden=H, out_neurons=N)
    assert_equal(loaded(model, state), x, expected)


@pytest.mark.parametrize("window", [None, 6])
def test_transformer(window: int | None) -> None:
    E, layers = 6, 2
    public = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(2 * E, 2, 8 * E, batch_first=True), layers, enable_nested_tensor=False
    ).double()
    state = {f"tsfm.{name}": 0.4 * torch.randn_like(tensor) for name, tensor in public.state_dict().items()}
    public.load_state_dict({name.removeprefix("tsfm."): tensor for name, tensor in state.items()})
    state |= make(patchify__weight=(E, 1, F // 2, 2), patchify__bias=(E,))
    state |= make(readout__fc__weight=(N, 2 * E), readout__fc__bias=(N,))
    speeds = torch.exp(torch.arange(0, 2 * E, 2).double() * (-math.log(10000.0) / (2 * E)))
    state["pos_encoding.div_term"] = speeds
    x = sound()
    tokens = functional.conv2d(
        functional.pad(x, (1, 0)), state["patchify.weight"], state["patchify.bias"], stride=(F // 2, 1)
    )
    tokens = tokens.flatten(1, 2).transpose(1, 2).clone()
    angle = torch.arange(FRAMES).double().unsqueeze(1) * speeds
    tokens[..., 0::2] += angle.sin()
    tokens[..., 1::2] += angle.cos()
    age = torch.arange(FRAMES).unsqueeze(1) - torch.arange(FRAMES)
    mask = (age < 0) | (age >= (window or FRAMES))
    for module in public.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    expected = affine(public.train()(tokens, mask=mask).transpose(1, 2), state)
    sizes = {"freq_patch_size": F // 2, "time_patch_size": 2, "embedding_dim": E, "n_heads": 2}
    model = Transformer(F, **sizes, n_layers=layers, context_window=window, out_neurons=N)
    assert_equal(loaded(model, state), x, expected)
    with pytest.raises(ValueError, match="positional='sinusoidal'"):
        load_public_state_dict(Transformer(F, positional="rope", out_neurons=N), state)


# ------------------------------ StateNet

C, K, S = 2, 4, 2
L = (F - K) // S + 1
WIDTH = C * L


def encoder(connectivity: str) -> tuple[dict[str, Tensor], Any]:
    """Weights of the encoder, and a function of one frame (B, F) to (B, C, L)."""
    if connectivity == "LC":
        state = make(encoder_layers__0__weights=(C, K, L), encoder_layers__0__biases=(C, L))

        def connect(frame: Tensor) -> Tensor:
            places = torch.stack([frame[:, S * place : S * place + K] for place in range(L)], -1)
            return (
                torch.einsum("bkl,ckl->bcl", places, state["encoder_layers.0.weights"])
                + state["encoder_layers.0.biases"]
            )
    elif connectivity == "FC":
        state = make(encoder_layers__1__weight=(C * L, F), encoder_layers__1__bias=(C * L,))

        def connect(frame: Tensor) -> Tensor:
            drive = frame @ state["encoder_layers.1.weight"].T + state["encoder_layers.1.bias"]
            return drive.view(-1, C, L)
    else:
        state = make(encoder_layers__0__weight=(C, 1, K), encoder_layers__0__bias=(C,))

        def connect(frame: Tensor) -> Tensor:
            places = torch.stack([frame[:, S * place : S * place + K] for place in range(L)], -1)
            weight = state["encoder_layers.0.weight"][:, 0]
            return torch.einsum("bkl,ck->bcl", places, weight) + state["encoder_layers.0.bias"].unsqueeze(-1)

    norm = f"encoder_layers.{3 if connectivity == 'FC' else 1}.ln"
    state |= {f"{norm}.weight": torch.rand(C).double() + 0.5, f"{norm}.bias": torch.randn(C).double()}

    def encode(frame: Tensor) -> Tensor:
        return torch.sigmoid(
            layer_norm(connect(frame), state[f"{norm}.weight"], state[f"{norm}.bias"])
        ).flatten(1)

    return state, encode


def gates(state: dict[str, Tensor], x: Tensor, h: Tensor, n: int) -> tuple[Any, Any]:
    """Drive from the input and from the state, n gates each."""
    from_x = x @ state["rnn.weight_ih_l0"].T + state["rnn.bias_ih_l0"]
    from_h = h @ state["rnn.weight_hh_l0"].T + state["rnn.bias_hh_l0"]
    return from_x.chunk(n, -1), from_h.chunk(n, -1)


def gru(state: dict[str, Tensor], x: Tensor, carried: dict[str, Tensor]) -> dict[str, Tensor]:
    (rx, zx, nx), (rh, zh, nh) = gates(state, x, carried["h"], 3)
    r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
    return {"h": (1 - z) * torch.tanh(nx + r * nh) + z * carried["h"]}


def lstm(state: dict[str, Tensor], x: Tensor, carried: dict[str, Tensor]) -> dict[str, Tensor]:
    from_x, from_h = gates(state, x, carried["h"], 4)
    i, f, g, o = (a + b for a, b in zip(from_x, from_h, strict=True))
    c = torch.sigmoid(f) * carried["c"] + torch.sigmoid(i) * torch.tanh(g)
    return {"c": c, "h": torch.sigmoid(o) * torch.tanh(c)}


def rnn(state: dict[str, Tensor], x: Tensor, carried: dict[str, Tensor]) -> dict[str, Tensor]:
    (from_x,), (from_h,) = gates(state, x, carried["h"], 1)
    return {"h": torch.tanh(from_x + from_h)}


def lmu(state: dict[str, Tensor], x: Tensor, carried: dict[str, Tensor]) -> dict[str, Tensor]:
    w = {
        name.removeprefix("rnn.cell."): value for name, value in state.items() if name.startswith("rnn.cell")
    }
    u = x @ w["e_x"].T + carried["h"] @ w["e_h"].T + carried["m"] @ w["e_m"].T
    m = carried["m"] @ w["A"].T + u @ w["B"].T
    return {"m": m, "h": torch.tanh(x @ w["W_x"].T + carried["h"] @ w["W_h"].T + m @ w["W_m"].T)}


MEMORY, THETA = 6, 20


def legendre_matrices() -> tuple[Tensor, Tensor]:
    """Zero-order hold of the delay's state space at unit step, by scipy."""
    A, B = np.zeros((MEMORY, MEMORY)), np.zeros((MEMORY, 1))
    for i in range(MEMORY):
        B[i] = (2 * i + 1) * (-1) ** i / THETA
        for j in range(MEMORY):
            A[i, j] = (2 * i + 1) / THETA * (-1 if i < j else (-1) ** (i - j + 1))
    transition = expm(A)
    return torch.from_numpy(transition), torch.from_numpy(
        np.linalg.solve(A, (transition - np.eye(MEMORY)) @ B)
    )


def recurrence(rnn_type: str) -> tuple[dict[str, Tensor], Any, dict[str, int]]:
    if rnn_type == "LMU":
        sizes = {"e_x": (1, WIDTH), "e_h": (1, WIDTH), "e_m": (1, MEMORY), "W_x": (WIDTH, WIDTH)}
        sizes |= {"W_h": (WIDTH, WIDTH), "W_m": (WIDTH, MEMORY)}
        state = {f"rnn.cell.{name}": 0.3 * torch.randn(size).double() for name, size in sizes.items()}
        A, B = legendre_matrices()
        return state | {"rnn.cell.A": A, "rnn.cell.B": B}, lmu, {"h": WIDTH, "m": MEMORY}
    n = {"GRU": 3, "LSTM": 4, "RNN": 1}[rnn_type]
    state = make(
        rnn__weight_ih_l0=(n * WIDTH, WIDTH),
        rnn__weight_hh_l0=(n * WIDTH, WIDTH),
        rnn__bias_ih_l0=(n * WIDTH,),
        rnn__bias_hh_l0=(n * WIDTH,),
    )
    cell = {"GRU": gru, "LSTM": lstm, "RNN": rnn}[rnn_type]
    return state, cell, {"h": WIDTH, **({"c": WIDTH} if rnn_type == "LSTM" else {})}


def statenet(rnn_type: str, connectivity: str = "LC") -> StateNet:
    options = {"memory_size": MEMORY, "theta": float(THETA)} if rnn_type == "LMU" else None
    sizes = {"kernel_size": K, "stride": S, "hidden_channels": C, "connectivity": connectivity}
    return StateNet(F, **sizes, rnn_type=rnn_type, rnn_options=options, out_neurons=N)


@pytest.mark.parametrize(
    ("rnn_type", "connectivity"),
    [("GRU", "LC"), ("GRU", "FC"), ("GRU", "CONV"), ("LSTM", "LC"), ("RNN", "LC"), ("LMU", "LC")],
)
def test_statenet(rnn_type: str, connectivity: str) -> None:
    state, encode = encoder(connectivity)
    more, cell, carried = recurrence(rnn_type)
    state |= more | make(readout__fc__weight=(N, WIDTH), readout__fc__bias=(N,), **softplus_names())
    x, outputs = sound(), []
    now = {name: torch.zeros(2, size, dtype=torch.float64) for name, size in carried.items()}
    for t in range(FRAMES):
        now = cell(state, encode(x[:, 0, :, t]), now)
        outputs.append(now["h"])
    expected = softplus_output(affine(torch.stack(outputs, -1), state), state)
    assert_equal(loaded(statenet(rnn_type, connectivity), state), x, expected)


def test_statenet_with_another_layout_says_so() -> None:
    with pytest.raises(ValueError, match=r"'rnn\.layer\.D'.*GRU, LSTM, RNN and LMU"):
        load_public_state_dict(statenet("S4"), {"rnn.layer.D": torch.zeros(1, WIDTH)})


def test_a_public_folder_loads_by_itself(tmp_path: Path) -> None:
    """As saved by the earlier package: flat arguments, ``_model_class``, its own names, no format number."""
    from safetensors.torch import save_file

    state = encoder("LC")[0] | recurrence("GRU")[0]
    state |= make(readout__fc__weight=(N, WIDTH), readout__fc__bias=(N,), **softplus_names())
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    config = {
        "n_frequency_bands": F, "temporal_window_size": 1, "kernel_size": K, "stride": S,
        "hidden_channels": C, "connectivity": "LC", "rnn_type": "GRU", "out_neurons": N,
        "output_activation": None, "prefiltering": None, "wav2spec": None, "_model_class": "StateNet",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, x = NeuralModel.from_pretrained(tmp_path), sound()
    assert torch.equal(model(x), loaded(statenet("GRU"), state)(x))


# ------------------------------ ICNet


def test_icnet() -> None:
    sizes = {"n_filters": 3, "sincnet_kernel_size": 9, "encoder_channels": 4, "encoder_kernel_size": 6}
    options = {"n_encoder_layers": 2, "bottleneck_channels": 3, "encoder_strides": [2, 4], "dt_ms": 1.0}
    model = ICNet(8000, N, **sizes, **options, sincnet_parameterization="hertz").double().eval()
    state = {
        f"wav2spec.{name}": 0.3 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in model.wav2spec.state_dict().items()
    }
    low, band = torch.tensor([300.0, 900.0, 2000.0]).double(), torch.tensor([500.0, 900.0, 1500.0]).double()
    state |= {"wav2spec.sincnet.low_hz_": low, "wav2spec.sincnet.band_hz_": band}
    state |= {"wav2spec.sincnet._n": torch.zeros(1, 9), "wav2spec.sincnet._window": torch.zeros(1, 9)}
    decoder = make(weight=(N, 3), bias=(N,))
    for copy_ in ("decoder.0", "readout"):
        state |= {f"{copy_}.{name}": tensor for name, tensor in decoder.items()}
    load_public_state_dict(model, state)
    x = torch.randn(1, 1, 8 * FRAMES, dtype=torch.float64)
    y = functional.pad(x, (8, 0)).unfold(-1, 9, 1)[:, 0] @ sinc_taps(low, low + band, 9, 8000).T
    y = (y.sign() * torch.log1p(y.abs())).transpose(1, 2)
    for name, stride in (("encoder.0", 2), ("encoder.1", 4), ("bottleneck", 1)):
        weight, bias = state[f"wav2spec.{name}.conv.weight"], state[f"wav2spec.{name}.conv.bias"]
        y = functional.conv1d(functional.pad(y, (6 - stride, 0)), weight, bias, stride=stride)
        y = functional.prelu(y, state[f"wav2spec.{name}.activation.weight"])
    assert_equal(
        model, x, functional.softplus(affine(y, {f"fc.{name}": t for name, t in decoder.items()}, "fc"))
    )


def sinc_taps(f1: Tensor, f2: Tensor, size: int, fs: float) -> Tensor:
    """Difference of two windowed low-passes, (F, K)."""
    n = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = 0.54 - 0.46 * torch.cos(2 * math.pi * torch.arange(size).double() / (size - 1))

    def low_pass(cutoff: Tensor) -> Tensor:
        return 2 * cutoff.unsqueeze(-1) / fs * torch.special.sinc(2 * cutoff.unsqueeze(-1) * n / fs)

    return (low_pass(f2) - low_pass(f1)) * window


# ------------------------------ front-ends


@pytest.mark.parametrize("parameterization", ["hertz", "spacing"])
def test_sincnet_in_front(parameterization: str) -> None:
    """Filters, absolute value, mean over the last window, ln(1 + x), then the linear model."""
    fs, size, hop, window = 16000, 31, 80, 160
    options = {"n_filters": F, "kernel_size": size, "envelope": True, "env_window_ms": 10.0, "rectify": "abs"}
    front = SincNet(fs, **options, norm="unit", parameterization=parameterization)
    generator = torch.Generator().manual_seed(3)
    jitter = 0.9 + 0.2 * torch.rand(2, F, generator=generator).double()
    low = front.f1.detach().double() * jitter[0]
    band = (front.f2 - front.f1).detach().double() * jitter[1]
    signs = torch.where(torch.arange(F) % 2 == 0, 1.0, -1.0)  # only absolute values count
    state = strf_state() | {"wav2spec.low_hz_": low * signs, "wav2spec.band_hz_": -band}
    state |= {"wav2spec._n": torch.zeros(1, size), "wav2spec._window": torch.zeros(1, size)}
    model = loaded(Linear(F, T, N, wav2spec=front), state)
    f2 = (low + band).clamp_max(fs / 2)
    torch.testing.assert_close(model.wav2spec.f1, low, rtol=1e-9, atol=0)
    torch.testing.assert_close(model.wav2spec.f2, f2, rtol=1e-9, atol=0)
    x = torch.randn(1, 1, hop * 12, dtype=torch.float64)
    filtered = functional.pad(x, (size - 1, 0)).unfold(-1, size, 1)[:, 0] @ sinc_taps(low, f2, size, fs).T
    envelope = (
        functional.pad(filtered.abs().transpose(1, 2), (window - hop, 0)).unfold(-1, window, hop).mean(-1)
    )
    expected = strf_output(torch.log1p(envelope).unsqueeze(1), state)
    assert_equal(model, x, expected, atol=1e-8)


def leaf_state(front: CausalLEAF, spread: float) -> dict[str, Tensor]:
    def raw(value: Tensor) -> Tensor:
        return torch.log(torch.expm1(value))

    def near(value: Tensor) -> Tensor:
        return value.detach().double() * (1 + spread * (2 * torch.rand(F).double() - 1))

    gain = front.pcen
    return {
        "wav2spec.center_freq_": near(front.center_freq_),
        "wav2spec.gabor_sigma_raw": raw(near(front.gabor_sigma)),
        "wav2spec.pool_sigma_raw": raw(near(front.pool_sigma)),
        "wav2spec.pcen_alpha_raw": raw(near(gain.alpha) - 0.1),
        "wav2spec.pcen_delta_raw": raw(near(gain.delta)),
        "wav2spec.pcen_root_raw": raw(near(gain.root)),
        "wav2spec.pcen_s_logit": torch.logit(near(torch.full((F,), 0.04))),
        "wav2spec._n": torch.arange(-360.0, 361.0),
        "wav2spec._pool_j": torch.arange(960.0),
    }


def test_leaf_in_front() -> None:
    """Each quantity is the public one; 7 parameters per band go in, 7 come out."""
    front = CausalLEAF(48000, n_filters=F)
    torch.manual_seed(0)
    leaf = leaf_state(front, spread=0.05)
    with pytest.raises(
        ValueError, match=r"wav2spec: its filters had one length.*EarlierLEAF.*refit_required"
    ):
        load_public_state_dict(Linear(F, T, N, wav2spec=front), strf_state() | leaf)
    model = loaded(Linear(F, T, N, wav2spec=front), strf_state() | leaf, refit_required=True)
    front, soft = model.wav2spec, functional.softplus
    center = leaf["wav2spec.center_freq_"].clamp(0.01, math.pi)  # the public floor, 76 Hz at 48 kHz
    s = torch.sigmoid(leaf["wav2spec.pcen_s_logit"])
    for ours, theirs in (
        (front.center_freq_, center),
        (front.gabor_sigma, soft(leaf["wav2spec.gabor_sigma_raw"])),
        (front.pool_sigma, soft(leaf["wav2spec.pool_sigma_raw"])),
        (front.pcen.alpha, soft(leaf["wav2spec.pcen_alpha_raw"])),
        (front.pcen.delta, soft(leaf["wav2spec.pcen_delta_raw"])),
        (front.pcen.root, soft(leaf["wav2spec.pcen_root_raw"])),
        (1 - torch.exp(-front.pcen.values()[0]), s),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_front_ends_that_cannot_hold_the_values_say_which_band() -> None:
    front = CausalLEAF(48000, n_filters=F)
    leaf = leaf_state(front, spread=0.0)
    leaf["wav2spec.gabor_sigma_raw"][3] *= 4
    with pytest.raises(ValueError, match=r"gabor_sigma_raw.*band\(s\) \[3\].*bandwidth_range"):
        load_public_state_dict(Linear(F, T, N, wav2spec=front), strf_state() | leaf, refit_required=True)
    sinc = SincNet(16000, n_filters=F)
    raw = {"wav2spec.low_hz_": sinc.f1.detach().clone(), "wav2spec.band_hz_": (sinc.f2 - sinc.f1).detach()}
    raw["wav2spec.band_hz_"][2] *= 5
    with pytest.raises(ValueError, match=r'\[2\].*parameterization="hertz"'):
        load_public_state_dict(Linear(F, T, N, wav2spec=sinc), strf_state() | raw)


FIXED = {
    "mel": (CausalMelSpectrogram, {"_window": (160,), "_mel_fb": (81, F)}, {"n_mels": F, "f_max": 7000.0}),
    "gammatone": (EarlierGammatone, {"_fc": (F,), "_kernels": (F, 1, 320)}, {"n_filters": F}),
    "gammatonegram": (
        Gammatonegram,
        {"a_coeffs": (F, 3), "b1": (F, 3), "b2": (F, 3), "b3": (F, 3), "b4": (F, 3), "gain": (F,)},
        {"n_filters": F, "f_max": 7000.0},
    ),
}


@pytest.mark.parametrize("kind", FIXED)
def test_constants_of_fixed_front_ends_are_not_needed(kind: str) -> None:
    make_front, shapes, options = FIXED[kind]
    front = make_front(16000, **options)
    derived = {f"wav2spec.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    state = strf_state() | derived
    model = loaded(Linear(F, T, N, wav2spec=front), state)
    x = torch.randn(1, 1, 80 * 20, dtype=torch.float64)
    assert_equal(model, x, strf_output(model.wav2spec(x), state), atol=1e-8)
    with pytest.raises(ValueError, match=r"unknown.*wav2spec\."):  # made for waveforms: not for this one
        load_public_state_dict(Linear(F, T, N), state)


def test_a_front_end_of_other_settings_is_refused() -> None:
    """The constants that a checkpoint holds say how its front-end was built."""

    def with_mel(**options: Any) -> Linear:
        return Linear(F, T, N, wav2spec=CausalMelSpectrogram(16000, n_mels=F, **options))

    public = with_mel(win_ms=20.0).wav2spec
    state = strf_state() | {"wav2spec._window": public._window, "wav2spec._mel_fb": public._mel_fb}
    load_public_state_dict(with_mel(win_ms=20.0), state)
    with pytest.raises(ValueError, match=r"wav2spec\._window is \(320,\).*has \(160,\)"):
        load_public_state_dict(with_mel(), state)
    with pytest.raises(ValueError, match="its mel bank is another one"):
        load_public_state_dict(with_mel(win_ms=20.0, f_min=200.0), state)
    sinc = SincNet(16000, n_filters=F)
    raw = {"wav2spec.low_hz_": sinc.f1.detach(), "wav2spec.band_hz_": (sinc.f2 - sinc.f1).detach()}
    raw = strf_state() | raw | {"wav2spec._window": torch.zeros(1, 251)}
    for options, reason in (
        ({"kernel_size": 101}, r"_window is \(1, 251\)"),
        ({"envelope": True}, r'rectify="abs", norm="unit"'),
        ({"norm": "peak"}, r'norm="unit"'),
        ({"hop_ms": 20.0, "kernel_size": 251}, "read the first samples of each bin"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # such a front-end skips samples, and says so
            front = SincNet(16000, n_filters=F, **options)
        with pytest.raises(ValueError, match=reason):
            load_public_state_dict(Linear(F, T, N, wav2spec=front), raw)
    cochlea = Linear(F, T, N, wav2spec=CausalGammatone(16000, n_filters=F))
    reversed_in_time = strf_state() | {"wav2spec._kernels": torch.zeros(F, 1, 320)}
    with pytest.raises(ValueError, match=r"reversed in time.*EarlierGammatone.*refit_required=True"):
        load_public_state_dict(cochlea, reversed_in_time)
    assert load_public_state_dict(cochlea, reversed_in_time, refit_required=True) is cochlea


def public_pcen(energy: np.ndarray, s: Any, alpha: Any, delta: Any, root: Any) -> np.ndarray:
    """(F, T), the running mean begins at zero."""
    mean, rows = np.zeros(len(energy)), []
    for frame in energy.T:
        mean = (1 - s) * mean + s * frame
        rows.append((frame / (1e-6 + mean) ** alpha + delta) ** root - delta**root)
    return np.stack(rows, -1)


def test_the_earlier_gammatone_is_what_its_equations_say() -> None:
    fs, hop, taps, window = 16000, 80, 320, 160
    front = EarlierGammatone(fs, n_filters=F, compression="pcen").double()
    e = np.linspace(21.4 * np.log10(0.00437 * 500 + 1), 21.4 * np.log10(0.00437 * 8000 + 1), F)
    fc = (10 ** (e / 21.4) - 1) / 0.00437
    t = np.arange(taps) / fs
    b = 1.019 * 24.7 * (0.00437 * fc + 1)
    g = t**3 * np.exp(-2 * np.pi * b[:, None] * t) * np.cos(2 * np.pi * fc[:, None] * t)
    g /= np.abs(np.fft.rfft(g, 4096)).max(-1, keepdims=True)
    x = np.random.default_rng(0).standard_normal(hop * 30)
    frames = np.lib.stride_tricks.sliding_window_view(np.r_[np.zeros(taps - 1), x], taps)
    y = np.maximum(frames @ g.T, 0)  # correlated, not convolved
    y = np.r_[np.zeros((window - hop, F)), y]
    energy = np.stack([y[k * hop : k * hop + window].mean(0) for k in range(30)], -1)
    expected = public_pcen(energy, 0.025, 0.98, 2.0, 0.5)
    got = front(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(got, expected, atol=1e-9)
    click = torch.zeros(1, 1, hop * 10, dtype=torch.float64)
    click[..., 4 * hop] = 1.0
    late = EarlierGammatone(fs, n_filters=F, compression="none").double()(click)[0, 0, -1].argmax()
    assert int(late) in (7, 8)  # "a click in bin 4 peaks in bins 7 to 8"


def test_the_earlier_leaf_is_what_its_equations_say() -> None:
    fs, hop, n_bins = 48000, 240, 12
    front = EarlierLEAF(fs, n_filters=F)
    torch.manual_seed(1)
    leaf = leaf_state(CausalLEAF(fs, n_filters=F), spread=0.2)
    state = strf_state() | leaf
    model = loaded(Linear(F, T, N, wav2spec=front), state)
    w = {name.removeprefix("wav2spec."): value.numpy() for name, value in leaf.items()}
    soft = lambda raw: np.logaddexp(raw, 0.0)  # noqa: E731
    omega, sigma = np.clip(w["center_freq_"], 0.01, np.pi), np.maximum(soft(w["gabor_sigma_raw"]), 1.0)
    n = np.arange(-360, 361)
    gauss = np.exp(-0.5 * (n / sigma[:, None]) ** 2)
    gauss /= gauss.sum(-1, keepdims=True)
    x = np.random.default_rng(0).standard_normal(hop * n_bins) * 0.1
    frames = np.lib.stride_tricks.sliding_window_view(np.r_[np.zeros(720), x], 721)
    real, imaginary = (frames @ (wave(omega[:, None] * n) * gauss).T for wave in (np.cos, np.sin))
    envelope = np.r_[np.zeros((960 - hop, F)), np.sqrt(real**2 + imaginary**2 + 1e-9)]
    d = np.arange(959, -1, -1)
    pool = np.exp(-0.5 * (d / np.maximum(soft(w["pool_sigma_raw"]), 0.5)[:, None]) ** 2)
    pool /= pool.sum(-1, keepdims=True)
    energy = np.stack([(envelope[k * hop : k * hop + 960].T * pool).sum(-1) for k in range(n_bins)], -1)
    s = 1 / (1 + np.exp(-w["pcen_s_logit"]))
    alpha, delta, root = (soft(w[f"pcen_{name}_raw"]) for name in ("alpha", "delta", "root"))
    bands = torch.from_numpy(public_pcen(energy, s, alpha, delta, root))[None, None]
    sounds = torch.from_numpy(x)[None, None]
    assert_equal(model, sounds, strf_output(bands, state), atol=1e-8)
    streamed, carried = [], model.init_state(1)
    for chunk in sounds.split(5 * hop, -1):
        y, carried = model.step(chunk, carried)
        streamed.append(y)
    torch.testing.assert_close(torch.cat(streamed, -1), model(sounds), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["sincnet", "hertz", "leaf", "earlier leaf", "gammatonegram"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_public_folder_with_a_front_end_keeps_its_precision(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Solving shifts in double precision makes no part of a float32 model double."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    sinc = SincNet(16000, n_filters=F)
    fronts: dict[str, tuple[Any, dict[str, Tensor]]] = {
        "sincnet": (sinc, {"low_hz_": sinc.f1 * 1.01, "band_hz_": (sinc.f2 - sinc.f1) * 0.99}),
        "leaf": (CausalLEAF(48000, n_filters=F), {}),
        "earlier leaf": (EarlierLEAF(48000, n_filters=F), {}),
        "gammatonegram": (
            Gammatonegram(16000, n_filters=F, f_max=7000.0),
            {name: torch.zeros(F, 3) for name in ("a_coeffs", "b1", "b2", "b3", "b4")}
            | {"gain": torch.ones(F)},
        ),
    }
    fronts["hertz"] = (SincNet(16000, n_filters=F, parameterization="hertz"), fronts["sincnet"][1])
    front, own = fronts[kind]
    own = {f"wav2spec.{name}": value.detach() for name, value in own.items()}
    state = strf_state() | (leaf_state(CausalLEAF(48000, n_filters=F), 0.02) if "leaf" in kind else own)
    state = {k: v.to(dtype).contiguous() if v.is_floating_point() else v for k, v in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    config = {"n_frequency_bands": F, "temporal_window_size": T, "out_neurons": N, "_model_class": "Linear"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    extra = {"extra_kwargs": {"wav2spec": front}, "refit_required": kind == "leaf"}
    model = NeuralModel.from_pretrained(tmp_path, **extra)
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {dtype}
    assert bool(model(torch.randn(1, 1, front.hop * 20, dtype=dtype)).isfinite().all())
    with pytest.raises(ValueError, match="unknown wav2spec"):
        NeuralModel.from_pretrained(tmp_path)


def test_a_public_folder_that_mixes_precisions_loads_in_the_default_one(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = strf_state() | {
        "wav2spec.low_hz_": torch.rand(F) * 100 + 400,
        "wav2spec.band_hz_": torch.rand(F) + 99,
    }
    state = {k: v.float() if "strf" in k else v for k, v in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    config = {"n_frequency_bands": F, "temporal_window_size": T, "out_neurons": N, "_model_class": "Linear"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    front = SincNet(16000, n_filters=F, parameterization="hertz")
    model = NeuralModel.from_pretrained(tmp_path, extra_kwargs={"wav2spec": front})
    assert model(torch.randn(1, 1, 800)).dtype == torch.float32


# ------------------------------ the dynamic STRF toolbox


def test_the_deep_encoder_of_the_toolbox() -> None:
    """Five causal convolutions with ReLU, dilations 1, 1, 2, 4, 8, then an affine map, in NumPy."""
    state = {
        f"conv.{2 * k}.weight": 0.4 * torch.randn(H, F if k == 0 else H, 5).double() for k in range(5)
    } | {"conv.10.weight": torch.randn(N, H, 1).double(), "conv.10.bias": torch.randn(N).double()}
    x = sound()
    y = x[0, 0].numpy()
    for k, dilation in enumerate((1, 1, 2, 4, 8)):
        w = state[f"conv.{2 * k}.weight"].numpy()
        past = np.pad(y, ((0, 0), (4 * dilation, 0)))
        y = np.maximum(sum(w[:, :, j] @ past[:, j * dilation : j * dilation + FRAMES] for j in range(5)), 0.0)
    y = state["conv.10.weight"][:, :, 0].numpy() @ y + state["conv.10.bias"].numpy()[:, None]
    model = loaded(DeepEncoder(F, n_hidden=H, out_neurons=N), state)
    assert_equal(model, x[:1], torch.from_numpy(y)[None])
    with pytest.raises(ValueError, match=r"unknown readout\.fc\.bias"):
        load_public_state_dict(DeepEncoder(F, n_hidden=H, out_neurons=N, readout_bias=False), state)
    with pytest.raises(ValueError, match=r"such tensors belong to DeepEncoder"):
        load_public_state_dict(Linear(F, T, N, norm="none"), state)


@pytest.mark.parametrize("name", ["conv", "conv.0"])
def test_the_linear_encoder_of_the_toolbox(name: str) -> None:
    state, x = make(weight=(N, F, T), bias=(N,)), sound()
    padded = functional.pad(x[:, 0], (T - 1, 0))
    expected = functional.conv1d(padded, state["weight"], state["bias"])
    named = {f"{name}.{part}": value for part, value in state.items()}
    model = loaded(Linear(F, T, N, norm="none"), named)
    assert_equal(model, x, expected)
    torch.testing.assert_close(model.STRF_weight(), state["weight"])
    with pytest.raises(ValueError, match='norm="none"'):
        load_public_state_dict(Linear(F, T, N), named)


# ------------------------------ prefilters and kernels


def test_adaptrans_and_icadaptation_in_front() -> None:
    """m[t] = a m[t - 1] + (1 - a) x[t - 1], from the first frame on."""
    x = sound()

    def mean(a: Tensor) -> Tensor:
        m = [x[:, 0, :, 0]]
        for t in range(FRAMES - 1):
            m.append(a * m[-1] + (1 - a) * x[:, 0, :, t])
        return torch.stack(m, -1)

    filters = make(d_on=(F,), d_off=(F,), p=(F,))
    a_on, a_off, w = (1 / (1 + filters[name] ** 2) for name in ("d_on", "d_off", "p"))
    on = (x[:, 0] - w.unsqueeze(-1) * mean(a_on)).relu()
    off = (mean(a_off) - w.unsqueeze(-1) * x[:, 0]).relu()
    state = strf_state(2) | {f"prefiltering.{name}": value for name, value in filters.items()}
    model = loaded(Linear(F, T, N, prefiltering={"type": "AdapTrans", "dt": 5.0}), state)
    assert_equal(model, x, strf_output(torch.stack([on, off], 1), state))
    a = torch.rand(F).double()
    state = strf_state() | {"prefiltering.a": a}
    model = loaded(Linear(F, T, N, prefiltering={"type": "willmore", "dt": 5.0}), state)
    assert_equal(model, x, strf_output((x[:, 0] - mean(a)).relu().unsqueeze(1), state))


def kernel_state(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    rest = {name: value for name, value in strf_state().items() if "strf.kernel.weight" not in name}
    return rest | {f"readout.strf.kernel.{name}": value for name, value in make(**shapes).items()}


def test_separable_and_parametric_kernels() -> None:
    x, prefix = sound(), "readout.strf.kernel"
    state = kernel_state(weight_f=(N, 1, F, 1), weight_t=(N, 1, 1, T))
    full = state[f"{prefix}.weight_f"] * state[f"{prefix}.weight_t"]
    expected = strf_output(x, state | {f"{prefix}.weight": full})
    assert_equal(loaded(Linear(F, T, N, kernel={"type": "separable"}), state), x, expected)

    G = 2
    state = kernel_state(P=(2, N, 1, G), SIG=(2, N, 1, G), weight=(N, 1, G))
    grid = torch.tensor([F - 1.0, T - 1.0]).double().view(2, 1, 1, 1)
    state[f"{prefix}.P"] = torch.rand(2, N, 1, G).double() * grid
    P, SIG = state[f"{prefix}.P"], state[f"{prefix}.SIG"].abs() + 0.27
    full = torch.zeros(N, 1, F, T, dtype=torch.float64)
    for n in range(N):
        for g in range(G):
            f, j = torch.arange(F).double().unsqueeze(1), torch.arange(T).double()
            bump = torch.exp(
                -0.5
                * (
                    ((f - P[0, n, 0, g]) / SIG[0, n, 0, g]) ** 2
                    + ((j - P[1, n, 0, g]) / SIG[1, n, 0, g]) ** 2
                )
            )
            full[n, 0] += state[f"{prefix}.weight"][n, 0, g] * bump / (bump.sum() + 1e-7)
    expected = strf_output(x, state | {f"{prefix}.weight": full})
    model = Linear(F, T, N, kernel={"type": "parametric", "num_gaussians": G})
    assert_equal(loaded(model, state), x, expected)
    state[f"{prefix}.P"][1, 0, 0, 1] = T + 3.0
    with pytest.raises(ValueError, match=rf"P has 1 centre\(s\) outside 0 \.\. {T - 1}"):
        load_public_state_dict(model, state)


# ------------------------------ what does not fit


def test_missing_unknown_and_misshapen_are_all_listed() -> None:
    state = strf_state()
    state["readout.strf.kernel.weight"] = torch.zeros(N, 1, F, T + 1)
    del state["readout.bn.bias"]
    state["readout.gain"] = torch.zeros(N)
    model = Linear(F, T, N)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit Linear") as caught:
        load_public_state_dict(model, state)
    for part in (
        "missing readout.bn.bias",
        "unknown readout.gain",
        f"(3, 1, {F}, {T + 1}) and should be (3, 1, {F}, {T})",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    leaf = strf_state() | leaf_state(CausalLEAF(16000, n_filters=F), 0.0)
    wider = Linear(F + 1, T, N, wav2spec=CausalLEAF(16000, n_filters=F + 1))
    with pytest.raises(ValueError, match=r"missing.*center_shift.*unknown.*center_freq_"):
        load_public_state_dict(wider, leaf)
    with pytest.raises(TypeError, match=r"tensors only.*'readout'"):
        convert_public_state(model, {"readout": 3})


def test_converting_our_own_names_changes_nothing() -> None:
    for model in (Linear(F, T, N, wav2spec=CausalLEAF(16000, n_filters=F)), Transformer(F, out_neurons=N)):
        state = model.state_dict()
        assert all(converted is state[name] for name, converted in convert_public_state(model, state).items())
