"""Compression of band energies: per-channel energy normalisation (PCEN) and a smooth cube root.

PCEN is a causal gain control by the recent mean of each band (Wang et al. 2017, doi
10.1109/ICASSP.2017.7953242).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deepSTRF._validation import checked
from deepSTRF.dsp.recursion import first_order_recursion

__all__ = ["PCEN_EPS", "PCEN_STARTS", "check_energies", "pcen", "pcen_initial_state", "smooth_cube_root"]

#: How the running mean starts.
PCEN_STARTS = ("debiased", "zero", "first")
#: Energy below which the gain stops growing (Wang et al. 2017, doi 10.1109/ICASSP.2017.7953242).
PCEN_EPS = 1e-6
#: Keeps the slope of the cube root finite at silence; shifts the value by at most 1e-6.
_EPSILON = 1e-18


@checked
def pcen(
    energy: Tensor,
    decay: Tensor | float,
    alpha: Tensor | float,
    delta: Tensor | float,
    root: Tensor | float,
    *,
    eps: float = PCEN_EPS,
    start: str = "debiased",
    state: dict[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide energies by their running mean and compress.

    ``(E / (eps + M)^alpha + delta)^root - delta^root`` with the running mean
    ``M[t] = a M[t - 1] + (1 - a) E[t]``, ``a = exp(-decay)``. The difference of powers is evaluated as
    ``expm1`` of ``log1p``, which keeps all digits for quiet sound and a finite gradient for silence.

    Parameters
    ----------
    energy : Tensor
        (B, F, T), not negative. It is checked on CPUs only: on accelerators looking at values would wait.
    decay : Tensor or float
        Bin width over time constant of the running mean, above 0: a number, or one per band (F,). Given this
        way the memory in milliseconds does not change with the bin width.
    alpha, delta, root : Tensor or float
        Strength of the gain control, bias, and exponent: numbers, or one per band (F,).
    eps : float
        Floor of the running mean.
    start : {"debiased", "zero", "first"}
        ``"debiased"``: the mean of the frames so far, each with its exponential weight (so ``M[0] = E[0]``).
        ``"zero"``: silence before the first frame, which makes an onset of about five time constants.
        ``"first"``: the first frame, as if it had lasted forever.
    state : dict, optional
        What the previous chunk returned; a fresh start when left out.

    Returns
    -------
    normalised : Tensor
        (B, F, T).
    state : dict
        For the next chunk.

    Raises
    ------
    ValueError
        For an unknown start, a tensor that is not (B, F, T), or negative energies (on a CPU).

    References
    ----------
    Wang et al. 2017, doi 10.1109/ICASSP.2017.7953242; Lostanlen et al. 2019, doi 10.1109/LSP.2018.2878620.

    Examples
    --------
    >>> steady, _ = pcen(torch.ones(1, 1, 3), decay=0.04, alpha=1.0, delta=2.0, root=0.5)
    >>> steady
    tensor([[[0.3178, 0.3178, 0.3178]]])
    """
    if energy.ndim != 3:
        raise ValueError(f"energy must be (B, F, T), got {tuple(energy.shape)}")
    if energy.device.type == "cpu":
        check_energies(energy)
    values = (_per_band(value, energy) for value in (decay, alpha, delta, root))
    return apply_pcen(energy, pcen_constants(*values), eps=eps, start=start, state=state)


class PCENConstants(NamedTuple):
    """What the formula of `pcen` needs of its parameters, each (F, 1) or (1, 1); streams keep it."""

    rate: Tensor
    weight: Tensor  # of a frame in the running mean, 1 - a
    keep: Tensor  # a
    exponent: Tensor  # -alpha
    bias: Tensor
    power: Tensor
    floor: Tensor  # bias ** power


def pcen_constants(decay: Tensor, alpha: Tensor, delta: Tensor, root: Tensor) -> PCENConstants:
    """Constants of `apply_pcen` from the arguments of `pcen`, as tensors (F,) or (F, 1)."""
    rate, gain, bias, power = (value.reshape(-1, 1) for value in (decay, alpha, delta, root))
    return PCENConstants(rate, -torch.expm1(-rate), torch.exp(-rate), -gain, bias, power, bias**power)


def apply_pcen(
    energy: Tensor,
    constants: PCENConstants,
    *,
    eps: float = PCEN_EPS,
    start: str = "debiased",
    state: dict[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`pcen` of energies (B, F, T) that were checked."""
    batch, n_bands, n_frames = energy.shape
    if state is None:
        state = pcen_initial_state(batch, n_bands, start=start, device=energy.device, dtype=energy.dtype)
    if constants.rate.dtype != energy.dtype:
        constants = PCENConstants(*(value.to(energy) for value in constants))
    rate, weight, keep, exponent, bias, power, floor = constants
    before = state["memory"]
    if start == "first":
        before = torch.where(state["started"], before, energy[..., 0])
    memory, last = first_order_recursion(weight * energy, keep.squeeze(-1), before)
    log_missing, mean = state["log_missing"].unsqueeze(-1), memory
    if start == "debiased":  # a mean that starts at a given value lacks nothing
        elapsed = rate
        if n_frames > 1:
            elapsed = rate * torch.arange(1, n_frames + 1, dtype=energy.dtype, device=energy.device)
        log_missing = log_missing - elapsed
        mean = memory / -torch.expm1(log_missing)
    output = floor * torch.expm1(power * torch.log1p(energy * (mean + eps) ** exponent / bias))
    following = {
        "memory": last,
        "log_missing": log_missing[..., -1],
        "started": torch.ones_like(state["started"]),
    }
    return output, following


def pcen_initial_state(
    batch: int,
    n_bands: int,
    *,
    start: str = "debiased",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """State of the running mean before the first frame, each (B, F).

    ``"memory"``: the running mean; ``"log_missing"``: log of the weight that a debiased one still lacks;
    ``"started"`` (B, 1): whether there was a frame.
    """
    if start not in PCEN_STARTS:
        raise ValueError(f"start must be one of {', '.join(map(repr, PCEN_STARTS))}, got {start!r}")
    memory = torch.zeros(batch, n_bands, device=device, dtype=dtype)
    return {
        "memory": memory,
        "log_missing": torch.zeros_like(memory),
        "started": torch.zeros(batch, 1, device=device, dtype=torch.bool),
    }


def check_energies(x: Tensor) -> None:
    """Raise a ValueError for negative levels; inside compilers, traces and vmap they cannot be looked at."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return
    if torch.func.debug_unwrap(x) is not x or x.is_meta or x.numel() == 0 or float(x.detach().min()) >= 0:
        return
    if not bool(((x < 0) & x.isfinite()).any()):  # an infinite sample spoils its own frame and later ones
        return
    raise ValueError(
        "PCEN needs energies, which are not negative; the lowest level given is "
        f"{float(x.nan_to_num().min()):g}. Give it amplitudes or powers without a logarithm: "
        "spectrogram.exp() of a log spectrogram, a front-end with compression='none', SincNet with "
        "envelope=True or activation='logabs'"
    )


def _per_band(value: Tensor | float, like: Tensor) -> Tensor:
    """Return a number or a (F,) tensor as (1, 1) or (F, 1), ready to meet (B, F, T)."""
    if not isinstance(value, Tensor):
        return like.new_full((1, 1), value)
    return value.to(like).reshape(-1, 1)


def smooth_cube_root(energy: Tensor) -> Tensor:
    """``(x + 1e-18)^(1/3) - 1e-6``, exactly 0 at 0 and with a finite slope there."""
    offset: float = _EPSILON ** (1.0 / 3.0)
    root = (energy + _EPSILON) ** (1.0 / 3.0)
    # the difference of the two roots without cancellation: (a - b) = (a^3 - b^3) / (a^2 + a b + b^2)
    return energy / (root * (root + offset) + offset**2)
