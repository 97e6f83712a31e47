"""Legendre memory unit: a sliding window of the past in a few optimal coefficients, and a nonlinear state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_flag, check_positive_int, check_positive_number, checked
from deepSTRF.dsp.recursion import split_non_finite, stagger_rows
from deepSTRF.models.backbones.base import Backbone
from deepSTRF.models.configurable import ExactConstants, designed_on_cpu, placement
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import BACKBONES

__all__ = ["LMU", "LMUCell", "legendre_delay"]

#: Frames that the form without feedback solves by one product.
BLOCK_SIZE = 16


def legendre_delay(memory_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return A, B of ``m_t = A m_{t-1} + B u_t``, which keeps a window of ``u`` in Legendre polynomials.

    The continuous system has ``A[i, j] = (2 i + 1) / theta * (-1 if i < j else (-1)^(i - j + 1))`` and ``B[i]
    = (2 i + 1) (-1)^i / theta``; it is discretised with a zero-order hold of one frame (Voelker, Kajić &
    Eliasmith 2019, "Legendre Memory Units", NeurIPS 32).
    """
    i = torch.arange(memory_size, dtype=torch.float64)
    gain = ((2 * i + 1) / theta).unsqueeze(-1)
    sign = torch.where((i.unsqueeze(-1) - i) % 2 == 0, -1.0, 1.0).to(torch.float64)
    below = torch.ones(memory_size, memory_size, dtype=torch.float64).tril()
    continuous = gain * (below * sign - (1 - below))
    drive = gain * torch.where(i % 2 == 0, 1.0, -1.0).to(torch.float64).unsqueeze(-1)
    # the exponential of the augmented matrix holds both exp(A) and its integral times B
    augmented = functional.pad(torch.cat([continuous, drive], dim=1), (0, 0, 0, 1))
    exact = torch.linalg.matrix_exp(augmented)
    return exact[:memory_size, :memory_size], exact[:memory_size, -1]


class LMUCell(KeepsDerived, ExactConstants):
    """One layer of `LMU`.

    ``u_t = e_x x_t + e_h h_{t-1} + e_m m_{t-1}``, ``m_t = A m_{t-1} + B u_t``, ``h_t = tanh(W_x x_t + W_h
    h_{t-1} + W_m m_t)``. Without feedback ``e_h``, ``e_m`` and ``W_h`` are absent, and the memory of all
    frames is solved at once.
    """

    A: Tensor
    B: Tensor
    impulse: Tensor
    leaps: Tensor

    @designed_on_cpu
    def __init__(
        self, input_size: int, hidden_size: int, memory_size: int, theta: float, feedback: bool
    ) -> None:
        super().__init__()
        self.feedback, self.hidden_size = feedback, hidden_size
        A, B = legendre_delay(memory_size, theta)
        self.register_constant("A", A)
        self.register_constant("B", B)
        self.e_x = _lecun_uniform(input_size)
        self.W_x = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden_size, input_size)))
        self.W_m = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden_size, memory_size)))
        if feedback:
            self.e_h = _lecun_uniform(hidden_size)
            self.e_m = nn.Parameter(torch.zeros(1, memory_size))
            self.W_h = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden_size, hidden_size)))
        else:
            powers = [torch.eye(memory_size, dtype=torch.float64)]
            for _ in range(BLOCK_SIZE):
                powers.append(A @ powers[-1])
            self.register_constant("impulse", torch.stack(powers[:-1]) @ B)  # (Q, d): A^j B
            self.register_constant("leaps", torch.stack(powers[1:]))  # (Q, d, d): A^(j + 1)

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return zeros: memory (B, d) and, with feedback, output (B, H)."""
        where, kind = placement(self, device, dtype)
        sizes = {"m": self.B.shape[0], **({"h": self.hidden_size} if self.feedback else {})}
        return {name: torch.zeros(batch, size, device=where, dtype=kind) for name, size in sizes.items()}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', I) to (B, T', H)."""
        weight, *products = self._derived("weights", self._weights)
        projected = _project(chunk, weight)
        written, driven = projected[..., :1], projected[..., 1:]
        if self.feedback:
            return self._recur(written, driven, products, state)
        memory = self._remember(written.squeeze(-1), state["m"])
        return torch.tanh(driven + memory @ self.W_m.t()), {"m": memory[:, -1]}

    def _weights(self) -> tuple[Tensor, ...]:
        """Wide weights of the input; with feedback those of memory and output to both, of ``u`` to h."""
        weight = torch.cat([self.e_x, self.W_x]).to(_wide(self.e_x))
        if not self.feedback:
            return (weight,)
        next_m_from_m = self.A.t() + self.e_m.t() * self.B
        next_m_from_h = self.e_h.t() * self.B
        from_m = torch.cat([next_m_from_m, next_m_from_m @ self.W_m.t()], dim=1)
        from_h = torch.cat([next_m_from_h, next_m_from_h @ self.W_m.t() + self.W_h.t()], dim=1)
        return weight, from_m, from_h, self.W_m @ self.B

    def fix_derived(self) -> None:
        """The weights."""
        self._derived("weights", self._weights)

    def _recur(
        self, written: Tensor, driven: Tensor, products: Sequence[Tensor], state: State
    ) -> tuple[Tensor, State]:
        """Frame by frame. One product gives next memory and next drive: W_m acts on the next memory."""
        d, (from_m, from_h, drive) = self.B.shape[0], products
        inputs = torch.cat([written * self.B, driven + written * drive], dim=-1)
        m, h, outputs = state["m"], state["h"], []
        for now in inputs.unbind(1):
            both = torch.addmm(torch.addmm(now, m, from_m), h, from_h)
            m, h = both[:, :d], torch.tanh(both[:, d:])
            outputs.append(h)
        return torch.stack(outputs, dim=1), {"m": m, "h": h}

    def _remember(self, written: Tensor, m: Tensor) -> Tensor:
        """Solve m_t = A m_{t-1} + B u_t for (B, T') inputs: (B, T', d). Blocks, then their ends."""
        written, spoiled = split_non_finite(written)
        n_frames, d = written.shape[1], self.B.shape[0]
        size = min(BLOCK_SIZE, n_frames)
        n_blocks = -(-n_frames // size)
        blocks = functional.pad(written, (0, n_blocks * size - n_frames))
        blocks = blocks.reshape(-1, n_blocks, size)
        rows = self.impulse[:size].reshape(1, size * d).expand(size, -1)
        local = (blocks @ stagger_rows(rows, d)[:, : size * d]).reshape(-1, n_blocks, size, d)
        before = [m]
        for ends in local[:, :-1, -1].unbind(1):
            before.append(ends + before[-1] @ self.leaps[size - 1].T)
        inherited = torch.einsum("bnd,jed->bnje", torch.stack(before, dim=1), self.leaps[:size])
        return (local + inherited).flatten(1, 2)[:, :n_frames] + spoiled.cumsum(1).unsqueeze(-1)


@BACKBONES.register("lmu")
class LMU(Backbone):
    """Legendre memory unit: the last ``theta`` frames of one learned signal, and a recurrent state on top.

    See `LMUCell` for the equations. 19,028 parameters for 70 features (13,930 without feedback).

    Parameters
    ----------
    input_size, hidden_size : int
        Features per frame in and out.
    num_layers : int
        Stacked layers.
    dropout : float
        Share of features dropped between layers while training.
    memory_size : int
        Legendre coefficients of the memory; more than ``theta`` of them add nothing.
    theta : float
        Length of the memory in frames.
    feedback : bool
        True is the LMU as published: memory and output feed back, frames are taken one by one. False leaves
        the feedback out: all frames are solved in parallel, and there are fewer parameters.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, or a dropout outside [0, 1).

    References
    ----------
    Voelker, Kajić & Eliasmith 2019, "Legendre Memory Units", NeurIPS 32; without feedback: Chilkuri &
    Eliasmith 2021, "Parallelizing Legendre Memory Unit Training", ICML, PMLR 139.

    Examples
    --------
    >>> [sum(p.numel() for p in LMU(70, 70, feedback=on).parameters()) for on in (True, False)]
    [19028, 13930]
    >>> LMU(70, 70)(torch.zeros(2, 100, 70)).shape
    torch.Size([2, 100, 70])
    """

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        memory_size: int = 128,
        theta: float = 99.0,
        feedback: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout)
        size = check_positive_int("memory_size", memory_size)
        window = check_positive_number("theta", theta)
        self.layers.extend(
            LMUCell(width, self.hidden_size, size, window, check_flag("feedback", feedback))
            for width in self.layer_widths()
        )


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """(B, T', I) times wide (O, I) transposed: (B, T', O), to the last bit the same for every T'.

    Libraries add up products of few and of many rows in different orders, and the feedback magnifies the
    difference fiftyfold: a stream would drift from the whole clip. Rounding a float64 sum leaves none.
    """
    return functional.linear(x.to(weight.dtype), weight).to(x.dtype)


def _wide(like: Tensor) -> torch.dtype:
    """Float64, but on Apple's GPU."""
    return like.dtype if like.device.type == "mps" else torch.float64


def _lecun_uniform(fan_in: int) -> nn.Parameter:
    bound = (3 / fan_in) ** 0.5
    return nn.Parameter(torch.empty(1, fan_in).uniform_(-bound, bound))
