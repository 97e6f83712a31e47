"""S4 and S4D: linear state-space models along time, one per feature, then a gated mixture of features."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_choice, check_positive_int, checked
from deepSTRF.dsp.recursion import split_non_finite, stagger_rows
from deepSTRF.models.backbones.base import Backbone
from deepSTRF.models.configurable import placement
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import BACKBONES

__all__ = ["S4", "S4D", "Modes", "S4DLayer", "S4Layer", "legs_modes", "lin_modes"]

#: Range of the step sizes at the start, in units of the modes' time (Gu, Goel & Ré 2022).
DT_MIN, DT_MAX = 1e-3, 0.1
#: Frames that one product solves.
BLOCK_SIZE = 64
#: Blocks of up to so many frames are kept between the chunks of a stream; larger ones take megabytes.
_FEW_FRAMES = 8


class Modes(NamedTuple):
    """A linear system at the start: P of its 2 P modes, complex (P,); the others are their conjugates."""

    #: Their real parts are negative.
    poles: Tensor
    #: How the input enters, B.
    drive: Tensor
    #: The vector p of ``A = diag(poles) - p p*``; zero for a diagonal system.
    rank_one: Tensor


def legs_modes(n_modes: int) -> Modes:
    """Return HiPPO-LegS, which projects the whole past on Legendre polynomials, as diagonal minus rank one.

    ``A[n, k] = -sqrt(2 n + 1) sqrt(2 k + 1)`` for n > k, ``-(n + 1)`` for n = k, 0 above; ``B[n] = sqrt(2 n +
    1)``, ``p[n] = sqrt(n + 1/2)``. ``A + p p^T`` is normal with the eigenvalues returned; B is turned real
    and positive. Gu et al. 2020, doi 10.48550/arXiv.2008.07669; Gu, Goel & Ré 2022, doi
    10.48550/arXiv.2111.00396.
    """
    n = torch.arange(2 * n_modes, dtype=torch.float64)
    B, p = torch.sqrt(2 * n + 1), torch.sqrt(n + 0.5)
    A = -torch.outer(B, B).tril(-1) - torch.diag(n + 1)
    skew = A + torch.outer(p, p) + 0.5 * torch.eye(2 * n_modes, dtype=torch.float64)
    frequencies, vectors = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    frequencies, vectors = frequencies[n_modes:], vectors[:, n_modes:]  # the positive ones
    drive = vectors.mH @ B.to(torch.complex128)
    phase = drive / drive.abs()
    rank_one = (vectors.mH @ p.to(torch.complex128)) / phase
    return Modes(torch.complex(torch.full_like(frequencies, -0.5), frequencies), drive / phase, rank_one)


def lin_modes(n_modes: int) -> Modes:
    """Return S4D-Lin, a damped Fourier series: poles ``-1/2 + i pi n`` (doi 10.48550/arXiv.2206.11893)."""
    frequencies = math.pi * torch.arange(n_modes, dtype=torch.float64)
    poles = torch.complex(torch.full_like(frequencies, -0.5), frequencies)
    return Modes(poles, torch.ones_like(poles), torch.zeros_like(poles))


class _Blocks(NamedTuple):
    """A discrete system ``s' = M s + b u``, ``y = c s`` of S real states per feature, unrolled over Q frames.

    ``seen`` (H, S, Q + 1) holds ``c M^j``, ``driven`` (H, Q, S) holds ``M^j b``, and ``leaps[k]`` is
    ``M^(2^k)``, up to log2(Q): a matrix (H, S, S), or factors (2, H, S, 1) of `_turned` for a diagonal M.
    """

    seen: Tensor
    driven: Tensor
    leaps: tuple[Tensor, ...]


class _Frame(NamedTuple):
    """The same system for one frame: ``M s`` is what `_turned` gives, less ``along (across . s)`` of S4."""

    turn: Tensor  # (2, H, S)
    drive: Tensor  # b (H, S)
    seen: Tensor  # c (H, S)
    rank_one: tuple[Tensor, Tensor] | None  # along and across (H, S)


class _LinearStateSpaceLayer(KeepsDerived):
    """Base of `S4Layer` and `S4DLayer`: parameters, blocks of frames, output; they differ in the system."""

    def __init__(self, input_size: int, hidden_size: int, modes: Modes) -> None:
        super().__init__()
        n_modes = modes.poles.shape[0]
        self.log_dt = nn.Parameter(torch.empty(input_size).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
        self.A_log = nn.Parameter(_per_feature((-modes.poles.real).log(), input_size))
        self.A_imag = nn.Parameter(_per_feature(modes.poles.imag, input_size))
        self.B = nn.Parameter(_per_feature(torch.view_as_real(modes.drive), input_size))
        self.C = nn.Parameter(torch.randn(input_size, n_modes, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(input_size))
        self.output_linear = nn.Linear(input_size, 2 * hidden_size)

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return zeros: real and imaginary parts of all modes, (B, input_size, 2 P), in float32 at least."""
        where, kind = placement(self, device, dtype)
        features, n_modes = self.A_log.shape
        shape = (batch, features, 2 * n_modes)
        return {"s": _precise(torch.zeros(shape, device=where, dtype=kind))}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', input_size) to (B, T', hidden_size)."""
        run = self._run_frame if chunk.shape[1] == 1 else self._run_blocks
        y, s = run(_precise(chunk), _precise(state["s"]))
        y = (y + self.D * chunk).to(self.D.dtype)
        return functional.glu(self.output_linear(functional.gelu(y)), dim=-1), {"s": s}

    def _run_frame(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, 1, H) and states (B, H, S) of one frame of inputs."""
        turn, drive, seen, rank_one = self._derived("frame", self._frame)
        following = torch.addcmul(_turned(turn, s, -1), drive, u.transpose(1, 2))
        if rank_one is not None:
            along, across = rank_one
            following = following - along * (across * s).sum(-1, keepdim=True)
        return (seen * following).sum(-1).unsqueeze(1), following

    def _run_blocks(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, T', H) and the last states (B, H, S)."""
        # features first: one batched product serves all of them
        u, spoiled = split_non_finite(u.permute(2, 0, 1))
        s = s.permute(1, 2, 0)
        n_frames = u.shape[-1]
        size = min(BLOCK_SIZE, 1 << (n_frames - 1).bit_length())
        if size <= _FEW_FRAMES:
            blocks = self._derived(size, lambda: self._blocks(size))
        else:
            blocks = self._blocks(size)
        whole = n_frames - n_frames % size
        parts = []
        if whole:
            y, s = _run(blocks, u[..., :whole].reshape(*u.shape[:2], -1, size), s)
            parts.append(y)
        if whole < n_frames:
            y, s = _run(blocks, u[..., whole:].unsqueeze(-2), s)
            parts.append(y)
        y = torch.cat(parts, dim=-1) + spoiled.cumsum(-1)
        return y.permute(1, 2, 0), (s + spoiled.sum(-1).unsqueeze(1)).permute(2, 0, 1)

    def fix_derived(self) -> None:
        """The system of a stream of single frames."""
        self._derived("frame", self._frame)

    def _continuous(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return step sizes (H, 1), poles and drive (H, P); real parts are negative whatever is learned.

        In float64 where the device has it: fast modes turn by a hundred radians per frame and slow ones decay
        by a thousandth, both of which float32 products lose digits of.
        """
        wide = self.log_dt.dtype if self.log_dt.device.type == "mps" else torch.float64
        dt, decay, turn = (part.to(wide) for part in (self.log_dt, self.A_log, self.A_imag))
        drive = torch.view_as_complex(self.B.to(wide))
        return dt.exp().unsqueeze(-1), torch.complex(-decay.exp(), turn), drive

    def _precision(self) -> torch.dtype:
        """Float32 at least: there are no complex numbers of half precision, and modes add up for long."""
        return torch.promote_types(self.D.dtype, torch.float32)

    def _frame(self) -> _Frame:
        raise NotImplementedError

    def _blocks(self, size: int) -> _Blocks:
        raise NotImplementedError


class S4DLayer(_LinearStateSpaceLayer):
    """One layer of `S4D`."""

    def _frame(self) -> _Frame:
        transition, drive, C = self._discrete()
        return _Frame(_turn(transition), _stacked(drive), 2 * _stacked(C.conj()), None)

    def _blocks(self, size: int) -> _Blocks:
        """Powers of a diagonal transition, by doubling."""
        transition, drive, C = self._discrete()
        powers = torch.stack([torch.ones_like(transition), transition], dim=-1)  # (H, P, Q + 1)
        while powers.shape[-1] <= size:
            powers = torch.cat([powers, powers[..., 1:] * powers[..., -1:]], dim=-1)
        seen = 2 * C.unsqueeze(-1) * powers
        driven = (drive.unsqueeze(-1) * powers[..., :-1]).transpose(1, 2)
        leaps = [_turn(powers[..., 1 << k]).unsqueeze(-1) for k in range(size.bit_length())]
        return _Blocks(torch.cat([seen.real, -seen.imag], dim=1), _stacked(driven), tuple(leaps))

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """Transition, drive and C, complex (H, P), of a zero-order hold."""
        dt, poles, B = self._continuous()
        C = torch.view_as_complex(self.C.to(self._precision()))
        transition = torch.exp(dt * poles)
        return transition.to(C.dtype), ((transition - 1) / poles * B).to(C.dtype), C


class S4Layer(_LinearStateSpaceLayer):
    """One layer of `S4`."""

    def __init__(self, input_size: int, hidden_size: int, modes: Modes) -> None:
        super().__init__(input_size, hidden_size, modes)
        self.P = nn.Parameter(_per_feature(torch.view_as_real(modes.rank_one), input_size))

    def _frame(self) -> _Frame:
        r, along, across, drive = self._resolvent()
        real, imag = self.C.to(self._precision()).unbind(-1)
        return _Frame(_turn(2 * r - 1), drive, torch.cat([2 * real, -2 * imag], dim=-1), (2 * along, across))

    def _blocks(self, size: int) -> _Blocks:
        """Powers of the bilinear transition ``M = 2 R - I``, by doubling. It contracts, so nothing grows."""
        r, along, across, drive = self._resolvent()
        real, imag = self.C.to(self._precision()).unbind(-1)
        seen, driven = torch.cat([2 * real, -2 * imag], dim=-1).unsqueeze(1), drive.unsqueeze(1)
        identity = torch.eye(along.shape[-1], dtype=along.dtype, device=along.device)
        leaps = [2 * _resolve(r, along, across, identity.expand(along.shape[0], -1, -1)) - identity]
        while seen.shape[1] < size:
            seen = torch.cat([seen, seen @ leaps[-1]], dim=1)
            driven = torch.cat([driven, driven @ leaps[-1].mT], dim=1)
            leaps.append(leaps[-1] @ leaps[-1])
        seen = torch.cat([seen, seen[:, -1:] @ leaps[0]], dim=1)
        return _Blocks(seen.mT, driven, tuple(leaps))

    def _resolvent(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the parts of ``R = (I - dt/2 A)^-1`` and the drive ``dt R B``.

        R is diagonal minus a term of rank one (Woodbury): ``R z = r z - along (across . z)``. That term
        couples each mode with its conjugate, ``p p* z`` being ``p 2 Re(sum conj(p) z)``, which is linear in
        real and imaginary parts: all but ``r`` are (H, 2 P), real parts first.
        """
        dt, poles, B = self._continuous()
        p = torch.view_as_complex(self.P.to(dt.dtype))
        r = 1 / (1 - dt / 2 * poles)
        seen = 2 * p.conj() * r
        denominator = 1 + dt / 2 * (seen * p).real.sum(-1, keepdim=True)
        along, across = _stacked(dt / 2 * r * p), torch.cat([seen.real, -seen.imag], dim=-1) / denominator
        drive = dt * _resolve(r, along, across, _stacked(B).unsqueeze(-1)).squeeze(-1)
        kind = self._precision()
        return (
            torch.complex(r.real.to(kind), r.imag.to(kind)),
            along.to(kind),
            across.to(kind),
            drive.to(kind),
        )


@BACKBONES.register("s4")
class S4(Backbone):
    """Structured state spaces: HiPPO-LegS as diagonal plus low rank, discretised by the bilinear rule.

    Each feature drives a linear system ``z' = A z + B u``, ``y = 2 Re(C z) + D u`` with ``A = diag(poles) - p
    p*`` and a step size of its own; then GELU, and a gated linear unit mixes the features. 28,000 parameters
    for 70 features.

    Parameters
    ----------
    input_size, hidden_size : int
        Features per frame in and out.
    num_layers : int
        Stacked layers.
    dropout : float
        Share of features dropped between layers while training.
    state_size : int
        States per feature, an even number: conjugate pairs.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, or a dropout outside [0, 1).

    Notes
    -----
    Frames are solved in blocks by products with the exact powers of the transition; no Fourier transform is
    involved, so that not even rounding travels back in time, and no parameter changes in ``forward``.

    References
    ----------
    Gu, Goel & Ré 2022, doi 10.48550/arXiv.2111.00396.

    Examples
    --------
    >>> backbone = S4(70, 70)
    >>> sum(parameter.numel() for parameter in backbone.parameters())
    28000
    >>> backbone(torch.zeros(2, 100, 70)).shape
    torch.Size([2, 100, 70])
    """

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        state_size: int = 64,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout)
        modes = legs_modes(_pairs(state_size))
        self.layers.extend(S4Layer(width, self.hidden_size, modes) for width in self.layer_widths())


@BACKBONES.register("s4d")
class S4D(Backbone):
    """Diagonal state spaces: `S4` without the rank-one term, discretised with a zero-order hold.

    Per feature ``K[l] = 2 Re(sum over n of C_n B_n (exp(dt A_n) - 1) / A_n exp(dt A_n)^l)`` is convolved with
    the input. 23,520 parameters for 70 features.

    Parameters
    ----------
    input_size, hidden_size : int
        Features per frame in and out.
    num_layers : int
        Stacked layers.
    dropout : float
        Share of features dropped between layers while training.
    state_size : int
        States per feature, an even number: conjugate pairs.
    init : {"legs", "lin"}
        Poles at the start: those of HiPPO-LegS without its rank-one term, or ``-1/2 + i pi n``.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, an unknown start, or a dropout outside [0, 1).

    References
    ----------
    Gu et al. 2022, doi 10.48550/arXiv.2206.11893.

    Examples
    --------
    >>> backbone = S4D(70, 70)
    >>> sum(parameter.numel() for parameter in backbone.parameters())
    23520
    """

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        state_size: int = 64,
        init: str = "legs",
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout)
        check_choice("init", init, ("legs", "lin"))
        modes = (legs_modes if init == "legs" else lin_modes)(_pairs(state_size))
        self.layers.extend(S4DLayer(width, self.hidden_size, modes) for width in self.layer_widths())


def _run(blocks: _Blocks, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Run n blocks of q <= Q frames, (H, B, n, q) from states (H, S, B): outputs (H, B, n q), last states."""
    q = u.shape[-1]
    taps = (blocks.seen[..., :q].mT @ blocks.driven[:, 0].unsqueeze(-1)).squeeze(-1)  # (H, q)
    toeplitz = stagger_rows(taps.unsqueeze(-2).expand(-1, q, -1), 1)[..., :q]
    gained = torch.einsum("hbnq,hqs->hnsb", u, blocks.driven[:, :q].flip(1))
    starts = []
    for gain in gained.unbind(1):
        starts.append(s)
        for k in range(q.bit_length()):
            if q >> k & 1:
                s = _leap(blocks.leaps[k], s)
        s = s + gain
    local = u.flatten(1, 2) @ toeplitz
    inherited = torch.stack(starts, dim=1).permute(0, 3, 1, 2).flatten(1, 2) @ blocks.seen[..., 1 : q + 1]
    return (local + inherited).reshape(*u.shape[:2], -1), s


def _leap(leap: Tensor, s: Tensor) -> Tensor:
    """``M^(2^k) s`` of states (H, S, B)."""
    return leap @ s if leap.ndim == s.ndim else _turned(leap, s, 1)


def _turn(z: Tensor) -> Tensor:
    """Complex factors (H, P) for `_turned`: (2, H, 2 P)."""
    return torch.stack([torch.cat([z.real, z.real], dim=-1), torch.cat([-z.imag, z.imag], dim=-1)])


def _turned(turn: Tensor, s: Tensor, dim: int) -> Tensor:
    """Complex products of `_turn` and states whose axis ``dim`` holds real, then imaginary parts."""
    real, imag = s.chunk(2, dim=dim)
    return torch.addcmul(turn[0] * s, turn[1], torch.cat([imag, real], dim=dim))


def _resolve(r: Tensor, along: Tensor, across: Tensor, s: Tensor) -> Tensor:
    """Apply ``s -> r s - along (across . s)`` to the columns of (H, 2 P, n)."""
    return _turned(_turn(r).unsqueeze(-1), s, 1) - along.unsqueeze(-1) * (across.unsqueeze(1) @ s)


def _precise(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _stacked(z: Tensor) -> Tensor:
    """(..., P) complex -> (..., 2 P) real."""
    return torch.cat([z.real, z.imag], dim=-1)


def _per_feature(values: Tensor, features: int) -> Tensor:
    return values.to(torch.get_default_dtype()).expand(features, *values.shape).clone()


def _pairs(state_size: int) -> int:
    size = check_positive_int("state_size", state_size)
    if size % 2:
        raise ValueError(f"state_size must be even (conjugate pairs of modes), got {size}; try {size + 1}")
    return size // 2
