"""Separable STRFs: a few products of a spectral and a temporal profile per neuron."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.kernels import convolve_full

__all__ = ["SeparableSTRF", "check_kernel", "default_bias"]


class SeparableSTRF(nn.Module, Configurable):
    """Kernel of low rank: ``W[c, i, f, j] = sum over r of weight_f[c, i, f, r] * weight_t[c, i, r, j]``.

    It pads nothing: it maps (B, C_in, F, T' + T - 1) to (B, C_out, 1, T'), the slot ``kernel`` of
    `CausalSTRFConv`. It has ``C_out C_in rank (F + T) + C_out`` parameters.

    Parameters
    ----------
    F : int
        Frequency bands.
    T : int
        Length in frames.
    C_in, C_out : int
        Channels in and out (neurons).
    rank : int
        Number of products, at most ``min(F, T)``, where the kernel is a full one.
    bias : bool
        Whether each output channel has a bias.

    Attributes
    ----------
    weight_f, weight_t : Parameter
        Spectral profiles (C_out, C_in, F, rank) and temporal profiles (C_out, C_in, rank, T), newest frame
        last.
    bias : Parameter or None
        (C_out,).

    Raises
    ------
    TypeError, ValueError
        For sizes that are no positive integers, or a rank above ``min(F, T)``.

    Notes
    -----
    Both profiles start uniform in the same range, chosen so that the kernel's entries have the variance of a
    full kernel's (``nn.Conv2d``); the bias starts as there. `init_from` starts from an estimate instead.

    References
    ----------
    Depireux, Simon, Klein & Shamma 2001, doi 10.1152/jn.2001.85.3.1220; Simon, Depireux, Klein, Fritz &
    Shamma 2007, doi 10.1162/neco.2007.19.3.583.

    Examples
    --------
    >>> kernel = SeparableSTRF(F=34, T=15, C_in=1, C_out=119)
    >>> sum(parameter.numel() for parameter in kernel.parameters())
    5950
    >>> kernel(torch.zeros(2, 1, 34, 114)).shape
    torch.Size([2, 119, 1, 100])
    """

    bias: nn.Parameter | None

    def __init__(self, F: int, T: int, C_in: int, C_out: int, rank: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.F = check_positive_int("F", F)
        self.T = check_positive_int("T", T)
        self.C_in = check_positive_int("C_in", C_in)
        self.C_out = check_positive_int("C_out", C_out)
        self.rank = check_positive_int("rank", rank)
        if self.rank > min(self.F, self.T):
            raise ValueError(
                f"rank={self.rank} is more than a kernel of {self.F} bands and {self.T} frames can have; use "
                f"rank={min(self.F, self.T)} or less, or a full kernel (kernel=None)"
            )
        # variance of a product of two uniforms, times the rank, equals that of nn.Conv2d: 1 / (3 C_in F T)
        bound = (3.0 / (self.rank * self.C_in * self.F * self.T)) ** 0.25
        self.weight_f = nn.Parameter(torch.empty(self.C_out, self.C_in, self.F, self.rank))
        self.weight_t = nn.Parameter(torch.empty(self.C_out, self.C_in, self.rank, self.T))
        nn.init.uniform_(self.weight_f, -bound, bound)
        nn.init.uniform_(self.weight_t, -bound, bound)
        self.bias = default_bias(self.C_out, self.C_in * self.F * self.T) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, F, T' + T - 1) to (B, C_out, 1, T')."""
        # Building the kernel costs less than a depthwise convolution per profile from rank 2 on
        return convolve_full(x, self.build_kernel(), self.bias)

    def build_kernel(self) -> Tensor:
        """Return the kernel (C_out, C_in, F, T), newest frame last, with gradients."""
        return self.weight_f @ self.weight_t

    @torch.no_grad()
    def init_from(self, weight: Tensor) -> Self:
        """Start from the best approximation of this rank to a kernel (singular value decomposition).

        Parameters
        ----------
        weight : Tensor, shape (C_out, C_in, F, T)
            A full kernel, for instance a ridge estimate, newest frame last. The bias stays as it is.

        Returns
        -------
        SeparableSTRF
            This module.

        Raises
        ------
        TypeError, ValueError
            For something else than a finite kernel of this shape.

        Examples
        --------
        >>> full = torch.outer(torch.arange(4.0), torch.tensor([0.0, 1.0, -2.0])).expand(1, 1, 4, 3)
        >>> kernel = SeparableSTRF(F=4, T=3, C_in=1, C_out=1).init_from(full)
        >>> torch.allclose(kernel.build_kernel(), full, atol=1e-5)
        True
        """
        full = check_kernel(weight, (self.C_out, self.C_in, self.F, self.T))
        spectral, sizes, temporal = torch.linalg.svd(full, full_matrices=False)
        root = sizes[..., : self.rank].sqrt()  # half of the size to each profile: steps are then alike
        self.weight_f.copy_(spectral[..., : self.rank] * root.unsqueeze(-2))
        self.weight_t.copy_(temporal[..., : self.rank, :] * root.unsqueeze(-1))
        return self


def check_kernel(weight: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Return a kernel given to start from, in float64 on the CPU.

    Parameters
    ----------
    weight : Tensor
        The kernel.
    shape : tuple of int
        (C_out, C_in, F, T) that it must have.

    Returns
    -------
    Tensor
        The kernel, detached.

    Raises
    ------
    TypeError
        When it is no tensor.
    ValueError
        For another shape, or values that are not finite.

    Examples
    --------
    >>> check_kernel(torch.ones(1, 1, 2, 3), (1, 1, 2, 3)).dtype
    torch.float64
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a Tensor (C_out, C_in, F, T), got {type(weight).__name__}")
    if tuple(weight.shape) != shape:
        raise ValueError(
            f"this kernel has shape (C_out, C_in, F, T) = {shape}, the weight to start from has "
            f"{tuple(weight.shape)}; estimate it with the same bands and window"
        )
    full = weight.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(full).all()):
        raise ValueError("the weight to start from holds values that are not finite")
    return full


def default_bias(n_out: int, fan_in: int) -> nn.Parameter:
    """Return a bias as ``nn.Conv2d`` starts it: uniform within ``1 / sqrt(fan_in)``.

    Parameters
    ----------
    n_out : int
        Output channels.
    fan_in : int
        Inputs to each of them.

    Returns
    -------
    Parameter
        (n_out,).

    Examples
    --------
    >>> bool((default_bias(5, 100).abs() <= 0.1).all())
    True
    """
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))
