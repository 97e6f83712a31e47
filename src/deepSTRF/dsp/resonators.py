"""Filters that ring: a few numbers per channel carry what all earlier sound has left behind.

A gammatone rings on for a thousand samples, but its response ``Re(polynomial(t) * pole^t)`` obeys a
recursion: the sound before a block acts on the outputs of the block through a handful of complex states only.
So an output costs the samples of its own block and the states, not the whole kernel. The states of all blocks
are found by doubling (what 1, 2, 4, ... blocks leave behind): no loop over time, a memory of fixed length,
and no path from a bin to later sound.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.dsp.plan import FilterGroup
from deepSTRF.dsp.stagger import stagger_rows, zero_subnormal_taps

__all__ = ["ResonatorMatrices", "filter_resonators", "resonator_matrices"]

#: Up to this many blocks (some bins of a stream), one product with all of the past beats the many small ones
#: of doubling.
_FEW_BLOCKS = 24


class ResonatorMatrices(NamedTuple):
    """What `filter_resonators` multiplies with; there are R real states, ``2 * n_poles`` per channel.

    Parameters
    ----------
    inputs : Tensor
        (2^doublings * L, R): the sound before a block, oldest sample first, to the states at its start.
    advance : Tensor
        (doublings, R, R): states to what is left of them 1, 2, 4, ... blocks later.
    outputs : Tensor
        (L + R, L * F_g): the samples of a block, oldest first, and the states at its start, to the outputs of
        the block: time steps, then channels.

    Examples
    --------
    >>> group = FilterGroup(0, 1, kernel_size=9, stride=1, block=2, doublings=2)
    >>> matrices = resonator_matrices(torch.tensor([0.5 + 0j]), torch.ones(1, 1) + 0j, group)
    >>> [tuple(matrix.shape) for matrix in matrices]
    [(8, 2), (2, 2, 2), (4, 2)]
    """

    inputs: Tensor
    advance: Tensor
    outputs: Tensor

    def to(self, dtype: torch.dtype) -> ResonatorMatrices:
        """Return the matrices in another precision."""
        return ResonatorMatrices(*(matrix.to(dtype) for matrix in self))


def resonator_matrices(pole: Tensor, coefficients: Tensor, group: FilterGroup) -> ResonatorMatrices:
    """Lay out filters ``h[t] = Re(sum_k c_k (t / tau)^k pole^t)`` with ``tau = -1 / ln |pole|``.

    Parameters
    ----------
    pole : Tensor
        (F_g,) complex, absolute values between 0 and 1.
    coefficients : Tensor
        (F_g, n_poles) complex: ``c_0``, ``c_1``, ... of a pole of that multiplicity.
    group : FilterGroup
        Its ``block`` L and ``doublings``: the filters reach over the present block and ``2^doublings``
        earlier ones, where they are cut.

    Returns
    -------
    ResonatorMatrices
        In float64.

    Examples
    --------
    >>> group = FilterGroup(0, 1, kernel_size=9, stride=1, block=2, doublings=2)
    >>> resonator_matrices(torch.tensor([0.5 + 0j]), torch.ones(1, 1) + 0j, group).outputs[:2]
    tensor([[1.0000, 0.5000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    pole, coefficients = pole.to(torch.complex128), coefficients.to(torch.complex128)
    block, n_poles = group.block, coefficients.shape[-1]
    tau, order = -1.0 / pole.abs().log(), torch.arange(n_poles)
    memory = torch.arange(2**group.doublings * block, dtype=torch.float64)
    # state k of a channel: the sum over the past of (age / tau)^k pole^age
    inputs = _powers(memory, tau, order) * _oscillation(pole, memory)
    # t samples later an age has become age + t, and (age + t)^q = sum_k binomial(q, k) age^k t^(q - k)
    lift = _binomials(n_poles) * _powers(
        torch.arange(block + 1.0, dtype=torch.float64), tau, (order[:, None] - order).clamp_min(0)
    ).movedim(-1, 1)
    response = torch.einsum("fq,ftqk->fkt", coefficients, lift.to(pole.dtype))
    response = response * _oscillation(pole, torch.arange(block + 1.0, dtype=torch.float64))
    near = response[:, :1, :block].real.expand(-1, block, -1)
    near = stagger_rows(near, 1)[..., :block].permute(1, 2, 0)
    far = torch.cat([response.real, -response.imag], dim=1)[..., 1:]
    steps = [_advance(pole, tau, 2**k * block, n_poles) for k in range(group.doublings)]
    matrices = ResonatorMatrices(
        torch.cat([inputs.real, inputs.imag], dim=1).permute(2, 0, 1).flatten(1).flip(0),
        torch.stack([_diagonal(step).flatten(1) for step in steps]),
        torch.cat([near.flatten(1), _diagonal(far).transpose(1, 2).flatten(1)]),
    )
    # by the standard of float32, in which they will be used
    return ResonatorMatrices(*(zero_subnormal_taps(m, torch.float32) for m in matrices))


def filter_resonators(audio: Tensor, matrices: ResonatorMatrices, group: FilterGroup, hop: int) -> Tensor:
    """Filter a waveform with the channels of one group, as `deepSTRF.dsp.filterbank.filter_group` does.

    Parameters
    ----------
    audio : Tensor
        (B, H + T * hop) waveform that starts with H samples of the past, H at least
        ``2^doublings * block``.
    matrices : ResonatorMatrices
        From `resonator_matrices`.
    group : FilterGroup
        The group.
    hop : int
        Samples per bin, a multiple of the block.

    Returns
    -------
    Tensor
        (B, T * hop / block, 1, block * F_g).

    Examples
    --------
    >>> group = FilterGroup(0, 1, kernel_size=9, stride=1, block=2, doublings=2)
    >>> matrices = resonator_matrices(torch.tensor([0.5 + 0j]), torch.ones(1, 1) + 0j, group)
    >>> click = torch.nn.functional.pad(torch.ones(1, 1, dtype=torch.float64), (8, 3))
    >>> filter_resonators(click, matrices, group, hop=4).flatten()
    tensor([1.0000, 0.5000, 0.2500, 0.1250], dtype=torch.float64)
    """
    past, block = group.kernel_size - group.stride, group.block
    extra = (audio.shape[-1] - past) % hop
    sound = audio[..., extra:] if extra else audio
    n_blocks = (sound.shape[-1] - past) // block
    if n_blocks <= _FEW_BLOCKS:
        rows = sound.unfold(-1, past + block, block).contiguous().view(-1, past + block)
        blocks, states = rows[:, past:], rows[:, :past] @ matrices.inputs
    else:
        blocks = sound.reshape(len(sound), -1, block)
        states = _states_by_doubling(blocks[:, :-1], matrices)[:, -n_blocks:].flatten(0, 1)
        blocks = blocks[:, -n_blocks:].flatten(0, 1)
    outputs = torch.cat([blocks, states], dim=-1) @ matrices.outputs
    return outputs.view(len(audio), n_blocks, 1, -1)


def _states_by_doubling(blocks: Tensor, matrices: ResonatorMatrices) -> Tensor:
    """Turn blocks of sound (B, blocks, L) into the states (B, blocks, R) at their ends."""
    states = blocks @ matrices.inputs[-blocks.shape[-1] :]
    for k, advance in enumerate(matrices.advance):
        earlier = states[:, : -(2**k)] @ advance
        states = states + functional.pad(earlier, (0, 0, 2**k, 0))
    return states


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
    """Return (F, 2 n_poles, 2 n_poles): what the states of a channel are after so many silent samples."""
    order, t = torch.arange(n_poles), torch.tensor([float(samples)], dtype=torch.float64)
    lift = _binomials(n_poles) * _powers(t, tau, (order[:, None] - order).clamp_min(0)).squeeze(-1)
    step = lift.transpose(-1, -2) * _oscillation(pole, t)
    return torch.cat(
        [torch.cat([step.real, step.imag], dim=-1), torch.cat([-step.imag, step.real], dim=-1)], dim=-2
    )


def _diagonal(blocks: Tensor) -> Tensor:
    """Turn one matrix per channel (F, rows, columns) into (F * rows, F, columns): zero between channels."""
    own = torch.eye(len(blocks), dtype=blocks.dtype)
    return torch.einsum("frc,fg->frgc", blocks, own).flatten(0, 1)
