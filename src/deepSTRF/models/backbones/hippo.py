"""Where linear state-space models start: systems that are good at remembering."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Modes", "legs_modes", "lin_modes"]


class Modes(NamedTuple):
    """Where a system starts: P of its 2 P modes (the others are their conjugates).

    Attributes
    ----------
    poles : Tensor
        (P,) complex, with negative real part.
    drive : Tensor
        (P,) complex: how the input enters, B.
    rank_one : Tensor
        (P,) complex: the vector p of ``A = diag(poles) - p p*``; zero for a diagonal system.

    Examples
    --------
    >>> legs_modes(4).poles.real.round(decimals=4).tolist()
    [-0.5, -0.5, -0.5, -0.5]
    """

    poles: Tensor
    drive: Tensor
    rank_one: Tensor


def legs_modes(n_modes: int) -> Modes:
    """Return HiPPO-LegS, which projects the whole past on Legendre polynomials, as diagonal minus rank one.

    ``A[n, k] = -sqrt(2 n + 1) sqrt(2 k + 1)`` for n > k, ``-(n + 1)`` for n = k, 0 above; ``B[n] = sqrt(2 n +
    1)``, ``p[n] = sqrt(n + 1/2)``. ``A + p p^T`` is normal and has the eigenvalues returned; B and p are
    turned so that B is real and positive, which fixes the eigenvectors' phases.

    Parameters
    ----------
    n_modes : int
        P; the system has 2 P states.

    Returns
    -------
    Modes
        In complex128.

    References
    ----------
    Gu et al. 2020, doi 10.48550/arXiv.2008.07669; Gu, Goel & Ré 2022, doi 10.48550/arXiv.2111.00396.

    Examples
    --------
    >>> modes = legs_modes(8)
    >>> bool((modes.poles.imag > 0).all()), bool((modes.drive.real > 0).all())
    (True, True)
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
    """Return the modes of S4D-Lin: poles ``-1/2 + i pi n``, a damped Fourier series.

    Parameters
    ----------
    n_modes : int
        P.

    Returns
    -------
    Modes
        In complex128.

    References
    ----------
    Gu et al. 2022, doi 10.48550/arXiv.2206.11893.

    Examples
    --------
    >>> lin_modes(2).poles[1].imag.item() == math.pi
    True
    """
    frequencies = math.pi * torch.arange(n_modes, dtype=torch.float64)
    poles = torch.complex(torch.full_like(frequencies, -0.5), frequencies)
    return Modes(poles, torch.ones_like(poles), torch.zeros_like(poles))
