"""Parametric STRFs: a few Gaussians on the time-frequency plane per neuron, whose places are learned."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.gaussian_fit import fit_gaussians
from deepSTRF.models.kernels import convolve_full
from deepSTRF.models.separable import check_kernel, default_bias

__all__ = ["ParametricSTRF"]

#: Least standard deviation in bands or frames: the one of "dilated convolutions with learnable spacings"
#: (doi 10.48550/arXiv.2306.00817), below which a Gaussian falls between two grid points.
LEAST_SIGMA = 0.27
#: Keeps the sum of a Gaussian on the grid away from zero.
LEAST_SUM = 1e-7
#: ``SIG`` of a fitted Gaussian stays this far from its kink at 0.
LEAST_SIG = 0.01


class ParametricSTRF(nn.Module, Configurable):
    """Kernel of Gaussians: ``W[c, i, f, j]`` sums ``weight[c, i, g]`` times a unit-sum Gaussian over g.

    Each Gaussian has a centre and a width in bands and in frames. It pads nothing: it maps (B, C_in, F, T' +
    T - 1) to (B, C_out, 1, T'), the slot ``kernel`` of `CausalSTRFConv`. It has ``5 C_out C_in G + C_out``
    parameters, whatever the number of bands and frames.

    Parameters
    ----------
    F : int
        Frequency bands.
    T : int
        Length in frames.
    C_in, C_out : int
        Channels in and out (neurons).
    num_gaussians : int
        Gaussians per pair of channels, G.
    bias : bool
        Whether each output channel has a bias.

    Attributes
    ----------
    P : Parameter, shape (2, C_out, C_in, G)
        Centres: ``P[0]`` in bands (0 .. F - 1), ``P[1]`` in frames (0 .. T - 1, newest last); see Notes.
    SIG : Parameter, shape (2, C_out, C_in, G)
        Widths: the standard deviation is ``|SIG| + 0.27`` bands or frames.
    weight : Parameter, shape (C_out, C_in, G)
        Sum of each Gaussian over the grid.
    bias : Parameter or None
        (C_out,).

    Raises
    ------
    TypeError, ValueError
        For sizes that are no positive integers.

    Notes
    -----
    A Gaussian that leaves the grid would be zero there and get no gradient ever again. Centres are therefore
    mirrored at the edges: a step beyond an edge comes back by as much, on the grid ``P`` is the centre
    itself, and the gradient keeps its size everywhere.

    Gaussians are products of a spectral and a temporal one, built from F + T exponentials each.

    References
    ----------
    Thorson, Lienard & David 2015, doi 10.1371/journal.pcbi.1004628 (parametric STRFs); Khalfaoui-Hassani,
    Pellegrini & Masquelier 2023, doi 10.48550/arXiv.2112.03740 and 10.48550/arXiv.2306.00817 (learnable
    positions).

    Examples
    --------
    >>> kernel = ParametricSTRF(F=34, T=15, C_in=1, C_out=119, num_gaussians=8)
    >>> sum(parameter.numel() for parameter in kernel.parameters())
    4879
    >>> kernel(torch.zeros(2, 1, 34, 114)).shape
    torch.Size([2, 119, 1, 100])
    """

    bias: nn.Parameter | None

    def __init__(
        self, F: int, T: int, C_in: int, C_out: int, num_gaussians: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.F = check_positive_int("F", F)
        self.T = check_positive_int("T", T)
        self.C_in = check_positive_int("C_in", C_in)
        self.C_out = check_positive_int("C_out", C_out)
        self.num_gaussians = check_positive_int("num_gaussians", num_gaussians)
        shape = (self.C_out, self.C_in, self.num_gaussians)
        self.P = nn.Parameter(torch.stack([torch.rand(shape) * (size - 1) for size in (self.F, self.T)]))
        self.SIG = nn.Parameter(torch.ones(2, *shape))
        bound = 1.0 / math.sqrt(self.C_in * self.num_gaussians)  # the fan-in: each Gaussian is one weight
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = default_bias(self.C_out, self.C_in * self.F * self.T) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, F, T' + T - 1) to (B, C_out, 1, T')."""
        return convolve_full(x, self.build_kernel(), self.bias)

    def centres(self) -> Tensor:
        """Return the centres (2, C_out, C_in, G) on the grid: bands, then frames (newest last)."""
        return torch.stack([_mirrored(self.P[0], self.F - 1), _mirrored(self.P[1], self.T - 1)])

    def sigmas(self) -> Tensor:
        """Return the standard deviations (2, C_out, C_in, G) in bands and in frames."""
        return self.SIG.abs() + LEAST_SIGMA

    def build_kernel(self) -> Tensor:
        """Return the kernel (C_out, C_in, F, T), newest frame last, with gradients."""
        centres, sigmas = self.centres(), self.sigmas()
        spectral = _gaussians(centres[0], sigmas[0], self.F)
        temporal = _gaussians(centres[1], sigmas[1], self.T)
        scale = self.weight / (spectral.sum(-1) * temporal.sum(-1) + LEAST_SUM)
        return (spectral * scale.unsqueeze(-1)).mT @ temporal

    @torch.no_grad()
    def init_from(self, weight: Tensor) -> Self:
        """Start from Gaussians that approximate a kernel; see `deepSTRF.models.gaussian_fit.fit_gaussians`.

        Parameters
        ----------
        weight : Tensor, shape (C_out, C_in, F, T)
            A full kernel, for instance a ridge estimate, newest frame last. The bias stays as it is.

        Returns
        -------
        ParametricSTRF
            This module.

        Raises
        ------
        TypeError, ValueError
            For something else than a finite kernel of this shape.

        Examples
        --------
        >>> target = ParametricSTRF(F=9, T=7, C_in=1, C_out=2).build_kernel()
        >>> kernel = ParametricSTRF(F=9, T=7, C_in=1, C_out=2).init_from(target)
        >>> bool((kernel.build_kernel() - target).norm() < 0.2 * target.norm())
        True
        """
        full = check_kernel(weight, (self.C_out, self.C_in, self.F, self.T))
        fitted = fit_gaussians(full.flatten(0, 1), self.num_gaussians, least_sigma=LEAST_SIGMA + LEAST_SIG)
        shape = self.weight.shape
        self.P.copy_(torch.stack([fitted.bands, fitted.frames]).view(2, *shape))
        self.SIG.copy_(torch.stack([fitted.sigma_bands, fitted.sigma_frames]).view(2, *shape) - LEAST_SIGMA)
        self.weight.copy_(fitted.sums.view(shape))
        return self


def _mirrored(place: Tensor, last: int) -> Tensor:
    """Fold places into 0 .. last as between two mirrors; the slope is 1 or -1, never 0."""
    if last == 0:
        return place * 0.0  # one grid point: there is nowhere else to be
    phase = torch.remainder(place, 2 * last)
    return torch.where(phase <= last, phase, 2 * last - phase)


def _gaussians(centres: Tensor, sigmas: Tensor, size: int) -> Tensor:
    """(...,) centres and widths -> (..., size), 1 at the centre."""
    grid = torch.arange(size, dtype=centres.dtype, device=centres.device)
    return torch.exp(-0.5 * ((grid - centres.unsqueeze(-1)) / sigmas.unsqueeze(-1)) ** 2)
