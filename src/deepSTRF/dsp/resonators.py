"""Filters that ring for ever, from states that are carried along: gammatones and other repeated poles.

The response ``Re(polynomial(t) * pole^t)`` rings on for a thousand samples, but obeys a recursion: all of the
past acts on the next outputs through a handful of complex states. A bin of sound is cut into blocks. One
product gives what the samples of a block leave in the states and in the outputs of their own block, a second
one the states at the start of every block, a third what these add to the outputs: no loop over samples, the
same cost for every filter, and no path from a bin to later sound.

Shapes: B batch, T bins, F channels, n blocks of L samples in a bin, R real states of a channel (real, then
imaginary parts of ``n_poles`` complex ones).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.dsp.filterbank import add_overlapping, detect
from deepSTRF.dsp.recursion import stagger_rows, zero_subnormal_taps

__all__ = ["ResonatorBank", "filter_resonators", "pooled_resonators", "resonator_bank"]

#: Bins of all streams that are filtered at once: their outputs fit the cache of a processor.
_BINS_AT_ONCE = 32
#: What is left of a state before earlier bins are forgotten, in a product over many bins: far below rounding.
_FORGOTTEN = 1e-18


class ResonatorBank(NamedTuple):
    """Matrices of `filter_resonators`, made by `resonator_bank`."""

    #: (L, F (R + L)): samples of a block to what they add to the states at its end, and to its outputs.
    samples: Tensor
    #: (F, (n + 1) R, (n + 1) R): states at the start of a bin and what its blocks add, to the states at the
    #: start of every block and at the end of the bin.
    states: Tensor
    #: (F, R, L): states at the start of a block to its outputs.
    ringing: Tensor
    #: (K, F, R, R): states to what is left of them 1, 2, 4, ... bins later.
    bins: Tensor

    @property
    def n_blocks(self) -> int:
        """Blocks of a bin, n."""
        return self.states.shape[1] // self.ringing.shape[1] - 1

    @property
    def hop(self) -> int:
        """Samples of a bin, n L."""
        return self.n_blocks * len(self.samples)

    def to(self, dtype: torch.dtype) -> ResonatorBank:
        """Return the matrices in another precision."""
        return ResonatorBank(*(matrix.to(dtype) for matrix in self))


def resonator_bank(pole: Tensor, coefficients: Tensor, hop: int) -> ResonatorBank:
    """Matrices of filters ``h[t] = Re(sum_k c_k (t / tau)^k pole^t)`` with ``tau = -1 / ln |pole|``.

    ``pole`` (F,) inside the unit circle and ``coefficients`` (F, n_poles), complex; ``hop`` samples in a bin.
    In float64.
    """
    pole, coefficients = pole.to(torch.complex128), coefficients.to(torch.complex128)
    n_poles = coefficients.shape[-1]
    block = _cheapest_block(hop, 2 * n_poles)
    tau, order = -1.0 / pole.abs().log(), torch.arange(n_poles)
    # state k of a channel: the sum over the past of (age / tau)^k pole^age
    age = torch.arange(block - 1.0, -1.0, -1.0, dtype=torch.float64)
    added = _powers(age, tau, order) * _oscillation(pole, age)
    # t samples later an age has become age + t, and (age + t)^q = sum_k binomial(q, k) age^k t^(q - k)
    after = torch.arange(1.0, block + 1.0, dtype=torch.float64)
    later = _binomials(n_poles).unsqueeze(-1) * _powers(after, tau, (order[:, None] - order).clamp_min(0))
    ringing = torch.einsum("fq,fqkt->fkt", coefficients, later.to(pole.dtype)) * _oscillation(pole, after)
    response = torch.einsum("fk,fkt->ft", coefficients, _powers(after - 1.0, tau, order) + 0j)
    response = (response * _oscillation(pole, after - 1.0).squeeze(1)).real
    near = stagger_rows(response.unsqueeze(1).expand(-1, block, -1), 1)[..., :block]  # (F, sample, output)
    added = torch.cat([added.real, added.imag], dim=1).transpose(1, 2)  # (F, sample, R)
    leap = _advance(pole, tau, hop, n_poles)
    leaps: list[Tensor] = []
    while not leaps or float(leap.abs().max()) > _FORGOTTEN:
        leaps.append(leap)
        leap = leap @ leap
    # row i: what is there at the start of block i (0: of the bin), or was added before it
    n_blocks = hop // block
    steps = [_advance(pole, tau, count * block, n_poles) for count in range(n_blocks + 1)]
    nothing = torch.zeros_like(steps[0])
    rows = [
        torch.cat([steps[column - row] if column >= row else nothing for column in range(n_blocks + 1)], -1)
        for row in range(n_blocks + 1)
    ]
    bank = ResonatorBank(
        torch.cat([added, near], dim=-1).transpose(0, 1).flatten(1),
        torch.cat(rows, dim=1),
        torch.cat([ringing.real, -ringing.imag], dim=1),
        torch.stack(leaps),
    )
    # subnormal in float32, in which they will be used
    return ResonatorBank(*(zero_subnormal_taps(matrix, torch.float32) for matrix in bank))


def pooled_resonators(
    sound: Tensor, bank: ResonatorBank, windows: Tensor, state: Tensor, detector: str
) -> tuple[Tensor, Tensor]:
    """Filter, detect and pool whole bins of sound (B, T hop): (B, F, T + D - 1) and the next states.

    ``windows`` (F, hop, D) weigh the samples of a bin, oldest first, into this bin and the next ones; windows
    that are flat within every bin may be given as (F, 1, D). The last D - 1 bins are unfinished, as those of
    `deepSTRF.dsp.filterbank.pooled_filterbank`.
    """
    pieces, given = [sound], []
    if not torch.compiler.is_compiling():  # a compiler takes one piece: the number of bins is open
        pieces = list(torch.split(sound, max(1, _BINS_AT_ONCE // sound.shape[0]) * bank.hop, dim=-1))
    for piece in pieces:
        outputs, state = filter_resonators(piece, bank, state)
        detected = detect(outputs.unsqueeze(-2), detector)
        if windows.shape[1] == 1:
            given.append(detected.sum(-1, keepdim=True) * windows.unsqueeze(1))
        else:
            weighed = torch.bmm(detected.flatten(1, 2), windows)
            given.append(weighed.reshape(*detected.shape[:-1], -1))
    joined = given[0] if len(given) == 1 else torch.cat(given, dim=2)  # (F, B, T, D)
    return add_overlapping(joined.permute(1, 2, 0, 3)), state


def filter_resonators(sound: Tensor, bank: ResonatorBank, state: Tensor) -> tuple[Tensor, Tensor]:
    """Filter whole bins of sound (B, T hop) after states (B, F, R): outputs (F, B, T, hop) and next states.

    States of silence are zeros.
    """
    n_channels, n_states, block = bank.ringing.shape
    batch, n_bins, width = sound.shape[0], sound.shape[-1] // bank.hop, bank.n_blocks * n_states
    made = (sound.reshape(-1, block) @ bank.samples).reshape(-1, n_channels, n_states + block)
    added, near = made.transpose(0, 1).split_with_sizes([n_states, block], dim=-1)
    added = added.reshape(n_channels, batch, n_bins, width)
    starts = state.transpose(0, 1).unsqueeze(2)
    if n_bins > 1:
        starts = _starts_of_bins(starts, added, bank)
    rows = torch.cat([starts, added], dim=-1).flatten(1, 2)
    blocks, ends = torch.bmm(rows, bank.states).split_with_sizes([width, n_states], dim=-1)
    outputs = torch.baddbmm(near, blocks.reshape(n_channels, -1, n_states), bank.ringing)
    last = ends.reshape(n_channels, batch, n_bins, n_states)[:, :, -1].transpose(0, 1)
    # a stream of silence would end in subnormal numbers, which are a hundred times slower
    info = torch.finfo(sound.dtype)
    following = functional.hardshrink(last, info.tiny / info.eps)
    return outputs.reshape(n_channels, batch, n_bins, bank.hop), following


def _starts_of_bins(start: Tensor, added: Tensor, bank: ResonatorBank) -> Tensor:
    """States (F, B, T, R) at the start of every bin from those (F, B, 1, R) of the first, by doubling."""
    n_channels, batch, n_bins, _ = added.shape
    n_states = start.shape[-1]
    own = torch.bmm(added[:, :, :-1].flatten(1, 2), bank.states[:, n_states:, -n_states:])
    states = torch.cat([start, own.reshape(n_channels, batch, n_bins - 1, n_states)], dim=2)
    for k, leap in enumerate(bank.bins):
        if not torch.compiler.is_compiling() and 2**k >= n_bins:
            break
        left = torch.bmm(states.flatten(1, 2), leap).reshape(states.shape)
        states = states + functional.pad(left, (0, 0, 2**k, 0))[:, :, :n_bins]
    return states


def _cheapest_block(hop: int, n_states: int) -> int:
    """Divisor of the hop with the fewest multiplications, and entries of matrices to read, per bin."""

    def cost(block: int) -> int:
        return block * (hop + block) + 2 * ((hop // block + 1) * n_states) ** 2

    return min((block for block in range(1, hop + 1) if hop % block == 0), key=cost)


def _powers(t: Tensor, tau: Tensor, exponents: Tensor) -> Tensor:
    """Return ``(t / tau)^exponent`` (F, *exponents, times)."""
    tau = tau.reshape(-1, *[1] * (exponents.ndim + 1))
    return (t / tau) ** exponents.unsqueeze(-1)


def _oscillation(pole: Tensor, t: Tensor) -> Tensor:
    """Return ``pole^t`` (F, 1, times)."""
    exponent = pole.log().reshape(-1, 1, 1) * t
    return torch.polar(exponent.real.exp(), exponent.imag)


def _binomials(n: int) -> Tensor:
    """Return (n, n) binomial coefficients, row over column."""
    return torch.tensor([[math.comb(q, k) for k in range(n)] for q in range(n)], dtype=torch.float64)


def _advance(pole: Tensor, tau: Tensor, samples: int, n_poles: int) -> Tensor:
    """Return (F, R, R): what the states of a channel are after so many silent samples."""
    order, t = torch.arange(n_poles), torch.tensor([float(samples)], dtype=torch.float64)
    lift = _binomials(n_poles) * _powers(t, tau, (order[:, None] - order).clamp_min(0)).squeeze(-1)
    step = lift.transpose(-1, -2) * _oscillation(pole, t)
    return torch.cat(
        [torch.cat([step.real, step.imag], dim=-1), torch.cat([-step.imag, step.real], dim=-1)], dim=-2
    )
