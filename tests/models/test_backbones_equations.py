"""Every backbone against its published equations: float64 loops over frames, written here in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.signal import cont2discrete
from scipy.special import erf
from torch import nn

from deepSTRF.models.backbones import GRU, LMU, LSTM, RNN, S4, S4D, Mamba
from deepSTRF.models.backbones.lmu import legendre_delay  # inner: tested by itself
from deepSTRF.models.backbones.s4 import legs_modes, lin_modes  # inner: tested by itself

FRAMES, WIDTH_IN, WIDTH = 210, 5, 6

Weights = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gates(p: Weights, x: np.ndarray, h: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The parts of W x + b and of U h + c."""
    n = p["weight_ih_l0"].shape[0] // WIDTH
    return (
        np.split(p["weight_ih_l0"] @ x + p["bias_ih_l0"], n),
        np.split(p["weight_hh_l0"] @ h + p["bias_hh_l0"], n),
    )


def gru(p: Weights, x: np.ndarray) -> np.ndarray:
    h, out = np.zeros(WIDTH), []
    for now in x:
        (xr, xz, xn), (hr, hz, hn) = gates(p, now, h)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        h = (1 - z) * np.tanh(xn + r * hn) + z * h
        out.append(h)
    return np.stack(out)


def lstm(p: Weights, x: np.ndarray) -> np.ndarray:
    h, c, out = np.zeros(WIDTH), np.zeros(WIDTH), []
    for now in x:
        i, f, g, o = (a + b for a, b in zip(*gates(p, now, h), strict=True))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out)


def rnn(p: Weights, x: np.ndarray) -> np.ndarray:
    h, out = np.zeros(WIDTH), []
    for now in x:
        ((a,), (b,)) = gates(p, now, h)
        h = np.tanh(a + b)
        out.append(h)
    return np.stack(out)


def legendre(d: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """A and B of the delay, entry by entry, and their zero-order hold."""
    A, B = np.zeros((d, d)), np.zeros((d, 1))
    for i in range(d):
        B[i] = (2 * i + 1) * (-1) ** i / theta
        for j in range(d):
            A[i, j] = (2 * i + 1) / theta * (-1 if i < j else (-1) ** (i - j + 1))
    discrete = expm(A)
    return discrete, np.linalg.solve(A, (discrete - np.eye(d)) @ B)[:, 0]


def lmu(p: Weights, x: np.ndarray, feedback: bool = True) -> np.ndarray:
    p = {name.removeprefix("layers.0."): value for name, value in p.items()}
    A, B = legendre(p["W_m"].shape[1], 30.0)
    h, m, out = np.zeros(WIDTH), np.zeros(len(B)), []
    for now in x:
        u = p["e_x"][0] @ now
        drive = p["W_x"] @ now
        if feedback:
            u = u + p["e_h"][0] @ h + p["e_m"][0] @ m
            drive = drive + p["W_h"] @ h
        m = A @ m + B * u
        h = np.tanh(drive + p["W_m"] @ m)
        out.append(h)
    return np.stack(out)


def mamba(p: Weights, x: np.ndarray) -> np.ndarray:
    p = {name.removeprefix("layers.0."): value for name, value in p.items()}
    inner, d_state = p["A_log"].shape
    rank, taps = p["dt_proj.weight"].shape[1], p["conv1d.weight"][:, 0]
    A, h = -np.exp(p["A_log"]), np.zeros((inner, d_state))
    past, out = np.zeros((taps.shape[1], inner)), []
    for now in x:
        u, z = np.split(p["in_proj.weight"] @ now, 2)
        past = np.concatenate([past[1:], u[None]])
        u = (past * taps.T).sum(0) + p["conv1d.bias"]
        u = u * sigmoid(u)
        low, B, C = np.split(p["x_proj.weight"] @ u, [rank, rank + d_state])
        dt = np.log1p(np.exp(p["dt_proj.weight"] @ low + p["dt_proj.bias"]))
        h = np.exp(dt[:, None] * A) * h + (dt * u)[:, None] * B
        y = h @ C + p["D"] * u
        out.append(p["out_proj.weight"] @ (y * z * sigmoid(z)))
    return np.stack(out)


def system(p: Weights, feature: int, full: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B, C of one feature with all modes and their conjugates."""
    poles = -np.exp(p["A_log"][feature]) + 1j * p["A_imag"][feature]

    def pairs(z: np.ndarray) -> np.ndarray:
        z = z[feature, :, 0] + 1j * z[feature, :, 1]
        return np.concatenate([z, z.conj()])

    A = np.diag(np.concatenate([poles, poles.conj()]))
    if full:
        rank_one = pairs(p["P"])
        A = A - np.outer(rank_one, rank_one.conj())
    return A, pairs(p["B"])[:, None], pairs(p["C"])[None]


def state_space(p: Weights, x: np.ndarray, method: str) -> np.ndarray:
    p = {name.removeprefix("layers.0."): value for name, value in p.items()}
    y = np.zeros_like(x)
    for feature in range(x.shape[1]):
        A, B, C = system(p, feature, full=method == "bilinear")
        dt = np.exp(p["log_dt"][feature])
        if method == "bilinear":
            left, right = np.eye(len(A)) - dt / 2 * A, np.eye(len(A)) + dt / 2 * A
            M, drive = np.linalg.solve(left, right), np.linalg.solve(left, dt * B)
        else:
            M, drive, *_ = cont2discrete((A, B, C, np.zeros((1, 1))), dt, method="zoh")
        s = np.zeros((len(A), 1), complex)
        for t, u in enumerate(x[:, feature]):
            s = M @ s + drive * u
            y[t, feature] = (C @ s).real[0, 0] + p["D"][feature] * u
    y = y * 0.5 * (1 + erf(y / np.sqrt(2)))  # GELU
    content, gate = np.split(y @ p["output_linear.weight"].T + p["output_linear.bias"], 2, axis=1)
    return content * sigmoid(gate)


CASES: dict[str, tuple[type[nn.Module], dict[str, Any], Callable[..., np.ndarray], dict[str, Any]]] = {
    "gru": (GRU, {}, gru, {}),
    "lstm": (LSTM, {}, lstm, {}),
    "rnn": (RNN, {}, rnn, {}),
    "lmu": (LMU, {"memory_size": 16, "theta": 30.0}, lmu, {}),
    "lmu-parallel": (LMU, {"memory_size": 16, "theta": 30.0, "feedback": False}, lmu, {"feedback": False}),
    "mamba": (Mamba, {"d_state": 5, "expand": 3}, mamba, {}),
    "s4": (S4, {"state_size": 16}, state_space, {"method": "bilinear"}),
    "s4d-legs": (S4D, {"state_size": 16}, state_space, {"method": "zoh"}),
    "s4d-lin": (S4D, {"state_size": 10, "init": "lin"}, state_space, {"method": "zoh"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_equals_the_loop(name: str, dtype: torch.dtype, tolerance: float) -> None:
    cls, options, loop, loop_options = CASES[name]
    backbone = cls(WIDTH_IN, WIDTH, **options)
    with torch.no_grad():
        for parameter in backbone.parameters():  # away from symmetric starts, such as e_m = 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    backbone = backbone.to(dtype).eval()
    x = torch.randn(2, FRAMES, WIDTH_IN, dtype=dtype)
    weights = {name: value.detach().double().numpy() for name, value in backbone.state_dict().items()}
    with torch.no_grad():
        y = backbone(x).double().numpy()
    for clip, out in zip(x.double().numpy(), y, strict=True):
        expected = loop(weights, clip, **loop_options)
        assert np.abs(out - expected).max() <= tolerance * np.ptp(expected)


@pytest.mark.parametrize("d", [1, 2, 33, 128])
def test_legendre_delay(d: int) -> None:
    A, B = legendre(d, 99.0)
    ours_A, ours_B = legendre_delay(d, 99.0)
    np.testing.assert_allclose(ours_A.numpy(), A, atol=1e-10)
    np.testing.assert_allclose(ours_B.numpy(), B, atol=1e-10)


def test_the_memory_holds_a_window() -> None:
    """Legendre coefficients of the past ``theta`` frames give back the input of 20 frames ago."""
    theta, delay = 40.0, 20
    A, B = (part.numpy() for part in legendre_delay(24, theta))
    u = np.sin(np.arange(400) / 9)
    m, heard = np.zeros(24), []
    at = 2 * delay / theta - 1  # where in the window
    polynomials = np.polynomial.legendre.legvander(np.array([at]), 23)[0]
    for now in u:
        m = A @ m + B * now
        heard.append(polynomials @ m)
    # the hold delays by half a frame
    expected = np.sin((np.arange(400) - delay + 0.5) / 9)
    assert np.abs(np.array(heard) - expected)[100:].max() < 0.02


def test_hippo_modes_are_the_hippo_system() -> None:
    """Diagonal minus rank one is HiPPO-LegS in another basis: equal impulse responses for every readout."""
    size = 12
    n = np.arange(size)
    A = -np.sqrt(2 * n + 1)[:, None] * np.sqrt(2 * n + 1)
    A = np.tril(A, -1) - np.diag(n + 1.0)
    B = np.sqrt(2 * n + 1.0)
    modes = legs_modes(size // 2)
    poles, drive, rank_one = (
        np.concatenate([part.numpy(), part.numpy().conj()])
        for part in (modes.poles, modes.drive, modes.rank_one)
    )
    dplr = np.diag(poles) - np.outer(rank_one, rank_one.conj())
    np.testing.assert_allclose(
        np.sort_complex(np.linalg.eigvals(dplr)), np.sort_complex(np.linalg.eigvals(A)), atol=1e-8
    )
    # B* exp(A t) B does not depend on the basis
    for t in (0.01, 0.1, 1.0):
        np.testing.assert_allclose(
            (drive.conj() @ expm(dplr * t) @ drive).real, B @ expm(A * t) @ B, rtol=1e-9
        )
    assert np.all(drive.imag[: size // 2] < 1e-12)


def test_lin_modes() -> None:
    modes = lin_modes(4)
    assert modes.poles.tolist() == pytest.approx([-0.5 + 1j * np.pi * n for n in range(4)])
    assert bool((modes.rank_one == 0).all())


def test_mamba_starts_with_spread_time_constants() -> None:
    layer = Mamba(8, 400).layers[0]
    steps = nn.functional.softplus(layer.dt_proj.bias.detach())
    assert 1e-3 <= float(steps.min()) < 1.5e-3
    assert 0.07 < float(steps.max()) <= 0.1001
    assert float(steps.log().mean()) == pytest.approx(np.log(1e-2), abs=0.2)
    assert torch.equal(layer.A_log.detach().exp()[3].round(), torch.arange(1.0, 17.0))
