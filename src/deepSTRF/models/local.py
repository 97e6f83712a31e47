"""Locally connected layer: a convolution over frequency whose weights differ from place to place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.models._checks import check_flag, check_positive_int
from deepSTRF.models.causal import FramewiseMixin
from deepSTRF.models.configurable import Configurable

__all__ = ["LocallyConnected1d", "covered_positions"]


def covered_positions(size: int, kernel_size: int, stride: int, padding: int = 0, dilation: int = 1) -> int:
    """Return how many positions a kernel takes along an axis: ``(size + 2 p - d (K - 1) - 1) // s + 1``.

    Parameters
    ----------
    size : int
        Length of the axis.
    kernel_size, stride, padding, dilation : int
        Of the kernel.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        When the kernel is longer than the padded axis.

    Examples
    --------
    >>> covered_positions(34, kernel_size=7, stride=3)
    10
    """
    span = dilation * (kernel_size - 1) + 1
    if span > size + 2 * padding:
        padded = f"{size} bands" if padding == 0 else f"{size} + 2 * {padding} bands"
        raise ValueError(
            f"kernel_size={kernel_size} (dilation {dilation}) spans {span} bands but there are {padded}; "
            f"with these a kernel_size of 1 to {(size + 2 * padding - 1) // dilation + 1} works"
        )
    return (size + 2 * padding - span) // stride + 1


class LocallyConnected1d(FramewiseMixin, nn.Module, Configurable):
    """A 1-D convolution without weight sharing: every position has weights of its own.

    ``y[c, l] = biases[c, l] + sum over i, k of weights[c, i * K + k, l] * x[i, l * stride + k * dilation -
    padding]``. It runs along frequency, on every frame by itself.

    Parameters
    ----------
    input_size : int
        Length of the axis it runs along, S (frequency bands).
    in_channels, out_channels : int
        Channels, C_in and C_out.
    kernel_size, stride, padding, dilation : int
        As in ``nn.Conv1d``.
    bias : bool
        Whether each output has a bias.

    Attributes
    ----------
    output_size : int
        Positions, L.
    weights : Tensor
        (C_out, C_in * K, L).
    biases : Tensor or None
        (C_out, L).

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, or a kernel longer than the padded axis.

    Notes
    -----
    Weights and biases start uniform between plus and minus ``1 / sqrt(C_in * K)``, as those of a convolution
    do.

    Examples
    --------
    >>> layer = LocallyConnected1d(input_size=34, in_channels=1, out_channels=7, kernel_size=7, stride=3)
    >>> layer(torch.zeros(100, 1, 34)).shape
    torch.Size([100, 7, 10])
    """

    biases: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.input_size = check_positive_int("input_size", input_size)
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.kernel_size = check_positive_int("kernel_size", kernel_size)
        self.stride = check_positive_int("stride", stride)
        self.padding = check_positive_int("padding", padding) if padding else 0
        self.dilation = check_positive_int("dilation", dilation)
        self.output_size = covered_positions(
            self.input_size, self.kernel_size, self.stride, self.padding, self.dilation
        )
        fan_in = self.in_channels * self.kernel_size
        bound = fan_in**-0.5
        self.weights = nn.Parameter(
            torch.empty(self.out_channels, fan_in, self.output_size).uniform_(-bound, bound)
        )
        drawn = (
            nn.Parameter(torch.empty(self.out_channels, self.output_size).uniform_(-bound, bound))
            if check_flag("bias", bias)
            else None
        )
        self.register_parameter("biases", drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, S) to (B, C_out, L).

        Raises
        ------
        ValueError
            For another shape.
        """
        if x.ndim != 3 or x.shape[1:] != (self.in_channels, self.input_size):
            raise ValueError(f"expected (B, {self.in_channels}, {self.input_size}), got {tuple(x.shape)}")
        span = self.dilation * (self.kernel_size - 1) + 1
        patches = functional.pad(x, (self.padding, self.padding)).unfold(-1, span, self.stride)
        patches = patches[..., :: self.dilation]  # (B, C_in, L, K), a view
        weights = self.weights.reshape(self.out_channels, self.in_channels, self.kernel_size, -1)
        y = torch.einsum("bilk,oikl->bol", patches, weights)
        return y if self.biases is None else y + self.biases
