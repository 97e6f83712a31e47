"""Causal spectro-temporal convolutions: the linear heart of every STRF model."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.causal import State, placement
from deepSTRF.models.configurable import Configurable

__all__ = ["CausalSTRFConv", "convolve_full"]

#: Most elements that the product form may unfold (64 MiB in float32).
_MAX_UNFOLDED_ELEMENTS = 2**24


class CausalSTRFConv(nn.Module, Configurable):
    """Causal convolution whose kernel spans all frequency bands and the last ``T`` frames.

    ``y[c, t] = b[c] + sum over i, f, j of W[c, i, f, j] * x[i, f, t - (T - 1) + j]``: tap ``j = T - 1`` meets
    the current frame, ``j = 0`` the oldest. Time is padded on the left with ``T - 1`` zeros.

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

    def __init__(
        self, F: int, T: int, C_in: int, C_out: int, kernel: nn.Module | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.F = check_positive_int("F", F)
        self.T = check_positive_int("T", T)
        self.C_in = check_positive_int("C_in", C_in)
        self.C_out = check_positive_int("C_out", C_out)
        if kernel is not None and not isinstance(kernel, nn.Module):
            raise TypeError(f"kernel must be an nn.Module or None, got {type(kernel).__name__}")
        self.kernel: nn.Module = kernel or nn.Conv2d(self.C_in, self.C_out, (self.F, self.T), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C_in, F, T) and return (B, C_out, 1, T)."""
        self._check_input(x)
        return self._convolve(functional.pad(x, (self.T - 1, 0)))

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the zero frames that come before the first: ``{"history": (B, C_in, F, T - 1)}``."""
        own_device, own_dtype = placement(self)
        shape = (batch, self.C_in, self.F, self.T - 1)
        return {"history": torch.zeros(shape, device=device or own_device, dtype=dtype or own_dtype)}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Convolve the next frames (B, C_in, F, T'); return (B, C_out, 1, T') and the next state."""
        self._check_input(chunk)
        padded = torch.cat([state["history"], chunk], dim=-1)
        return self._convolve(padded), {"history": padded[..., padded.shape[-1] - (self.T - 1) :]}

    def STRF_weight(self) -> Tensor:
        """Return the kernel (C_out, C_in, F, T), newest frame last, as a detached tensor on the CPU.

        Raises
        ------
        NotImplementedError
            When the kernel is a module of the user's without ``build_kernel``.
        """
        build = getattr(self.kernel, "build_kernel", None)
        if callable(build):
            weight: Tensor = build()
        elif isinstance(self.kernel, nn.Conv2d):
            weight = self.kernel.weight
        elif _is_separable_pair(self.kernel):
            weight = self.kernel[0].weight * self.kernel[1].weight  # type: ignore[index]
        else:
            raise NotImplementedError(
                f"{type(self.kernel).__name__} does not say what its kernel is; give it a method "
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
    """Convolve frames, history in front, with a kernel that spans all bands; parameterised kernels call it.

    Parameters
    ----------
    padded : Tensor, shape (B, C_in, F, T' + T - 1)
        The frames, after T - 1 frames of history.
    weight : Tensor, shape (C_out, C_in, F, T)
        The kernel, newest frame last.
    bias : Tensor, shape (C_out,), or None
        Added to each output channel.

    Returns
    -------
    Tensor, shape (B, C_out, 1, T')
        One value per output channel and frame.

    Examples
    --------
    >>> convolve_full(torch.ones(1, 1, 4, 12), torch.ones(2, 1, 4, 3), None).shape
    torch.Size([1, 2, 1, 10])
    """
    n_taps = weight.shape[-1]
    if padded.device.type == "cpu" and _fits_unfolded(padded, n_taps, padded.shape[-1] - n_taps + 1):
        return _convolve_as_product(padded, weight, bias)
    return functional.conv2d(padded, weight, bias)


def _fits_unfolded(padded: Tensor, n_taps: int, n_frames: int) -> bool:
    batch, channels, bands, _ = padded.shape
    return batch * channels * bands * n_taps * n_frames <= _MAX_UNFOLDED_ELEMENTS


def _convolve_as_product(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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
    """Say whether a kernel is a convolution over frequency followed by a depthwise one over time."""
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
