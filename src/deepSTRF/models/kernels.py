"""Kernels of spectro-temporal receptive fields: full, of low rank, and sums of Gaussians.

`CausalSTRFConv` convolves with a kernel ``W`` (C_out, C_in, F, T), newest frame last. By default every entry
of ``W`` is a parameter; `SeparableSTRF` and `ParametricSTRF` build it from fewer. A parameterised kernel is a
module that maps (B, C_in, F, T' + T - 1) to (B, C_out, 1, T'), pads nothing, and returns ``W`` from
``build_kernel()``; it is registered in `deepSTRF.registry.KERNELS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import MOST_LAYERS, check_positive_int, checked
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import KERNELS

__all__ = ["CausalSTRFConv", "ParametricSTRF", "SeparableSTRF", "convolve_full", "fit_gaussians"]

#: Most elements that the product form may unfold (64 MiB in float32).
_MAX_UNFOLDED_ELEMENTS = 2**24
#: Least standard deviation in bands or frames: the one of "dilated convolutions with learnable spacings"
#: (doi 10.48550/arXiv.2306.00817), below which a Gaussian falls between two grid points.
LEAST_SIGMA = 0.27
#: Keeps the sum of a Gaussian on the grid away from zero.
LEAST_SUM = 1e-7
#: ``SIG`` of a fitted Gaussian stays this far from its kink at 0.
LEAST_SIG = 0.01
#: Standard deviations tried by `fit_gaussians`, in grid points: steps of a factor of two lose little of a
#: Gaussian's match.
CANDIDATE_SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)
#: Steps and step size (grid points) of its joint refinement.
REFINE_STEPS, REFINE_RATE = 100, 0.05
#: Most matches between kernels and dictionary that are held at once (64 MiB).
MOST_MATCHES = 2**23


class CausalSTRFConv(nn.Module, Configurable):
    """Causal convolution whose kernel spans all frequency bands and the last ``T`` frames.

    ``y[c, t] = b[c] + sum over i, f, j of W[c, i, f, j] * x[i, f, t - (T - 1) + j]``: tap ``j = T - 1`` meets
    the current frame, ``j = 0`` the oldest. Time is padded on the left with ``T - 1`` zeros. With another
    ``first_lag`` all taps move: below 0 it is not causal, and zeros stand after the last frame, too.

    Parameters
    ----------
    F : int
        Frequency bands.
    T : int
        Length of the kernel in frames.
    C_in : int
        Channels of the input.
    C_out : int
        Channels of the output (neurons, or hidden units).
    kernel : nn.Module or None
        A parameterised kernel that maps (B, C_in, F, T' + T - 1) to (B, C_out, 1, T'); None is a full
        ``nn.Conv2d(C_in, C_out, (F, T))``. It may offer ``build_kernel()`` -> (C_out, C_in, F, T).
    bias : bool
        Whether the default kernel has one bias per output channel.
    first_lag : int
        Lag of the newest tap in frames: 0 is the current frame, 3 three frames before it, -3 three after it.

    Raises
    ------
    TypeError, ValueError
        For sizes that are no positive integers, or a kernel that is no module.

    Notes
    -----
    The zeros on the left stand for "nothing", but in a log spectrogram silence is about -9.2 and zero is
    loud: the first ``T - 1`` predictions of a clip see an onset that was never played. Standardise the input
    (zero is then the mean level), or leave those bins out of loss and scores (``warmup_ms``).

    Examples
    --------
    >>> convolution = CausalSTRFConv(F=34, T=9, C_in=1, C_out=5)
    >>> convolution(torch.zeros(2, 1, 34, 100)).shape
    torch.Size([2, 5, 1, 100])
    """

    @checked
    def __init__(
        self,
        F: int,
        T: int,
        C_in: int,
        C_out: int,
        kernel: nn.Module | None = None,
        bias: bool = True,
        *,
        first_lag: int = 0,
    ) -> None:
        super().__init__()
        self.F = check_positive_int("F", F)
        self.T = check_positive_int("T", T)
        self.C_in = check_positive_int("C_in", C_in)
        self.C_out = check_positive_int("C_out", C_out)
        self.first_lag = int(first_lag)
        if kernel is not None and not isinstance(kernel, nn.Module):
            raise TypeError(f"kernel must be an nn.Module or None, got {type(kernel).__name__}")
        self.kernel: nn.Module = kernel or nn.Conv2d(self.C_in, self.C_out, (self.F, self.T), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C_in, F, T) and return (B, C_out, 1, T)."""
        self._check_input(x)
        before, after = self.T - 1 + self.first_lag, -self.first_lag
        padded = functional.pad(x, (max(before, 0), max(after, 0)))
        if before < 0 or after < 0:  # frames at one end that no tap meets
            padded = padded[..., max(-before, 0) : padded.shape[-1] + min(after, 0)]
        return self._convolve(padded)

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the zero frames before the first: ``{"history": (B, C_in, F, T - 1 + first_lag)}``."""
        if self.first_lag < 0:
            raise TypeError(
                f"a prediction depends on frames up to {-self.first_lag} after its own, which a stream does "
                "not have yet: call the model on whole clips, or build it with lags that begin at 0"
            )
        where, kind = placement(self, device, dtype)
        shape = (batch, self.C_in, self.F, self.T - 1 + self.first_lag)
        return {"history": torch.zeros(shape, device=where, dtype=kind)}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Convolve the next frames (B, C_in, F, T'); return (B, C_out, 1, T') and the next state."""
        self._check_input(chunk)
        if self.first_lag < 0:
            self.init_state(1)  # says why there is none
        padded = torch.cat([state["history"], chunk], dim=-1)
        n_frames = padded.shape[-1]
        following = padded[..., n_frames - (self.T - 1 + self.first_lag) :]
        return self._convolve(padded[..., : n_frames - self.first_lag]), {"history": following}

    def STRF_weight(self) -> Tensor:
        """Return the kernel (C_out, C_in, F, T), newest frame last, as a detached tensor on the CPU."""
        build = getattr(self.kernel, "build_kernel", None)
        if callable(build):
            weight: Tensor = build()
        elif isinstance(self.kernel, nn.Conv2d):
            weight = self.kernel.weight
        elif _is_separable_pair(self.kernel):
            weight = self.kernel[0].weight * self.kernel[1].weight  # type: ignore[index]
        else:
            raise NotImplementedError(
                f"the kernel of a {type(self.kernel).__name__} is not known; give it a method "
                "build_kernel() that returns (C_out, C_in, F, T)"
            )
        return weight.detach().cpu()

    def _convolve(self, padded: Tensor) -> Tensor:
        """(B, C_in, F, T' + T - 1) -> (B, C_out, 1, T')."""
        n_frames = padded.shape[-1] - self.T + 1
        if self._product_is_faster(padded, n_frames):
            kernel = cast(nn.Conv2d, self.kernel)
            return _convolve_as_product(padded, kernel.weight, kernel.bias)
        y: Tensor = self.kernel(padded)
        expected = (padded.shape[0], self.C_out, 1, n_frames)
        if y.shape != expected:
            raise ValueError(
                f"the kernel {type(self.kernel).__name__} must map {tuple(padded.shape)} to {expected}, it "
                f"returned {tuple(y.shape)}"
            )
        return y

    def _product_is_faster(self, padded: Tensor, n_frames: int) -> bool:
        """Whether one matrix product over unfolded frames beats the library's convolution.

        On a CPU the gradient with respect to the input is 5 times faster that way (a learned front-end needs
        it in every step). A kernel with hooks or a parametrisation is called as a module, and long recordings
        are not unfolded, which would take T times their memory.
        """
        kernel = self.kernel
        if type(kernel) is not nn.Conv2d or padded.device.type != "cpu":
            return False
        if kernel._forward_hooks or kernel._forward_pre_hooks or kernel.kernel_size != (self.F, self.T):
            return False
        return _fits_unfolded(padded, self.T, n_frames) and padded.dtype == kernel.weight.dtype

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.C_in or x.shape[2] != self.F or x.shape[3] < 1:
            raise ValueError(
                f"expected an input (B, {self.C_in}, {self.F}, T) with T of at least 1, got {tuple(x.shape)}"
            )


def convolve_full(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (B, C_in, F, T' + T - 1), history in front, with (C_out, C_in, F, T) to (B, C_out, 1, T')."""
    n_taps = weight.shape[-1]
    if padded.device.type == "cpu" and _fits_unfolded(padded, n_taps, padded.shape[-1] - n_taps + 1):
        return _convolve_as_product(padded, weight, bias)
    return functional.conv2d(padded, weight, bias)


def _fits_unfolded(padded: Tensor, n_taps: int, n_frames: int) -> bool:
    batch, channels, bands, _ = padded.shape
    return batch * channels * bands * n_taps * n_frames <= _MAX_UNFOLDED_ELEMENTS


def _convolve_as_product(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`convolve_full` as one matrix product over unfolded frames."""
    batch, (n_out, _, _, n_taps) = padded.shape[0], weight.shape
    n_frames = padded.shape[-1] - n_taps + 1
    # (B, C_in, F, T', T) -> (B, C_in * F * T, T'): rows in the order of the flattened weight
    frames = padded.unfold(-1, n_taps, 1).transpose(-1, -2).reshape(batch, -1, n_frames)
    weight = weight.reshape(n_out, -1)
    if bias is None:
        return (weight @ frames).unsqueeze(2)
    if batch == 1:
        return torch.addmm(bias.unsqueeze(1), weight, frames[0]).view(1, n_out, 1, n_frames)
    return torch.baddbmm(bias.unsqueeze(1), weight.expand(batch, -1, -1), frames).unsqueeze(2)


def _is_separable_pair(kernel: nn.Module) -> bool:
    """Whether a kernel is a convolution over frequency followed by a depthwise one over time."""
    if not isinstance(kernel, nn.Sequential) or len(kernel) != 2:
        return False
    over_frequency, over_time = kernel
    if not isinstance(over_frequency, nn.Conv2d) or not isinstance(over_time, nn.Conv2d):
        return False
    return (
        over_frequency.kernel_size[1] == 1
        and over_time.kernel_size[0] == 1
        and over_time.groups == over_time.out_channels
    )


@KERNELS.register("separable")
class SeparableSTRF(KeepsDerived, Configurable):
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

    @checked
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
        self.bias = _default_bias(self.C_out, self.C_in * self.F * self.T) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, F, T' + T - 1) to (B, C_out, 1, T')."""
        # Building the kernel costs less than a depthwise convolution per profile from rank 2 on
        return convolve_full(x, self._derived("kernel", self.build_kernel), self.bias)

    def fix_derived(self) -> None:
        """The kernel."""
        self._derived("kernel", self.build_kernel)

    def build_kernel(self) -> Tensor:
        """Return the kernel (C_out, C_in, F, T), newest frame last, with gradients."""
        return self.weight_f @ self.weight_t

    @torch.no_grad()
    def init_from(self, weight: Tensor) -> Self:
        """Start from the best approximation of this rank to (C_out, C_in, F, T), by singular values."""
        full = _check_kernel(weight, (self.C_out, self.C_in, self.F, self.T))
        spectral, sizes, temporal = torch.linalg.svd(full, full_matrices=False)
        root = sizes[..., : self.rank].sqrt()  # half of the size to each profile: steps are then alike
        self.weight_f.copy_(spectral[..., : self.rank] * root.unsqueeze(-2))
        self.weight_t.copy_(temporal[..., : self.rank, :] * root.unsqueeze(-1))
        return self


@KERNELS.register("parametric")
@KERNELS.register("dcls")  # the name that the models page uses
class ParametricSTRF(KeepsDerived, Configurable):
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

    @checked
    def __init__(
        self, F: int, T: int, C_in: int, C_out: int, num_gaussians: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.F = check_positive_int("F", F)
        self.T = check_positive_int("T", T)
        self.C_in = check_positive_int("C_in", C_in)
        self.C_out = check_positive_int("C_out", C_out)
        self.num_gaussians = check_positive_int("num_gaussians", num_gaussians, MOST_LAYERS)
        shape = (self.C_out, self.C_in, self.num_gaussians)
        self.P = nn.Parameter(torch.stack([torch.rand(shape) * (size - 1) for size in (self.F, self.T)]))
        self.SIG = nn.Parameter(torch.ones(2, *shape))
        bound = 1.0 / math.sqrt(self.C_in * self.num_gaussians)  # the fan-in: each Gaussian is one weight
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = _default_bias(self.C_out, self.C_in * self.F * self.T) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, F, T' + T - 1) to (B, C_out, 1, T')."""
        return convolve_full(x, self._derived("kernel", self.build_kernel), self.bias)

    def fix_derived(self) -> None:
        """The kernel."""
        self._derived("kernel", self.build_kernel)

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
        """Start from the Gaussians that approximate a kernel (C_out, C_in, F, T); see `fit_gaussians`."""
        full = _check_kernel(weight, (self.C_out, self.C_in, self.F, self.T))
        fitted = fit_gaussians(full.flatten(0, 1), self.num_gaussians, least_sigma=LEAST_SIGMA + LEAST_SIG)
        shape = self.weight.shape
        self.P.copy_(torch.stack([fitted.bands, fitted.frames]).view(2, *shape))
        self.SIG.copy_(torch.stack([fitted.sigma_bands, fitted.sigma_frames]).view(2, *shape) - LEAST_SIGMA)
        self.weight.copy_(fitted.sums.view(shape))
        return self

    def convert_public_state(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Check that no public Gaussian is centred off the grid: it was cut off there, ours is mirrored."""
        centres = state.get(f"{prefix}P")
        if centres is None or centres.shape != self.P.shape:
            return state
        for axis, size in enumerate((self.F, self.T)):
            outside = int(((centres[axis] < 0) | (centres[axis] > size - 1)).sum())
            if outside:
                raise ValueError(
                    f"{prefix}P has {outside} centre(s) outside 0 .. {size - 1}, where the public kernel was "
                    "cut off and ours is mirrored; move them onto the grid, or rebuild the kernel as a "
                    "full one"
                )
        return state


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


def _check_kernel(weight: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Return a kernel (C_out, C_in, F, T) to start from, checked, in float64 on the CPU."""
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


def _default_bias(n_out: int, fan_in: int) -> nn.Parameter:
    """Return a bias as ``nn.Conv2d`` starts it: uniform within ``1 / sqrt(fan_in)``."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))


@dataclass(frozen=True)
class GaussianFit:
    """G Gaussians for each of K kernels, (K, G): sums over the grid, centres and widths in grid points."""

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
    """Approximate every kernel (K, F, T) by a sum of Gaussians with axes along frequency and time.

    Orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad 1993, doi 10.1109/ACSSC.1993.342465) over
    every grid point and five widths per axis, then a short gradient descent over centres, widths and sums
    together.
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
    """Choose Gaussians greedily from the dictionary (orthogonal matching pursuit)."""
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
    """Move centres, widths and sums together by Adam on the squared error."""
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
