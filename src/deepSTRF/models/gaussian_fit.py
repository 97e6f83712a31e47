"""Approximating kernels by a few Gaussians: greedy choice from a dictionary, then joint refinement."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["GaussianFit", "fit_gaussians"]

#: Standard deviations tried, in grid points: steps of a factor of two lose little of a Gaussian's match.
CANDIDATE_SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)
#: Steps and step size (grid points) of the joint refinement.
REFINE_STEPS, REFINE_RATE = 100, 0.05
#: Most matches between kernels and dictionary that are held at once (64 MiB).
MOST_MATCHES = 2**23


@dataclass(frozen=True)
class GaussianFit:
    """Gaussians per kernel, each field (K, G).

    Attributes
    ----------
    sums : Tensor
        Sum of each Gaussian over the grid.
    bands, frames : Tensor
        Centres, on the grid.
    sigma_bands, sigma_frames : Tensor
        Standard deviations in grid points.

    Examples
    --------
    >>> one = torch.zeros(1, 1)
    >>> GaussianFit(one, one, one, one + 1, one + 1).kernels(3, 1).shape
    torch.Size([1, 3, 1])
    """

    sums: Tensor
    bands: Tensor
    frames: Tensor
    sigma_bands: Tensor
    sigma_frames: Tensor

    def kernels(self, n_bands: int, n_frames: int) -> Tensor:
        """Return the kernels (K, n_bands, n_frames)."""
        spectral = _unit_sum(self.bands, self.sigma_bands, n_bands)
        temporal = _unit_sum(self.frames, self.sigma_frames, n_frames)
        return (spectral * self.sums.unsqueeze(-1)).mT @ temporal


def fit_gaussians(kernels: Tensor, n_gaussians: int, *, least_sigma: float = 0.3) -> GaussianFit:
    """Approximate every kernel by a sum of Gaussians with axes along frequency and time.

    One Gaussian after the other is chosen from a dictionary (every grid point, five widths each way) where it
    explains most of what is left, and the sums of all so far are fitted again (orthogonal matching pursuit).
    A short gradient descent then moves centres, widths and sums together.

    Parameters
    ----------
    kernels : Tensor, shape (K, F, T)
        The kernels.
    n_gaussians : int
        Gaussians per kernel, G.
    least_sigma : float
        Least standard deviation, in grid points.

    Returns
    -------
    GaussianFit
        Float64, on the device of the kernels.

    References
    ----------
    Pati, Rezaiifar & Krishnaprasad 1993, doi 10.1109/ACSSC.1993.342465.

    Examples
    --------
    >>> bump = torch.exp(-((torch.arange(9.0) - 6) ** 2) / 8)
    >>> fit = fit_gaussians(torch.outer(bump, bump)[None], 1)
    >>> [round(float(value), 1) for value in (fit.bands, fit.frames, fit.sigma_bands, fit.sigma_frames)]
    [6.0, 6.0, 2.0, 2.0]
    """
    target = kernels.detach().double()
    # a kernel's own size must not decide how far the joint steps go
    scale = target.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)[:, None, None]
    n_atoms = len(CANDIDATE_SIGMAS) ** 2 * target[0].numel()
    parts = (target / scale).split(max(1, MOST_MATCHES // n_atoms))
    starts = [_match(part, n_gaussians, least_sigma) for part in parts]
    start = GaussianFit(*(torch.cat([getattr(one, f.name) for one in starts]) for f in fields(GaussianFit)))
    fitted = _refine(target / scale, start, least_sigma)
    return GaussianFit(
        fitted.sums * scale[:, :, 0], fitted.bands, fitted.frames, fitted.sigma_bands, fitted.sigma_frames
    )


def _unit_sum(centres: Tensor, sigmas: Tensor, size: int) -> Tensor:
    """(K, G) centres and widths -> (K, G, size), each summing to 1."""
    grid = torch.arange(size, dtype=centres.dtype, device=centres.device)
    return torch.softmax(-0.5 * ((grid - centres.unsqueeze(-1)) / sigmas.unsqueeze(-1)) ** 2, dim=-1)


def _atoms(size: int, least_sigma: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (A,), widths (A,) and unit-norm Gaussians (A, size) along one axis."""
    widths = like.new_tensor([max(sigma, least_sigma) for sigma in CANDIDATE_SIGMAS])
    places = torch.arange(size, dtype=like.dtype, device=like.device)
    centres, sigmas = places.repeat(len(widths)), widths.repeat_interleave(size)
    values = _unit_sum(centres[None], sigmas[None], size)[0]
    return centres, sigmas, values / values.norm(dim=1, keepdim=True)


def _match(target: Tensor, n_gaussians: int, least_sigma: float) -> GaussianFit:
    n_kernels, n_bands, n_frames = target.shape
    bands, sigma_bands, spectral = _atoms(n_bands, least_sigma, target)
    frames, sigma_frames, temporal = _atoms(n_frames, least_sigma, target)
    residual, chosen = target, torch.empty(n_kernels, 0, dtype=torch.long, device=target.device)
    sums = target.new_zeros(n_kernels, 0)
    for _ in range(n_gaussians):
        explained = (spectral @ residual @ temporal.T).flatten(1).abs()
        chosen = torch.cat([chosen, explained.argmax(1, keepdim=True)], dim=1)
        row, column = chosen // len(temporal), chosen % len(temporal)
        shapes = torch.stack([bands[row], frames[column], sigma_bands[row], sigma_frames[column]])
        unit = _unit_sum(shapes[0], shapes[2], n_bands).unsqueeze(3) * _unit_sum(
            shapes[1], shapes[3], n_frames
        ).unsqueeze(2)
        design = unit.flatten(2).mT  # (K, F T, G so far); the same atom twice leaves it rank deficient
        sums = (torch.linalg.pinv(design, rtol=1e-6) @ target.flatten(1).unsqueeze(2)).squeeze(2)
        residual = target - (design @ sums.unsqueeze(2)).view_as(target)
    return GaussianFit(sums, *shapes)


def _refine(target: Tensor, start: GaussianFit, least_sigma: float) -> GaussianFit:
    _, n_bands, n_frames = target.shape
    edges = target.new_tensor([n_bands - 1, n_frames - 1])[:, None, None]
    places = torch.stack([start.bands, start.frames]).requires_grad_()
    widths = torch.stack([start.sigma_bands, start.sigma_frames]).log().requires_grad_()
    sums = start.sums.clone().requires_grad_()
    optimizer = torch.optim.Adam(
        [
            {"params": [places, widths], "lr": REFINE_RATE},
            {"params": [sums], "lr": REFINE_RATE * float(start.sums.abs().mean())},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, REFINE_STEPS)
    with torch.enable_grad():
        for _ in range(REFINE_STEPS):
            optimizer.zero_grad()
            fitted = GaussianFit(sums, *places, *widths.exp()).kernels(n_bands, n_frames)
            (fitted - target).square().sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                places.copy_(torch.minimum(places.clamp(min=0.0), edges))
                widths.clamp_(min=torch.tensor(least_sigma).log())
    return GaussianFit(sums.detach(), *places.detach(), *widths.detach().exp())
